"""What the supervisor, its children and its clients say to each other, and the sockets that carry it."""
