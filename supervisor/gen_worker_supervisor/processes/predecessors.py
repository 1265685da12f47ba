"""What supervisors that were killed have left on this host: processes that their jobs had started, and their folders.

A job may have put a process where no signal of the kernel's finds it once its supervisor is gone. All that jobs start
is marked in its environment by the supervisor that they belong to; the next one to start looks for the mark.
"""

import os
import re
import select
import shutil
import signal
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from gen_worker.environment import SUPERVISOR
from gen_worker.rundir import SupervisorFile, gone_supervisors
from gen_worker_supervisor.processes.proc import ROOT, Stat, processes

ROUNDS = 5  # what is being ended may start others
ENDS_S = 1.0
LIMIT_S = 5.0  # a process that is stuck in a driver may hold up whoever looks at it
_BOOT_ID = re.compile(r"[0-9a-f]{32}")


def here(root: Path = ROOT) -> str:
    """Return what tells this kernel, and what it shows as processes, from any other; empty where nothing does."""
    try:
        kernel = (root / "proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{kernel} {os.readlink(root / 'proc/self/ns/pid')}"
    except OSError:
        return ""


def bury(run_dir: Path) -> list[int]:
    """End what jobs of killed supervisors started, and remove their folders; return the pids of what was ended.

    Of a supervisor that is alive nothing is touched, whatever its folder says, nor of one that another kernel or
    container may know to be alive. Takes some seconds at most: what is not done by then goes on beside the start.
    """
    ended: list[int] = []
    thread = threading.Thread(target=_bury, args=(run_dir, ended), name="gen-worker-predecessors", daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    return sorted(ended)


def _bury(run_dir: Path, ended: list[int]) -> None:
    with suppress(OSError):  # no descriptor is left to look with: the next start may have one
        gone = surely_gone(run_dir)
        if gone:
            _end({each.boot_id for each in gone.values()}, {each.pid for each in gone.values()}, ended)
        for folder, file in gone.items():
            if not Path(f"/proc/{file.pid}").exists():  # else one that has this pid now may be about to use it
                shutil.rmtree(folder, ignore_errors=True)


def surely_gone(run_dir: Path) -> dict[Path, SupervisorFile]:
    """Return, by folder, the killed supervisors of this kernel and pid namespace that had a mark of their own."""
    place = here()
    return {
        folder: file
        for folder, file in gone_supervisors(run_dir).items()
        if place and file.host == place and _BOOT_ID.fullmatch(file.boot_id)
    }


def _end(marks: Collection[str], supervisors: Collection[int], ended: list[int]) -> None:
    for _ in range(ROUNDS):
        found = [pid for pid in _marked(marks, supervisors) if pid not in ended]
        if not found:
            return
        dying = [pidfd for pid in found if (pidfd := _kill(pid, marks)) is not None]
        ended += found
        _wait_for(dying)


def _kill(pid: int, marks: Collection[str]) -> int | None:
    """Kill a process, unless the pid is another one's by now; return its pidfd, None where there is nothing to end."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    with suppress(ProcessLookupError, PermissionError):
        if mark_of(pid) in marks:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            return pidfd
    os.close(pidfd)
    return None


def _wait_for(pidfds: list[int]) -> None:
    """Wait a while for the end of processes, all together, and close their pidfds."""
    deadline = time.monotonic() + ENDS_S
    for pidfd in pidfds:
        select.select([pidfd], [], [], max(0.0, deadline - time.monotonic()))
        os.close(pidfd)


def _marked(marks: Collection[str], supervisors: Collection[int]) -> Iterator[int]:
    """Yield the processes that have such a mark and are neither below one of these supervisors nor above this one."""
    everybody = processes()
    own = {os.getpid(), *ancestors(os.getpid(), everybody)}
    for pid in everybody.keys() - own:
        if mark_of(pid) in marks and not any(each in supervisors for each in ancestors(pid, everybody)):
            yield pid


def ancestors(pid: int, everybody: Mapping[int, Stat]) -> Iterator[int]:
    """Yield the parent of a process, the parent's parent, and so on."""
    seen = {pid}
    while pid in everybody and (pid := everybody[pid].parent) not in seen:
        seen.add(pid)
        yield pid


def mark_of(pid: int, root: Path = ROOT) -> str | None:
    """Return the mark that a process began with; None where it has none, has ended, or is not to be looked at."""
    try:
        variables = (root / f"proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    name = f"{SUPERVISOR}=".encode()
    return next((os.fsdecode(each.removeprefix(name)) for each in variables if each.startswith(name)), None)
