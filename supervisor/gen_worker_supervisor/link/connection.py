"""One connection to an orchestrator, from dialing to its end.

It knows in which order messages go, not what they mean, and not what comes after its end.
"""

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import msgspec

from gen_worker.pb import CONNECT
from gen_worker.settings import Secret
from gen_worker.wire.scheduler import MESSAGE_BYTES, Hello, HelloAck, SchedulerFrame, WorkerFrame
from gen_worker_supervisor.link.dialing import ACK_S, Ended, Fatal
from gen_worker_supervisor.link.outbox import Outbox
from gen_worker_supervisor.link.target import Target

if TYPE_CHECKING:
    import grpc.aio

    Call: TypeAlias = grpc.aio.StreamStreamCall[bytes, bytes]

OPTIONS = (
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),  # otherwise channels to one address share a connection and its back-off
)
ONE_ADDRESS = "failed to connect to all addresses; last error: UNKNOWN: "  # a target is one: this says nothing
LEAVING = Ended("CANCELLED", "the worker leaves")


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How long a peer may be silent."""

    ack_s: float = ACK_S
    """From dialing to the HelloAck."""

    ping_s: float = 20.0
    """Without a byte, until it is asked whether it is there."""

    pong_s: float = 10.0
    """Until it says so."""

    farewell_s: float = 5.0
    """Until it ends its half of the stream when ours has ended."""


class Credentials(msgspec.Struct, frozen=True):
    """What is shown to the orchestrator, and what its certificate must come from."""

    token: Secret
    ca_bundle: bytes | None


class Ears(NamedTuple):
    """Who is told what happens on a connection. Nothing of it blocks or raises."""

    hello: Callable[[], Hello]
    """Gives the first message."""

    acknowledged: Callable[[HelloAck], Fatal | None]
    """Hears the answer to it, and every later one; a `Fatal` ends the connection."""

    heard: Callable[[SchedulerFrame], None]
    """Hears everything else that comes after the first answer."""

    left: Callable[[WorkerFrame, bool], None]
    """Hears of each message that it was written, or that it never will be."""

    unsayable: Callable[[WorkerFrame, Exception], None]
    """Hears of a message that cannot be encoded."""


class Talk:
    """What connections of either kind have in common: one stream, which ends once and which one task writes to."""

    def __init__(self, target: Target, credentials: Credentials, pace: Pace) -> None:
        self._target = target
        self._credentials = credentials
        self._pace = pace
        self._live_since: float | None = None
        loop = asyncio.get_running_loop()
        self._end: asyncio.Future[Ended | Fatal] = loop.create_future()
        self._half_closed: asyncio.Future[None] = loop.create_future()
        self._finishing = False
        self._more = asyncio.Event()  # something to write, or nothing ever again
        self._room = asyncio.Event()  # for what the next message may cause
        self._writer: asyncio.Task[None] | None = None

    async def run(self) -> Ended | Fatal:
        """Dial and talk until it ends, whoever ends it."""
        raise NotImplementedError

    def wake(self) -> None:
        """There is more to write."""
        self._more.set()

    async def finish(self, flush_s: float) -> None:
        """Write what waits, for at most so long; end our half of the stream, and give the peer time for its own."""
        if self._live_since is not None:
            self._finishing = True
            self._more.set()
            either: list[asyncio.Future[Any]] = [self._half_closed, self._end]
            await asyncio.wait(either, timeout=flush_s, return_when=asyncio.FIRST_COMPLETED)
            if self._half_closed.done():
                await asyncio.wait([self._end], timeout=self._pace.farewell_s)
        self._finish(LEAVING)

    async def _talk(self, method: str, live_within_s: float, silent: Ended) -> Ended | Fatal:
        """Dial and talk until it ends, whoever ends it; a stream that is not live in time ends as `silent`."""
        channel = open_channel(self._target, self._credentials, self._pace)
        token = self._credentials.token
        call: Call = channel.stream_stream(method)(metadata=(("authorization", f"Bearer {token}"),) if token else ())
        reader = asyncio.create_task(self._read_to_its_end(call))
        reader.add_done_callback(self._stopped)
        timer = asyncio.get_running_loop().call_later(live_within_s, self._give_up, silent)
        try:
            end = await self._end
        finally:
            timer.cancel()
            await self._hang_up(call, reader)
            await channel.close()
        if isinstance(end, Fatal) or self._live_since is None:
            return end
        return msgspec.structs.replace(end, acknowledged=True, lived_s=time.monotonic() - self._live_since)

    def _finish(self, end: Ended | Fatal) -> None:
        """End the connection for this reason, unless it has one already."""
        if not self._end.done():
            self._end.set_result(end)

    def _give_up(self, end: Ended) -> None:
        if self._live_since is None:
            self._finish(end)

    def _stopped(self, task: "asyncio.Task[None]") -> None:
        """End the connection with its reader or writer; with what it raised, if that is a bug of ours."""
        self._room.set()
        if task.cancelled() or self._end.done():
            return
        if error := task.exception():
            self._end.set_exception(error)

    async def _hang_up(self, call: "Call", reader: "asyncio.Task[None]") -> None:
        """End the call, and with it the two tasks.

        They are not cancelled themselves: inside of `write` that would end the call before what it holds is told of.
        Only before the stream is live, when nothing can be lost: a call that ends before it is connected leaves its
        first `write` waiting for ever.
        """
        call.cancel()
        cancel_below(call)
        if self._live_since is None:
            reader.cancel()
        self._more.set()
        self._room.set()
        await asyncio.wait([task for task in (reader, self._writer) if task is not None])

    async def _read_to_its_end(self, call: "Call") -> None:
        import grpc.aio

        try:
            await self._read(call)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the latter where the call is over already
            details = await call.details() or ""
            self._finish(Ended((await call.code()).name, details.removeprefix(ONE_ADDRESS)))

    async def _read(self, call: "Call") -> None:
        """Write the first message, and hear what the orchestrator says until it or the connection ends."""
        raise NotImplementedError

    def _unreadable(self, packet: bytes) -> None:
        self._finish(Ended("INTERNAL", f"the orchestrator sent {len(packet)} bytes that are no message"))

    def _go_live(self, call: "Call") -> None:
        self._live_since = time.monotonic()
        self._writer = asyncio.create_task(self._write(call))
        self._writer.add_done_callback(self._stopped)

    async def _write(self, call: "Call") -> None:
        """Write what there is until the connection ends; how it ends, the reader sees."""
        while not self._end.done():
            if await self._write_next(call):
                continue
            if self._finishing:
                await self._half_close(call)
                return
            self._more.clear()
            await self._more.wait()

    async def _write_next(self, call: "Call") -> bool:
        """Write the next message, if there is one; say whether there was."""
        raise NotImplementedError

    async def _half_close(self, call: "Call") -> None:
        import grpc.aio

        try:
            await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError):  # the call is over
            return
        self._half_closed.set_result(None)


class Connection(Talk):
    """One stream: `run` it once, `wake` it when there is more to write, `finish` it for an orderly end."""

    def __init__(
        self,
        target: Target,
        credentials: Credentials,
        outbox: Outbox,
        ears: Ears,
        pace: Pace,
        ack_within_s: float,
    ) -> None:
        super().__init__(target, credentials, pace)
        self._outbox = outbox
        self._ears = ears
        self._ack_within_s = ack_within_s

    async def run(self) -> Ended | Fatal:
        """Dial and talk until it ends, whoever ends it; without a HelloAck in time, that ends it."""
        silent = Ended("DEADLINE_EXCEEDED", f"no HelloAck within {self._ack_within_s:.3g} s")
        return await self._talk(CONNECT, self._ack_within_s, silent)

    # --- reading ---

    async def _read(self, call: "Call") -> None:
        import grpc.aio

        from gen_worker.pb.convert import encode_worker

        await call.write(self._first(encode_worker))
        while (packet := await call.read()) is not grpc.aio.EOF:
            if not self._take_in(call, packet):
                return
            await self._until_room()
        self._finish(Ended("OK", "the orchestrator ended the stream"))

    def _first(self, encode: Callable[[WorkerFrame], bytes]) -> bytes:
        """Return the first message; one that cannot be encoded says at least who this is."""
        hello = self._ears.hello()
        try:
            return encode(hello)
        except (ValueError, TypeError) as error:
            self._ears.unsayable(hello, error)
            return encode(Hello(worker_id=hello.worker_id, release_id=hello.release_id, in_flight=hello.in_flight))

    def _take_in(self, call: "Call", packet: bytes) -> bool:
        """Hear a message; return whether the connection goes on."""
        from google.protobuf.message import DecodeError

        from gen_worker.pb.convert import decode_scheduler

        try:
            frame = decode_scheduler(packet)
        except DecodeError:
            self._unreadable(packet)
            return False
        if isinstance(frame, HelloAck):
            return self._acknowledge(call, frame)
        if frame is not None and self._live_since is None:
            self._finish(Ended("INTERNAL", f"the orchestrator began with {type(frame).__name__} instead of HelloAck"))
            return False
        if frame is not None:
            self._ears.heard(frame)
        return True

    def _acknowledge(self, call: "Call", ack: HelloAck) -> bool:
        fatal = self._ears.acknowledged(ack)
        if fatal is not None:
            self._finish(fatal)
            return False
        if self._live_since is None:
            self._go_live(call)
        return True

    async def _until_room(self) -> None:
        """Hold what the orchestrator sends back as long as it does not take what we have to say."""
        while self._outbox.full and self._writer is not None and not self._writer.done():
            self._room.clear()
            await self._room.wait()

    # --- writing ---

    async def _write_next(self, call: "Call") -> bool:
        frame = self._outbox.pop()
        if frame is None:
            return False
        self._ears.left(frame, await self._written(call, frame))
        if not self._outbox.full:
            self._room.set()
        return True

    async def _written(self, call: "Call", frame: WorkerFrame) -> bool:
        import grpc.aio

        from gen_worker.pb.convert import encode_worker

        try:
            packet = encode_worker(frame)
        except (ValueError, TypeError) as error:  # a figure that no message can carry
            self._ears.unsayable(frame, error)
            return False
        if len(packet) > MESSAGE_BYTES:
            return False
        try:
            await call.write(packet)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError):  # the call is over
            return False
        return True


def cancel_below(call: "Call") -> None:
    """Cancel what grpc.aio counts as done while its core waits on.

    Where the stream ends while a message is being written and others were not read yet, `cancel()` does nothing, and
    the core would keep the connection for ever.
    """
    core = getattr(call, "_cython_call", None)  # no public way leads there; a test counts sockets
    if core is not None:
        core.cancel("the connection has ended")


def open_channel(target: Target, credentials: Credentials, pace: Pace) -> "grpc.aio.Channel":
    """Return a channel to one place, which is not connected yet."""
    import grpc.aio

    pong_ms = round(pace.pong_s * 1000)
    options = (
        *OPTIONS,
        ("grpc.keepalive_time_ms", round(pace.ping_s * 1000)),
        ("grpc.keepalive_timeout_ms", pong_ms),
        ("grpc.http2.ping_timeout_ms", pong_ms),  # 60 s else, whatever the keepalive's timeout is: measured
    )
    if not target.tls:
        return grpc.aio.insecure_channel(target.authority, options=options)
    trusted = grpc.ssl_channel_credentials(root_certificates=credentials.ca_bundle)
    return grpc.aio.secure_channel(target.authority, trusted, options=options)
