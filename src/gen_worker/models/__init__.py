"""What a model is on its way from a binding to a device: refs, file lists, footprints. No network, no torch."""
