"""A worker as a container starts it: `python -m gen_worker.entrypoint` in a folder laid out like an image."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import grpc

from tests.scripted.orchestrator import PATIENCE_S, Asked, Connection, ScriptedOrchestrator
from tests.served import STARTING_S, descriptors

ENDPOINT = Path(__file__).with_name("endpoint")
PROJECT = '[project]\nname = "wired"\nversion = "0"\n\n[tool.gen_worker]\nmain = "wired"\n'
CANARY = "canary-5a17e0"  # part of every secret that a worker under test is given
RELEASE = "release-7"
READY = 5  # of WorkerPhase
HOPS, STEADY_S = 3, 1.2  # so often a worker goes where it is sent at once, unless it stayed so long in between
COMMAND = ["-m", "gen_worker.entrypoint"]
Found = TypeVar("Found")


def token(worker_id: str = "wired-1", release_id: str = RELEASE, **claims: object) -> str:
    """Return a worker's token with these claims, which nobody has signed."""
    claims = {"sub": worker_id, "release_id": release_id, **claims}
    parts = [json.dumps(each).encode() for each in ({"alg": "none"}, claims)] + [CANARY.encode()]
    return ".".join(base64.urlsafe_b64encode(each).rstrip(b"=").decode() for each in parts)


@cache
def lock() -> bytes:
    """Return the lock of the endpoint, as its image is built with it."""
    command = [sys.executable, "-m", "gen_worker.discovery"]
    folder = Path(os.environ["GEN_WORKER_RUN_DIR"], "wired-lock")
    lay_out(folder)
    env = {**os.environ, "WIRED_FOLDER": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, timeout=60, check=False)
    finally:
        shutil.rmtree(folder)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.decode())
    return done.stdout


