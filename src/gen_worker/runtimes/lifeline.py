"""A process between an engine server and whoever started it, so that nothing of the engine outlives either of them.

Run by its path, with nothing but the standard library: `lifeline.py PARENT STATUS COMMAND...`. It starts the command in
a session of its own and says on the descriptor STATUS, a line each, `started PID`, `failed WHY` and `ended STATUS`. It
ends every process that the engine started, wherever they have put themselves, when the engine ends, when its parent
does, and when its standard input is closed; SIGTERM it hands on to the engine.

What a killed engine leaves is found by parentage: Linux gives a subreaper the orphans among its descendants. Elsewhere
it is the engine's process group.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)
LINUX = sys.platform == "linux"
LOOK_MS = 100  # where the kernel tells of no parent's end
UNSTARTED = 127  # as a shell ends that finds no command


class Lifeline:
    """One engine, from its start until nothing of it is left."""

    def __init__(self, parent: int, status_fd: int) -> None:
        self._parent = parent
        self._status_fd = status_fd
        self._told_to_end = False
        self._process: subprocess.Popen[bytes] | None = None
        self._engine = 0
        self._ended: int | None = None  # how: an exit status, or a signal's number below zero

    def run(self, command: Sequence[str]) -> int:
        """Start the engine and wait for its end, or for a reason to end it; return how it ended."""
        woken = self._heed_signals()
        parent = self._follow_parent()
        if not self._start(command):
            return UNSTARTED
        poll = select.poll()
        for fd in (woken, 0, *([] if parent is None else [parent])):
            poll.register(fd, select.POLLIN)
        while self._ended is None:
            ready = {fd for fd, _ in poll.poll(None if parent is not None else LOOK_MS)}
            if woken in ready:
                os.read(woken, 512)
            if 0 in ready or parent in ready or os.getppid() != self._parent:
                break
            if self._told_to_end:
                self._told_to_end = False
                _signal_group(self._engine, signal.SIGTERM)
            self._reap(os.WNOHANG)
        if self._ended is not None:
            self._tell(f"ended {self._ended}")
        self._end_all()
        return self._ended if self._ended is not None else -signal.SIGKILL

    def _heed_signals(self) -> int:
        """Have signals written to a pipe, whose other end is returned."""
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._on_terminate)
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGHUP):  # handled, not ignored: the engine inherits that
            signal.signal(number, lambda *_: None)
        return woken

    def _on_terminate(self, *_: object) -> None:
        self._told_to_end = True

    def _follow_parent(self) -> int | None:
        """Become the parent of all that the engine leaves; return what becomes readable when our own parent ends."""
        if not LINUX:
            return None
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        try:
            return os.pidfd_open(self._parent)
        except OSError:  # it has ended, which the first look at our parent tells; or a sandbox forbids it
            return None

    def _start(self, command: Sequence[str]) -> bool:
        own = os.getpid()

        def die_with_lifeline() -> None:
            if LINUX:
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != own:
                os._exit(UNSTARTED)

        try:  # one thread and no gRPC here: a function may run between fork and exec
            engine = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=die_with_lifeline,
            )
        except OSError as error:
            self._tell(f"failed {(error.strerror or str(error)).lower()}")
            return False
        self._process = engine  # kept: when it goes it reaps an engine that has ended already, unseen by `_reap`
        self._engine = engine.pid
        self._tell(f"started {engine.pid}")
        return True

    def _tell(self, line: str) -> None:
        with suppress(OSError):  # who wanted to know is gone
            os.write(self._status_fd, f"{line}\n".encode())

    def _reap(self, how: int) -> bool:
        """Reap what has ended; return whether there is any process left."""
        while True:
            try:
                pid, status = os.waitpid(-1, how)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._engine:
                self._ended = os.waitstatus_to_exitcode(status)
            how = os.WNOHANG

    def _end_all(self) -> None:
        """Kill all that is left, and what comes of that, until nothing is."""
        while True:
            if LINUX:
                for pid in descendants(os.getpid()):
                    with suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, signal.SIGKILL)
            else:
                _signal_group(self._engine, signal.SIGKILL)
            if not self._reap(0):
                return


def _signal_group(pid: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # it has ended, and others of its group belong to somebody else
        os.killpg(pid, number)


def descendants(root: int) -> list[int]:
    """Return the pids of all processes below one, as `/proc` shows them now."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/stat", "rb") as stat:
                children.setdefault(int(stat.read().rpartition(b")")[2].split()[1]), []).append(int(name))
    found: list[int] = []
    left = [root]
    while left:
        below = children.get(left.pop(), [])
        found += below
        left += below
    return found


def main() -> None:
    """Run one engine and end as it ended."""
    parent, status_fd, *command = sys.argv[1:]
    status = Lifeline(int(parent), int(status_fd)).run(command)
    if status < 0:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the engine has left its own
        if status != -signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()
