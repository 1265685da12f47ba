"""What supervisors that were killed have left on this host: processes that their jobs had started, and their folders.

A job may have put a process where no signal of the kernel's finds it once its supervisor is gone. All that jobs start
is marked in its environment by the supervisor that they belong to; the next one to start looks for the mark.
"""

import os
import select
import shutil
import signal
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from gen_worker.environment import SUPERVISOR
from gen_worker.rundir import gone_supervisors
from gen_worker_supervisor.proc import ROOT, Stat, processes

ROUNDS = 5  # what is being ended may start others
ENDS_S = 1.0


def bury(run_dir: Path) -> list[int]:
    """End what jobs of killed supervisors started, and remove their folders; return the pids of what was ended.

    Of a supervisor that is alive nothing is touched, whatever its folder says.
    """
    gone = gone_supervisors(run_dir)
    ended = _end({each.boot_id for each in gone.values()}, {each.pid for each in gone.values()}) if gone else []
    for folder, file in gone.items():
        if not Path(f"/proc/{file.pid}").exists():  # else one that has this pid now may be about to use it
            shutil.rmtree(folder, ignore_errors=True)
    return ended


def _end(marks: Collection[str], supervisors: Collection[int]) -> list[int]:
    ended: list[int] = []
    for _ in range(ROUNDS):
        found = [pid for pid in _marked(marks, supervisors) if pid not in ended]
        if not found:
            break
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):
                _kill(pid, marks)
                ended.append(pid)
    return sorted(ended)


def _kill(pid: int, marks: Collection[str]) -> None:
    """Kill a process and wait a while for its end, unless the pid is another one's by now."""
    pidfd = os.pidfd_open(pid)
    try:
        if mark_of(pid) in marks:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], ENDS_S)
    finally:
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


def mark_of(pid: int, root: Path = ROOT) -> str:
    """Return the mark that a process began with; empty where it has none, has ended, or is not to be looked at."""
    try:
        variables = (root / f"proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    name = f"{SUPERVISOR}=".encode()
    return next((os.fsdecode(each.removeprefix(name)) for each in variables if each.startswith(name)), "")
