"""An engine's process as its starter holds it: its output, its end, and how it is stopped.

Starts it behind a `lifeline`, so that no process of it outlives this one, however this one ends.
"""

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path

LAST_LINES = 20  # of its output, which are told when it has ended
LINE_CHARS = 4096
KILL_S = 2.0  # what the end of killed processes may take
LIFELINE = Path(__file__).with_name("lifeline.py")
MARK = "GEN_WORKER_ENGINE"
"""The variable that all processes of one engine have in their environment, with a value of its own."""


def how(status: int | None) -> str:
    """Say how a process ended: `exit status 1`, `SIGKILL`; None: nobody knows."""
    if status is None:
        return "nobody knows how"
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


class Launched:
    """A process that was started, with all that it starts."""

    def __init__(self, command: Sequence[str], *, name: str, env: Mapping[str, str] | None = None) -> None:
        """Start it; `env` is its whole environment. Raise `OSError` where no process can be made."""
        self.name = name
        self.pid = 0  # of the process itself, once it is there
        self.status: int | None = None  # how it ended: an exit status, or a signal's number below zero
        self.failure = ""  # why it could not be started
        self.ended = threading.Event()
        self.asked = False  # whether it was stopped here
        self.on_end: Callable[[], None] = lambda: None
        """Called in a thread of its own when the process ended, unless it was stopped here."""

        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._gone = threading.Event()  # nothing of it is left
        self._settling = threading.Lock()
        self._mark = f"{os.getpid()}-{os.urandom(8).hex()}"
        environment = {**(os.environ if env is None else env), MARK: self._mark}
        told, tell = os.pipe()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(LIFELINE), str(os.getpid()), str(tell), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=(tell,),
                start_new_session=True,
            )
        except BaseException:
            os.close(told)
            raise
        finally:
            os.close(tell)
        self._reader = threading.Thread(target=self._read, name=f"{name}-output", daemon=True)
        self._reader.start()
        threading.Thread(target=self._follow, args=(told,), name=f"{name}-end", daemon=True).start()

    def last_lines(self, within_s: float = KILL_S) -> tuple[str, ...]:
        """Return what it printed last; of one that ended all of that, as far as it comes so soon."""
        if self.ended.is_set():
            self._reader.join(within_s)
        return tuple(self._lines)

    def end(self) -> None:
        """Have it ended at once with everything that it started; wait for nothing."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()  # at which the lifeline does so

    def stop(self, grace_s: float) -> None:
        """Ask it to end, and after `grace_s` end it with everything that it started; it may have ended before."""
        self.asked = True
        if grace_s > 0 and not self._gone.is_set():
            self.process.terminate()
            self._gone.wait(grace_s)
        self.end()
        if self._gone.wait(KILL_S):
            return
        self.process.kill()  # the lifeline itself is stopped, or waits for what cannot be killed
        self._sweep()
        self._gone.wait(KILL_S)

    def _sweep(self) -> None:
        """End what a killed lifeline has left: the engine's session, and what shows its mark."""
        if self.pid:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        for pid in _marked(f"{MARK}={self._mark}".encode()):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    # --- in threads of their own ---

    def _read(self) -> None:
        """Hand on what it prints, line by line, for as long as it does: a pipe that nobody reads would stop it."""
        assert self.process.stdout is not None
        with TextIOWrapper(self.process.stdout, encoding="utf-8", errors="replace") as output:
            while line := output.readline(LINE_CHARS):
                line = line.rstrip("\n")
                self._lines.append(line)
                with suppress(OSError, ValueError):  # nobody reads what this process prints
                    sys.stderr.write(f"[{self.name}] {line}\n")

    def _follow(self, told: int) -> None:
        with os.fdopen(told, encoding="utf-8", errors="replace") as status:
            for line in status:
                word, _, rest = line.rstrip("\n").partition(" ")
                if word == "started":
                    self.pid = int(rest)
                elif word == "failed":
                    self.failure = rest
                elif word == "ended":
                    self.status = int(rest)
                    self._ends()
        left = self.process.wait()
        if self.status is None:
            self.status = left
            self._sweep()  # the lifeline may have been killed, and the engine has died with it
        self.end()
        self._gone.set()
        self._ends()

    def _ends(self) -> None:
        with self._settling:
            if self.ended.is_set():
                return
            self.ended.set()
        if not self.asked:
            self.on_end()


def _marked(mark: bytes) -> list[int]:
    """Return the processes whose environment has this; none where there is no `/proc`."""
    found = []
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/environ", "rb") as environment:
                if mark in environment.read().split(b"\0"):
                    found.append(int(name))
    return found
