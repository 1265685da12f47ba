"""Another service's API, offered as an endpoint."""
