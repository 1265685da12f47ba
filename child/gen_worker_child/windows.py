"""Back-pressure of one job's stream: the handler's next item waits here until the reader has taken earlier ones."""

import asyncio
import threading
from collections import deque

from gen_worker.wire.messages import WINDOW_BYTES, WINDOW_ITEMS


class Window:
    """How many items, and bytes, of one stream may be on their way at once. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._on_the_way: deque[int] = deque()
        self._bytes = 0
        self._open = True
        self._waiting: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None

    def _has_room(self) -> bool:
        return not self._open or (len(self._on_the_way) < WINDOW_ITEMS and self._bytes < WINDOW_BYTES)

    def add(self, size: int) -> None:
        """Count an item that was just sent."""
        with self._lock:
            self._on_the_way.append(size)
            self._bytes += size

    def wait(self) -> None:
        """Block the calling thread until the next item may be sent or the window is closed."""
        with self._room:
            self._room.wait_for(self._has_room)

    def wait_async(self) -> "asyncio.Future[None] | None":
        """Return None when the next item may be sent now, else a future of the running loop that ends when it may."""
        with self._lock:
            if self._has_room():
                return None
            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()
            self._waiting = (loop, future)
            return future

    def taken(self, items: int) -> None:
        """The reader took this many items."""
        with self._room:
            for _ in range(min(items, len(self._on_the_way))):
                self._bytes -= self._on_the_way.popleft()
            self._wake()

    def close(self) -> None:
        """End every wait: the job is to end, or the reader is gone."""
        with self._room:
            self._open = False
            self._wake()

    def _wake(self) -> None:
        if not self._has_room():
            return
        self._room.notify_all()
        if self._waiting is not None:
            loop, future = self._waiting
            self._waiting = None
            loop.call_soon_threadsafe(_finish, future)


def _finish(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
