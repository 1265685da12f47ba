"""A supervisor to break: with real children, in a folder of its own, gone without a trace when nobody needs it."""

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from gen_worker.client import Client
from gen_worker.doctor.chaos.observed import marked, until
from gen_worker.doctor.finding import reason
from gen_worker.environment import author_environment
from gen_worker.scratch import claimed_folder
from gen_worker.wire.status import DeviceStatus, Status

MARK = "GENWORKERSCRATCH"  # one that reaches children
ENDPOINT = Path(__file__).with_name("endpoint.py")
MODULE = "breakable"
START_S = 30.0
END_S = 10.0
_LOG_BYTES = 4096


class ScratchError(Exception):
    """The scratch supervisor does not start, or does not do what everything else stands on; the text has its log."""


class Scratch:
    """A `gen-worker serve` of the functions in `endpoint`, as many children as `slots`, inside a `with`.

    Of this process's settings it knows none, only `variables`; it has no model and touches no other supervisor. It ends
    by itself when this process does, whatever ends that. Raises `ScratchError` when it does not start.
    """

    def __init__(self, slots: int = 2, variables: Mapping[str, str] | None = None) -> None:
        self._slots = slots
        self._variables = dict(variables or {})
        self.mark = f"{MARK}={uuid.uuid4().hex}"
        self.process: subprocess.Popen[bytes] | None = None
        self._client: Client | None = None

    def __enter__(self) -> "Scratch":
        try:
            self._claimed, self._claim = claimed_folder()
        except OSError as error:
            raise ScratchError(f"no temporary folder can be made: {reason(error)}") from None
        self.folder = self._claimed / "scratch"  # a server locks the folder of its socket
        try:
            self.folder.mkdir()
            shutil.copyfile(ENDPOINT, self.folder / f"{MODULE}.py")  # so that it is an author's, in stacks too
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *raised: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    # --- its beginning ---

    def start(self) -> None:
        """Start the supervisor and wait until its children are idle; also another one in the place of a dead one."""
        self._let_go()
        self._sidecar.unlink(missing_ok=True)  # one that was killed leaves it
        command = [sys.executable, "-m", "gen_worker.cli", "serve", "--module", MODULE]
        command += ["--devices", f"cpu:{self._slots}", "--listen", str(self.listens_at)]
        with (self.folder / "log").open("ab") as log:
            try:
                self.process = subprocess.Popen(
                    command,
                    cwd=self.folder,
                    env=self._environment(),
                    stdin=subprocess.PIPE,  # which ends with this process, and the server with it
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is not for it
                )
            except OSError as error:
                raise ScratchError(f"no process can be started: {reason(error)}") from None
        self._ask_by_stdin(self.process)
        if not until(lambda: self._is_ready() or not self.runs, START_S) or not self.runs:
            raise ScratchError(f"the scratch supervisor did not start:\n{self.log()}")
        self.until_idle()

    def _ask_by_stdin(self, process: "subprocess.Popen[bytes]") -> None:
        """Ask for something: a server that was asked nothing there goes on at the end of its stdin."""
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # its log says why it has ended
            process.stdin.write(b'{"function":"echo","payload":{}}\n')
            process.stdin.flush()

    def _is_ready(self) -> bool:
        return self.control.exists() and self._sidecar.exists()

    @property
    def _sidecar(self) -> Path:
        return self.listens_at.with_name(f"{self.listens_at.name}.json")

    def _environment(self) -> dict[str, str]:
        own = {
            "GEN_WORKER_RUN_DIR": str(self.folder / "run"),
            "GEN_WORKER_LOCAL_OUTPUT_DIR": str(self.folder / "outputs"),
            "GEN_WORKER_DEBUGGABLE": "1",  # there is no secret in it, and whoever watches it looks into it
            "GEN_WORKER_LOG_FORMAT": "text",
        }
        name, _, value = self.mark.partition("=")
        return {**author_environment(os.environ), **own, **self._variables, name: value}

    # --- looking at it ---

    @property
    def listens_at(self) -> Path:
        """The socket that takes NDJSON."""
        return self.folder / "gw.sock"

    @property
    def control(self) -> Path:
        """Its control socket."""
        return self.folder / "run" / str(self.pid) / "control.sock"

    @property
    def pid(self) -> int:
        """Its process."""
        assert self.process is not None
        return self.process.pid

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.process is not None and self.process.poll() is None

    @property
    def client(self) -> Client:
        """A client that stays connected."""
        if self._client is None:
            self._client = Client(self.control, name="gen-worker doctor")
        return self._client

    def status(self) -> Status:
        """Return what its devices and jobs are doing."""
        return self.client.list()

    def devices(self) -> dict[str, DeviceStatus]:
        """Return its devices by name."""
        return {device.name: device for device in self.status().gpus}

    def children(self) -> dict[str, int]:
        """Return the pids of its children by device; a device between two children has none."""
        return {name: device.pid for name, device in self.devices().items() if device.pid is not None}

    def home(self, request_id: str, within_s: float = END_S) -> str | None:
        """Return the device on which a job runs, as soon as it does; None when it does not in time."""
        return until(lambda: self._home(request_id), within_s)

    def _home(self, request_id: str) -> str | None:
        jobs = (job for job in self.status().jobs if job.id.endswith(request_id) and job.status == "running")
        return next((job.gpu for job in jobs if job.gpu), None)

    def until_idle(self, within_s: float = START_S) -> bool:
        """Wait until every device has a child with nothing to do; return whether that came true in time."""
        return bool(until(lambda: all(each.state == "idle" for each in self.devices().values()), within_s))

    def processes(self) -> set[int]:
        """Return every process that runs because of it: itself, its children, what their jobs started."""
        return marked(self.mark)

    def log(self) -> str:
        """Return the end of what it wrote to stderr."""
        with suppress(FileNotFoundError), (self.folder / "log").open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_BYTES))
            return file.read().decode(errors="replace")
        return ""

    # --- its end ---

    def end(self, within_s: float = END_S) -> int | None:
        """Tell it to end and wait for that; return its exit code, None when it did not in time."""
        assert self.process is not None
        self._forget_client()
        self.process.terminate()
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """End it at once, whatever it does."""
        self._let_go()

    def close(self) -> None:
        """Leave nothing: no process, no file."""
        if self.runs:
            self.end()
        self._let_go()
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
        shutil.rmtree(self._claimed, ignore_errors=True)
        os.close(self._claim)

    def _let_go(self) -> None:
        """Let go of the process, if there is one, and of everything that is held because of it."""
        self._forget_client()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            if self.process.stdin is not None:
                self.process.stdin.close()
            self.process = None

    def _forget_client(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
