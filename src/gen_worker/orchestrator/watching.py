"""Who watches a job, and what is kept for those who come late."""

import asyncio
from collections import deque

from gen_worker.orchestrator.views import JobEvent

WATCHED_EVENTS = 1024  # for a watcher that does not read; with more it reads them from the disk later
WATCHED_BYTES = 4 << 20  # of their bodies, or one event
KEPT_BYTES = 32 << 20  # of a job's events, at least; twice as much at most
EVENT_BYTES = 64  # of an event beside its body


class Watch:
    """One watcher's view of one job: what happens, in order, or that it fell behind."""

    def __init__(self) -> None:
        self._events: deque[JobEvent] = deque()
        self._bytes = 0
        self._behind = True
        self._news = asyncio.Event()

    def resume(self) -> None:
        """Take in what happens from here on; whoever calls has read, or reads, what was before."""
        self._events.clear()
        self._bytes = 0
        self._behind = False
        self._news.clear()

    def tell(self, event: JobEvent) -> None:
        """Something happened."""
        full = len(self._events) == WATCHED_EVENTS or self._bytes + len(event.body) > WATCHED_BYTES
        if self._events and full:
            self.fall_behind()
        elif not self._behind:
            self._events.append(event)
            self._bytes += len(event.body)
        self._news.set()

    def fall_behind(self) -> None:
        """Have the watcher look at what is kept."""
        self._events.clear()
        self._bytes = 0
        self._behind = True
        self._news.set()

    async def next(self) -> JobEvent | None:
        """Return what happened next; None for a watcher that fell behind."""
        while not self._events and not self._behind:
            self._news.clear()
            await self._news.wait()
        if self._behind:
            return None
        event = self._events.popleft()
        self._bytes -= len(event.body)
        return event


class Log:
    """The numbers of a job's events, and how many of them are kept."""

    def __init__(self, last: int = 0) -> None:
        self.last = last
        self._bytes = 0
        self._mark = 0

    def add(self, size: int) -> int:
        """Count one more event of so many bytes; return up to which number events are now too old, 0 for none."""
        self.last += 1
        self._bytes += EVENT_BYTES + size
        if self._bytes <= KEPT_BYTES:
            return 0
        old, self._mark, self._bytes = self._mark, self.last, 0
        return old
