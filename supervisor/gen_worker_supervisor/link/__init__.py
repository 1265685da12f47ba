"""The link to an orchestrator: one gRPC stream, and what is said over it."""
