"""Who holds connections to a control plane's API without using them, beside those who use theirs."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from gen_worker.http.connections import Connection, LoopServer

pytestmark = pytest.mark.process
MOST = 8
PATIENCE_S = 10.0
READY = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LONG = b"GET /long HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
LONG_BYTES = 32 << 20
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Hasty(Connection):
    """A connection with little patience."""

    head_s = 0.3
    quiet_s = 0.3


class Patient(Connection):
    """A connection that is closed for the sake of others only."""

    head_s = PATIENCE_S * 10


async def answer(scope: Any, _receive: Any, send: Any) -> None:
    body = bytes(LONG_BYTES) if scope["path"] == "/long" else b"ok"
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def serving(kind: type[Connection]) -> AsyncIterator[int]:
    """Serve on a port until the body ends."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(
            answer, http=kind, ws="none", lifespan="off", log_config=None, access_log=False, limit_concurrency=MOST
        )
        server = LoopServer(config)
        running = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            async with asyncio.timeout(PATIENCE_S):
                await running


async def opened(port: int, sent: bytes = b"") -> Streams:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    await writer.drain()
    return reader, writer


async def status_of(reader: asyncio.StreamReader) -> int:
    async with asyncio.timeout(PATIENCE_S):
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]))
    return int(head.split()[1])


async def closed(reader: asyncio.StreamReader) -> int:
    """Read until the connection is closed, and return how many bytes came."""
    came = 0
    try:
        async with asyncio.timeout(PATIENCE_S):
            while piece := await reader.read(1 << 20):
                came += len(piece)
    except ConnectionError:
        pass
    return came


async def let_go(*streams: Streams) -> None:
    for _, writer in streams:
        writer.transport.abort()


def test_idle_connections_give_way_to_whoever_asks() -> None:
    async def go() -> None:
        async with serving(Patient) as port:
            used = await opened(port, READY)
            assert await status_of(used[0]) == 200
            idle = [await opened(port) for _ in range(3 * MOST)]
            late = await opened(port, READY)
            assert await status_of(late[0]) == 200
            assert await closed(used[0]) == await closed(idle[0][0]) == 0
            await let_go(used, late, *idle)

    asyncio.run(go())


@pytest.mark.parametrize("sent", [b"", READY[:-2], POST[:-2]])
def test_a_head_that_does_not_come_closes_its_connection(sent: bytes) -> None:
    async def go() -> None:
        async with serving(Hasty) as port:
            slow = await opened(port, sent)
            assert await closed(slow[0]) == 0
            await let_go(slow)

    asyncio.run(go())


def test_a_body_that_nobody_waits_for_does_not_keep_its_connection() -> None:
    async def go() -> None:
        async with serving(Hasty) as port:
            reader, writer = await opened(port, POST)
            assert await status_of(reader) == 200
            trickling = asyncio.create_task(closed(reader))
            while not trickling.done():
                writer.write(b"x")
                await asyncio.sleep(0.02)
            assert await trickling == 0
            writer.transport.abort()

    asyncio.run(go())


def test_a_reader_that_takes_nothing_loses_its_connection_and_a_slow_one_does_not() -> None:
    async def go() -> None:
        async with serving(Hasty) as port:
            lazy, slow = await opened(port, LONG), await opened(port, LONG)
            came = 0
            async with asyncio.timeout(PATIENCE_S):
                while came < LONG_BYTES:
                    came += len(await slow[0].read(2 << 20))
                    await asyncio.sleep(0.02)
            assert await closed(lazy[0]) < LONG_BYTES
            await let_go(lazy, slow)

    asyncio.run(go())


def test_a_connection_is_used_again_after_a_while() -> None:
    async def go() -> None:
        async with serving(Hasty) as port:
            used = await opened(port, READY)
            assert await status_of(used[0]) == 200
            await asyncio.sleep(2 * Hasty.head_s)
            used[1].write(READY)
            assert await status_of(used[0]) == 200
            await let_go(used)

    asyncio.run(go())
