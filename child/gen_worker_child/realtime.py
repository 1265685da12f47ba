"""The child's end of one realtime session: what the peer says, in order, until it hangs up.

Knows nothing of frames: whoever reads those puts messages in, a task of the asyncio loop takes them out.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable


class Mailbox:
    """Messages of the peer that the handler has not taken. Any thread puts; one task at a time takes."""

    def __init__(self, on_taken: Callable[[int], None]) -> None:
        """Call `on_taken` with how many messages were taken each time some were."""
        self._on_taken = on_taken
        self._lock = threading.Lock()
        self._messages: deque[bytes | str] = deque()
        self._hung_up = False
        self._waiting: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None

    def put(self, message: bytes | str) -> None:
        """Add a message; one that comes after the end is dropped."""
        with self._lock:
            if not self._hung_up:
                self._messages.append(message)
            self._wake()

    def hang_up(self) -> None:
        """No message comes any more; those that are here can be taken yet."""
        with self._lock:
            self._hung_up = True
            self._wake()

    async def take(self) -> bytes | str | None:
        """Return the next message, None once the peer has hung up and nothing is left."""
        while True:
            with self._lock:
                if self._messages:
                    message = self._messages.popleft()
                    break
                if self._hung_up:
                    return None
                loop = asyncio.get_running_loop()
                future: asyncio.Future[None] = loop.create_future()
                self._waiting = (loop, future)
            await future
        self._on_taken(1)
        return message

    def _wake(self) -> None:
        if self._waiting is not None:
            loop, future = self._waiting
            self._waiting = None
            loop.call_soon_threadsafe(_finish, future)


class Session:
    """What a realtime handler speaks through. Everything but `mailbox` is for the asyncio loop only."""

    def __init__(self, mailbox: Mailbox, send: Callable[[bytes, bool], Awaitable[None]]) -> None:
        self.mailbox = mailbox
        self.closed = False
        """Whether the handler has closed it."""

        self._send = send

    async def receive(self) -> bytes | str | None:
        """Return the peer's next message, None once it has hung up or the handler has closed the session."""
        return None if self.closed else await self.mailbox.take()

    async def send(self, message: bytes | str) -> None:
        """Send a message to the peer, as soon as it has taken enough of the earlier ones.

        Raises `CanceledError` once the job is to end, and `ConnectionError` after `close`.
        """
        if self.closed:
            raise ConnectionError("the session is closed")
        is_text = isinstance(message, str)
        await self._send(message.encode() if isinstance(message, str) else message, is_text)

    def close(self) -> None:
        """End the session from this side: nothing is sent or received any more."""
        self.closed = True


def _finish(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
