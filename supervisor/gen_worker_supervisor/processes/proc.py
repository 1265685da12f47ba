"""What `/proc` tells of a child and of everything it started, one look at a time; see proc(5).

Knows processes and threads, nothing of jobs. A look never waits for the process it is at, so it works while that hangs.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/")
_TICKS = os.sysconf("SC_CLK_TCK")
_HELD_STATES = frozenset("DTt")  # of a process: no thread of it takes a turn, whatever its job thread was at


class Sight(NamedTuple):
    """One look at one child. The sums only grow, and count from the first look on."""

    state: str = ""  # of its job thread; "D" or "T" of the process wins
    wchan: str = ""
    job_cpu_s: float = 0.0  # of its job thread, to the nanosecond where the kernel counts them
    cpu_s: float = 0.0
    io_bytes: int = 0


class Stat(NamedTuple):
    """The fields of a `stat` file that matter here."""

    state: str
    parent: int
    session: int
    cpu_s: float
    started: int  # in ticks since the boot; with the pid it names a process for good


def stat_of(text: str) -> Stat:
    """Return what a `stat` file says; the name in it may hold anything."""
    fields = text.rpartition(")")[2].split()
    return Stat(
        fields[0], int(fields[1]), int(fields[3]), (int(fields[11]) + int(fields[12])) / _TICKS, int(fields[19])
    )


class Threads(NamedTuple):
    """The threads of a process as the kernel sees them."""

    state: str  # of the process, which is that of its first thread; "Z" where it has ended
    caught: int  # a bit for each signal that it handles, the lowest for signal 1
    lines: list[str]

    def heeds(self, number: int) -> bool:
        """Whether it has a handler for a signal."""
        return bool(self.caught >> (number - 1) & 1)


def threads_of(pid: int, most: int = 32) -> Threads:
    """Return what can be seen of a process's threads, of so many at most in words; nothing where it has ended."""
    folder, lines = f"/proc/{pid}", []
    try:
        told = dict(line.split(":\t", 1) for line in _read(f"{folder}/status").splitlines() if ":\t" in line)
        for name in sorted(os.listdir(f"{folder}/task"), key=int)[:most]:
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                lines.append(_told(name, f"{folder}/task/{name}"))
    except (FileNotFoundError, ProcessLookupError):
        return Threads("Z", 0, [])
    return Threads(told["State"][0].upper(), int(told["SigCgt"], 16), lines)


def waits_of(pid: int, thread: int) -> int | None:
    """Return how often a thread has gone to sleep by itself; None where nothing tells."""
    try:
        lines = _read(f"/proc/{pid}/task/{thread}/status").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    found = [line for line in lines if line.startswith("voluntary_ctxt_switches:")]
    return int(found[0].split()[1]) if found else None


def _told(name: str, folder: str) -> str:
    wchan = _read(f"{folder}/wchan")
    where = "" if wchan in ("", "0") else f", in {wchan}"
    return f"thread {name} ({_read(f'{folder}/comm').strip()}): state {stat_of(_read(f'{folder}/stat')).state}{where}"


class Growth:
    """The sum of what counters grew by. One that goes keeps its part in it; one that comes counts from then on."""

    def __init__(self) -> None:
        self.total = 0.0
        self._last: dict[object, float] = {}

    def add(self, readings: dict[object, float]) -> float:
        """Take the counters as they are now; return the sum."""
        for key, value in readings.items():
            self.total += max(0.0, value - self._last.get(key, value))
        self._last |= readings
        return self.total

    def forget(self, keys: set[object]) -> None:
        """Let go of counters that are none of these."""
        self._last = {key: value for key, value in self._last.items() if key in keys}


