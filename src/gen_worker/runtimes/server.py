"""Engine servers: a process such as `vllm serve` that a class endpoint sends its requests to over the loopback.

`@endpoint(runtime="vllm")` has one started before `setup()`; a class can start any other by itself with
`ServerProcess(...).start()`. Either way no process of it outlives the one that started it. Knows no endpoint.
"""

import errno
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import MappingProxyType

from gen_worker.runtimes.launching import Launched, how

__all__ = [
    "RUNTIME_FACTORIES",
    "ServerBootError",
    "ServerHandle",
    "ServerProcess",
    "free_port",
    "llama_server",
    "vllm_server",
]

HOST = "127.0.0.1"
BOOT_TIMEOUT_S = 600.0
GRACE_S = 10.0
FIRST_LOOK_S, LOOKS_SLOW_BY, LONGEST_LOOK_S = 0.25, 1.5, 2.0
ANSWER_S = 5.0  # what an answer about its health may take
LONGEST_STATUS_BYTES = 1024
_STATUS = re.compile(rb"HTTP/\S+\s+(\d{3})\b")
_URL = re.compile(r"http://(?P<host>\[[^]/]+\]|[^:/?#]+)(?::(?P<port>\d+))?(?P<target>/[^#]*)?")


def free_port() -> int:
    """Return a port of the loopback that nothing listens on at the moment."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as sock:
        sock.bind((HOST, 0))
        port: int = sock.getsockname()[1]
        return port


class ServerBootError(RuntimeError):
    """An engine server did not come up; `lines` is what it printed last, `hint` what to do about it."""

    def __init__(self, message: str, *, lines: Sequence[str] = (), hint: str = "") -> None:
        super().__init__(message)
        self.lines = tuple(lines)
        self.hint = hint

    def __str__(self) -> str:
        """Return the message, and below it what the server printed last."""
        return "\n".join((super().__str__(), *(f"  {line}" for line in self.lines)))

    @property
    def message(self) -> str:
        """The message alone."""
        return super().__str__()


class ServerHandle:
    """A server that is up: where it is, and whether it still is."""

    def __init__(self, base_url: str, process: "subprocess.Popen[bytes]", *, launched: Launched | None = None) -> None:
        """Hold a process; of one that a `ServerProcess` started it is the process that guards the server."""
        self.base_url = base_url
        self.process = process
        self.launched = launched

    def __repr__(self) -> str:
        """Return where it is."""
        return f"ServerHandle({self.base_url!r}, alive={self.alive})"

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        if self.launched is not None:
            return not self.launched.ended.is_set()
        return self.process.poll() is None

    def stop(self, *, grace_s: float = GRACE_S) -> None:
        """Send SIGTERM, wait for so long, then kill what is left of it; nothing happens when nothing is."""
        if self.launched is not None:
            self.launched.stop(grace_s)
            return
        if self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class ServerProcess:
    """How a server is started, and how it is known to be up: when `health_url` answers with a status of 2xx."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        health_url: str,
        base_url: str = "",
        boot_timeout_s: float = BOOT_TIMEOUT_S,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Describe a server; `env` comes on top of this process's environment.

        A command without a slash is looked for on the PATH and beside the Python that runs. `base_url` is, where it is
        not given, the beginning of `health_url`. Raises ValueError for one that is not `http://...`.
        """
        found = _URL.fullmatch(health_url)
        if found is None:
            raise ValueError(f"`health_url` must be a URL like `http://127.0.0.1:8000/health`, got {health_url!r}")
        self.command = [str(word) for word in command]
        if not self.command:
            raise ValueError("`command` is empty")
        self.name = Path(self.command[0]).name
        self.health_url = health_url
        self._host, self.port = found["host"].strip("[]"), int(found["port"] or 80)
        if not 0 < self.port <= 65535:
            raise ValueError(f"`health_url` has no port from 1 to 65535: {health_url!r}")
        self._target = found["target"] or "/"
        self.base_url = base_url or health_url[: found.start("target") if found["target"] else len(health_url)]
        self.boot_timeout_s = boot_timeout_s
        self.env = dict(env or {})
        self._status = 0  # what it answered last about its health; 0: nothing
        self.on_look: Callable[[Launched], None] = lambda launched: None
        """Called before each look at whether it is up."""

    def start(self) -> ServerHandle:
        """Start the server and wait until it is up; what it prints goes to stderr, line by line, with its name.

        Raise `ServerBootError` when it ends before that or is not up in time, or its port belongs to another server;
        nothing of it is left then, nor when the wait is interrupted.
        """
        environment = {**os.environ, **self.env}
        executable = self._executable(environment)
        with _boots_on(self.port):
            if self._is_up():
                raise ServerBootError(f"another server answers at {self.health_url} already")
            launched = self._launched(executable, environment)
        return ServerHandle(self.base_url, launched.process, launched=launched)

    def _launched(self, executable: str, environment: Mapping[str, str]) -> Launched:
        try:
            launched = Launched([executable, *self.command[1:]], name=self.name, env=environment)
        except OSError as error:
            raise ServerBootError(
                f"`{self.name}` cannot be started: {(error.strerror or str(error)).lower()}"
            ) from None
        try:
            self._wait_until_up(launched)
        except BaseException:
            launched.stop(0)
            raise
        return launched

    def _executable(self, environment: Mapping[str, str]) -> str:
        name = self.command[0]
        if os.sep in name:
            return name
        found = program(name, environment)
        if found is None:
            raise not_there(name)
        return found

    def _wait_until_up(self, launched: Launched) -> None:
        deadline = time.monotonic() + self.boot_timeout_s
        pause_s = FIRST_LOOK_S
        while True:
            left_s = deadline - time.monotonic()
            if launched.ended.wait(max(0.0, min(pause_s, left_s))):
                raise self._ended(launched)
            self.on_look(launched)
            left_s = deadline - time.monotonic()
            if self._is_up(min(ANSWER_S, max(FIRST_LOOK_S, left_s))) and not launched.ended.is_set():
                return
            if time.monotonic() >= deadline:
                answer = (
                    f"{self.health_url} answers {self._status}" if self._status else f"no answer from {self.health_url}"
                )
                text = f"`{self.name}` was not up within {self.boot_timeout_s:g} s: {answer}"
                raise ServerBootError(text, lines=launched.last_lines())
            pause_s = min(LONGEST_LOOK_S, pause_s * LOOKS_SLOW_BY)

    def _ended(self, launched: Launched) -> ServerBootError:
        if launched.failure:
            return ServerBootError(f"`{self.name}` cannot be started: {launched.failure}")
        text = f"`{self.name}` ended before it was up: {how(launched.status)}"
        return ServerBootError(text, lines=launched.last_lines())

    def _is_up(self, within_s: float = ANSWER_S) -> bool:
        self._status = self._asked(time.monotonic() + within_s)
        return 200 <= self._status < 300

    def _asked(self, deadline: float) -> int:
        """Return the status that it answers with, 0 where it does not, or not in time."""
        request = f"GET {self._target} HTTP/1.0\r\nHost: {self._host}:{self.port}\r\nConnection: close\r\n\r\n"
        answer = b""
        try:
            with socket.create_connection((self._host, self.port), max(0.0, deadline - time.monotonic())) as sock:
                sock.sendall(request.encode("latin-1"))
                while b"\n" not in answer and len(answer) < LONGEST_STATUS_BYTES:
                    if (left_s := deadline - time.monotonic()) <= 0:
                        return 0
                    sock.settimeout(left_s)
                    if not (part := sock.recv(LONGEST_STATUS_BYTES)):
                        break
                    answer += part
        except OSError:
            return 0
        found = _STATUS.match(answer)
        return int(found[1]) if found is not None else 0


def program(name: str, environment: Mapping[str, str]) -> str | None:
    """Return where a program is, on the PATH or beside the Python that runs; None without one."""
    path = environment.get("PATH", os.defpath)
    return shutil.which(name, path=path) or shutil.which(name, path=str(Path(sys.executable).parent))


def not_there(name: str) -> ServerBootError:
    """Return what is raised where there is no such program."""
    hint = f"install it where the endpoint runs, so that `which {name}` finds it there"
    return ServerBootError(f"there is no `{name}` on the PATH, nor in {Path(sys.executable).parent}", hint=hint)


def vllm_server(
    model_path: str | os.PathLike[str],
    *,
    port: int | None = None,
    extra_args: Sequence[str] = (),
    boot_timeout_s: float = BOOT_TIMEOUT_S,
) -> ServerProcess:
    """Return `vllm serve` for a folder with a model, on a port of the loopback, by default a free one."""
    port = free_port() if port is None else port
    command = ["vllm", "serve", os.fspath(model_path), "--host", HOST, "--port", str(port), *extra_args]
    return _loopback(command, port, boot_timeout_s)


def llama_server(
    gguf_path: str | os.PathLike[str],
    *,
    port: int | None = None,
    extra_args: Sequence[str] = (),
    boot_timeout_s: float = BOOT_TIMEOUT_S,
) -> ServerProcess:
    """Return `llama-server` for a gguf file, or the one in a folder, on a port of the loopback, by default a free one.

    Raises `ServerBootError` for a folder without a gguf file or with several models.
    """
    port = free_port() if port is None else port
    command = ["llama-server", "-m", _gguf_of(Path(gguf_path)), "--host", HOST, "--port", str(port), *extra_args]
    return _loopback(command, port, boot_timeout_s)


RUNTIME_FACTORIES: Mapping[str, Callable[..., ServerProcess]] = MappingProxyType(
    {"vllm": vllm_server, "llama-server": llama_server}
)
"""What makes the server of each `@endpoint(runtime=...)`; all take the model's path and the same options."""


