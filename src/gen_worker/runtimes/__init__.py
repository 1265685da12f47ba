"""What endpoints of certain model families stand on: engine servers, and what is known of models that speak."""
