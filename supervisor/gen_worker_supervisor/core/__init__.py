"""What is decided, and from what: the fleet, what happens to it, what is to be done. Pure but for the bodies."""
