"""The process that serves probes and metrics over HTTP, as the supervisor holds it.

It is a client of the control socket. The supervisor keeps the port: a process that dies is replaced, and who connects
meanwhile waits for the next one.
"""

import asyncio
import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from gen_worker.extras import installed_by
from gen_worker.wire.address import TcpAddress
from gen_worker_supervisor.logs.log import Log
from gen_worker_supervisor.processes.companion import Companion, spawned
from gen_worker_supervisor.processes.reaper import Reaper
from gen_worker_supervisor.sockets.listening import ListenError, bind_tcp
from gen_worker_supervisor.sockets.poller import Poller

SOURCE = "http"
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
        raise ListenError(f"HTTP cannot be served: {listed} {are} not installed", installed_by("http"))
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
        self._port = port
        self._control = control
        self._environment = environment
        self._process = Companion(loop, poller, reaper, log, SOURCE, self._run, meanwhile=", the port stays open")

    @property
    def pid(self) -> int:
        """The process, 0 while there is none."""
        return self._process.pid

    def start(self) -> None:
        """Start the process; where that fails it is tried again, later and later."""
        self._process.start()

    def close(self) -> None:
        """End the process and wait for that: it has nothing to lose."""
        self._process.close()

    def _run(self, out: int) -> "subprocess.Popen[bytes]":
        listen = self._port.sock.fileno()
        command = [sys.executable, "-P", "-m", "gen_worker.http"]  # -P: the current folder may hold a `socket.py`
        command += ["--listen", str(listen), "--control", str(self._control), "--supervisor", str(os.getpid())]
        return spawned(command, out, [listen], front_environment(self._environment))
