"""Bytes from the network to a file: connections, redirects, ranges, retries, digests."""
