"""One connection to an earlier orchestrator, from dialing to its end.

Nothing answers a registration: a stream counts as live once the orchestrator has said something, or has not ended it
for a moment.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from gen_worker.pb import EARLIER_CONNECT
from gen_worker.wire.earlier import MESSAGE_BYTES, Message, Report
from gen_worker_supervisor.earlier_link.outbox import EarlierOutbox
from gen_worker_supervisor.link.connection import Credentials, Pace, Talk
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


class EarlierConnection(Talk):
    """One stream: `run` it once, `wake` it when there is more to write, `finish` it for an orderly end."""

    def __init__(
        self, target: Target, credentials: Credentials, outbox: EarlierOutbox, ears: EarlierEars, pace: Pace
    ) -> None:
        super().__init__(target, credentials, pace)
        self._outbox = outbox
        self._ears = ears
        self._settling: asyncio.TimerHandle | None = None

    async def run(self) -> Ended:
        """Dial and talk until it ends, whoever ends it."""
        within_s = self._pace.ack_s
        silent = Ended("DEADLINE_EXCEEDED", f"no connection within {within_s:.3g} s")
        try:
            end = await self._talk(EARLIER_CONNECT, within_s, silent)
        finally:
            if self._settling is not None:
                self._settling.cancel()
        assert isinstance(end, Ended), "nothing here is fatal"
        return end

    # --- reading ---

    async def _read(self, call: "Call") -> None:
        import grpc.aio

        from gen_worker.pb.convert_earlier import encode

        await call.write(encode(self._ears.registration()))
        self._settling = asyncio.get_running_loop().call_later(SETTLE_S, self._settled, call)
        while (packet := await call.read()) is not grpc.aio.EOF:
            self._settled(call)
            if not self._take_in(packet):
                return
            while self._ears.full() and not self._end.done():
                await asyncio.wait([self._end], timeout=READ_AGAIN_S)
        self._finish(Ended("OK", "the orchestrator ended the stream"))

    def _take_in(self, packet: bytes) -> bool:
        """Hear a message; return whether the connection goes on."""
        from google.protobuf.message import DecodeError

        from gen_worker.pb.convert_earlier import decode

        try:
            message = decode(packet)
        except DecodeError:
            self._unreadable(packet)
            return False
        if message is not None:
            self._ears.heard(message)
        return True

    def _settled(self, call: "Call") -> None:
        if self._live_since is not None or self._end.done():
            return
        self._ears.live()
        self._go_live(call)

    # --- writing ---

    async def _write_next(self, call: "Call") -> bool:
        """Write the next message, if there is one; what was not written goes first on the next connection."""
        message = self._outbox.pop()
        if message is not None:
            await self._write_one(call, message)
        return message is not None

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
