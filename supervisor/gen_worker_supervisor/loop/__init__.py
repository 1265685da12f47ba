"""What the supervisor's loop and the threads beside it need to stay on time."""
