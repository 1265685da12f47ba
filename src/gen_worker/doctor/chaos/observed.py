"""What is seen of processes from outside, in `/proc`. One that is gone has nothing."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

PROC = Path("/proc")
_LOOK_EVERY_S = 0.005

Found = TypeVar("Found")


def until(condition: Callable[[], Found], within_s: float) -> Found | None:
    """Return what the condition returns as soon as that is true; None when it is not in time."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            return None
        time.sleep(_LOOK_EVERY_S)
    return found


def state(pid: int, proc: Path = PROC) -> str:
    """Return the letter that the kernel has for what a process does: `R`, `S`, `D`, `T`, `Z`; empty when it is gone."""
    try:
        return (proc / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def alive(pid: int, proc: Path = PROC) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    return state(pid, proc) not in ("", "Z", "X")


def resident(pid: int, proc: Path = PROC) -> int:
    """Return the bytes of memory that a process has to itself."""
    try:
        fields = (proc / str(pid) / "statm").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int, proc: Path = PROC) -> int:
    """Return how many descriptors a process has open; raise `PermissionError` where nobody may look."""
    try:
        return len(os.listdir(proc / str(pid) / "fd"))
    except (FileNotFoundError, ProcessLookupError):
        return 0


def marked(mark: str, proc: Path = PROC) -> set[int]:
    """Return the processes that run and began with `mark`, as `NAME=value`, in their environment.

    Whoever a marked process starts is marked, too, however far away it puts itself.
    """
    wanted, found = mark.encode(), set()
    for name in os.listdir(proc):
        if not name.isdigit():
            continue
        try:
            variables = (proc / name / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended, or is none of this user's
            continue
        if wanted in variables and alive(int(name), proc):
            found.add(int(name))
    return found
