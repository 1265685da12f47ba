"""Tells a process of its own of each traced job that ended, which sends spans of that to a collector.

The loop packs some numbers and never waits: what the process does not take is dropped and counted.
"""

import asyncio
import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping

import msgspec

from gen_worker.environment import COLLECTOR_KEYS
from gen_worker.wire.spans import JobSpan
from gen_worker_supervisor.core.state import Job, Outcome
from gen_worker_supervisor.logs.log import Log
from gen_worker_supervisor.processes.companion import Companion, spawned
from gen_worker_supervisor.processes.reaper import Reaper
from gen_worker_supervisor.sockets.poller import Poller

SOURCE = "otlp"
NEEDED = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
ENDS_S = 2.0  # for what is left, when the supervisor ends
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_OF_NETWORKS = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")
_NAMES = frozenset(("PATH", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", *_OF_NETWORKS))
_BEGINNINGS = ("LC_", "PYTHON", "OTEL_")
_encode = msgspec.msgpack.Encoder().encode


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Whether the standard variables name a collector, and nothing says that no spans are to be sent."""
    off = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    exporters = [name.strip() for name in environment.get("OTEL_TRACES_EXPORTER", "").split(",")]
    chosen = exporters == [""] or "otlp" in exporters
    return not off and chosen and any(environment.get(name, "").strip() for name in _ENDPOINTS)


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
    """Return what the process begins with of the worker's environment: its settings, and no secret."""
    return {
        name: value
        for name, value in environment.items()
        if name not in COLLECTOR_KEYS and (name.upper() in _NAMES or name.startswith(_BEGINNINGS))
    }


def job_span(job: Job, outcome: Outcome, now: float, epoch_ns: int) -> JobSpan | None:
    """Return what is told of a job that ended; None where its caller records nothing. Pure."""
    span = job.span
    if span is None or not span.sampled:
        return None
    child, started = job.child, job.started
    if started is None and outcome.run_s:  # it was over before it was seen to start
        started = max(job.submitted, now - outcome.run_s)
    load_s = 0.0
    if started is not None and child is not None and job.instance in child.set_up:
        loaded_at, took_s = child.set_up[job.instance]
        load_s = max(0.0, min(loaded_at, started) - max(job.submitted, loaded_at - took_s))
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
        self._log = log
        self._environment = environment
        self._sock: socket.socket | None = None
        self._process = Companion(loop, poller, reaper, log, SOURCE, self._run, on_death=self._hang_up)

    def keep(self, job: Job, outcome: Outcome, now: float) -> None:
        """Tell of a job that ended, if its caller wants that recorded."""
        told = job_span(job, outcome, now, time.time_ns() - int(now * 1e9))
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
        self._process.start()

    def close(self) -> None:
        """Have what is left sent, and end the process after a moment."""
        self._hang_up()
        self._process.close(ENDS_S)

    def _run(self, out: int) -> "subprocess.Popen[bytes]":
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.setblocking(False)
        self._sock.send(_encode({name: value for name in COLLECTOR_KEYS if (value := self._environment.get(name))}))
        with theirs:
            command = [sys.executable, "-P", "-m", "gen_worker.otlp"]  # -P: the current folder may hold a `socket.py`
            command += ["--socket", str(theirs.fileno()), "--supervisor", str(os.getpid())]
            return spawned(command, out, [theirs.fileno()], exporter_environment(self._environment))

    def _hang_up(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None
