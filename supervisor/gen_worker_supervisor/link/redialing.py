"""The stream to an orchestrator of either generation: one connection after the other, until it is closed.

It knows how connections follow one another and what is told of that, not what goes over them.
"""

import asyncio
import os
import time
import traceback
from collections.abc import Callable

import msgspec

from gen_worker_supervisor.link.config import LinkConfig
from gen_worker_supervisor.link.connection import Talk
from gen_worker_supervisor.link.dialing import UNHEARD, Dial, Ended, Fatal
from gen_worker_supervisor.link.target import Target
from gen_worker_supervisor.logs.log import HIDDEN, Log

UNHEARD_REASON = "the orchestrator ended the stream while something was being written, so its reason was not heard"
QUIET_S = 60.0  # the same trouble is told of once in so long
REASONS = 64  # that are remembered for that
REASON_CHARS = 500


class LinkFatalError(Exception):
    """There is no use in going on without the orchestrator; the text is for a person, `hint` says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class LinkStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How the link is."""

    address: str
    """The place that is connected, or was dialed last."""

    connected: bool
    since: float
    """When that began, in seconds of the Unix clock."""

    attempts: int
    """Connections and attempts at one, all in all."""

    last_error: str = ""

    rtt_s: float | None = None
    """How long the orchestrator took to answer this connection's Hello."""


class Redialing:
    """What the links of both generations have in common. Everything happens on the loop; `run` it once."""

    def __init__(self, config: LinkConfig, log: Log, loop: asyncio.AbstractEventLoop) -> None:
        self._config = config
        self._log = log
        self._loop = loop
        self._tokens = {config.token} - {""}  # every one that was ever shown: none is ever told
        self._connection: Talk | None = None
        self._target = config.places()[0]
        self._live = False
        self._since = time.time()
        self._attempts = 0
        self._last_error = ""
        self._told: dict[str, float] = {}  # reason → when it was told last
        self._closing = asyncio.Event()
        self._over = asyncio.Event()

    # --- what others call ---

    async def run(self) -> None:
        """Keep the worker connected until `close`; raise `LinkFatalError` where there is no use in going on."""
        load_grpc()
        dial: Dial | Fatal = self._first()
        try:
            while not self._closing.is_set():
                if isinstance(dial, Fatal):
                    raise LinkFatalError(self._hidden(dial.message), dial.hint)
                await self._rest(dial.after_s)
                if self._closing.is_set():
                    return
                dial = self._given_up() or await self._dial(dial.target)
        finally:
            self._over.set()

    async def close(self, flush_s: float) -> None:
        """Write what waits, for at most so long, end the stream in order, and wait until `run` has ended.

        The orchestrator has 5 s to end its half. Without a connection there is nothing to wait for.
        """
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

    # --- what is different with each ---

    def _first(self) -> Dial:
        """Return the first place to dial."""
        raise NotImplementedError

    def _after(self, end: Ended) -> Dial | Fatal:
        """Return what to do after a connection, or the attempt at one."""
        raise NotImplementedError

    def _given_up(self) -> Fatal | None:
        """Return why no other connection is tried, if that is so."""
        return None

    def _connect(self, target: Target) -> Talk:
        """Return a connection to a place, which was not dialed yet."""
        raise NotImplementedError

    def _lost(self, *, was_live: bool) -> None:
        """The connection has ended."""
        raise NotImplementedError

    # --- connections ---

    async def _dial(self, target: Target) -> Dial | Fatal:
        """Connect, talk until that ends, and return what to do then."""
        self._attempts += 1
        self._target = target
        self._connection = self._connect(target)
        try:
            end = await self._connection.run()
        finally:
            was_live, self._live, self._connection = self._live, False, None
            if was_live:
                self._since = time.time()
            self._lost(was_live=was_live)
        if isinstance(end, Fatal):
            return end
        dial = self._after(end)
        if not self._closing.is_set():
            self._tell(target, end, dial)
        return dial

    def _go_live(self) -> None:
        self._live = True
        self._since = time.time()
        self._log.event("info", "link", f"connected to {self._target}")

    async def _rest(self, seconds: float) -> None:
        closing = self._loop.create_task(self._closing.wait())
        try:
            await asyncio.wait([closing], timeout=seconds)
        finally:
            closing.cancel()

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
        reason = UNHEARD_REASON if end.details == UNHEARD else self._hidden(end.reason)
        self._last_error = reason
        now = time.monotonic()
        if isinstance(dial, Fatal) or now - self._told.get(f"{target} {reason}", float("-inf")) < QUIET_S:
            return
        if len(self._told) >= REASONS:
            self._told.clear()
        self._told[f"{target} {reason}"] = now
        if dial.redirect:
            self._log.event("info", "link", f"{target} is not the leader: dialing {dial.target}")
            return
        began = f"lost {target} after {end.lived_s:.3g} s" if end.acknowledged else f"no connection to {target}"
        self._log.event("warning", "link", f"{began}: {reason}; dialing {dial.target} in {dial.after_s:.1f} s")
        if hint := _hint(end, shown=bool(self._tokens)):
            self._log.event("warning", "link", f"hint: {hint}")

    def _hidden(self, text: str) -> str:
        """Return the text without tokens: a peer may say in its refusal what it was shown."""
        for token in self._tokens:
            text = text.replace(token, HIDDEN)
        return text[:REASON_CHARS]


HINTS = {
    "worker_stream_superseded": "another worker says it is this one: give each its own `WORKER_ID`",
    "HTTP status": "an HTTP server answers there: workers have a port of their own",
    "http1": "an HTTP server answers there: workers have a port of their own",
    "WRONG_VERSION_NUMBER": "it speaks no TLS there: write the address as `grpc://host:port`",
    "CERTIFICATE_VERIFY_FAILED": "`GRPC_CA_BUNDLE` names a PEM file of authorities that are trusted, too",
}
"""What to do, by what stands in the details of an end."""


def _hint(end: Ended, *, shown: bool) -> str:
    if end.status == "UNAUTHENTICATED":
        taken = "`WORKER_JWT` is what it is shown, which it does not take"
        return taken if shown else "`WORKER_JWT`, the worker's token, is not set"
    return next((hint for words, hint in HINTS.items() if words in end.details), "")


def load_grpc() -> None:
    """Import gRPC so that its own lines stay off standard error: what they tell comes as a status, too.

    It reads the variable where it is imported first. The variable does not stay, as children inherit what is there.
    """
    if "GRPC_VERBOSITY" in os.environ:
        return
    os.environ["GRPC_VERBOSITY"] = "NONE"
    try:
        import grpc.aio  # noqa: F401
    finally:
        del os.environ["GRPC_VERBOSITY"]
