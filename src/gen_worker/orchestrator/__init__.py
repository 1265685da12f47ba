"""A control plane to drive workers with: for development, tests, and one host that serves itself.

A process of its own. It speaks the workers' wire over gRPC, keeps what it was given in one SQLite file, and knows
nothing of what runs inside a worker.
"""
