"""The stream to an earlier orchestrator: one connection after the other, as `dialing` decides, for one session."""

import asyncio
import random
import time
import traceback
from collections.abc import Callable
from typing import Protocol

from gen_worker.wire.earlier import Message, Report
from gen_worker_supervisor.earlier_link.connection import EarlierConnection, EarlierEars
from gen_worker_supervisor.earlier_link.dialing import EarlierDialing, Patience
from gen_worker_supervisor.earlier_link.outbox import EarlierOutbox
from gen_worker_supervisor.link.connection import Credentials, Pace
from gen_worker_supervisor.link.dialing import Chance, Dial, Ended, Fatal
from gen_worker_supervisor.link.stream import QUIET_S, REASON_CHARS, LinkConfig, LinkFatalError, LinkStatus, load_grpc
from gen_worker_supervisor.link.target import Target
from gen_worker_supervisor.log import HIDDEN, Log

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


class EarlierLink:
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
        self._config = config
        self._session = session
        self._log = log
        self._loop = loop
        self._pace = pace
        self._dialing = EarlierDialing(config.places(), patience, chance)
        self._outbox = EarlierOutbox()
        self._connection: EarlierConnection | None = None
        self._target = config.places()[0]
        self._live = False
        self._since = time.time()
        self._attempts = 0
        self._last_error = ""
        self._told: dict[str, float] = {}
        self._heart: asyncio.TimerHandle | None = None
        self._closing = asyncio.Event()
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Keep the worker connected until `close`; raise `LinkFatalError` where there is no use in going on."""
        load_grpc()
        dial: Dial | Fatal = self._dialing.first()
        try:
            while not self._closing.is_set():
                if isinstance(dial, Fatal):
                    raise LinkFatalError(self._hidden(dial.message), dial.hint)
                await self._rest(dial.after_s)
                if self._closing.is_set():
                    return
                dial = await self._dial(dial.target)
        finally:
            self._over.set()

    def send(self, message: Report) -> None:
        """Write this as soon as its turn comes, on this connection or a later one; never block, never raise."""
        if not self._outbox.put(message):
            self._loop.call_soon(self._left, message, False)
        if self._connection is not None:
            self._connection.wake()

    async def close(self, flush_s: float) -> None:
        """Write what waits, for at most so long, end the stream in order, and wait until `run` has ended."""
        self._closing.set()
        if self._connection is not None:
            await self._connection.finish(flush_s)
        await self._over.wait()

    def status(self) -> LinkStatus:
        """Return how the link is."""
        return LinkStatus(
            address=str(self._target),
            connected=self._live,
            since=self._since,
            attempts=self._attempts,
            last_error=self._last_error,
        )

    # --- connections ---

    async def _dial(self, target: Target) -> Dial | Fatal:
        self._attempts += 1
        self._target = target
        session = self._session
        ears = EarlierEars(
            self._registration, self._on_live, self._heard, session.leaving, self._left, lambda: session.full
        )
        credentials = Credentials(self._config.token, self._config.ca_bundle)
        self._connection = EarlierConnection(target, credentials, self._outbox, ears, self._pace)
        try:
            end = await self._connection.run()
        finally:
            self._disconnected()
        dial = self._dialing.ended(end)
        if not self._closing.is_set():
            self._tell(target, end, dial)
        return dial

    def _on_live(self) -> None:
        self._live = True
        self._since = time.time()
        self._log.event("info", "link", f"connected to {self._target}")
        again: list[Report] = []
        self._guarded(lambda: again.extend(self._session.live()))
        for message in reversed(again):
            self._outbox.put_back(message)
        self._heart = self._loop.call_later(HEARTBEAT_S, self._beat)

    def _beat(self) -> None:
        self._heart = self._loop.call_later(HEARTBEAT_S, self._beat)
        self.send(self._session.registration(is_heartbeat=True))

    def _disconnected(self) -> None:
        was_live, self._live, self._connection = self._live, False, None
        if self._heart is not None:
            self._heart.cancel()
        self._outbox.disconnected()
        if was_live:
            self._since = time.time()
            self._guarded(self._session.disconnected)

    async def _rest(self, seconds: float) -> None:
        closing = self._loop.create_task(self._closing.wait())
        try:
            await asyncio.wait([closing], timeout=seconds)
        finally:
            closing.cancel()

    def _registration(self) -> Report:
        return self._session.registration(is_heartbeat=False)

    def _heard(self, message: Message) -> None:
        self._guarded(lambda: self._session.heard(message))

    def _left(self, message: Report, written: bool) -> None:
        self._guarded(lambda: self._session.left(message, written=written))

    def _guarded(self, call: Callable[[], None]) -> None:
        """Let the session hear of something; a bug there must not look like trouble with the connection."""
        try:
            call()
        except Exception as error:  # noqa: BLE001 - told with its stack, and the stream goes on
            stack = tuple(line for each in traceback.format_exception(error) for line in each.splitlines())
            self._log.event("error", "link", f"a message could not be handled: {error!r}", stack)

    # --- telling of it ---

    def _tell(self, target: Target, end: Ended, dial: Dial | Fatal) -> None:
        """Say how a connection ended and what follows; the same reason once a minute."""
        self._last_error = reason = self._hidden(end.reason)
        now = time.monotonic()
        if isinstance(dial, Fatal) or now - self._told.get(f"{target} {reason}", float("-inf")) < QUIET_S:
            return
        self._told = {key: at for key, at in self._told.items() if now - at < QUIET_S} | {f"{target} {reason}": now}
        if dial.redirect:
            self._log.event("info", "link", f"{target} is not the leader: dialing {dial.target}")
            return
        began = f"lost {target} after {end.lived_s:.3g} s" if end.acknowledged else f"no connection to {target}"
        self._log.event("warning", "link", f"{began}: {reason}; dialing {dial.target} in {dial.after_s:.1f} s")

    def _hidden(self, text: str) -> str:
        """Return the text without the token: a peer may say in its refusal what it was shown."""
        token = self._config.token
        return (text.replace(token, HIDDEN) if token else text)[:REASON_CHARS]
