"""The link to an orchestrator of the earlier generation: another stream over the same job table."""