def lay_out(folder: Path) -> None:
    """Put the endpoint and its project file into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(ENDPOINT / "wired.py", folder)
    (folder / "pyproject.toml").write_text(PROJECT)


class Worker:
    """A running entrypoint; everything that it makes is in `folder`."""

    def __init__(self, folder: Path, address: str, variables: Mapping[str, str | None] | None = None) -> None:
        self.folder = folder
        self.app = folder / "app"
        lay_out(self.app)
        place = self.app / ".tensorhub" / "endpoint.lock"
        place.parent.mkdir()
        place.write_bytes(lock())
        wanted = {**os.environ, **self._variables(address, place), **(variables or {})}
        env = {name: value for name, value in wanted.items() if value is not None}
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *COMMAND],
                cwd=self.app,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.pid = self.process.pid

    def _variables(self, address: str, place: Path) -> dict[str, str]:
        return {
            "ORCHESTRATOR_PUBLIC_ADDR": address,
            "ENDPOINT_LOCK_PATH": str(place),
            "WORKER_ID": "wired-1",
            "WORKER_JWT": token(),
            "HF_TOKEN": f"hf-{CANARY}",
            "GEN_WORKER_DEVICES": "cpu:2",
            "GEN_WORKER_RUN_DIR": str(self.folder / "run"),
            "TENSORHUB_CACHE_DIR": str(self.folder / "cache"),
            "WIRED_FOLDER": str(self.folder),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    # --- looking at it ---

    def log(self) -> str:
        """Return what it wrote."""
        return (self.folder / "log").read_text(errors="replace")

    def runs(self) -> Counter[str]:
        """Return how often each request has begun to run."""
        return Counter(request_id for request_id, _ in self._notes())

    def home(self, request_id: str) -> int:
        """Return the pid in which a request has run last."""
        return [pid for name, pid in self._notes() if name == request_id][-1]

    def _notes(self) -> list[tuple[str, int]]:
        notes = self.folder / "runs"
        if not notes.exists():
            return []
        return [(name, int(pid)) for name, pid in (line.split() for line in notes.read_text().splitlines())]

    def until_running(self, *request_ids: str) -> None:
        """Wait until the author's code of these requests has begun."""
        self.until(lambda: all(self.runs()[each] for each in request_ids), f"{request_ids[0]} running")

    def until(self, condition: Callable[[], Found], what: str, within: float = PATIENCE_S) -> Found:
        """Return what a condition gives once it is true; fail, with the end of the log, when it is not in time."""
        deadline = time.monotonic() + within
        while not (found := condition()):
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} did not come true within {within:g} s:\n{self.log()[-4000:]}")
            time.sleep(0.005)
        return found

    def descendants(self) -> list[int]:
        """Return the pids of all processes under it."""
        found, fresh = [], [self.pid]
        while fresh:
            pid = fresh.pop()
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                try:
                    fresh += (pids := [int(each) for each in children.read_text().split()])
                except FileNotFoundError:
                    continue
                found += pids
        return found

    def sockets(self) -> int:
        """Return how many sockets it has open itself."""
        return sum(target.startswith("socket:") for target in descriptors(self.pid))

    @property
    def control(self) -> Path:
        """Its control socket."""
        return self.folder / "run" / str(self.pid) / "control.sock"

    def gen_worker(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run an operator's command against it."""
        command = [str(Path(sys.executable).with_name("gen-worker")), *arguments, "--socket", str(self.control)]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL
        )

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Show the end of its log where the body fails."""
        try:
            yield
        except AssertionError as error:
            raise AssertionError(f"{error}\nits log ends:\n{self.log()[-4000:]}") from None

    # --- steering it ---

    def open(self, gate: str) -> None:
        """Let go the jobs that wait for this gate."""
        (self.folder / gate).touch()

    def wait(self, within: float = PATIENCE_S) -> int:
        """Wait for its end and return its exit code."""
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the worker did not end within {within:g} s:\n{self.log()[-4000:]}") from None

    def close(self) -> None:
        """End it at once, as a test does that is done with it."""
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is not None:
                return
            self.process.send_signal(number)
            try:
                self.process.wait(3)
            except subprocess.TimeoutExpired:
                continue


@contextmanager
def working(folder: Path, address: str, variables: Mapping[str, str | None] | None = None) -> Iterator[Worker]:
    """Run a worker towards an orchestrator until the body ends."""
    folder.mkdir(parents=True, exist_ok=True)
    worker = Worker(folder, address, variables)
    try:
        yield worker
    finally:
        worker.close()


class Driven(NamedTuple):
    """A worker, who drives it, and the connection between them."""

    orchestrator: ScriptedOrchestrator
    worker: Worker
    connection: Connection

    def ask(self, function: str, request_id: str = "", **payload: Any) -> Asked:
        """Send a job with the fields of its payload."""
        return self.connection.run(function, payload, request_id=request_id)

    def redial(self) -> "Driven":
        """End the connection as a leader does that has been re-elected, so that the worker is back at once."""
        began = [each.began for each in self.orchestrator.connections]
        if len(began) > HOPS and all(after - before < STEADY_S for before, after in pairwise(began[-HOPS:])):
            self.worker.until(lambda: time.monotonic() - began[-1] > STEADY_S, "a steady connection")
        self.connection.end(grpc.StatusCode.FAILED_PRECONDITION, f"not_leader:{self.orchestrator.address}")
        return self._replace(connection=self.orchestrator.greet())


@contextmanager
def driven(
    folder: Path, variables: Mapping[str, str | None] | None = None, *, ready: bool = True, **ack: Any
) -> Iterator[Driven]:
    """Run a worker and its orchestrator until the body ends; the worker is ready when that begins."""
    with ScriptedOrchestrator() as orchestrator, working(folder, orchestrator.address, variables) as worker:
        with worker.explained():
            made = Driven(orchestrator, worker, orchestrator.greet(**ack))
            if ready:
                until_ready(made.connection)
        yield made


def until_state(connection: Connection, condition: Callable[[Any], bool], what: str, within: float = PATIENCE_S) -> Any:
    """Wait until a condition holds for what the worker said last of its state, and return that."""

    def state() -> Any:
        states = [connection.hello.state, *(each.message for each in connection.told("state_delta"))]
        return states[-1] if condition(states[-1]) else None

    return connection.orchestrator.until(state, within, f"not {what}")


def until_ready(connection: Connection) -> None:
    """Wait until the worker says that it is ready, in its Hello or later."""
    until_state(connection, lambda state: state.phase == READY and not state.loading_functions, "ready", STARTING_S)


def until_draining(connection: Connection) -> None:
    """Wait until a worker that was ready offers nothing any more."""
    until_state(connection, lambda state: not state.available_functions, "draining")
