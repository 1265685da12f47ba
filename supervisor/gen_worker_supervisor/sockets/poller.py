"""Watch the sockets of children and clients in one epoll, beside asyncio's own.

asyncio schedules each event as a callback of its own; here the events of one turn are handled in one go, and the loop
is given back when no more come. A client that is really gone is told from one that only closed its sending half, since
both are events of the same socket. What became ready first is handled first: what a child printed before its answer.
"""

import asyncio
import select
import time
from collections.abc import Callable

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
GONE = select.EPOLLHUP | select.EPOLLERR
TURN_S = 0.005  # after so long asyncio's timers and other descriptors get their turn
LINGER_S = 0.001  # how long a turn waits for the next event before it ends: a round trip to a child fits in it
EVENTS_A_LOOK = 64

OnEvents = Callable[[int], None]
"""Takes the events of a socket: `READABLE`, `WRITABLE` and `GONE` bits."""


class Poller:
    """Calls back for sockets that are ready; level-triggered."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, linger_s: float = LINGER_S) -> None:
        """Watch from now on; 0 lingers nowhere, for a loop that has more to do than this."""
        self._loop = loop
        self._linger_s = linger_s
        self._epoll = select.epoll()
        self._watched: dict[int, OnEvents] = {}
        self._left: set[int] = set()  # forgotten in this look: what it still reports of them is of the past
        loop.add_reader(self._epoll.fileno(), self._turn)

    def watch(self, fd: int, on_events: OnEvents, events: int = READABLE) -> None:
        """Begin to watch a socket; `GONE` is reported whatever the events."""
        self._watched[fd] = on_events
        self._epoll.register(fd, events)

    def change(self, fd: int, events: int) -> None:
        """Watch a socket for other events; 0 leaves `GONE` only."""
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Watch a socket no more; call it before the socket is closed. Forgetting twice is allowed."""
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)
            self._left.add(fd)

    def _turn(self) -> None:
        ends = time.monotonic() + TURN_S
        wait = 0.0
        while events := self._epoll.poll(wait, EVENTS_A_LOOK):
            for fd, what in events:
                on_events = self._watched.get(fd)
                if on_events is not None and fd not in self._left:
                    on_events(what)
            self._left.clear()
            if not self._linger_s or time.monotonic() >= ends:
                return  # what is left is reported again, after everybody else had a turn
            wait = self._linger_s

    def close(self) -> None:
        """Watch nothing more."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
