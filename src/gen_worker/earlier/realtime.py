"""What a realtime function of the earlier API speaks with its caller through."""

import json
from collections.abc import AsyncIterator
from typing import Any, Protocol

__all__ = ["RealtimeSocket"]


class Peer(Protocol):
    """One realtime session, as the process that runs the handler has it."""

    async def receive(self) -> bytes | str | None:
        """Return the caller's next message, None at the end."""

    async def send(self, message: bytes | str) -> None:
        """Send a message to the caller."""

    def close(self) -> None:
        """End the session."""


class RealtimeSocket:
    """One session with a caller; it is over when either side closes it.

    Of what the caller sends at most 16 messages wait here; what it sends faster than the handler reads waits with it.
    """

    __slots__ = ("_peer",)

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def send_bytes(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes; wait while the caller is slow. Raises `ConnectionError` after `close`."""
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"`send_bytes` takes bytes, got {type(data).__name__}")
        await self._peer.send(bytes(data))

    async def send_json(self, value: Any) -> None:
        """Send a value as a text of JSON."""
        await self._peer.send(json.dumps(value, ensure_ascii=False, separators=(",", ":")))

    async def iter_bytes(self) -> AsyncIterator[bytes]:
        """Yield what the caller sends, a text as UTF-8, until it or this side closes the session."""
        while (message := await self._peer.receive()) is not None:
            yield message.encode() if isinstance(message, str) else message

    async def close(self) -> None:
        """End the session from this side."""
        self._peer.close()
