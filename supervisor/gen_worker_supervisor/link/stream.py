"""The stream to the orchestrator: one connection after the other, as `dialing` decides, for one session.

It knows nothing of jobs and models: those are the session's.
"""

import asyncio
import os
import random
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from gen_worker.settings import Secret, Settings
from gen_worker.wire.scheduler import Hello, HelloAck, JobResult, JobStatus, SchedulerFrame, TokenRefresh, WorkerFrame
from gen_worker_supervisor.link.connection import Connection, Credentials, Ears, Pace
from gen_worker_supervisor.link.dialing import UNHEARD, Chance, Dial, Dialing, Ended, Fatal
from gen_worker_supervisor.link.outbox import Outbox
from gen_worker_supervisor.link.session import Session
from gen_worker_supervisor.link.target import AddressError, Target, parse_target
from gen_worker_supervisor.log import HIDDEN, Log

UNHEARD_REASON = "the orchestrator ended the stream while something was being written, so its reason was not heard"
QUIET_S = 60.0  # the same trouble is told of once in so long
REASONS = 64  # that are remembered for that
REASON_CHARS = 500


class LinkFatalError(Exception):
    """There is no use in going on without the orchestrator; the text is for a person, `hint` says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class LinkConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Where the orchestrator is, and how the worker shows itself there."""

    targets: tuple[str, ...]
    """Addresses, dialed in turn; at least one."""

    use_tls: bool = False
    """Whether addresses without a scheme are spoken to over TLS whatever their port is."""

    ca_bundle: bytes | None = None
    """Certificates (PEM) that the orchestrator's must come from; None: those that gRPC trusts."""

    token: Secret = Secret("")
    """What the worker shows; none: it shows nothing."""

    disconnected_timeout_s: float = 600.0
    """Seconds without an orchestrator after which the link is fatal; 0: never."""

    @classmethod
    def of(cls, settings: Settings) -> "LinkConfig":
        """Return what settings say; raise `AddressError` where they name no place or no certificates."""
        config = cls(
            targets=settings.orchestrators,
            use_tls=settings.use_tls,
            ca_bundle=_ca_bundle(settings.grpc_ca_bundle),
            token=settings.worker_jwt,
            disconnected_timeout_s=settings.worker_disconnected_timeout_s,
        )
        config.places()
        return config

    def places(self) -> tuple[Target, ...]:
        """Return the places to dial; raise `AddressError` where there is none, or one is no address."""
        if not self.targets:
            hint = "set `ORCHESTRATOR_PUBLIC_ADDR`, as in `ORCHESTRATOR_PUBLIC_ADDR=orchestrator.example:443`"
            raise AddressError("no address of an orchestrator is set", hint)
        return tuple(parse_target(each, bare="tls" if self.use_tls else "by port") for each in self.targets)


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


class Link:
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
        self._config = config
        self._session = session
        self._log = log
        self._loop = loop
        self._pace = pace
        self._dialing = Dialing(
            config.places(),
            chance,
            disconnected_timeout_s=config.disconnected_timeout_s,
            now=time.monotonic(),
            ack_s=pace.ack_s,
        )
        self._token = config.token
        self._tokens = {config.token} - {""}  # every one that was ever shown: none is ever told
        self._outbox = Outbox()
        self._connection: Connection | None = None
        self._target = config.places()[0]
        self._live = False
        self._since = time.time()
        self._attempts = 0
        self._last_error = ""
        self._asked_at = self._answered_s = 0.0
        self._told: dict[str, float] = {}  # reason → when it was told last
        self._closing = asyncio.Event()
        self._over = asyncio.Event()

    # --- what others call ---

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
                dial = self._dialing.given_up(time.monotonic()) or await self._dial(dial.target)
        finally:
            self._over.set()

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
            rtt_s=self._answered_s if self._live else None,
        )

    # --- connections ---

    async def _dial(self, target: Target) -> Dial | Fatal:
        """Connect, talk until that ends, and return what to do then."""
        self._attempts += 1
        self._target = target
        ears = Ears(self._hello, self._acknowledged, self._heard, self._left, self._unsayable)
        credentials = Credentials(self._token, self._config.ca_bundle)
        self._connection = Connection(target, credentials, self._outbox, ears, self._pace)
        try:
            end = await self._connection.run(self._dialing.ack_within_s(time.monotonic()))
        finally:
            self._disconnected()
        if isinstance(end, Fatal):
            return end
        dial = self._dialing.ended(end, time.monotonic())
        if not self._closing.is_set():
            self._tell(target, end, dial)
        return dial

    def _disconnected(self) -> None:
        was_live, self._live, self._connection = self._live, False, None
        for frame in self._outbox.clear():
            self._left(frame, False)
        if was_live:
            self._since = time.time()
            self._guarded(self._session.disconnected)

    async def _rest(self, seconds: float) -> None:
        closing = self._loop.create_task(self._closing.wait())
        try:
            await asyncio.wait([closing], timeout=seconds)
        finally:
            closing.cancel()

    # --- what happens on a connection ---

    def _hello(self) -> Hello:
        hello = self._session.hello()
        self._asked_at = time.monotonic()
        return hello

    def _acknowledged(self, ack: HelloAck) -> Fatal | None:
        if fatal := self._dialing.acknowledged(ack.protocol_version):
            return fatal
        if not self._live:
            self._live = True
            self._since = time.time()
            self._answered_s = time.monotonic() - self._asked_at
            self._log.event("info", "link", f"connected to {self._target}")
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
        if hint := _hint(end):
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


def _hint(end: Ended) -> str:
    if end.status == "UNAUTHENTICATED":
        return "`WORKER_JWT` is what it is shown, which it does not take"
    return next((hint for words, hint in HINTS.items() if words in end.details), "")


def _utc(unix: int) -> str:
    try:
        return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, OSError, ValueError):
        return str(unix)


def _ca_bundle(path: str) -> bytes | None:
    """Return the certificates of a PEM file, None where no file is set; raise `AddressError` where it has none."""
    if not path:
        return None
    import ssl

    hint = "set `GRPC_CA_BUNDLE` to a PEM file with the certificates of the orchestrator's authorities"
    try:
        with open(path, "rb") as file:
            bundle = file.read()
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=bundle.decode("ascii"))
    except ssl.SSLError:
        raise AddressError(f"no certificates in `{path}`", hint) from None
    except OSError as error:
        raise AddressError(f"cannot read the certificates in `{path}`: {error.strerror}", hint) from None
    except ValueError:
        raise AddressError(f"no certificates in `{path}`", hint) from None
    return bundle


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
