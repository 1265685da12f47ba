"""Reap the orphans that became ours as subreaper, and never a process somebody waits for."""

import asyncio
import ctypes
import math
import os
import select
import signal
from collections.abc import Callable
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
ORPHAN_LIMIT_S = 1.0  # how long one that SIGKILL does not end is waited for


def become_subreaper() -> None:
    """Have the kernel give orphaned descendants to this process."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap(pidfd: int) -> os.waitid_result | None:
    """Reap the process of a pidfd; None while it has not ended, or is not this process's own child yet."""
    try:
        return os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return None


def ends_within(pidfd: int, seconds: float | None) -> bool:
    """Wait for the end of a pidfd's process, None: however long that takes; return whether it came.

    The number may be any: `select` takes none beyond 1023, which a supervisor with many clients has.
    """
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(None if seconds is None else math.ceil(seconds * 1000)))


def children_of_this_process() -> list[int]:
    """Return the pids of this process's children, zombies included."""
    while True:
        found: list[int] = []
        try:
            for thread in Path("/proc/self/task").iterdir():
                found += map(int, (thread / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):  # a thread has ended: what it had is another thread's by now
            continue
        return found


class Reaper:
    """Looks at every death of a child of this process; those with an owner are left to it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._owners: dict[int, Callable[[], None]] = {}
        self.births = 0  # processes on their way to us whose pid is not known yet
        loop.add_signal_handler(signal.SIGCHLD, self.look)

    def own(self, pid: int, on_death: Callable[[], None]) -> None:
        """Leave the reaping of a pid to `on_death`, which may be called more than once."""
        self._owners[pid] = on_death
        self.look()

    def disown(self, pid: int) -> None:
        """The pid was reaped by its owner."""
        self._owners.pop(pid, None)
        self.look()

    def look(self) -> None:
        """Tell the owners of dead processes and reap those that have none."""
        while True:
            try:
                seen = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if seen is None:
                return
            owner = self._owners.get(seen.si_pid)
            if owner is not None:
                self._loop.call_soon(owner)  # it reaps and then calls `disown`, which looks again
                return
            if self.births:
                return
            os.waitid(os.P_PID, seen.si_pid, os.WEXITED | os.WNOHANG)

    def end_orphans(self) -> None:
        """Kill every process that became ours and has no owner, and what becomes ours by that; reap them all."""
        left: set[int] = set(self._owners)
        while orphans := [pid for pid in children_of_this_process() if pid not in left]:
            for pid in orphans:
                pidfd = os.pidfd_open(pid)
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                if not ends_within(pidfd, ORPHAN_LIMIT_S) or reap(pidfd) is None:
                    left.add(pid)
                os.close(pidfd)

    def close(self) -> None:
        """Stop looking."""
        self._loop.remove_signal_handler(signal.SIGCHLD)
