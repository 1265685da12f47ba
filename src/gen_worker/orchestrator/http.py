"""What every HTTP route of a control plane has in common: bodies with limits, refusals as JSON, files in pieces."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from math import ceil
from typing import Any, NamedTuple, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gen_worker.http.connections import QUIET_S, SLOW_BYTES
from gen_worker.orchestrator.refusal import Refusal
from gen_worker.orchestrator.rendering import decoded
from gen_worker.orchestrator.waiting import hung_up

PIECE_BYTES = 1 << 20
SMALL_BYTES = 64 << 10

Found = TypeVar("Found")
Handler = Callable[[Request], Awaitable[Response]]
Routes = list[tuple[str, str, Handler]]
"""Method, path and handler of each."""


class Threads:
    """Where files are read, written and hashed, so that a long one keeps nothing else waiting."""

    def __init__(self, most: int = 8) -> None:
        self._pool = ThreadPoolExecutor(most, "gen-worker-files")

    async def run(self, call: Callable[..., Found], *arguments: Any) -> Found:
        """Make a call that blocks; return what it does."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(call, *arguments))

    def close(self) -> None:
        """Let those end that run, and none begin."""
        self._pool.shutdown(cancel_futures=True)


class Json(Response):
    """A JSON document."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Encode it."""
        return msgspec.json.encode(content) + b"\n"


def refused(error: Refusal, more: Mapping[str, Any] | None = None) -> Response:
    """Return a refusal as it is sent: `{"error": {"code", "message", "hint"?, …}}`."""
    document: dict[str, Any] = {"code": error.code, "message": str(error)}
    if error.hint:
        document["hint"] = error.hint
    headers = {"Retry-After": str(ceil(error.retry_after_s))} if error.status in (429, 503) else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Json({"error": document | dict(more or {})}, error.status, headers)


def answering(handler: Handler) -> Handler:
    """Make a handler's refusals answers."""

    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except Refusal as error:
            return refused(error)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it

    return handle


# --- bodies -----------------------------------------------------------------------------------------------------------


async def pieces(request: Request, quiet_s: float = QUIET_S) -> AsyncIterator[bytes]:
    """Yield a body in pieces of about `PIECE_BYTES`; raise `Refusal` when it comes too slowly."""
    gathered, length = [], 0
    stream = request.stream()
    async with aclosing(stream):
        while chunk := await _chunk(stream, quiet_s):
            gathered.append(chunk)
            length += len(chunk)
            if length >= PIECE_BYTES:
                yield b"".join(gathered)
                gathered, length = [], 0
    if gathered:
        yield b"".join(gathered)


async def _chunk(stream: AsyncIterator[bytes], quiet_s: float) -> bytes:
    """Return the next `SLOW_BYTES` or more of a body, less at its end and then nothing."""
    gathered, length = [], 0
    try:
        async with asyncio.timeout(quiet_s):
            while length < SLOW_BYTES and (piece := await anext(stream, None)) is not None:
                gathered.append(piece)
                length += len(piece)
    except TimeoutError:
        raise Refusal(408, "timeout", f"{length} bytes of the body came in {quiet_s:.0f} s") from None
    return b"".join(gathered)


async def body_of(request: Request, most: int) -> bytes:
    """Return a body; raise `Refusal` for a longer one before it is read, where it says its length."""
    length = length_of(request)
    gathered, so_far = [], 0
    if length is None or length <= most:
        async for piece in pieces(request):
            so_far += len(piece)
            if so_far > most:
                break
            gathered.append(piece)
        else:
            return b"".join(gathered)
    raise Refusal(413, "too_large", f"a body has at most {most} bytes, this one has {length or f'more than {most}'}")


async def document_of(request: Request, kind: type[Any], most: int = SMALL_BYTES) -> Any:
    """Return a small JSON body as a value of a type."""
    return decoded(await body_of(request, most) or b"{}", kind)


def length_of(request: Request) -> int | None:
    """Return the length that a body says it has."""
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


# --- files ------------------------------------------------------------------------------------------------------------


class Range(NamedTuple):
    """The bytes of a file from `start` up to `stop`."""

    start: int
    stop: int


def range_of(header: str, size: int) -> Range | None:
    """Return the one range that is asked for; None for the whole, also where several are asked for.

    Raises `Refusal` for one that lies outside of the file.
    """
    unit, _, text = header.partition("=")
    first, dash, last = text.strip().partition("-")
    numbers = all(not each or (each.isascii() and each.isdigit() and len(each) < 20) for each in (first, last))
    if unit.strip().lower() != "bytes" or not dash or not numbers or not (first or last):
        return None
    start = int(first) if first else max(size - int(last), 0)
    stop = min(int(last) + 1, size) if first and last else size
    if start >= size or (first and last and int(last) < start) or last == "0" != first:
        raise Refusal(416, "no_such_range", f"the file has {size} bytes")
    return Range(start, stop)


class FileContent(Response):
    """A file's bytes, or a range of them, read 1 MiB at a time and never on the loop; the descriptor is its own."""

    def __init__(
        self,
        request: Request,
        threads: Threads,
        descriptor: int,
        size: int,
        etag: str,
        mime_type: str = "application/octet-stream",
    ) -> None:
        self._threads = threads
        self._descriptor = descriptor
        try:
            self._range = self._asked(request, size, f'"{etag}"')
        except Refusal:
            os.close(descriptor)
            raise
        part = self._range or Range(0, size)
        headers = {
            "Accept-Ranges": "bytes",
            "Content-Length": str(part.stop - part.start),
            "Content-Type": mime_type,
            "ETag": f'"{etag}"',
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "sandbox; default-src 'none'",  # it is no page of ours, whatever it holds
        }
        if self._range is not None:
            headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
        self._left = Range(0, 0) if request.method == "HEAD" else part
        super().__init__(status_code=200 if self._range is None else 206, headers=headers)

    @staticmethod
    def _asked(request: Request, size: int, etag: str) -> Range | None:
        header = request.headers.get("range")
        if header is None or request.headers.get("if-range", etag) != etag:
            return None
        return range_of(header, size)

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, to its end or until nobody reads any more."""
        leaving = asyncio.ensure_future(hung_up(receive))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            at, stop = self._left
            while at < stop and not leaving.done():
                piece = await self._threads.run(os.pread, self._descriptor, min(PIECE_BYTES, stop - at), at)
                if not piece:
                    raise OSError("the file has become shorter while it was sent")
                at += len(piece)
                await send({"type": "http.response.body", "body": piece, "more_body": at < stop})
            if self._left == (0, 0) or self._left.start == self._left.stop:
                await send({"type": "http.response.body", "body": b""})
        finally:
            leaving.cancel()
            os.close(self._descriptor)
