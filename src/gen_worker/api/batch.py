"""Batching: several requests of a function in one call of its handler."""

import msgspec

MOST_SIZE = 512  # half of what a child may be handed at once
MOST_WAIT_MS = 60_000.0


class Batch(msgspec.Struct, frozen=True):
    """How requests are put together: at most `max_size` of them, the first waiting `max_wait_ms` for others.

    The handler takes a list of payloads and returns a list with one output for each, in the same order. An exception in
    the place of an output fails that request alone. When the handler raises, each of them runs once more by itself.
    """

    max_size: int = 8
    max_wait_ms: float = 5.0

    def __post_init__(self) -> None:
        if type(self.max_size) is not int:
            raise TypeError(f"`Batch(max_size=)` takes a whole number, got {self.max_size!r}")
        if not 1 <= self.max_size <= MOST_SIZE:
            raise ValueError(f"`Batch(max_size=)` must be 1 to {MOST_SIZE}, got {self.max_size}")
        if isinstance(self.max_wait_ms, bool) or not isinstance(self.max_wait_ms, int | float):
            raise TypeError(f"`Batch(max_wait_ms=)` takes milliseconds, got {self.max_wait_ms!r}")
        if not 0 <= self.max_wait_ms <= MOST_WAIT_MS:
            raise ValueError(f"`Batch(max_wait_ms=)` must be 0 to {MOST_WAIT_MS:.0f}, got {self.max_wait_ms:g}")
