"""A running `gen-worker serve` for tests, and what a test says to it and sees of it."""

import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

from gen_worker.client import Client
from gen_worker.wire.status import DeviceStatus, JobStatus, Status

GEN_WORKER = [str(Path(sys.executable).with_name("gen-worker"))]
ENDPOINTS = Path(__file__).parent / "endpoints"
PATIENCE_S = 20.0
STARTING_S = 100.0  # for a server whose endpoint imports torch and diffusers from a cold disk, beside other tests

Serve = Callable[..., "Server"]
Found = TypeVar("Found")


def until(condition: Callable[[], Found], within_s: float = PATIENCE_S, *, what: str = "it") -> Found:
    """Return the condition's value as soon as it is true; fail when it is not in time."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {within_s:g} s")
        time.sleep(0.005)
    return found


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def private_bytes(pid: int) -> int:
    """Return the memory of a process that no other process shares."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Private_Dirty:", "Private_Clean:")))


def resident_bytes(pid: int) -> int:
    """Return the memory that a process has in RAM."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int) -> list[str]:
    """Return what the open descriptors of a process point to, but for files that it begins with the first line."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue  # closed meanwhile
        if not target.endswith(".jsonl"):
            found.append(target)
    return found


class Connection:
    """One connection that speaks NDJSON: to the Unix socket of this path, or over TCP to this address."""

    def __init__(self, where: Path | str, *, token: str | None = None) -> None:
        self.sock = connected(where)
        self.sock.settimeout(PATIENCE_S)
        self._token = {} if token is None else {"token": token}
        self._file = self.sock.makefile("rb")

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *raised: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def send(self, function: str, request_id: str | None = None, *, stream: bool = False, **payload: object) -> None:
        """Send a request."""
        request: dict[str, object] = {"function": function, "payload": payload, "stream": stream}
        if request_id is not None:
            request["request_id"] = request_id
        self.line(request)

    def cancel(self, request_id: str) -> None:
        """Send a cancel frame."""
        self.line({"cancel": {"request_id": request_id}})

    def line(self, message: dict[str, object]) -> None:
        """Send a line, with the token if there is one."""
        self.write(json.dumps(message | self._token).encode() + b"\n")

    def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.sock.sendall(data)

    def end(self) -> None:
        """Close the sending half."""
        self.sock.shutdown(socket.SHUT_WR)

    def read(self) -> dict[str, Any] | None:
        """Return the next frame, None at the end of the connection."""
        line = self._file.readline()
        return json.loads(line) if line else None

    def frame(self) -> dict[str, Any]:
        """Return the next frame, of which there must be one."""
        frame = self.read()
        assert frame is not None, "the server closed the connection"
        return frame

    def frames(self, number: int) -> dict[str, dict[str, Any]]:
        """Return this many answers by their request id; no request may be answered twice."""
        answers: dict[str, dict[str, Any]] = {}
        for _ in range(number):
            frame = self.frame()
            assert frame["request_id"] not in answers, f"answered twice: {frame['request_id']}"
            answers[frame["request_id"]] = frame
        return answers

    def is_silent(self, for_s: float = 0.0) -> bool:
        """Whether nothing has come."""
        self.sock.settimeout(for_s)
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, TimeoutError):
            return True
        finally:
            self.sock.settimeout(PATIENCE_S)
        return False

    def close(self) -> None:
        """Close the connection."""
        self._file.close()
        self.sock.close()


