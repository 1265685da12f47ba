"""The stream to the orchestrator: one connection after the other, as `dialing` decides, for one session.

It knows nothing of jobs and models: those are the session's.
"""

import asyncio
import random
import time
from datetime import UTC, datetime

import msgspec

from gen_worker.settings import Secret
from gen_worker.wire.scheduler import Hello, HelloAck, JobResult, JobStatus, SchedulerFrame, TokenRefresh, WorkerFrame
from gen_worker_supervisor.link.config import LinkConfig
from gen_worker_supervisor.link.connection import Connection, Credentials, Ears, Pace
from gen_worker_supervisor.link.dialing import Chance, Dial, Dialing, Ended, Fatal
from gen_worker_supervisor.link.outbox import Outbox
from gen_worker_supervisor.link.redialing import LinkStatus, Redialing
from gen_worker_supervisor.link.session import Session
from gen_worker_supervisor.link.target import Target
from gen_worker_supervisor.logs.log import Log


class Link(Redialing):
    """The worker's side of the stream. Everything happens on the loop; `run` it once."""

    def __init__(
        self,
        config: LinkConfig,
        session: Session,
        log: Log,
        loop: asyncio.AbstractEventLoop,
        pace: Pace = Pace(),  # noqa: B008 - frozen
        chance: Chance = random.uniform,
    ) -> None:
        super().__init__(config, log, loop)
        self._session = session
        self._pace = pace
        self._dialing = Dialing(
            config.places(),
            chance,
            disconnected_timeout_s=config.disconnected_timeout_s,
            now=time.monotonic(),
            ack_s=pace.ack_s,
        )
        self._token = config.token
        self._outbox = Outbox()
        self._asked_at = self._answered_s = 0.0

    # --- what others call ---

    def send(self, frame: WorkerFrame) -> None:
        """Write this as soon as its turn comes; never block, never raise.

        What cannot be kept, or is not written before the connection ends, is told to `session.left`, later in the
        loop's course. What a newer message replaces (a `StateDelta`, how far a download is) is told of nowhere.
        """
        dropped = self._outbox.put(frame) if self._live else [frame]
        for each in dropped:
            self._loop.call_soon(self._left, each, False)
        if self._connection is not None:
            self._connection.wake()

    def status(self) -> LinkStatus:
        """Return how the link is."""
        return msgspec.structs.replace(super().status(), rtt_s=self._answered_s if self._live else None)

    @property
    def token(self) -> Secret:
        """What the worker shows now; empty where it shows nothing."""
        return self._token

    # --- connections ---

    def _first(self) -> Dial:
        return self._dialing.first()

    def _after(self, end: Ended) -> Dial | Fatal:
        return self._dialing.ended(end, time.monotonic())

    def _given_up(self) -> Fatal | None:
        return self._dialing.given_up(time.monotonic())

    def _connect(self, target: Target) -> Connection:
        ears = Ears(self._hello, self._acknowledged, self._heard, self._left, self._unsayable)
        credentials = Credentials(self._token, self._config.ca_bundle)
        ack_within_s = self._dialing.ack_within_s(time.monotonic())
        return Connection(target, credentials, self._outbox, ears, self._pace, ack_within_s)

    def _lost(self, *, was_live: bool) -> None:
        for frame in self._outbox.clear():
            self._left(frame, False)
        if was_live:
            self._guarded(self._session.disconnected)

    # --- what happens on a connection ---

    def _hello(self) -> Hello:
        hello = self._session.hello()
        self._asked_at = time.monotonic()
        return hello

    def _acknowledged(self, ack: HelloAck) -> Fatal | None:
        if fatal := self._dialing.acknowledged(ack.protocol_version):
            return fatal
        if not self._live:
            self._answered_s = time.monotonic() - self._asked_at
            self._go_live()
        self._guarded(lambda: self._session.acknowledged(ack))
        return None

    def _heard(self, frame: SchedulerFrame) -> None:
        match frame:
            case TokenRefresh():
                self._refresh(frame)
            case HelloAck():
                pass  # `_acknowledged` hears it
            case _:
                self._guarded(lambda: self._session.received(frame))

    def _refresh(self, frame: TokenRefresh) -> None:
        token = frame.token.strip()
        if not token.isascii() or not token.isprintable() or not token:
            self._log.event("warning", "link", "the new token is no line of text: the old one is shown on")
            return
        self._token = Secret(token)
        self._tokens.add(self._token)
        self._dialing.refreshed()
        until = f", good until {_utc(frame.expires_at_unix)}" if frame.expires_at_unix else ""
        self._log.event("info", "link", f"a new token for later connections{until}")

    def _unsayable(self, frame: WorkerFrame, error: Exception) -> None:
        """Say of a result that there is one, at least; of anything else, to the operator that it was not said."""
        text = f"a {type(frame).__name__} cannot be encoded: {error}"
        self._log.event("error", "link", self._hidden(text))
        if isinstance(frame, JobResult):
            told = "the worker cannot say how it ended"
            self.send(
                JobResult(request_id=frame.request_id, attempt=frame.attempt, status=JobStatus.FATAL, safe_message=told)
            )

    def _left(self, frame: WorkerFrame, written: bool) -> None:
        self._guarded(lambda: self._session.left(frame, written=written))


def _utc(unix: int) -> str:
    try:
        return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, OSError, ValueError):
        return str(unix)
