"""One connection to an earlier orchestrator, from dialing to its end.

Nothing answers a registration: a stream counts as live once the orchestrator has said something, or has not ended it
for a moment.
"""

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gen_worker.pb import EARLIER_CONNECT
from gen_worker.wire.earlier import MESSAGE_BYTES, Message, Report
from gen_worker_supervisor.earlier_link.outbox import EarlierOutbox
from gen_worker_supervisor.link.connection import LEAVING, ONE_ADDRESS, Credentials, Pace, cancel_below, open_channel
from gen_worker_supervisor.link.dialing import Ended
from gen_worker_supervisor.link.target import Target

if TYPE_CHECKING:
    from gen_worker_supervisor.link.connection import Call

SETTLE_S = 0.25  # an orchestrator that is not the leader says so within
READ_AGAIN_S = 0.05


class EarlierEars(NamedTuple):
    """Who is told what happens on a connection. Nothing of it blocks or raises."""

    registration: Callable[[], Report]
    """Gives the first message."""

    live: Callable[[], None]
    """Hears that the stream is up."""

    heard: Callable[[Message], None]
    """Hears what the orchestrator says."""

    leaving: Callable[[Report], None]
    """Hears of each message that is about to be written."""

    left: Callable[[Report, bool], None]
    """Hears of each message that it was written, or that it never will be."""

    full: Callable[[], bool]
    """Says whether nothing more should be read for now."""


class EarlierConnection:
    """One stream: `run` it once, `wake` it when there is more to write, `finish` it for an orderly end."""

    def __init__(
        self, target: Target, credentials: Credentials, outbox: EarlierOutbox, ears: EarlierEars, pace: Pace
    ) -> None:
        self._target = target
        self._credentials = credentials
        self._outbox = outbox
        self._ears = ears
        self._pace = pace
        self._live_since: float | None = None
        loop = asyncio.get_running_loop()
        self._end: asyncio.Future[Ended] = loop.create_future()
        self._half_closed: asyncio.Future[None] = loop.create_future()
        self._finishing = False
        self._more = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._settling: asyncio.TimerHandle | None = None

    async def run(self) -> Ended:
        """Dial and talk until it ends, whoever ends it."""
        channel = open_channel(self._target, self._credentials, self._pace)
        token = self._credentials.token
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        call: Call = channel.stream_stream(EARLIER_CONNECT)(metadata=metadata)
        reader = asyncio.create_task(self._read(call))
        reader.add_done_callback(self._stopped)
        silent = Ended("DEADLINE_EXCEEDED", f"no connection within {self._pace.ack_s:.3g} s")
        timer = asyncio.get_running_loop().call_later(self._pace.ack_s, self._give_up, silent)
        try:
            end = await self._end
        finally:
            timer.cancel()
            if self._settling is not None:
                self._settling.cancel()
            await self._hang_up(call, reader)
            await channel.close()
        if self._live_since is None:
            return end
        return msgspec.structs.replace(end, acknowledged=True, lived_s=time.monotonic() - self._live_since)

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

    def _finish(self, end: Ended) -> None:
        if not self._end.done():
            self._end.set_result(end)

    def _give_up(self, end: Ended) -> None:
        if self._live_since is None:
            self._finish(end)

    def _stopped(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled() or self._end.done():
            return
        if error := task.exception():
            self._end.set_exception(error)

    async def _hang_up(self, call: "Call", reader: "asyncio.Task[None]") -> None:
        """End the call, and with it the two tasks, as `link.connection` does."""
        call.cancel()
        cancel_below(call)
        if self._live_since is None:
            reader.cancel()
        self._more.set()
        await asyncio.wait([task for task in (reader, self._writer) if task is not None])

    # --- reading ---

    async def _read(self, call: "Call") -> None:
        import grpc.aio

        from gen_worker.pb.convert_earlier import encode

        try:
            await call.write(encode(self._ears.registration()))
            self._settling = asyncio.get_running_loop().call_later(SETTLE_S, self._settled, call)
            while (packet := await call.read()) is not grpc.aio.EOF:
                self._settled(call)
                if not self._take_in(packet):
                    return
                while self._ears.full() and not self._end.done():
                    await asyncio.wait([self._end], timeout=READ_AGAIN_S)
            self._finish(Ended("OK", "the orchestrator ended the stream"))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the latter where the call is over already
            details = await call.details() or ""
            self._finish(Ended((await call.code()).name, details.removeprefix(ONE_ADDRESS)))

    def _take_in(self, packet: bytes) -> bool:
        """Hear a message; return whether the connection goes on."""
        from google.protobuf.message import DecodeError

        from gen_worker.pb.convert_earlier import decode

        try:
            message = decode(packet)
        except DecodeError:
            self._finish(Ended("INTERNAL", f"the orchestrator sent {len(packet)} bytes that are no message"))
            return False
        if message is not None:
            self._ears.heard(message)
        return True

    def _settled(self, call: "Call") -> None:
        if self._live_since is not None or self._end.done():
            return
        self._live_since = time.monotonic()
        self._ears.live()
        self._writer = asyncio.create_task(self._write(call))
        self._writer.add_done_callback(self._stopped)

    # --- writing ---

    async def _write(self, call: "Call") -> None:
        """Write what there is until the connection ends; what was not written goes first on the next one."""
        while not self._end.done():
            message = self._outbox.pop()
            if message is not None:
                await self._write_one(call, message)
            elif self._finishing:
                await self._half_close(call)
                return
            else:
                self._more.clear()
                await self._more.wait()

    async def _write_one(self, call: "Call", message: Report) -> None:
        import grpc.aio

        from gen_worker.pb.convert_earlier import encode

        packet = encode(message)
        if len(packet) > MESSAGE_BYTES:  # a stream's item: results are shorter
            self._ears.left(message, False)
            return
        self._ears.leaving(message)
        try:
            await call.write(packet)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError):  # the call is over
            self._outbox.put_back(message)
            if not self._end.done():  # the reader says how it ended
                await asyncio.wait([self._end])
            return
        self._ears.left(message, True)

    async def _half_close(self, call: "Call") -> None:
        import grpc.aio

        try:
            await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError):  # the call is over
            return
        self._half_closed.set_result(None)
