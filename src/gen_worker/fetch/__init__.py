"""The only code that moves bytes from the network to disk, and from disk to shared memory.

The fetcher process runs it for a supervisor, `prefetch`, `cache` and `run` in their own process. No torch, no asyncio;
children never import it.
"""
