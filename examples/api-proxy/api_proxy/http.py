"""One HTTP/1.1 request over asyncio streams, with nothing but the standard library."""

import asyncio
from typing import NamedTuple
from urllib.parse import urlsplit

ANSWER_LIMIT = 4 << 20


class HttpAnswer(NamedTuple):
    status: int
    body: bytes


async def post(url: str, body: bytes, headers: dict[str, str]) -> HttpAnswer:
    """Send one POST on a connection of its own; raise ConnectionError when there is no whole answer."""
    at = urlsplit(url)
    secure = at.scheme == "https"
    reader, writer = await asyncio.open_connection(at.hostname, at.port or (443 if secure else 80), ssl=secure or None)
    try:
        writer.write(_head(f"POST {at.path or '/'} HTTP/1.1", {"Host": at.netloc, **headers}, len(body)) + body)
        await writer.drain()
        return await _answer(reader)
    except asyncio.IncompleteReadError as error:
        raise ConnectionError("the connection ended in the middle of the answer") from error
    finally:
        writer.close()


def _head(first: str, headers: dict[str, str], length: int) -> bytes:
    lines = [first, *(f"{name}: {value}" for name, value in headers.items())]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a header must not contain line breaks")
    return "\r\n".join([*lines, f"Content-Length: {length}", "Connection: close", "", ""]).encode("latin-1")


async def _answer(reader: asyncio.StreamReader) -> HttpAnswer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = int(headers.get("content-length", "0"))
    if length > ANSWER_LIMIT:
        raise ConnectionError(f"the answer has {length} bytes, the limit is {ANSWER_LIMIT}")
    return HttpAnswer(int(first.split(" ")[1]), await reader.readexactly(length))
