"""What comes of one file: counted, told, and watched for standing still. For any number of threads."""

import threading
from collections.abc import Callable

from gen_worker.fetch.network.patience import HttpError, Patience, RedirectedError
from gen_worker.models.errors import ModelError

GAIN_BYTES = 64 << 10  # fewer new bytes than these do not end a row of failures


class Traffic:
    """The bytes of one file over all attempts at it."""

    def __init__(self, patience: Patience, stall_timeout_s: float, on_bytes: Callable[[int], None]) -> None:
        self.received = 0
        """Bytes that came over the network."""

        self.gains = 0
        """How often something worth mentioning came that had never been there."""

        self._there = 0
        self._gained_at = 0
        self._clock = patience.clock
        self._alive_at = self._clock()
        self._stall_timeout_s = stall_timeout_s
        self._on_bytes = on_bytes
        self._lock = threading.Lock()

    def found(self, count: int) -> None:
        """So many bytes are there from before."""
        with self._lock:
            self._there += count
            self._gained_at = max(self._gained_at, self._there)
            if count:
                self._on_bytes(count)

    def came(self, count: int) -> None:
        """So many bytes came and are written."""
        with self._lock:
            self.received += count
            self._there += count
            self._alive_at = self._clock()
            if self._there >= self._gained_at + GAIN_BYTES:
                self._gained_at = self._there
                self.gains += 1
            self._on_bytes(count)

    def lost(self) -> None:
        """What was there is thrown away."""
        with self._lock:
            there, self._there = self._there, 0
            if there:
                self._on_bytes(-there)

    def failed(self, error: Exception) -> None:
        """A request failed; raise `ModelError` when there was no sign of life for too long."""
        with self._lock:
            now = self._clock()
            if isinstance(error, RedirectedError):
                error = error.reason
            if isinstance(error, (HttpError, ConnectionRefusedError)):
                self._alive_at = now  # it does say something
            silent = now - self._alive_at
        if 0 < self._stall_timeout_s <= silent:
            raise ModelError("stalled", f"no byte came for {silent:.0f} seconds", "check the network, then try again")
