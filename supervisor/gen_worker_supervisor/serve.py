"""`gen-worker serve`: discover, own the devices, listen, until a signal.

The supervisor never imports the author's module: a short-lived process looks at it and prints what dispatch must know.
"""

import asyncio
import gc
import importlib.metadata
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

import msgspec

from gen_worker.rundir import CONTROL, SupervisorFile, make_private
from gen_worker.settings import Settings
from gen_worker.wire import control as wire
from gen_worker.wire.survey import Survey
from gen_worker_supervisor import devices
from gen_worker_supervisor.control import ControlServer
from gen_worker_supervisor.environment import author_environment
from gen_worker_supervisor.log import Log
from gen_worker_supervisor.ndjson import Connection
from gen_worker_supervisor.poller import Poller
from gen_worker_supervisor.reaper import Reaper, become_subreaper
from gen_worker_supervisor.report import Reporter
from gen_worker_supervisor.saving import Saver
from gen_worker_supervisor.sockets import Acceptor, SocketInUseError, bind_unix
from gen_worker_supervisor.state import Device, Fleet, Function
from gen_worker_supervisor.supervisor import Supervisor

PROTOCOL_VERSION = 1
OK, USAGE, FAILED = 0, 2, 1
FORCED = 130
ONE_SIGNAL_S = 0.2  # a terminal or `timeout` may signal the process and its group: that is one wish
GC_THRESHOLD = 50_000  # jobs are freed by their counts; the collector's default looks at them every few hundred


class StartError(Exception):
    """The supervisor cannot start; the text is for a person, `hint` says what to do."""

    def __init__(self, message: str, hint: str = "", stack: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.hint = hint
        self.stack = stack


class _Refusal(msgspec.Struct):
    error: str
    hint: str = ""
    stack: list[str] = []


def survey_module(module: str, paths: list[str], environment: Mapping[str, str]) -> Survey:
    """Return what a short-lived process finds in the author's module; raise `StartError` when it refuses."""
    command = [sys.executable, "-m", "gen_worker.discovery.probe", "--module", module]
    command += [argument for path in paths for argument in ("--path", path)]
    found = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=author_environment(environment), check=False
    )
    try:
        if found.returncode == 0:
            return msgspec.json.decode(found.stdout, type=Survey)
        refusal = msgspec.json.decode(found.stdout, type=_Refusal)
    except msgspec.DecodeError:
        raise StartError(f"looking at `{module}` ended with status {found.returncode}") from None
    raise StartError(refusal.error, refusal.hint, tuple(refusal.stack))


def serve(
    *, module: str, paths: list[str], socket: str, devices: str, settings: Settings, environment: Mapping[str, str]
) -> int:
    """Serve until SIGINT or SIGTERM; return the exit code."""
    try:
        survey = survey_module(module, paths, environment)
        owned = _own_devices(devices, survey)
        if not survey.functions:
            raise StartError(f"`{module}` declares no endpoint", "decorate a function or class with `@endpoint`")
        path = Path(socket).absolute()
        with asyncio.Runner() as runner:
            return runner.run(_serve(survey, owned, path, settings, environment))
    except StartError as error:
        for line in error.stack:
            print(line.rstrip(), file=sys.stderr)
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return USAGE


def _own_devices(wanted: str, survey: Survey) -> list[Device]:
    gpus = [] if wanted.startswith("cpu") else devices.list_gpus()
    try:
        return devices.choose(
            wanted,
            gpus,
            gpu_functions=any(function.gpu for function in survey.functions),
            cpu_functions=any(not function.gpu for function in survey.functions),
        )
    except devices.DeviceError as error:
        raise StartError(str(error), "`--devices` takes `auto`, `cpu:N`, or GPU indices or UUIDs") from None


async def _serve(
    survey: Survey, owned: list[Device], path: Path, settings: Settings, environment: Mapping[str, str]
) -> int:
    try:
        listener = bind_unix(path, socket.SOCK_STREAM)
    except SocketInUseError as error:
        raise StartError(str(error), "end that process, or choose another `--socket`") from None
    except OSError as error:
        raise StartError(f"cannot listen on `{path}`: {error.strerror or error}") from None
    service = Service(survey, owned, path, listener, settings, environment)
    try:
        return await service.run()
    finally:
        await service.close()


