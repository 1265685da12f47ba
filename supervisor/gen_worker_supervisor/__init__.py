"""The process that owns a host's devices: one child on each, and an answer for every job."""