@contextmanager
def _boots_on(port: int) -> Iterator[None]:
    """Keep other engines off a port until this one listens there: else one is taken for the other.

    The mark is a name among the abstract sockets of the network that the port belongs to; only Linux has them.
    """
    if sys.platform != "linux":
        yield
        return
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as mark:
        try:
            mark.bind(f"\0gen-worker-engine-{port}")
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise ServerBootError(f"another engine boots on port {port}") from None
        yield


def _loopback(command: Sequence[str], port: int, boot_timeout_s: float) -> ServerProcess:
    url = f"http://{HOST}:{port}"
    return ServerProcess(command, health_url=f"{url}/health", base_url=url, boot_timeout_s=boot_timeout_s)


_LATER_PART = re.compile(r"-(?!0*1-of-)\d+-of-\d+\.gguf$")


def _gguf_of(path: Path) -> str:
    """Return a gguf file: of a folder its only model, of one in parts the first."""
    if not path.is_dir():
        return str(path)
    files = [each for each in sorted(path.rglob("*.gguf")) if not _LATER_PART.search(each.name)]
    models = [each for each in files if not each.name.startswith("mmproj")]
    if len(models) == 1:
        return str(models[0])
    hint = "name the file in the binding: `HF(..., files=('*Q4_K_M.gguf',))`"
    named = ", ".join(f"`{each.name}`" for each in models[:4])
    raise ServerBootError(f"{path} has {f'several models: {named}' if models else 'no gguf file'}", hint=hint)
