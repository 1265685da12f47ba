"""Sockets that are listened on, and the bounds on what comes in by them."""
