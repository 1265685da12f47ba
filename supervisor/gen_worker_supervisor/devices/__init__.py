"""Devices: which are ours, whether they can be used, and how they are."""
