"""Processes: how they are made, watched and reaped, what they print and what they leave."""
