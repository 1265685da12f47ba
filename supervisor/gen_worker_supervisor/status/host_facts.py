"""How the host is: its processors, memory, network and disk. Threads look, the loop takes what they saw last.

A look at a network's folder may never end, so the disk has a thread to itself. What is not known is None.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from gen_worker_supervisor.loop.rounds import Rounds
from gen_worker_supervisor.memory.usage import cgroups, file_number, file_numbers, file_words, rooms
from gen_worker_supervisor.processes.proc import ROOT

EVERY_S, DISK_EVERY_S = 1.0, 5.0
_LOOPBACK = "lo"


class HostFacts(NamedTuple):
    """What was seen last; at most `EVERY_S` old, of the disk `DISK_EVERY_S`, as long as the looks end."""

    cpu_percent: float | None = None  # 0 to 100, of the cores that this process may use
    cpu_count: float | None = None  # how many these are; a cgroup may allow a part of one
    ram_used: int | None = None  # bytes of the host
    ram_total: int | None = None
    net_bps: float | None = None  # bytes received in a second, of all networks but the loopback
    disk_used: int | None = None  # bytes of the disk that the models are on
    disk_total: int | None = None


class HostWatch:
    """Looks at the host from `start` to `close`."""

    def __init__(self, disk: "Disk", rounds: Rounds, *, root: Path = ROOT) -> None:
        self._rounds = rounds
        self._closing = threading.Event()
        self._cores, self._network, self._memory, self._disk = Cores(root), Network(), Memory(root), disk

    @property
    def facts(self) -> HostFacts:
        """What was seen last. Never waits."""
        cores, memory, disk = self._cores, self._memory.use, self._disk.use
        return HostFacts(cores.percent, cores.count, *memory, self._network.received_bps, *disk)

    def start(self) -> None:
        """Look from now on."""
        for what, looks, every_s in (
            ("host", (self._memory.look, self._cores.look, self._network.look), EVERY_S),
            ("disk", (self._disk.look,), DISK_EVERY_S),
        ):
            threading.Thread(target=self._look, args=(looks, every_s), name=f"gen-worker-{what}", daemon=True).start()

    def close(self) -> None:
        """Look no more; a look that hangs is not waited for."""
        self._closing.set()

    def _look(self, looks: Sequence[Callable[[], None]], every_s: float) -> None:
        while not self._closing.is_set():
            for look in looks:
                with self._rounds.one():
                    look()
            self._closing.wait(every_s)


# --- processors -------------------------------------------------------------------------------------------------------


class Quota(NamedTuple):
    """What a cgroup may use of the processors, and has used."""

    cores: float
    used_s: float


def tightest_quota(root: Path = ROOT) -> Quota | None:
    """Return the least that the cgroups above this process allow, None where none of them has a limit."""
    found = []
    for version, place in cgroups("cpu", root):
        quota = _quota_v2(root / "sys/fs/cgroup" / place) if version == 2 else _quota_v1(root / "sys/fs/cgroup", place)
        if quota is not None:
            found.append(quota)
    return min(found, default=None)


def _quota_v1(tree: Path, place: Path) -> Quota | None:
    allowed, period = (file_number(tree / "cpu" / place / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    used_ns = file_number(tree / "cpuacct" / place / "cpuacct.usage")
    return Quota(allowed / period, used_ns / 1e9) if allowed and period and used_ns is not None else None


def _quota_v2(folder: Path) -> Quota | None:
    words = file_words(folder / "cpu.max")
    used_us = file_numbers(folder / "cpu.stat").get("usage_usec")
    if len(words) != 2 or not words[0].isdigit() or used_us is None:  # it may say `max`
        return None
    return Quota(int(words[0]) / int(words[1]), used_us / 1e6)


class Cores:
    """The processors that this process may use, and how busy they were between the last two looks.

    Where a cgroup limits it, that is how much of what it allows was used in it; else how busy the host's are, whoever
    used them.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self.percent: float | None = None
        self.count: float | None = None
        self._root = root
        self._last: tuple[Quota, float] | None = None
        self._host_seen = False

    def look(self) -> None:
        """Look once; the first look only begins to measure."""
        mine = os.sched_getaffinity(0)
        quota = tightest_quota(self._root)
        if quota is None or quota.cores >= len(mine):
            self.count, self.percent, self._last = float(len(mine)), self._host_percent(mine), None
            return
        now, before = time.monotonic(), self._last
        self.count, self._last = round(quota.cores, 2), (quota, now)
        if before is not None:
            possible_s = quota.cores * max(1e-3, now - before[1])
            self.percent = round(min(100.0, max(0.0, 100 * (quota.used_s - before[0].used_s) / possible_s)), 1)

    def _host_percent(self, mine: set[int]) -> float | None:
        import psutil

        try:
            each = psutil.cpu_percent(percpu=True)
        except OSError:  # no descriptor is left
            return None
        seen, self._host_seen = self._host_seen, True
        used = [percent for core, percent in enumerate(each) if core in mine]
        return round(sum(used) / len(used), 1) if used and seen else None


# --- the rest ---------------------------------------------------------------------------------------------------------


class Memory:
    """The host's memory."""

    def __init__(self, root: Path = ROOT) -> None:
        self.use: tuple[int | None, int | None] = (None, None)
        self._root = root

    def look(self) -> None:
        """Learn how much is in use of how much."""
        host = next((room for room in rooms(self._root) if room.source == "host"), None)
        self.use = (None, None) if host is None else (host.used, host.limit)


class Network:
    """What comes in over all networks."""

    def __init__(self) -> None:
        self.received_bps: float | None = None
        self._last: tuple[int, float] | None = None

    def look(self) -> None:
        """Look once; the first look only begins to measure."""
        import psutil

        try:
            counters = psutil.net_io_counters(pernic=True, nowrap=False)
        except OSError:  # no descriptor is left
            self.received_bps = self._last = None
            return
        received = sum(each.bytes_recv for name, each in counters.items() if name != _LOOPBACK)
        now, before = time.monotonic(), self._last
        self._last = (received, now)
        if before is not None:  # an interface that goes takes its count with it
            self.received_bps = round(max(0, received - before[0]) / max(1e-3, now - before[1]), 1)


class Disk:
    """How full the disk of a folder is."""

    def __init__(self, folder: Path) -> None:
        """The folder need not exist yet."""
        self.use: tuple[int | None, int | None] = (None, None)
        self._folder = folder

    def look(self) -> None:
        """Learn it; does not end while a network's disk does not answer."""
        import psutil

        try:
            there = next(each for each in (self._folder, *self._folder.parents) if os.path.exists(each))
            found = psutil.disk_usage(str(there))
        except OSError:
            self.use = (None, None)
        else:
            self.use = (found.used, found.total)
