"""Look at the memory from a thread of its own, the more often the less is left; the loop is told what was seen.

Judgement is in `guard`.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from gen_worker_supervisor.core.evidence import MemoryReading, Room
from gen_worker_supervisor.loop.rounds import Rounds
from gen_worker_supervisor.memory.usage import families, oom_kills, own_bytes, tightest
from gen_worker_supervisor.processes.proc import ROOT

LONGEST_S = 1.0
SHORTEST_S = 0.05
HURRIED_S = 0.01  # while memory goes so fast that the reserve would be reached in `SOON_S`
SOON_S = 0.5
FASTEST_BYTES_S = 4 << 30  # that memory goes by: what is left above the reserve lasts for a few looks
LASTING_S = 0.25  # between looks at memory that has been short for longer than `ACUTE_S`: what helps was done
ACUTE_S = 1.0
FAMILIES_EVERY_S = 2.0  # a look at every process of the host; where memory is short, more often
FAMILIES_IN_NEED_S = 0.25
CLOSE_LIMIT_S = 1.0
KILLS_KEPT_S = 5.0  # a process of many GB takes a while to be gone


def pause(spare: int, taken_s: float = 0.0, short_for_s: float = 0.0) -> float:
    """Return the seconds until the next look.

    With so many bytes above the reserve, so many taken in a second, and less than the reserve left for such a time.
    """
    if short_for_s > ACUTE_S:
        return LASTING_S
    if taken_s > 0 and spare < taken_s * SOON_S:
        return HURRIED_S
    return min(LONGEST_S, max(SHORTEST_S, spare / FASTEST_BYTES_S))


class Pace:
    """How fast memory goes, and for how long it has been short."""

    def __init__(self, reserve: int) -> None:
        self._reserve = reserve
        self._last: tuple[int, float] | None = None
        self._short_s = 0.0

    def of(self, free: int, now: float) -> tuple[float, float]:
        """Take what is free; return the bytes that a second takes, and the seconds of shortage so far."""
        free_before, before = self._last or (free, now)
        self._last = (free, now)
        self._short_s = self._short_s + now - before if free < self._reserve else 0.0
        return (free_before - free) / max(now - before, HURRIED_S), self._short_s


class MemoryWatch:
    """Reads the memory until it is closed.

    Each reading is given to `on_reading` on the loop, at most one at a time: what a loop that is late has missed is of
    no use. `children` are the pids to look at, by the generation of the child.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_reading: Callable[[MemoryReading], None],
        *,
        reserve: int,
        rounds: Rounds,
        root: Path = ROOT,
    ) -> None:
        self.children: Mapping[int, int] = {}
        self._loop = loop
        self._on_reading = on_reading
        self._rounds = rounds
        self._pace = Pace(reserve)
        self._reserve = reserve
        self._root = root
        self._families: dict[int, list[int]] = {}
        self._families_at = float("-inf")
        self._told_at = float("-inf")
        self._taken = True
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._look, name="gen-worker-memory", daemon=True)

    def start(self) -> None:
        """Look from now on, where the kernel tells anything."""
        if tightest(self._root) is not None:
            self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_LIMIT_S)  # the kernel may hold it at a process that is stuck in a driver

    def _look(self) -> None:
        wait_s = 0.0
        while not self._closing.wait(wait_s):
            wait_s = SHORTEST_S
            with self._rounds.one():
                room, now = tightest(self._root), time.monotonic()
                if room is not None:  # else no descriptor is left to look with
                    wait_s = pause(room.free - self._reserve, *self._pace.of(room.free, now))
                    self._look_at(room, now)

    def _look_at(self, room: Room, now: float) -> None:
        if self._taken and (room.free < self._reserve or now >= self._told_at + LONGEST_S):
            self._told_at = now
            self._tell(MemoryReading(now, room.used, room.limit, room.source, self._sizes(room, now)))

    def _tell(self, reading: MemoryReading) -> None:
        self._taken = False
        try:
            self._loop.call_soon_threadsafe(self._take, reading)
        except RuntimeError:  # the loop is closed: so is everything else
            self._closing.set()

    def _take(self, reading: MemoryReading) -> None:
        self._taken = True
        if not self._closing.is_set():
            self._on_reading(reading)

    def _sizes(self, room: Room, now: float) -> dict[int, int]:
        """Return what each child takes, with its family: who is in that is looked up now and then, and in need."""
        children = dict(self.children)
        every_s = FAMILIES_IN_NEED_S if room.free < self._reserve else FAMILIES_EVERY_S
        if now >= self._families_at + every_s:
            self._families, self._families_at = families(children.values(), self._root), now
        return {
            generation: sum(own_bytes(each, self._root) for each in (pid, *self._families.get(pid, ())))
            for generation, pid in children.items()
        }


class OomKills:
    """Which deaths the kernel may have caused for lack of memory: those soon after it ended somebody."""

    def __init__(self, count: Callable[[], int | None] = oom_kills) -> None:
        self._count = count
        self._last = count()
        self._times: list[float] = []

    def look(self, now: float) -> None:
        """Take note of what the kernel did since the last look."""
        count = self._count()
        if count is not None and self._last is not None:
            self._times += [now] * (count - self._last)
        self._last = count
        self._times = [at for at in self._times if at > now - KILLS_KEPT_S]

    @property
    def total(self) -> int | None:
        """How many there were of all, None where nobody counts."""
        return self._last

    def claim(self, now: float) -> int:
        """Return how many there were of late, for one who was killed; one of them counts for nobody else."""
        self.look(now)
        found = len(self._times)
        del self._times[:1]
        return found
