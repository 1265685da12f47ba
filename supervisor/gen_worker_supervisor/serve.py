"""`gen-worker serve`: discover, own the devices, listen, until a signal or until there is nothing more to do.

The supervisor never imports the author's module: a short-lived process looks at it and prints what dispatch must know.
"""

import asyncio
import os
import signal
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import NamedTuple

import msgspec

from gen_worker.environment import secret_values
from gen_worker.settings import Settings
from gen_worker.wire.address import Address, TcpAddress
from gen_worker.wire.fetching import Destination
from gen_worker.wire.messages import Producing
from gen_worker.wire.survey import Look as CodeLook
from gen_worker.wire.survey import Survey
from gen_worker_supervisor import start
from gen_worker_supervisor.clients.ndjson import NdjsonServer
from gen_worker_supervisor.code_watch import CodeWatch
from gen_worker_supervisor.core.happenings import CodeChanged
from gen_worker_supervisor.core.state import holds, unheld
from gen_worker_supervisor.devices.ownership import group_hint
from gen_worker_supervisor.host import Host, HostPlan, reason_of
from gen_worker_supervisor.http_front import HttpPort
from gen_worker_supervisor.idle import IdleClock
from gen_worker_supervisor.logs.log import Log, Look, stderr_look
from gen_worker_supervisor.sockets.gate import Gate
from gen_worker_supervisor.sockets.line_socket import Limits
from gen_worker_supervisor.sockets.listening import Acceptor, OwnFile
from gen_worker_supervisor.sockets.stdio import End, StandardStreams
from gen_worker_supervisor.start import Listener, StartError

