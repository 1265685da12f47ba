"""What is needed of OpenAI's API as engine servers speak it, over asyncio streams and the standard library alone."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from gen_worker import RetryableError, ValidationError


class OpenAi:
    """An engine server on the loopback; each request has a connection of its own."""

    def __init__(self, base_url: str) -> None:
        host, _, port = base_url.removeprefix("http://").partition(":")
        self._host, self._port = host, int(port)

    async def complete(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return a whole completion."""
        async with self._posted("/v1/chat/completions", request) as answer:
            completion: dict[str, Any] = json.loads(b"".join([piece async for piece in answer]))
            return completion

    async def stream(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Yield the events of a completion as they come."""
        async with self._posted("/v1/chat/completions", {**request, "stream": True}) as answer:
            async for line in _lines(answer):
                if line == b"data: [DONE]":
                    return
                if line.startswith(b"data: "):
                    yield json.loads(line.removeprefix(b"data: "))

    @asynccontextmanager
    async def _posted(self, path: str, request: dict[str, Any]) -> AsyncIterator[AsyncIterator[bytes]]:
        """Send a request and give the body of its answer, in pieces; the connection ends with the block.

        A caller who goes away is heard of by the engine in that: it stops to generate.
        """
        body = json.dumps(request).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nContent-Type: application/json\r\n"
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
            status, headers = _head(await reader.readuntil(b"\r\n\r\n"))
            pieces = _chunked(reader) if headers.get("transfer-encoding") == "chunked" else _plain(reader)
            if status != 200:
                _refuse(status, b"".join([piece async for piece in pieces]))
            yield pieces
        finally:
            writer.close()


def _head(data: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = data.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    return int(first.split(" ")[1]), {name.strip().lower(): value.strip().lower() for name, _, value in pairs}


def _refuse(status: int, body: bytes) -> None:
    try:
        said = json.loads(body)
        told = said["error"]["message"] if "error" in said else said["message"]
    except (ValueError, LookupError, TypeError):
        told = body[:200].decode("utf-8", "replace")
    if status < 500:
        raise ValidationError(f"the engine refused the request with status {status}: {told}")
    raise RetryableError(f"the engine answered with status {status}: {told}")


async def _plain(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while piece := await reader.read(1 << 16):
        yield piece


async def _chunked(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while length := int((await reader.readline()).split(b";")[0] or b"-1", 16):
        if length < 0:
            raise ConnectionError("the engine's answer broke off")
        yield (await reader.readexactly(length + 2))[:length]


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r")
