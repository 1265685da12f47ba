"""What is seen of a process from outside, as values: of children for the naming of hangs, of the memory, of the GPUs.

Pure. Threads read it, `hangs`, `guard` and `settling` judge it.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import msgspec


class Hang(StrEnum):
    """How a child hangs, or why that cannot be said."""

    PYTHON_STUCK = "python_stuck"  # its code waits for a lock
    GIL_HELD = "gil_held"  # no Python thread of it gets a turn
    NATIVE_WAIT = "native_wait"  # it sleeps in a system call: a pipe, a socket, a timer
    SPIN_NO_PROGRESS = "spin_no_progress"  # it computes and gets nowhere
    KERNEL_D = "kernel_D"  # the kernel or a driver holds it: no signal reaches it
    STOPPED = "stopped"  # a SIGSTOP, or a debugger
    LOADING_SLOW = "loading_slow"  # bytes still move
    UNMEASURABLE = "unmeasurable"


class Evidence(msgspec.Struct, frozen=True):
    """One look at one child from outside. Times are of the monotonic clock."""

    at: float
    measured: bool = True  # whether `/proc` could be read
    state: str = ""  # of its job thread: "R", "S", "D", "T"; "D" or "T" of the process wins
    wchan: str = ""  # where in the kernel its job thread waits, "" where that is not told
    job_cpu_s: float = 0.0  # what its job thread has used of processors, since it is looked at
    cpu_s: float = 0.0  # what it and its descendants have, but for its frame loop
    io_bytes: int = 0  # what they have read and written: files and pipes, and sockets where those are used like files
    beat_at: float = 0.0  # of its frame loop, 0.0 before the first
    loop_at: float = 0.0  # when its asyncio loop last turned for a beat, 0.0 where there is none
    page_mark: int = 0  # changes with the progress that its status page tells of
    gpu_busy: bool | None = None  # whether its device computes; None where nobody knows


@dataclass(slots=True)
class Watch:
    """What is remembered of the looks at one child."""

    since: float = 0.0  # there was no pause between looks since then
    stir: Evidence | None = None  # the last look at which anything of it had moved
    io_at: float = 0.0  # when it was last seen to read or write
    load: tuple[str | None, int] = (None, 0)  # what it sets up, and how many bytes of it are there
    signs: int = 0  # of life that engines gave while they booted
    load_at: float = 0.0  # when that last changed
    hung_at: float = 0.0  # since when it hangs, if it does


class MemoryReading(msgspec.Struct, frozen=True):
    """The memory at one moment: what is used of what limit, and what each child has of it."""

    at: float
    used: int  # bytes that cannot be taken back: without page cache
    limit: int
    source: str  # "host", "cgroup v1", "cgroup v2"
    children: dict[int, int]  # resident bytes that are a child's own, its descendants' with them, by generation
    models: int = 0  # bytes that models in host memory would give back: those that nobody loads at the moment
    oom_kills: int | None = None  # that the kernel has made so far; None where it does not count


class GpuReading(msgspec.Struct, frozen=True):
    """What the driver says of one GPU."""

    device: str
    used: int  # bytes, of whomever
    total: int
    busy: float | None = None  # 0 to 1
    temperature: float | None = None  # degrees Celsius
    watts: float | None = None


class Room(NamedTuple):
    """One limit on memory: the host's, or that of a cgroup above this process."""

    source: str  # "host", "cgroup v1", "cgroup v2"
    limit: int
    used: int  # bytes that cannot be had back

    @property
    def free(self) -> int:
        """The bytes that are left."""
        return max(0, self.limit - self.used)
