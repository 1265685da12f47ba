"""What is seen of a process from outside, as values: of children for the naming of hangs, of the memory, of the GPUs.

Pure. Threads read it, `hangs`, `guard` and `settling` judge it.
"""

from enum import StrEnum

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
    cpu_s: float = 0.0  # what it and its descendants have used of processors
    io_bytes: int = 0  # what they have read and written, files, pipes and sockets alike
    beat_at: float = 0.0  # of its frame loop, 0.0 before the first
    page_mark: int = 0  # changes with the progress that its status page tells of
    gpu_busy: bool | None = None  # whether its device computes; None where nobody knows


class MemoryReading(msgspec.Struct, frozen=True):
    """The memory at one moment: what is used of what limit, and what each child has of it."""

    at: float
    used: int  # bytes that cannot be taken back: without page cache
    limit: int
    source: str  # "host", "cgroup v1", "cgroup v2"
    children: dict[int, int]  # resident bytes that are a child's own, its descendants' with them, by generation


class GpuReading(msgspec.Struct, frozen=True):
    """What the driver says of one GPU."""

    device: str
    used: int  # bytes, of whomever
    total: int
    busy: float | None = None  # 0 to 1
