"""Tells a process of its own of each traced job that ended, which sends spans of that to a collector.

The loop packs some numbers and never waits: what the process does not take is dropped and counted.
"""

import asyncio
import importlib.util
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping

import msgspec

from gen_worker.wire.spans import JobSpan
from gen_worker_supervisor.deaths import death
from gen_worker_supervisor.fetching import pause_before
from gen_worker_supervisor.log import Log
from gen_worker_supervisor.output import OutputPipe
from gen_worker_supervisor.poller import Poller
from gen_worker_supervisor.reaper import Reaper, reap
from gen_worker_supervisor.state import Fleet, Job, Outcome

SOURCE = "otlp"
NEEDED = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
ENDS_S = 2.0  # for what is left, when the supervisor ends
STEADY_S = 60.0  # one that lived so long is replaced at once when it dies
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_OF_NETWORKS = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")
_NAMES = frozenset(("PATH", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", *_OF_NETWORKS))
_BEGINNINGS = ("LC_", "PYTHON", "OTEL_")
_encode = msgspec.msgpack.Encoder().encode


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Whether the standard variables name a collector, and nothing says that no spans are to be sent."""
    off = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    exporter = environment.get("OTEL_TRACES_EXPORTER", "otlp").strip() or "otlp"
    return not off and exporter == "otlp" and any(environment.get(name, "").strip() for name in _ENDPOINTS)


def missing() -> list[str]:
    """Return what is not installed of what an exporter needs."""
    found = []
    for name in NEEDED:
        try:
            spec = importlib.util.find_spec(name)
        except ModuleNotFoundError:  # nor is what it is in
            spec = None
        if spec is None:
            found.append(name)
    return found


def exporter_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what the process sees of the worker's environment: its own settings, and no other's secrets."""
    return {
        name: value for name, value in environment.items() if name.upper() in _NAMES or name.startswith(_BEGINNINGS)
    }


def job_span(fleet: Fleet, job: Job, outcome: Outcome, now: float, epoch_ns: int) -> JobSpan | None:
    """Return what is told of a job that ended; None where its caller records nothing. Pure."""
    span = job.span
    if span is None or not span.sampled:
        return None
    child, instance = job.child, fleet.instances.get(job.instance)
    started = job.started
    if started is None and outcome.run_s:  # it was over before it was seen to start
        started = max(job.submitted, now - outcome.run_s)
    load_s = 0.0
    if started is not None and child is not None and instance is not None and instance.learned:
        ended = min(child.loaded_at, started)
        load_s = max(0.0, ended - max(job.submitted, child.loaded_at - instance.load_s))
    return JobSpan(
        span.trace_id,
        span.span_id,
        span.parent_id,
        job.function.name,
        "" if child is None else child.device.name,
        outcome.kind or "ok",
        job.attempt,
        epoch_ns + int(job.submitted * 1e9),
        0 if started is None else epoch_ns + int(started * 1e9),
        epoch_ns + int(now * 1e9),
        int(load_s * 1e9),
    )


class Spans:
    """The exporting process, through all its lives, and what it is told."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        poller: Poller,
        reaper: Reaper,
        log: Log,
        environment: Mapping[str, str],
    ) -> None:
        self.dropped = 0
        self.pid = 0
        self._loop = loop
        self._poller = poller
        self._reaper = reaper
        self._log = log
        self._environment = environment
        self._epoch_ns = time.time_ns() - time.monotonic_ns()
        self._sock: socket.socket | None = None
        self._pidfd = -1
        self._pipe: OutputPipe | None = None
        self._deaths = 0  # in a row
        self._born = 0.0
        self._restart: asyncio.TimerHandle | None = None
        self._closed = False

    def keep(self, fleet: Fleet, job: Job, outcome: Outcome, now: float) -> None:
        """Tell of a job that ended, if its caller wants that recorded."""
        told = job_span(fleet, job, outcome, now, self._epoch_ns)
        if told is None:
            return
        try:
            if self._sock is None:
                raise BlockingIOError
            self._sock.send(_encode(told))
        except OSError:  # it is busy, or has just died
            if not self.dropped:
                self._log.event("warning", SOURCE, "spans are not sent as fast as jobs end: some are left out")
            self.dropped += 1

    def start(self) -> None:
        """Start the process; where that fails it is tried again, later and later."""
        self._restart = None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        out, printed = os.pipe2(os.O_CLOEXEC)
        try:
            self.pid, self._pidfd = self._run(theirs, printed)
        except OSError as error:  # no memory, no descriptor, no process left
            ours.close()
            os.close(out)
            self._log.event("error", SOURCE, f"not started: {error}")
            self._start_later()
            return
        finally:
            theirs.close()
            os.close(printed)
        self._sock, self._born = ours, self._loop.time()
        self._pipe = OutputPipe(out, lambda _, line: self._log.printed(SOURCE, None, line))
        self._poller.watch(out, self._on_output)
        self._loop.add_reader(self._pidfd, self._look_for_death)
        self._reaper.own(self.pid, self._look_for_death)

    def close(self) -> None:
        """Have what is left sent, and end the process after a moment."""
        self._closed = True
        if self._restart is not None:
            self._restart.cancel()
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        if self._pidfd >= 0:
            if not select.select([self._pidfd], [], [], ENDS_S)[0]:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
                select.select([self._pidfd], [], [])  # nothing can stop a SIGKILL for long
            self._look_for_death()

    def _run(self, sock: socket.socket, out: int) -> tuple[int, int]:
        command = [sys.executable, "-P", "-m", "gen_worker.otlp"]  # -P: the current folder may hold a `socket.py`
        process = subprocess.Popen(
            [*command, "--socket", str(sock.fileno()), "--supervisor", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            pass_fds=[sock.fileno()],
            env=exporter_environment(self._environment),
            start_new_session=True,
        )
        try:
            pidfd = os.pidfd_open(process.pid)
        except OSError:
            process.kill()
            process.wait()
            raise
        process.returncode = 0  # it is reaped through its pidfd; `Popen` shall not try
        return process.pid, pidfd

    def _on_output(self, _events: int) -> None:
        if self._pipe is not None and not self._pipe.read():
            self._poller.forget(self._pipe.fd)

    def _look_for_death(self) -> None:
        if self._pidfd < 0:
            return
        status = reap(self._pidfd)
        if status is None:
            return
        self._loop.remove_reader(self._pidfd)
        self._reaper.disown(self.pid)
        if self._pipe is not None:
            self._poller.forget(self._pipe.fd)
            self._pipe.close()
        os.close(self._pidfd)
        self.pid, self._pidfd, self._pipe = 0, -1, None
        if self._closed:
            return
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        if self._loop.time() - self._born >= STEADY_S:
            self._deaths = 0
        pause = self._start_later()
        cause = death(status, "", 0, ()).cause
        when = f"in {pause:g} s" if pause else "now"
        self._log.event("warning", SOURCE, f"died ({cause}); another one starts {when}")

    def _start_later(self) -> float:
        self._deaths += 1
        pause = pause_before(self._deaths)
        self._restart = self._loop.call_later(pause, self.start)
        return pause
