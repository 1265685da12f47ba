"""A language model behind an engine server, offered as an endpoint."""
