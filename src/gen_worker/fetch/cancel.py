"""How work on bytes is told to stop, wherever it waits."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from gen_worker.models.errors import ModelError


class Cancel:
    """A flag that also ends waits: sockets given to `watching` are shut down when it is set."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._parts: set[Cancel] = set()

    def set(self) -> None:
        """Ask everything that goes by this flag to stop."""
        with self._lock:
            self._event.set()
            for sock in self._sockets:
                with suppress(OSError):  # it is closed already
                    sock.shutdown(socket.SHUT_RDWR)
            for part in self._parts:
                part.set()

    def is_set(self) -> bool:
        """Whether it was asked to stop."""
        return self._event.is_set()

    def raise_if_set(self) -> None:
        """Raise `ModelError` of the kind `canceled` when it was asked to stop."""
        if self._event.is_set():
            raise ModelError("canceled", "canceled")

    def wait(self, seconds: float) -> None:
        """Wait so long; raise `ModelError` as soon as it is asked to stop."""
        if self._event.wait(seconds):
            self.raise_if_set()

    @contextmanager
    def watching(self, sock: socket.socket) -> Iterator[None]:
        """Have a socket shut down when the flag is set inside this block."""
        with self._lock:
            self._sockets.add(sock)
        try:
            self.raise_if_set()
            yield
        finally:
            with self._lock:
                self._sockets.discard(sock)

    @contextmanager
    def part(self) -> Iterator["Cancel"]:
        """Yield a flag for a part of the work: it is set with this one, or alone."""
        part = Cancel()
        with self._lock:
            self._parts.add(part)
            if self._event.is_set():
                part.set()
        try:
            yield part
        finally:
            with self._lock:
                self._parts.discard(part)
