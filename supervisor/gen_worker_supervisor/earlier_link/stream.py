"""The stream to an earlier orchestrator: one connection after the other, as `dialing` decides, for one session."""

import asyncio
import random
from typing import Protocol

from gen_worker.wire.earlier import Message, Report
from gen_worker_supervisor.earlier_link.connection import EarlierConnection, EarlierEars
from gen_worker_supervisor.earlier_link.dialing import EarlierDialing, Patience
from gen_worker_supervisor.earlier_link.outbox import EarlierOutbox
from gen_worker_supervisor.link.config import LinkConfig
from gen_worker_supervisor.link.connection import Credentials, Pace
from gen_worker_supervisor.link.dialing import Chance, Dial, Ended, Fatal
from gen_worker_supervisor.link.redialing import Redialing
from gen_worker_supervisor.link.target import Target
from gen_worker_supervisor.logs.log import Log

HEARTBEAT_S = 10.0


class EarlierSession(Protocol):
    """One worker towards an earlier orchestrator. Every call is made on the loop and returns at once."""

    def registration(self, *, is_heartbeat: bool) -> Report:
        """Return everything as it is now."""
        ...

    def live(self) -> list[Report]:
        """A connection is up; return what may not have arrived over the one before, to go first."""
        ...

    def heard(self, message: Message) -> None:
        """The orchestrator wants something."""
        ...

    def leaving(self, message: Report) -> None:
        """A message is about to be written."""
        ...

    def left(self, message: Report, *, written: bool) -> None:
        """A message was written to a live stream, or was dropped."""
        ...

    def disconnected(self) -> None:
        """The connection that was live is gone; another one follows."""
        ...

    @property
    def full(self) -> bool:
        """Whether nothing more should be read for now."""
        ...


class EarlierLink(Redialing):
    """The worker's side of the stream. Everything happens on the loop; `run` it once."""

    def __init__(
        self,
        config: LinkConfig,
        patience: Patience,
        session: EarlierSession,
        log: Log,
        loop: asyncio.AbstractEventLoop,
        pace: Pace = Pace(),  # noqa: B008 - frozen
        chance: Chance = random.uniform,
    ) -> None:
        super().__init__(config, log, loop)
        self._session = session
        self._pace = pace
        self._dialing = EarlierDialing(config.places(), patience, chance)
        self._outbox = EarlierOutbox()
        self._heart: asyncio.TimerHandle | None = None

    def send(self, message: Report) -> None:
        """Write this as soon as its turn comes, on this connection or a later one; never block, never raise."""
        if not self._outbox.put(message):
            self._loop.call_soon(self._left, message, False)
        if self._connection is not None:
            self._connection.wake()

    # --- connections ---

    def _first(self) -> Dial:
        return self._dialing.first()

    def _after(self, end: Ended) -> Dial | Fatal:
        return self._dialing.ended(end)

    def _connect(self, target: Target) -> EarlierConnection:
        session = self._session
        ears = EarlierEars(
            self._registration, self._on_live, self._heard, session.leaving, self._left, lambda: session.full
        )
        credentials = Credentials(self._config.token, self._config.ca_bundle)
        return EarlierConnection(target, credentials, self._outbox, ears, self._pace)

    def _lost(self, *, was_live: bool) -> None:
        if self._heart is not None:
            self._heart.cancel()
        self._outbox.disconnected()
        if was_live:
            self._guarded(self._session.disconnected)

    # --- what happens on a connection ---

    def _on_live(self) -> None:
        self._go_live()
        again: list[Report] = []
        self._guarded(lambda: again.extend(self._session.live()))
        for message in reversed(again):
            self._outbox.put_back(message)
        self._heart = self._loop.call_later(HEARTBEAT_S, self._beat)

    def _beat(self) -> None:
        self._heart = self._loop.call_later(HEARTBEAT_S, self._beat)
        self.send(self._session.registration(is_heartbeat=True))

    def _registration(self) -> Report:
        return self._session.registration(is_heartbeat=False)

    def _heard(self, message: Message) -> None:
        self._guarded(lambda: self._session.heard(message))

    def _left(self, message: Report, written: bool) -> None:
        self._guarded(lambda: self._session.left(message, written=written))
