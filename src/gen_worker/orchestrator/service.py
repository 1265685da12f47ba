"""Workers' streams: the gRPC server that they connect to. Knows what is said, not what it means."""

import asyncio
import itertools
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from gen_worker.orchestrator.tokens import TokenError, Tokens, WorkerClaims
from gen_worker.pb import CONNECT
from gen_worker.pb.convert import decode_worker, encode_scheduler
from gen_worker.wire.scheduler import MESSAGE_BYTES, Drain, Hello, SchedulerFrame, TokenRefresh, WorkerFrame

HELLO_TIMEOUT_S = 15.0
QUEUED_FRAMES = 1024  # for a worker that does not read; one more ends its stream
CLOSE_S = 2.0  # for streams to end when the server does
REFRESH_AT = 0.8  # of a token's life

OPTIONS = [
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # a ping has 60 s otherwise, whatever the keepalive's time-out
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),  # a second control plane on a port is told so
]
CODES = {
    "worker_stream_superseded": grpc.StatusCode.ABORTED,
    "protocol_version_mismatch": grpc.StatusCode.FAILED_PRECONDITION,
    "hello_expected": grpc.StatusCode.FAILED_PRECONDITION,
    "worker_id_mismatch": grpc.StatusCode.FAILED_PRECONDITION,
    "release_id_mismatch": grpc.StatusCode.FAILED_PRECONDITION,
    "missing worker identity": grpc.StatusCode.FAILED_PRECONDITION,
    "hello_timeout": grpc.StatusCode.DEADLINE_EXCEEDED,
    "malformed_message": grpc.StatusCode.INVALID_ARGUMENT,
    "slow_worker": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "closing": grpc.StatusCode.UNAVAILABLE,
}

Context: TypeAlias = Any  # grpc.aio.ServicerContext, of which grpc tells a type checker nothing

_numbers = itertools.count(1)


class Sessions(Protocol):
    """Whom the server tells of streams; each call but `room` returns at once."""

    def joined(self, session: "Session", hello: Hello) -> None:
        """A worker has said Hello."""
        ...

    def said(self, session: "Session", frame: WorkerFrame) -> None:
        """A worker has said something after it."""
        ...

    def left(self, session: "Session") -> None:
        """A stream that had joined is over."""
        ...

    async def room(self) -> None:
        """Return when workers may say more; until then what they say waits in the network, and then in them."""
        ...


class _EndedError(Exception):
    """A stream is to end with one of `CODES`."""


class Session:
    """One stream of one worker."""

    def __init__(self, claims: WorkerClaims | None) -> None:
        self.number = next(_numbers)
        self.claims = claims
        self.worker_id = ""
        self.draining = False
        self._ending: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._queue: asyncio.Queue[SchedulerFrame] = asyncio.Queue(QUEUED_FRAMES)

    def send(self, frame: SchedulerFrame) -> None:
        """Say something when those before it are said; a worker that does not read loses its stream."""
        self.draining |= isinstance(frame, Drain)
        try:
            self._queue.put_nowait(frame)
        except asyncio.QueueFull:
            self.close("slow_worker")

    def close(self, reason: str) -> None:
        """End the stream with one of `CODES`."""
        if not self._ending.done():
            self._ending.set_result(reason)

    async def write(self, context: Context) -> None:
        """Say what is to be said, for as long as there is a stream."""
        while True:
            frame = await self._queue.get()
            await context.write(encode_scheduler(frame))

    async def until(self, *parts: "asyncio.Task[None]") -> None:
        """Wait for the first part to end; raise `_EndedError` where the stream is to be ended."""
        waited: set[asyncio.Future[Any]] = {*parts, self._ending}
        done, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if self._ending in done:
            raise _EndedError(self._ending.result())
        for part in done:
            part.result()