def connected(where: Path | str) -> socket.socket:
    """Return a connected socket, however long the path of a Unix one is."""
    if isinstance(where, str):
        host, _, port = where.removeprefix("tcp://").rpartition(":")
        return socket.create_connection((host.strip("[]"), int(port)), PATIENCE_S)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)  # blocking: with a timeout a full backlog is an error
    here = os.open(where.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        sock.connect(f"/proc/self/fd/{here}/{where.name}")
    except OSError:
        sock.close()
        raise
    finally:
        os.close(here)
    return sock


def text_of(frame: dict[str, Any]) -> str:
    """Return the text that a buffered answer of one value carries."""
    assert frame["ok"], frame
    return str(frame["events"][-1]["value"]["text"])


class Server:
    """A running `gen-worker serve` in a folder of its own."""

    def __init__(
        self, process: subprocess.Popen[bytes], folder: Path, *, listen: str | None = None, token: str | None = None
    ) -> None:
        self.process = process
        self.pid = process.pid
        self.folder = folder
        self.socket = folder / "gw.sock"
        self.sidecar = folder / ("gw.sock.json" if listen is None else ".gen-worker.serve.json")
        self.token = token
        self._listen = listen
        self._client: Client | None = None

    # --- talking to it ---

    def connect(self) -> Connection:
        """Return a new NDJSON connection."""
        return Connection(self.socket if self._listen is None else self.address, token=self.token)

    @property
    def address(self) -> str:
        """Where it says that it listens."""
        return str(json.loads(self.sidecar.read_bytes())["listen"])

    def ask(self, function: str, request_id: str | None = None, **payload: Any) -> dict[str, Any]:
        """Send one request on a connection of its own and return its answer."""
        with self.connect() as connection:
            connection.send(function, request_id, **payload)
            return connection.frame()

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command against this server."""
        command = [*GEN_WORKER, *arguments, "--socket", str(self.socket)]
        return subprocess.run(
            command, env=environment(self.folder), capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
        )

    @property
    def control(self) -> Path:
        """Its control socket."""
        return self.folder / "run" / str(self.pid) / "control.sock"

    @property
    def client(self) -> Client:
        """A client that stays connected."""
        if self._client is None:
            self._client = Client(self.control, name="tests")
        return self._client

    # --- looking at it ---

    def status(self) -> Status:
        """Return its status document."""
        return self.client.list()

    def devices(self) -> dict[str, DeviceStatus]:
        """Return its devices by name."""
        return {device.name: device for device in self.status().gpus}

    def pids(self) -> dict[str, int]:
        """Return the pids of its children by device."""
        return {device.name: device.pid for device in self.status().gpus if device.pid is not None}

    def job(self, request_id: str) -> JobStatus | None:
        """Return a job that has not ended."""
        return next((job for job in self.status().jobs if job.id == request_id), None)

    def idle(self) -> bool:
        """Whether every child has nothing to do."""
        return all(device.state == "idle" for device in self.status().gpus)

    def until_idle(self) -> None:
        """Wait until every child has nothing to do."""
        until(self.idle, what="every child being idle")

    def events(self) -> list[str]:
        """Return the messages of its recent events."""
        return [f"{event.source}: {event.message}" for event in self.status().events]

    def log(self) -> str:
        """Return what it wrote to standard error."""
        log = self.folder / "log"
        return log.read_text() if log.exists() else ""

    def processes(self) -> list[int]:
        """Return the pids of its child processes: children and zygote."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def zygote(self) -> int:
        """Return the pid of its zygote."""
        return next(
            pid
            for pid in self.processes()
            if b"gen_worker_child.zygote" in Path(f"/proc/{pid}/cmdline").read_bytes()
            and pid not in self.pids().values()
        )

    # --- meeting its jobs ---

    def runs(self) -> Counter[str]:
        """Return how often each request has begun to run."""
        return Counter(request_id for request_id, _ in self._notes())

    def homes(self, request_id: str) -> list[int]:
        """Return the pids in which a request has run, in order."""
        return [pid for name, pid in self._notes() if name == request_id]

    def _notes(self) -> list[tuple[str, int]]:
        notes = self.folder / "runs"
        if not notes.exists():
            return []
        return [(name, int(pid)) for name, pid in (line.split() for line in notes.read_text().splitlines())]

    def until_running(self, *request_ids: str, times: int = 1) -> None:
        """Wait until the author's code of these requests has begun."""
        until(lambda: all(self.runs()[each] >= times for each in request_ids), what=f"{request_ids[0]} running")

    def open(self, gate: str) -> None:
        """Let go the jobs that wait for this gate."""
        (self.folder / gate).touch()

    # --- its end ---

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def close(self) -> None:
        """End it, and read nothing more of it."""
        if self._client is not None:
            self._client.close()
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a server, or a command, in this folder."""
    own = {"GEN_WORKER_RUN_DIR": str(folder / "run"), "FAULTY_FOLDER": str(folder)}
    return {**os.environ, **own}


def launch(
    folder: Path,
    *arguments: str,
    module: str = "faulty",
    devices: str = "cpu:1",
    cwd: Path = ENDPOINTS,
    log: Path | None = None,
    variables: Mapping[str, str] | None = None,
    listen: str | None = None,
    token: str | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    limits: Mapping[str, float] | None = None,
    before: Sequence[str] = (),
) -> subprocess.Popen[bytes]:
    """Start the installed `gen-worker serve` with everything it makes in `folder`.

    With `listen` it is started there, too. `limits` replaces those on what clients may hold, and how long. `before` is
    a command that becomes the server.
    """
    address = str(folder / "gw.sock") if listen is None else listen
    if limits is None:
        command = [*GEN_WORKER, "serve", "--module", module, "--devices", devices, "--listen", address, *arguments]
    else:
        command = [sys.executable, "-c", _WITH_LIMITS, module, str(cwd), devices, address, json.dumps(dict(limits))]
    own = {"GEN_WORKER_LOCAL_OUTPUT_DIR": str(folder / "outputs"), "PYTHONDONTWRITEBYTECODE": "1"}
    own |= {} if token is None else {"GEN_WORKER_TOKEN": token}
    own |= {} if listen is None else {"PYTHONPATH": str(cwd)}
    with (log or folder / "log").open("wb") as stderr:
        return subprocess.Popen(
            [*before, *command],
            cwd=cwd if listen is None else folder,
            env={**environment(folder), **own, **(variables or {})},
            stdin=stdin,
            stdout=stderr if stdout is None else stdout,
            stderr=stderr,
        )


_WITH_LIMITS = """
import json, os, sys
from gen_worker.settings import Settings
from gen_worker.wire.address import parse_address
from gen_worker_supervisor.sockets.line_socket import Limits
from gen_worker_supervisor.serve import Options, serve
module, path, devices, address, limits = sys.argv[1:]
options = Options(module=module, paths=[path], devices=devices, address=parse_address(address))
sys.exit(serve(options, Settings.load(), os.environ, limits=Limits(**json.loads(limits))))
"""


@contextmanager
def serving(folder: Path, *arguments: str, **options: Any) -> Iterator[Server]:
    """Serve with `launch`'s arguments until the body ends; the server is ready, its children idle, when that begins."""
    listen, token = options.get("listen"), options.get("token")
    server = Server(launch(folder, *arguments, **options), folder, listen=listen, token=token)
    try:
        until(lambda: server.sidecar.exists() or server.process.poll() is not None, STARTING_S, what="the sidecar")
        assert server.process.poll() is None, server.log()
        until(server.idle, STARTING_S, what="every child being idle")
        yield server
    finally:
        server.close()
