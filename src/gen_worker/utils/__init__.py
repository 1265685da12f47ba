"""What authors use beside the SDK's own parts, each for one library."""
