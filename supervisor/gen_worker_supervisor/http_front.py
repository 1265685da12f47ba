"""The process that serves probes and metrics over HTTP, as the supervisor holds it.

It is a client of the control socket. The supervisor keeps the port: a process that dies is replaced, and who connects
meanwhile waits for the next one.
"""

import asyncio
import importlib.util
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from gen_worker.wire.address import TcpAddress
from gen_worker_supervisor.deaths import death
from gen_worker_supervisor.fetching import pause_before
from gen_worker_supervisor.log import Log
from gen_worker_supervisor.output import OutputPipe
from gen_worker_supervisor.poller import Poller
from gen_worker_supervisor.reaper import Reaper, reap
from gen_worker_supervisor.sockets import ListenError, bind_tcp

SOURCE = "http"
STEADY_S = 60.0  # one that lived so long is replaced at once when it dies
NEEDED = ("starlette", "uvicorn", "prometheus_client")
_NAMES = frozenset(("PATH", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV"))
_BEGINNINGS = ("LC_", "PYTHON")


class HttpPort(NamedTuple):
    """A port that probes and metrics are served on."""

    sock: socket.socket
    url: str


def open_port(address: TcpAddress) -> HttpPort:
    """Return a listening port; raise `ListenError` where it cannot be had, or what serves it is not installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        listed = ", ".join(f"`{name}`" for name in missing)
        are = "is" if len(missing) == 1 else "are"
        raise ListenError(f"HTTP cannot be served: {listed} {are} not installed", "`pip install 'gen-worker[http]'`")
    sock, real = bind_tcp(address, guarded=True)
    return HttpPort(sock, str(real).replace("tcp://", "http://"))


def front_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what the process sees of the worker's environment: nothing secret, and no setting."""
    return {name: value for name, value in environment.items() if name in _NAMES or name.startswith(_BEGINNINGS)}


class HttpFront:
    """The process, through all its lives; whoever has opened the port closes it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        poller: Poller,
        reaper: Reaper,
        log: Log,
        port: HttpPort,
        control: Path,
        *,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._loop = loop
        self._poller = poller
        self._reaper = reaper
        self._log = log
        self._port = port
        self._control = control
        self._environment = environment
        self._deaths = 0  # in a row
        self._born = 0.0
        self._restart: asyncio.TimerHandle | None = None
        self._pipe: OutputPipe | None = None
        self._pidfd = -1
        self._closed = False
        self.pid = 0
        """The process, 0 while there is none."""

    def start(self) -> None:
        """Start the process; where that fails it is tried again, later and later."""
        self._restart = None
        out, printed = os.pipe2(os.O_CLOEXEC)
        try:
            self.pid, self._pidfd = self._run(printed)
        except OSError as error:  # no memory, no descriptor, no process left
            os.close(out)
            self._log.event("error", SOURCE, f"not started: {error}")
            self._start_later()
            return
        finally:
            os.close(printed)
        self._born = self._loop.time()
        self._pipe = OutputPipe(out, lambda _, line: self._log.printed(SOURCE, None, line))
        self._poller.watch(out, self._on_output)
        self._loop.add_reader(self._pidfd, self._look_for_death)
        self._reaper.own(self.pid, self._look_for_death)

    def close(self) -> None:
        """End the process and wait for that: it has nothing to lose."""
        self._closed = True
        if self._restart is not None:
            self._restart.cancel()
        if self._pidfd >= 0:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            select.select([self._pidfd], [], [])  # nothing can stop a SIGKILL for long
            self._look_for_death()

    def _run(self, out: int) -> tuple[int, int]:
        command = [sys.executable, "-P", "-m", "gen_worker.http"]  # -P: the current folder may hold a `socket.py`
        listen, pid = self._port.sock.fileno(), os.getpid()
        process = subprocess.Popen(
            [*command, "--listen", str(listen), "--control", str(self._control), "--supervisor", str(pid)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            pass_fds=[listen],
            env=front_environment(self._environment),
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
        if self._loop.time() - self._born >= STEADY_S:
            self._deaths = 0
        pause = self._start_later()
        when = f"in {pause:g} s" if pause else "now"
        cause = death(status, "", 0, ()).cause
        self._log.event("warning", SOURCE, f"died ({cause}); another one starts {when}, the port stays open")

    def _start_later(self) -> float:
        self._deaths += 1
        pause = pause_before(self._deaths)
        self._restart = self._loop.call_later(pause, self.start)
        return pause