class Service:
    """The server. `stop` ends its streams, as a network that goes away would."""

    def __init__(self, sessions: Sessions, auth: Tokens | None, *, hello_timeout_s: float = HELLO_TIMEOUT_S) -> None:
        self._sessions = sessions
        self._hello_timeout_s = hello_timeout_s
        self._auth = auth
        self._live: set[Session] = set()

    async def start(self, listen: str, tls: tuple[Path, Path] | None) -> str:
        """Open the port; return its address. Raises `OSError` where it cannot be had."""
        host, _, _ = listen.rpartition(":")
        _look_first(listen, tls)
        self._server = grpc.aio.server(options=OPTIONS)
        connect = grpc.stream_stream_rpc_method_handler(self._connect)
        service, method = CONNECT.strip("/").split("/")
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: connect}),))
        try:
            port = self._open(listen, tls)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {listen}: {error}") from error
        await self._server.start()
        return f"{host}:{port}"

    def _open(self, listen: str, tls: tuple[Path, Path] | None) -> int:
        if tls is None:
            return int(self._server.add_insecure_port(listen))
        certificate, key = (path.read_bytes() for path in tls)
        return int(self._server.add_secure_port(listen, grpc.ssl_server_credentials([(key, certificate)])))

    async def stop(self) -> None:
        """End every stream and close the port."""
        for session in self._live:
            session.close("closing")
        await self._server.stop(CLOSE_S)

    # --- one stream ---------------------------------------------------------------------------------------------------

    async def _connect(self, requests: AsyncIterator[bytes], context: Context) -> None:
        try:
            await self._stream(Session(self._identity(context)), context)
        except TokenError as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        except _EndedError as error:
            await context.abort(CODES[str(error)], str(error))

    def _identity(self, context: Context) -> WorkerClaims | None:
        """Return who says that it is a worker; raise `TokenError`."""
        if self._auth is None:
            return None
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        scheme, _, token = metadata.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise TokenError("a worker's token is wanted: `authorization: Bearer …`")
        return self._auth.verify(token)

    async def _stream(self, session: Session, context: Context) -> None:
        hello = await self._hello(context)
        _check(hello, session.claims)
        await context.send_initial_metadata(())  # a stream that ends while this is under way cannot be given a reason
        self._live.add(session)
        session.worker_id = hello.worker_id
        parts: list[asyncio.Task[None]] = []
        try:
            self._sessions.joined(session, hello)
            parts += [
                asyncio.create_task(self._read(session, context)),
                asyncio.create_task(session.write(context)),
            ]
            if self._auth is not None and session.claims is not None:
                parts.append(asyncio.create_task(_renew(session, self._auth)))
            await session.until(*parts)
        finally:
            self._live.discard(session)
            self._sessions.left(session)
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    async def _hello(self, context: Context) -> Hello:
        try:
            async with asyncio.timeout(self._hello_timeout_s):
                frame = await _next(context)
        except TimeoutError:
            raise _EndedError("hello_timeout") from None
        if not isinstance(frame, Hello):
            raise _EndedError("hello_expected")
        return frame

    async def _read(self, session: Session, context: Context) -> None:
        while (frame := await _next(context)) is not None:
            self._sessions.said(session, frame)
            await self._sessions.room()


async def _next(context: Context) -> WorkerFrame | None:
    """Return what a worker says next, None where it says no more; what is not known is passed over."""
    while True:
        packet: Any = await context.read()
        if packet is grpc.aio.EOF:
            return None
        try:
            frame = decode_worker(packet)
        except DecodeError:
            raise _EndedError("malformed_message") from None
        if frame is not None:
            return frame


def _look_first(listen: str, tls: tuple[Path, Path] | None) -> None:
    """Raise `OSError` where there can be no server: gRPC would write to stderr about it, and keep descriptors."""
    host, _, port = listen.rpartition(":")
    try:
        if tls is not None:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(*tls)
        found = socket.getaddrinfo(host.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        socket.create_server(address, family=family).close()
    except OSError as error:
        raise OSError(f"cannot listen on {listen}: {error.strerror or error}") from error


def _check(hello: Hello, claims: WorkerClaims | None) -> None:
    """Raise `_EndedError` unless a worker is who its token says."""
    if not hello.worker_id:
        raise _EndedError("missing worker identity")
    if claims is not None and hello.worker_id != claims.worker_id:
        raise _EndedError("worker_id_mismatch")
    if claims is not None and hello.release_id != claims.release_id:
        raise _EndedError("release_id_mismatch")


async def _renew(session: Session, auth: Tokens) -> None:
    """Give a worker its next token before the one that it has is no longer good; none to one that leaves."""
    claims = session.claims
    while claims is not None:
        await asyncio.sleep(max(claims.issued + REFRESH_AT * (claims.expires - claims.issued) - time.time(), 0.0))
        if session.draining:
            return
        token = auth.worker_token(claims.worker_id, claims.release_id)
        claims = auth.verify(token)
        session.send(TokenRefresh(token=token, expires_at_unix=int(claims.expires)))
