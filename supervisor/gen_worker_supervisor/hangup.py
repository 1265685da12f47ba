"""Notice that a client is really gone, which asyncio cannot tell from one that only closed its sending half.

A second epoll holds the sockets with an empty mask: the kernel then reports the hang-up and nothing else.
"""

import asyncio
import select
from collections.abc import Callable


class Hangups:
    """Calls back once for each watched socket whose peer has closed both halves."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[], object]] = {}
        loop.add_reader(self._epoll.fileno(), self._look)

    def watch(self, fd: int, on_hangup: Callable[[], object]) -> None:
        """Call `on_hangup` when the peer of this socket is gone."""
        self._watched[fd] = on_hangup
        self._epoll.register(fd, 0)

    def forget(self, fd: int) -> None:
        """Watch a socket no more; call it before the socket is closed."""
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _look(self) -> None:
        for fd, _ in self._epoll.poll(0):
            on_hangup = self._watched.get(fd)
            self.forget(fd)
            if on_hangup is not None:
                on_hangup()

    def close(self) -> None:
        """Watch nothing more."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
