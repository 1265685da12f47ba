"""Workers of this host that a control plane starts, keeps up and ends: one `gen-worker up` for each project."""

import asyncio
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

BACK_OFF_S = (1.0, 60.0)
STEADY_S = 60.0  # who lived so long begins with the shortest pause again
BACK_S = 60.0  # within which one that is started again is back: what imports torch from a cold disk takes some of it
LINE_BYTES = 64 << 10
LAST_WORDS_S = 2.0  # for what a worker has said before it ended
# Exit codes of workers that are not started again, and why.
FINAL = {0: "it was drained", 2: "it would end so each time"}
_AGAIN = "SIGUSR1 starts it"

_OURS = ("GEN_WORKER_ORCHESTRATOR_TOKEN",)  # what callers show is no worker's business

# It ends with this process, however that ends: the signal comes when the thread that started it does, and that is the
# main one. Nothing of ours runs between fork and exec.
_STARTER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.executable, [sys.executable, "-P", "-m", "gen_worker.cli", "up", *sys.argv[2:]])
"""

Said = Callable[[str, str], None]
"""Takes the name of a worker, and a line of its own output or about it."""


@dataclass(frozen=True)
class LocalWorker:
    """A worker to be kept up: its name, the folder of its project, and what it is told."""

    name: str
    project: Path
    arguments: tuple[str, ...]
    variables: dict[str, str]


def names_of(projects: list[Path]) -> list[str]:
    """Return a name for the worker of each project, no two the same."""
    bare = [
        re.sub(r"[^\w.-]+", "-", project.resolve().name, flags=re.ASCII).strip("-.") or "worker" for project in projects
    ]
    return [name if bare.count(name) == 1 else f"{name}-{bare[: at + 1].count(name)}" for at, name in enumerate(bare)]


@dataclass(frozen=True)
class Inherited:
    """What workers get of this process as it was started, whatever it has made of itself since."""

    environment: Mapping[str, str] = field(repr=False)
    umask: int


class LocalWorkers:
    """The workers that were started here. Use it on one loop, in the main thread."""

    def __init__(
        self, workers: list[LocalWorker], inherited: Inherited, said: Said, returns: Callable[[float], None]
    ) -> None:
        """`returns` is told when one is started again for the first time in a while, and within how long it is back."""
        self._returns = returns
        self._workers = workers
        self._inherited = inherited
        self._said = said
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._keeping: list[asyncio.Task[None]] = []
        self._ending = asyncio.Event()
        self._again = {worker.name: asyncio.Event() for worker in workers}

    def start(self) -> None:
        """Start them, and again whoever fails."""
        self._keeping = [asyncio.create_task(self._keep(worker)) for worker in self._workers]

    def restart(self) -> None:
        """Have each end its jobs and leave, and start it again, with the code as it is then."""
        for again in self._again.values():
            again.set()
        self._signal(signal.SIGTERM)

    async def end(self) -> None:
        """Have them end their jobs and leave; return when the last one has."""
        self._ending.set()
        self._signal(signal.SIGTERM)
        if self._keeping:
            await asyncio.wait(self._keeping)

    def kill(self) -> None:
        """End them at once."""
        self._ending.set()
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                process.send_signal(number)

    async def _keep(self, worker: LocalWorker) -> None:
        pause_s, again = BACK_OFF_S[0], self._again[worker.name]
        while not self._ending.is_set():
            again.clear()
            begun = time.monotonic()
            code = await self._run(worker)
            if self._ending.is_set():
                return
            if not again.is_set() and code in FINAL:
                self._said(worker.name, f"ended with {code} and is not started again: {FINAL[code]}; {_AGAIN}")
                await self._told(again)
                continue
            if again.is_set():
                self._said(worker.name, f"ended with {code}, starts again as it was told")
                self._returns(BACK_S)
                continue
            if time.monotonic() - begun > STEADY_S:
                pause_s = BACK_OFF_S[0]
            if pause_s == BACK_OFF_S[0]:  # of one that fails again and again nobody can tell
                self._returns(BACK_S)
            wait_s = random.uniform(0.5, 1.0) * pause_s
            self._said(worker.name, f"ended with {code}, starts again in {wait_s:.1f} s")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._told(again), wait_s)
            pause_s = min(pause_s * 2, BACK_OFF_S[1])

    async def _told(self, again: asyncio.Event) -> None:
        """Return when a worker is to be started again, or all are to end."""
        told = [asyncio.ensure_future(event.wait()) for event in (again, self._ending)]
        try:
            await asyncio.wait(told, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in told:
                each.cancel()

    async def _run(self, worker: LocalWorker) -> int:
        inherited = self._inherited
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-c",
            _STARTER,
            str(os.getpid()),
            *worker.arguments,
            cwd=worker.project,
            env={name: value for name, value in inherited.environment.items() if name not in _OURS} | worker.variables,
            umask=inherited.umask,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C on the terminal is for the control plane, which ends it in order
            limit=LINE_BYTES,
        )
        self._processes[worker.name] = process
        if self._ending.is_set():  # meanwhile
            self._signal(signal.SIGTERM)
        assert process.stdout is not None
        reading = asyncio.create_task(self._read(worker.name, process.stdout))
        try:
            code = await process.wait()
            await asyncio.wait((reading,), timeout=LAST_WORDS_S)
            return code
        finally:
            reading.cancel()
            del self._processes[worker.name]

    async def _read(self, name: str, output: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await output.readline()
            except ValueError:  # longer than the limit: what was read of it is gone
                line = b"[a line that is too long]\n"
            if not line:
                return
            self._said(name, line.decode("utf-8", "replace").rstrip("\n"))