class Service:
    """A supervisor with its sockets, from the first child to the last file removed."""

    def __init__(
        self,
        survey: Survey,
        owned: list[Device],
        path: Path,
        listener: socket.socket,
        settings: Settings,
        environment: Mapping[str, str],
    ) -> None:
        loop = asyncio.get_running_loop()
        become_subreaper()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # each child, client and big payload takes some
        self._loop = loop
        self._path = path
        self._listener = listener
        self._survey = survey
        self._sidecar = Path(f"{path}.json")
        self.log = Log()
        self._poller = Poller(loop)
        self._reaper = Reaper(loop)
        self._saver = Saver(loop, settings.local_output_dir)
        fleet = Fleet(
            {function.name: Function(function) for function in survey.functions},
            owned,
            max_queued=settings.max_queued,
            max_input_bytes=settings.max_input_bytes,
            max_output_bytes=settings.max_output_bytes,
        )
        self.supervisor = Supervisor(
            fleet,
            survey,
            loop=loop,
            poller=self._poller,
            reaper=self._reaper,
            log=self.log,
            saver=self._saver,
            environment=environment,
        )
        self._connections: set[Connection] = set()
        self._folder = settings.run_dir / str(os.getpid())
        self._boot_id = uuid.uuid4().hex
        self._version = importlib.metadata.version("gen-worker")
        opened = wire.Opened(wire.CONTROL_PROTOCOL, self._boot_id, os.getpid(), self._version, str(path))
        self._control = ControlServer(self.supervisor, loop, self._poller, opened)
        self._control.document = Reporter(self.supervisor, str(path)).document
        self._acceptor: Acceptor | None = None
        self._stopping_since: float | None = None

    async def run(self) -> int:
        """Serve until told to end; return the exit code."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.add_signal_handler(number, self._stop)
        self._open_control()
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)
        self.supervisor.start()
        await asyncio.wait((self.supervisor.booted, self.supervisor.status), return_when=asyncio.FIRST_COMPLETED)
        if not self.supervisor.status.done():
            self._accept()
            self._announce()
        return await self.supervisor.status

    def _accept(self) -> None:
        self._acceptor = Acceptor(
            self._listener,
            self._loop,
            self._poller,
            lambda sock: Connection(sock, self.supervisor, self._poller, self._connections),
            lambda problem: self.log.event("warning", "serve", problem),
        )

    def _open_control(self) -> None:
        try:
            make_private(self._folder.parent)
            if self._folder.exists():
                shutil.rmtree(self._folder)  # of a dead process that had our pid
            self._folder.mkdir(mode=0o700)
            control = self._folder / CONTROL
            self._control.listen(bind_unix(control, socket.SOCK_SEQPACKET))
        except (OSError, SocketInUseError) as error:
            raise StartError(
                f"cannot open the control socket in `{self._folder}`: {error}",
                "set `GEN_WORKER_RUN_DIR` to a folder of yours",
            ) from None
        SupervisorFile(os.getpid(), self._boot_id, str(control), str(self._path), wire.CONTROL_PROTOCOL).write(
            self._folder
        )

    def _announce(self) -> None:
        names = ", ".join(sorted(self.supervisor.fleet.functions))
        self.log.say(f"listening on {self._path} (functions: {names})")
        for function in self._survey.functions:
            if function.models:
                refs = ", ".join(f"`{ref}`" for ref in function.models)
                self.log.event(
                    "warning", function.name, f"needs {refs}, which nothing resolves: its requests are refused"
                )
        description = msgspec.json.decode(self._survey.description)
        document = {
            "protocol_version": PROTOCOL_VERSION,
            "gen_worker_version": self._version,
            "pid": os.getpid(),
            "listen": str(self._path),
            "ready_at": time.time(),
            "idle_timeout": 0,
            "functions": description["functions"],
        }
        part = self._sidecar.with_name(f".{self._sidecar.name}.{os.getpid()}")
        part.write_bytes(msgspec.json.encode(document) + b"\n")
        part.replace(self._sidecar)
        self.log.say("ready")

    def _stop(self) -> None:
        """First signal: end the jobs and the children in order. Second: at once."""
        now = self._loop.time()
        if self._stopping_since is not None:
            if now - self._stopping_since > ONE_SIGNAL_S and not self.supervisor.status.done():
                self.supervisor.status.set_result(FORCED)
            return
        self._stopping_since = now
        self.log.say("stopping: running requests are asked to end; press Ctrl-C again to end at once")
        self.supervisor.drain()

    async def close(self) -> None:
        """Remove every trace: sockets, files, processes."""
        if self._acceptor is not None:
            self._acceptor.close()
        self._sidecar.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)
        self._listener.close()
        for connection in list(self._connections):
            connection.close()
        self.supervisor.close()
        self._control.close()
        self._poller.close()
        self._reaper.close()
        self._saver.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        self.log.say("stopped")
        self.log.close()
