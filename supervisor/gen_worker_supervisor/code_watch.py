"""A process beside the supervisor that watches the author's code and says what it declares after each change."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from gen_worker.environment import author_environment
from gen_worker.wire.survey import Look
from gen_worker_supervisor.logs.log import Log
from gen_worker_supervisor.processes.companion import Companion, spawned
from gen_worker_supervisor.processes.reaper import Reaper
from gen_worker_supervisor.sockets.poller import Poller

SOURCE = "reload"
_READ_BYTES = 1 << 16


class CodeWatch:
    """The process, through all its lives, and what it says."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        poller: Poller,
        reaper: Reaper,
        log: Log,
        *,
        module: str,
        paths: Sequence[str],
        functions: Sequence[str],
        environment: Mapping[str, str],
        on_look: Callable[[Look], None],
    ) -> None:
        self._poller = poller
        self._log = log
        self._command = [sys.executable, "-P", "-m", "gen_worker.reloading", "--module", module]
        self._command += [word for path in paths for word in ("--path", path)]
        self._command += [word for name in functions for word in ("--function", name)]
        self._environment = author_environment(environment)
        self._on_look = on_look
        self._since = time.time()
        self._fd = -1
        self._unread = bytearray()
        self._companion = Companion(loop, poller, reaper, log, SOURCE, self._run, on_death=self._forget)

    def start(self) -> None:
        """Start watching."""
        self._companion.start()

    def close(self) -> None:
        """End the process."""
        self._companion.close()
        self._forget()

    def _run(self, out: int) -> "subprocess.Popen[bytes]":
        self._forget()
        self._fd, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(theirs, True)
        try:
            process = spawned(
                [*self._command, "--out", str(theirs), "--since", str(self._since)], out, [theirs], self._environment
            )
        finally:
            os.close(theirs)
        self._poller.watch(self._fd, self._on_bytes)
        return process

    def _on_bytes(self, _events: int) -> None:
        try:
            read = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return
        if not read:
            self._poller.forget(self._fd)
            return
        self._unread += read
        while (end := self._unread.find(b"\n")) >= 0:
            line = bytes(self._unread[:end])
            del self._unread[: end + 1]
            self._since = time.time()
            try:
                self._on_look(msgspec.json.decode(line, type=Look))
            except msgspec.DecodeError as error:
                self._log.event("warning", SOURCE, f"what the process that watches the code says is not used: {error}")

    def _forget(self) -> None:
        if self._fd >= 0:
            self._poller.forget(self._fd)
            os.close(self._fd)
            self._fd = -1
        self._unread.clear()
