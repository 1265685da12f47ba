"""The models of one child: built from what is on disk, placed on its device, let go of when room is needed."""
