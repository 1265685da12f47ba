"""The disk cache: where files lie, what is known of them, who uses them, what goes first."""
