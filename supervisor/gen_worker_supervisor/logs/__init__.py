"""What the supervisor tells, to whom, and what must never be in it."""