class Subject:
    """A child that is looked at again and again.

    While it boots all its threads count. From then on its first thread does not: that is its frame loop, which turns
    whatever the job does.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._job_cpu = Growth()
        self._cpu = Growth()
        self._io = Growth()

    def look(self, job_thread: int, everybody: dict[int, Stat] | None = None) -> Sight:
        """Look at it now; `job_thread` is the thread's id, 0 until it is known. Raise `OSError` where that cannot be.

        Given all `processes`, it looks at all its threads and descendants, else only at its job thread.
        """
        folder = f"/proc/{self.pid}"
        process = stat_of(_read(f"{folder}/stat"))
        thread_id = job_thread or self.pid
        thread = f"{folder}/task/{thread_id}"
        state = process.state if process.state in _HELD_STATES else stat_of(_read(f"{thread}/stat")).state
        wchan = _read(f"{thread}/wchan")
        cpu: dict[object, float] = {(self.pid, thread_id): _thread_cpu_s(thread)}
        job_cpu = dict(cpu) if job_thread else {}
        io: dict[object, float] = {(self.pid, thread_id): _io_bytes(folder)}  # first: the rest never seems more
        if job_thread:
            io[self.pid, thread_id] -= _io_bytes(f"{folder}/task/{self.pid}")
        if everybody is not None:
            cpu |= self._threads(folder, job_thread)
            for pid, each in descendants(self.pid, everybody).items():
                cpu[pid, each.started] = each.cpu_s
                io[pid, each.started] = _io_bytes(f"/proc/{pid}")
            self._cpu.forget(set(cpu))
            self._io.forget(set(io))
        return Sight(
            state.upper(),
            "" if wchan == "0" else wchan,
            self._job_cpu.add(job_cpu),
            self._cpu.add(cpu),
            int(self._io.add(io)),
        )

    def glance(self) -> Sight:
        """Look at no more than whether it could do anything; the sums stay. Raise `OSError` where that cannot be."""
        state = stat_of(_read(f"/proc/{self.pid}/stat")).state.upper()
        return Sight(state, "", self._job_cpu.total, self._cpu.total, int(self._io.total))

    def _threads(self, folder: str, job_thread: int) -> dict[object, float]:
        """Return the processor time of each thread, of the first one only while the child boots."""
        found: dict[object, float] = {}
        for name in os.listdir(f"{folder}/task"):
            if not job_thread or int(name) != self.pid:
                with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                    found[self.pid, int(name)] = _thread_cpu_s(f"{folder}/task/{name}")
        return found


def processes(root: Path = ROOT) -> dict[int, Stat]:
    """Return every process that can be seen, by its pid; raise `OSError` where nobody can look, as without descriptors.

    `root` is where `/proc` is.
    """
    found: dict[int, Stat] = {}
    folder = f"{root / 'proc'}"
    for name in os.listdir(folder):
        if name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError, PermissionError):  # it has ended, or is not to be seen
                found[int(name)] = stat_of(_read(f"{folder}/{name}/stat"))
    return found


def descendants(root: int, stats: dict[int, Stat]) -> dict[int, Stat]:
    """Return the processes that a child started, and those that stayed in its session when their parents ended."""
    found = {pid for pid, each in stats.items() if each.session == root}
    found.add(root)
    more = found
    while more:
        more = {pid for pid, each in stats.items() if each.parent in more} - found
        found |= more
    return {pid: stats[pid] for pid in found if pid != root and pid in stats}


def _thread_cpu_s(folder: str) -> float:
    try:
        return int(_read(f"{folder}/schedstat").split()[0]) / 1e9
    except FileNotFoundError:  # a kernel without scheduler statistics: to the tick
        return stat_of(_read(f"{folder}/stat")).cpu_s


def _io_bytes(folder: str) -> float:
    try:
        lines = _read(f"{folder}/io").splitlines()
    except (PermissionError, FileNotFoundError, ProcessLookupError):  # another user's, or gone: its CPU time has to do
        return 0.0
    return float(sum(int(line.split()[1]) for line in lines[:2]))  # rchar, wchar


def _read(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096).decode("utf-8", "replace")
    finally:
        os.close(fd)