PROTOCOL_VERSION = 1
OK, FAILED = 0, 1
FORCED = 130
ONE_SIGNAL_S = 0.2  # a terminal or `timeout` may signal the process and its group: that is one wish


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What a person asks of this one server, beside the settings."""

    module: str
    paths: list[str]
    address: Address
    devices: str = "auto"
    devices_option: str = "--devices"  # as it was written
    functions: tuple[str, ...] = ()
    eager: bool = False
    idle_timeout_s: float = 0.0
    stdin: bool = True
    reload: bool = False  # go over to changed code
    vram_budget_gb: float = 0.0  # 0: what the settings say
    fetching: bytes = b""  # an encoded `gen_worker.fetch.config.FetchConfig`, with the tokens; without it no models
    platform: Destination | None = None  # where producers publish; None, or without an address: nowhere


def serve(options: Options, settings: Settings, environment: Mapping[str, str], *, limits: Limits | None = None) -> int:
    """Serve until SIGINT or SIGTERM, the end of the requests on stdin, or the idle timeout; return the exit code."""
    look = stderr_look(settings.log_format, settings.log_level, environment, secret_values(environment, settings))
    if limits is None:
        unsent = max(Limits().unsent_bytes, 2 * settings.max_output_bytes)
        limits = Limits(line_bytes=settings.max_line_bytes, unsent_bytes=unsent)
    try:
        survey = start.survey_module(options.module, options.paths, environment)
        survey = start.chosen(survey, options.functions)
        with ExitStack() as ends:
            owned = start.own_devices(
                options.devices,
                survey,
                environment,
                serves=f"gen-worker serve {options.module}",
                option=options.devices_option,
            )
            ends.enter_context(owned.locks)
            listener = start.listen(options.address, guarded=settings.token is not None)
            ends.callback(_close, listener, look)
            http = start.open_http(settings.http)
            if http is not None:
                ends.enter_context(http.sock)
            plan = Plan(options, survey, owned, listener, http, settings, environment, limits, look)
            return ends.enter_context(asyncio.Runner()).run(_serve(plan))
    except StartError as error:
        _tell(error, look)
        return error.code


def _close(listener: Listener, look: Look) -> None:
    try:
        listener.close()
    except OSError as error:
        log = Log(look)
        log.event("warning", "serve", f"`{error.filename}` stays: {reason_of(error)}")
        log.close()


def _tell(error: StartError, look: Look) -> None:
    log = Log(look)
    if look.form == "json":
        log.event("error", "serve", "; ".join(filter(None, (str(error), error.hint))), error.stack)
    else:
        for line in error.stack:
            log.say(line.rstrip())
        log.say(str(error), "error")
        if error.hint:
            log.say(f"hint: {error.hint}")
    log.close()


async def _serve(plan: "Plan") -> int:
    service = Service(plan)
    try:
        return await service.run()
    finally:
        await service.close()


class Plan(NamedTuple):
    """Everything that is known before anything runs."""

    options: Options
    survey: Survey
    owned: start.Owned
    listener: Listener
    http: HttpPort | None
    settings: Settings
    environment: Mapping[str, str]
    limits: Limits
    look: Look

    def host(self) -> HostPlan:
        """Return what is known of its host."""
        options = self.options
        return HostPlan(
            self.survey,
            self.owned.devices,
            self.settings,
            self.environment,
            self.look,
            options.fetching,
            str(self.listener.address),
            options.vram_budget_gb,
            options.eager,
            stalled_s=self.limits.stalled_s,
            http=self.http,
            reloads=options.reload,
        )

    @property
    def is_tcp(self) -> bool:
        """Whether clients come over TCP."""
        return isinstance(self.listener.address, TcpAddress)

    def gate(self) -> Gate | None:
        """Return what asks clients for the token, if any are asked."""
        return Gate(self.settings.token) if self.settings.token is not None and self.is_tcp else None


class Service:
    """A host that takes requests from sockets and standard input."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._address = str(plan.listener.address)
        self._host = Host(plan.host())
        self._loop = self._host.loop
        self.log = self._host.log
        self.supervisor = self._host.supervisor
        self._let_publish(plan)
        self._sidecar: OwnFile | None = None
        self._requests = NdjsonServer(self.supervisor, self._host.poller, plan.limits, plan.gate())
        self._acceptor: Acceptor | None = None
        self._streams: StandardStreams | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._code: CodeWatch | None = None
        self._looks: dict[int, Survey] = {}  # of code that is not served yet
        self._stopping_since: float | None = None
        self._has_begun = False
        self._status = OK

    async def run(self) -> int:
        """Serve until told to end; return the exit code."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.add_signal_handler(number, self._on_signal)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as `nohup` has it
            self._loop.add_signal_handler(signal.SIGHUP, self._stop, "the terminal is closed: stopping")
        self._host.open()
        self._has_begun = True
        for notice in self._plan.owned.notices:
            self.log.event(notice.level, notice.source, notice.message)
        self._host.start()
        await asyncio.wait((self.supervisor.booted, self.supervisor.status), return_when=asyncio.FIRST_COMPLETED)
        if not self.supervisor.status.done() and self._stopping_since is None:
            self._accept()
            self._announce()
            self._read_stdin()
            self._watch_idleness()
            self._watch_code()
        return await self.supervisor.status or self._status

    # --- its beginning ---

    def _let_publish(self, plan: "Plan") -> None:
        """Have producers publish where they may, and else say what they would."""
        platform = plan.options.platform
        publishes = platform is not None and bool(platform.base_url)
        if platform is not None and publishes:
            self._host.platform.local = platform
        self.supervisor.producing = Producing(hf_token=str(plan.settings.hf_token), publishes=publishes)

    def _accept(self) -> None:
        self._acceptor = Acceptor(
            self._plan.listener.sock,
            self._loop,
            self._host.poller,
            self._requests.admit_tcp if self._plan.is_tcp else self._requests.admit_unix,
            lambda problem: self.log.event("warning", "serve", problem),
        )

    def _announce(self) -> None:
        names = ", ".join(sorted(self.supervisor.fleet.functions))
        self.log.say(f"listening on {self._address} (functions: {names})")
        for function in self.supervisor.fleet.functions.values():
            if not any(holds(device, function) for device in self.supervisor.fleet.devices):
                self.log.event("warning", function.name, f"unavailable: {unheld(self.supervisor.fleet, function)}")
                if hint := group_hint(self.supervisor.fleet.devices, function.surveyed.gpu_count):
                    self.log.say(f"hint: {hint}")
        self._write_sidecar()
        self.log.say("ready")

    def _write_sidecar(self) -> None:
        """Say to programs that this server is ready: they see the file whole or not at all."""
        document = {
            "protocol_version": PROTOCOL_VERSION,
            "gen_worker_version": self._host.version,
            "pid": os.getpid(),
            "listen": self._address,
            "ready_at": time.time(),
            "idle_timeout": self._plan.options.idle_timeout_s,
            "max_line_bytes": self._plan.limits.line_bytes,
            "functions": msgspec.json.decode(self.supervisor.survey.description)["functions"],
        }
        path = self._plan.listener.sidecar
        part = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            part.write_bytes(msgspec.json.encode(document) + b"\n")
            part.replace(path)
            self._sidecar = OwnFile.at(path)
        except OSError as error:
            self.log.event("warning", "serve", f"no sidecar: `{path}` cannot be written: {error.strerror or error}")

    def _read_stdin(self) -> None:
        if self._plan.options.stdin:
            self._streams = StandardStreams(self._loop, self._on_streams_end)
            self._requests.admit_streams(self._streams.start())

    def _watch_idleness(self) -> None:
        if self._plan.options.idle_timeout_s:
            clock = IdleClock(self._plan.options.idle_timeout_s, self._loop.time())
            self._idle = self._loop.call_later(clock.look_every_s, self._look_for_idleness, clock)

    # --- other code ---

    def _watch_code(self) -> None:
        if self._plan.options.reload:
            self.supervisor.on_code = self._on_code
            self._code = self._host.watch_code(self._plan.options.functions, self._on_look)
            self._code.start()
            self.log.say("watching the code: changes are served when they work")

    def _on_look(self, look: CodeLook) -> None:
        """The code has changed: have children of it take over, or say what is wrong with it."""
        if look.survey is None:
            text = f"the code before goes on: {look.error}"
            self.log.event("error", "reload", "; ".join(filter(None, (text, look.hint))), tuple(look.stack))
            return
        self._looks = {look.number: look.survey}
        self.log.event("info", "reload", "the code has changed: its children boot beside those that work")
        self.supervisor.preload(look.survey.preload)
        self.supervisor.handle(CodeChanged(look.number, look.survey.functions))

    def _on_code(self, number: int, taken: bool) -> None:
        survey = self._looks.pop(number, None)
        if survey is None or not taken:
            return
        before = {function.name for function in self.supervisor.survey.functions}
        after = {function.name for function in survey.functions}
        self.supervisor.adopt(survey)
        told = [f"added: {name}" for name in sorted(after - before)]
        told += [f"removed: {name}" for name in sorted(before - after)]
        self.log.event("info", "reload", f"the changed code is served{'; ' if told else ''}{', '.join(told)}")
        if self._sidecar is not None:
            self._write_sidecar()

    # --- its end ---

    def _look_for_idleness(self, clock: IdleClock) -> None:
        fleet = self.supervisor.fleet
        if clock.has_passed(requests=fleet.number, live=len(fleet.jobs), now=self._loop.time()):
            self._stop(f"no request for {clock.limit_s:g} s: stopping")
        else:
            self._idle = self._loop.call_later(clock.look_every_s, self._look_for_idleness, clock)

    def _on_streams_end(self, end: End) -> None:
        assert self._streams is not None
        self._streams.close()
        if end is End.ANSWERED:
            self._stop("standard input has ended and everything it asked for is answered: stopping")
        elif end is End.UNREAD:
            self._status = FAILED
            self._stop("nobody reads standard output any more: stopping")

    def _on_signal(self) -> None:
        """First signal: end the jobs and the children in order. Second: at once."""
        now = self._loop.time()
        if self._stopping_since is None:
            self._stop("stopping: running requests are asked to end; press Ctrl-C again to end at once")
        elif now - self._stopping_since > ONE_SIGNAL_S and not self.supervisor.status.done():
            self.supervisor.status.set_result(FORCED)

    def _stop(self, reason: str) -> None:
        if self._stopping_since is not None:
            return
        self._stopping_since = self._loop.time()
        self.log.say(reason)
        if self._acceptor is not None:
            self._acceptor.close()
        self.supervisor.drain()

    async def close(self) -> None:
        """Remove every trace: sockets, files, processes."""
        if self._acceptor is not None:
            self._acceptor.close()
        if self._idle is not None:
            self._idle.cancel()
        if self._code is not None:
            self._code.close()
        self._remove_sidecar()
        self._requests.close()
        if self._streams is not None:
            self._streams.close()
        self._host.close("stopped" if self._has_begun else "")

    def _remove_sidecar(self) -> None:
        if self._sidecar is None:
            return
        try:
            self._sidecar.remove()
        except OSError as error:
            self.log.event("warning", "serve", f"`{self._sidecar.path}` stays: {reason_of(error)}")
