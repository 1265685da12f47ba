"""The fetcher as the supervisor holds it: its process, its socket, what it prints.

Carries orders and reports; what they mean is decided elsewhere. A fetcher that dies is replaced. Never waits for it.
"""

import asyncio
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from gen_worker.wire.channel import Channel, ProtocolError, close_all
from gen_worker.wire.fetching import (
    CallPlatform,
    Configure,
    Fetch,
    FetchFailed,
    FetchInput,
    FetchOrder,
    FetchReport,
    Hold,
    HoldFailed,
    InputFailed,
    Keep,
    PlatformAnswered,
    RenewToken,
    TokenRenewed,
    Upload,
    UploadFailed,
)
from gen_worker_supervisor.core.deaths import death
from gen_worker_supervisor.logs.log import Log
from gen_worker_supervisor.processes.companion import STEADY_S, held, pause_before, spawned
from gen_worker_supervisor.processes.output import OutputPipe
from gen_worker_supervisor.processes.reaper import Reaper, ends_within, reap
from gen_worker_supervisor.sockets.poller import GONE, READABLE, WRITABLE, Poller

REPORTS_A_TURN = 64  # before children and clients get theirs
FAREWELL_S = 2.0  # from SIGTERM to SIGKILL
_NAMES = frozenset(
    (
        *("PATH", "HOME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "MALLOC_CONF"),
        *("XDG_CACHE_HOME", "HF_HOME", "HF_TOKEN_PATH"),  # where a token may be stored
    )
)
_BEGINNINGS = ("LC_", "PYTHON", "SSL_CERT_")


def fetcher_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what the fetcher sees of the worker's environment: nothing secret, everything else comes as a frame."""
    return {name: value for name, value in environment.items() if name in _NAMES or name.startswith(_BEGINNINGS)}


class FetcherProcess:
    """The supervisor's fetcher, through all its lives.

    `on_report` gets each report with its descriptors, which are its own then. After a death `on_lost` is called once:
    what had been ordered and not reported must be sent again; what is sent from then on waits for the replacement.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        poller: Poller,
        reaper: Reaper,
        log: Log,
        config: bytes,
        on_report: Callable[[FetchReport, list[int]], None],
        on_lost: Callable[[], None],
        *,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._loop = loop
        self._poller = poller
        self._reaper = reaper
        self._log = log
        self._config = config
        self._on_report = on_report
        self._on_lost = on_lost
        self._environment = environment
        self._keep: Keep | None = None
        self._life: _Life | None = None
        self._waiting: deque[tuple[FetchOrder, list[int]]] = deque()
        self._deaths = 0  # in a row
        self._restart: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def pid(self) -> int:
        """The process, 0 while there is none."""
        return 0 if self._life is None else self._life.pid

    def start(self) -> None:
        """Start the process; where that fails it is tried again, later and later."""
        self._restart = None
        try:
            self._life = _Life(self, self._environment)
        except OSError as error:  # no memory, no descriptor, no process left
            self._log.event("error", "fetcher", f"not started: {error}")
            self._start_later()
            return
        waiting, self._waiting = self._waiting, deque()
        self._life.send(Configure(self._config), [])
        if self._keep is not None:
            self._life.send(self._keep, [])
        for order, descriptors in waiting:
            self._life.send(order, descriptors)

    def send(self, order: FetchOrder, descriptors: Sequence[int] = ()) -> None:
        """Send an order now, or as soon as there is somebody with room for it; never waits."""
        if self._closed:
            return
        if isinstance(order, Keep):
            self._keep = order
            if self._life is None:
                return
        own = [os.dup(fd) for fd in descriptors]
        if self._life is None:
            self._waiting.append((order, own))
        else:
            self._life.send(order, own)

    def close(self) -> None:
        """End the process, which has a moment to note how far its downloads are; calls nobody back."""
        self._closed = True
        if self._restart is not None:
            self._restart.cancel()
        for _, descriptors in self._waiting:
            close_all(descriptors)
        self._waiting.clear()
        if self._life is not None:
            self._life.end()

    # --- what a life tells --------------------------------------------------------------------------------------------

    def reported(self, report: FetchReport, descriptors: list[int]) -> None:
        """A report came."""
        if self._closed:
            close_all(descriptors)
        else:
            self._on_report(report, descriptors)

    def printed(self, line: str) -> None:
        """The process printed a line."""
        self._log.printed("fetcher", None, line)

    def died(self, cause: str, lived_s: float) -> None:
        """The process has ended, and everything that it sent was read."""
        self._life = None
        if self._closed:
            return
        if lived_s >= STEADY_S:
            self._deaths = 0
        pause = self._start_later()
        when = f"in {pause:g} s" if pause else "now"
        self._log.event("warning", "fetcher", f"died ({cause}); another one starts {when}, nothing is lost")
        self._on_lost()

    def _start_later(self) -> float:
        self._deaths += 1
        pause = pause_before(self._deaths)
        self._restart = self._loop.call_later(pause, self.start)
        return pause


class _Life:
    """One process, from its start until its death was noted."""

    def __init__(self, owner: FetcherProcess, environment: Mapping[str, str]) -> None:
        self._owner = owner
        self._loop, self._poller, self._reaper = owner._loop, owner._poller, owner._reaper
        self._unsent: deque[tuple[FetchOrder, list[int]]] = deque()
        self._breach = ""  # how it broke the protocol
        self._born = self._loop.time()
        self.pid, self._pidfd, ours, out = _spawned(environment)
        self._channel: Channel[FetchReport] = Channel(ours, generation=0, receives=FetchReport)
        self._pipe = OutputPipe(out, lambda job, line: owner.printed(line))
        self._poller.watch(self._channel.fileno(), self._on_events)
        self._poller.watch(self._pipe.fd, self._on_output)
        self._loop.add_reader(self._pidfd, self._look_for_death)
        self._reaper.own(self.pid, self._look_for_death)

    def send(self, order: FetchOrder, descriptors: list[int]) -> None:
        """Send an order as soon as there is room for it; its descriptors are closed then."""
        self._unsent.append((order, descriptors))
        if len(self._unsent) == 1:
            self._write()

    def end(self) -> None:
        """End the process and wait for that."""
        self._signal(signal.SIGTERM)
        self._channel.sock.shutdown(socket.SHUT_WR)
        if not ends_within(self._pidfd, FAREWELL_S):
            self._signal(signal.SIGKILL)
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOWAIT)  # nothing can stop a SIGKILL for long
        self._look_for_death()

    def _signal(self, number: int) -> None:
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return  # it was already gone, which is what we wanted

    # --- frames -------------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        while self._unsent:
            order, descriptors = self._unsent[0]
            try:
                self._channel.send(order, descriptors)
            except BlockingIOError:
                self._poller.change(self._channel.fileno(), READABLE | WRITABLE)
                return
            except (BrokenPipeError, ConnectionResetError):
                return  # its death follows, and with it all orders are lost
            except (ProtocolError, UnicodeEncodeError) as error:  # too long for a frame, or a name that is no text
                self._refuse(order, str(error))
            close_all(descriptors)
            self._unsent.popleft()

    def _refuse(self, order: FetchOrder, reason: str) -> None:
        """Report an order that cannot be sent as one that failed."""
        report: FetchReport
        match order:
            case Fetch(number, wanted):
                text = f"`{wanted.ref:.200}` cannot be asked for: {reason}"
                report = FetchFailed(number, "too_large", text, "name fewer files", retryable=False)
            case Hold(number):
                report = HoldFailed(number, reason)
            case FetchInput(number):
                report = InputFailed(number, "invalid", f"its URL cannot be passed on: {reason}", retryable=False)
            case Upload(number):
                report = UploadFailed(number, "transfer", f"its name cannot be passed on: {reason}", retryable=False)
            case CallPlatform(number):
                text = f"what is asked cannot be passed on: {reason}"
                report = PlatformAnswered(number, error=text, failure="invalid")
            case RenewToken(number):
                report = TokenRenewed(number, error=f"a token cannot be passed on: {reason}")
            case _:
                self._owner.printed(f"an order was dropped: {reason}")
                return
        self._loop.call_soon(self._owner.reported, report, [])

    def _on_events(self, events: int) -> None:
        if events & WRITABLE:
            self._poller.change(self._channel.fileno(), READABLE)
            self._write()
        if events & (READABLE | GONE) and not self._read(REPORTS_A_TURN):
            self._poller.forget(self._channel.fileno())

    def _read(self, limit: int) -> bool:
        """Read what is there; say whether more may come."""
        for _ in range(limit):
            try:
                received = self._channel.receive()
            except BlockingIOError:
                return True
            except ProtocolError as error:
                self._breach = f"protocol: {error}"
                self._signal(signal.SIGKILL)
                return False
            if received is None:
                self._signal(signal.SIGKILL)  # nobody can be told anything without a socket
                return False
            self._owner.reported(*received)
        return True

    def _on_output(self, events: int) -> None:
        if not self._pipe.read():
            self._poller.forget(self._pipe.fd)

    # --- death --------------------------------------------------------------------------------------------------------

    def _look_for_death(self) -> None:
        if self._pidfd < 0:
            return
        status = reap(self._pidfd)
        if status is None:
            return
        self._loop.remove_reader(self._pidfd)
        self._reaper.disown(self.pid)
        self._poller.forget(self._channel.fileno())
        self._poller.forget(self._pipe.fd)
        if not self._breach:
            self._read(1 << 30)  # what it sent before it died counts
        self._pipe.close()
        self._channel.close()
        os.close(self._pidfd)
        self._pidfd = -1
        for _, descriptors in self._unsent:
            close_all(descriptors)
        cause = self._breach or death(status, "", 0, ()).cause
        self._owner.died(cause, self._loop.time() - self._born)


def _spawned(environment: Mapping[str, str]) -> tuple[int, int, socket.socket, int]:
    """Start a fetcher; return its pid and pidfd, our end of its socket, and the read end of what it prints."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    out, printed = os.pipe2(os.O_CLOEXEC)
    try:
        pid, pidfd = _run(theirs.fileno(), printed, environment)
    except OSError:
        ours.close()
        os.close(out)
        raise
    finally:
        theirs.close()
        os.close(printed)
    return pid, pidfd, ours, out


def _run(sock: int, out: int, environment: Mapping[str, str]) -> tuple[int, int]:
    command = [sys.executable, "-P", "-m", "gen_worker.fetch"]  # -P: the current folder may hold a `socket.py`
    whole = [*command, "--socket", str(sock), "--supervisor", str(os.getpid())]
    return held(spawned(whole, out, [sock], fetcher_environment(environment)))
