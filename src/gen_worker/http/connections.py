"""Connections to an HTTP server: nobody holds one for longer than it is used, and who holds one idly gives way."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST = 2048
QUEUED = 64  # connections that the kernel holds, and asyncio takes at once
COMING = 4 * QUEUED  # that are taken before those that give way to them are closed
KEPT_S = 75  # without a request
QUIET_S = 60.0  # what comes, or is taken, more slowly than `SLOW_BYTES` in this time is given up
SLOW_BYTES = 64 << 10


def most_connections(wanted: int, descriptors: int) -> int:
    """Return how many connections are held at once by a process that has so many descriptors for them. Pure.

    Where they run out asyncio logs each connection that it cannot take, and the log would be anybody's to fill.
    """
    return max(8, min(wanted, descriptors - COMING))


class LoopServer(uvicorn.Server):
    """A server on a loop that is not its own: signals are somebody else's."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


class Connection(H11Protocol):
    """One connection. It is closed when a head does not come in time, or when its reader takes too little.

    Where all are taken, the one that has been without a request for the longest gives way to a new one.
    """

    head_s = 10.0
    """For a request's head to come, from when the connection is opened or the head has begun."""

    quiet_s = QUIET_S
    """In which at least `SLOW_BYTES` are taken, or all."""

    _quiet_since = 0.0
    _head: asyncio.TimerHandle | None = None
    _sending: asyncio.TimerHandle | None = None
    _left = 0  # what was not sent when it was last looked at

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=1, low=0)  # so that `pause_writing` tells of all that is not taken
        self._quiet_since = self.loop.time()
        self._await_head()
        if len(self.connections) >= (self.limit_concurrency or MOST):
            self._take_place()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        for timer in (self._head, self._sending):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what comes; a request that has begun is to be told soon."""
        super().data_received(data)
        self._await_head()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, where nothing is being answered already, and close."""
        if not self._is_idle:
            self.cycle.disconnected = True  # what its handler still says goes nowhere
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.abort()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        self._quiet_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Look whether what is not sent becomes less."""
        super().pause_writing()
        self._left = self.transport.get_write_buffer_size()
        self._sending = self.loop.call_later(self.quiet_s, self._judge)

    def resume_writing(self) -> None:
        """Everything was taken."""
        super().resume_writing()
        if self._sending is not None:
            self._sending.cancel()

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _await_head(self) -> None:
        if not self._is_idle:
            if self._head is not None:
                self._head.cancel()
            self._head = None
        elif self._head is None:
            self._head = self.loop.call_later(self.head_s, self.transport.abort)

    def _take_place(self) -> None:
        idle = [each for each in self.connections if isinstance(each, Connection) and each._is_idle and each != self]
        if idle:
            oldest = min(idle, key=lambda each: each._quiet_since)
            self.connections.discard(oldest)
            oldest.transport.abort()

    def _judge(self) -> None:
        left = self.transport.get_write_buffer_size()
        if left > self._left - SLOW_BYTES:
            self.transport.abort()
            return
        self._left = left
        self._sending = self.loop.call_later(self.quiet_s, self._judge)
