"""What the supervisor, its children and its clients say to each other: message types and the sockets that carry them."""
