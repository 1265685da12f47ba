"""What producers ask of their platform, as HTTP requests: repositories, their contents, data sets, posts."""
