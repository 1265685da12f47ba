"""Bytes on their way: models and inputs that come, outputs that go. The fetcher moves them."""
