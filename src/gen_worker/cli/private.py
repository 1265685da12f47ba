"""A `gen-worker serve` of a command's own: it begins and ends with the command, and nobody else knows its socket."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from gen_worker.cli.failure import OK, USER_CODE, Failure

_LOOK_S = 0.02  # between looks at whether the server is ready
_ENDS_S = 12.0  # the jobs have 10 seconds to end, then `shutdown()`
_LOG_LINES = 20
_ENDINGS = (signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1
_PUBLIC = ("GEN_WORKER_HTTP", "GEN_WORKER_READY_FILE")  # these tell of the server that others use


class PrivateServer:
    """A running server; it listens on `socket`."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.socket = folder / "serve.sock"
        self._log = folder / "serve.log"
        self._process = process

    def until_ready(self) -> None:
        """Wait until the server takes requests; raise `Failure` when it ends instead."""
        sidecar = Path(f"{self.socket}.json")
        while not sidecar.exists():
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_LOOK_S)
            self.refuse_ended()

    def refuse_ended(self) -> None:
        """Raise `Failure` when the server has ended, after its last words."""
        code = self._process.poll()
        if code is not None:
            sys.stderr.writelines(f"{line}\n" for line in self.last_words())
            raise Failure("the server has ended, its log is above", code=code if code > OK else USER_CODE)

    def last_words(self) -> list[str]:
        """Return the last lines of the log."""
        return self._log.read_text(errors="replace").splitlines()[-_LOG_LINES:]

    def end(self) -> None:
        """End the server in order; at once at a Ctrl-C, or when that takes too long."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)  # what it has only begun, too
        try:
            self._process.wait(_ENDS_S)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            self._process.terminate()  # a second signal: everything at once
            try:
                self._process.wait(_ENDS_S)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                self._process.kill()
                self._process.wait()


@contextmanager
def private_server(options: Sequence[str]) -> Iterator[PrivateServer]:
    """Start a server with these options of `gen-worker serve`, ready for requests until the body ends."""
    folder = Path(tempfile.mkdtemp(prefix="gen-worker-"))
    heard = [number for number in _ENDINGS if signal.getsignal(number) is not signal.SIG_IGN]  # `nohup` ignores one
    before = [(number, signal.signal(number, _leave)) for number in heard]
    try:
        server = PrivateServer(_started(options, folder), folder)
        try:
            server.until_ready()
            yield server
        finally:
            server.end()
    finally:
        for number, handler in before:
            signal.signal(number, handler)
        shutil.rmtree(folder, ignore_errors=True)


def _started(options: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    socket = str(folder / "serve.sock")
    command = [sys.executable, "-P", "-m", "gen_worker.cli", "serve", "--no-stdin", "--socket", socket, *options]
    prctl = ctypes.CDLL(None).prctl
    with open(folder / "serve.log", "wb") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={name: value for name, value in os.environ.items() if name not in _PUBLIC},
            start_new_session=True,  # the terminal's Ctrl-C is for the call, not for the server
            preexec_fn=lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),  # it never outlives this process
        )


def leave_if_told(signals: Iterable[int]) -> None:
    """End this process if one of the signals that have come is to end it, and has not."""
    for number in signals:
        if number in _ENDINGS and signal.getsignal(number) is _leave:
            _leave(number, None)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)
