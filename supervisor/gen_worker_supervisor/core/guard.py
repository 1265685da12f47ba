"""Who is ended before the kernel ends somebody for lack of memory.

Pure: takes readings of the memory, changes the fleet, returns actions.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from gen_worker_supervisor.core.actions import Action, FreeMemory, Note
from gen_worker_supervisor.core.evidence import MemoryReading, Room
from gen_worker_supervisor.core.happenings import MemoryRead, Weighed
from gen_worker_supervisor.core.phases import Health, Phase
from gen_worker_supervisor.core.state import Child, Death, Fleet
from gen_worker_supervisor.core.steps import kill_child

HOST_OOM = "host_oom"
WORTH_BYTES = 64 << 20  # for less nobody is ended
LOOKS_BETWEEN = 2  # that must find too little again before the next one is ended, or more let go
EASED_SHARE = 1.25  # of the reserve: with so much left the memory is not short any more
LAST_SHARE = 0.25  # of the reserve: with less left the kernel is about to end the largest anyway
_GONE = (Phase.SETTLING, Phase.BACKOFF)
_LEAST_RESERVE, _MOST_RESERVE = 256 << 20, 2 << 30
_RESERVE_SHARE, _MOST_SHARE = 0.04, 0.25
_NEEDED_BYTES = 192 << 20  # of a supervisor, its fetcher, keeper and zygote, and one child; with torch imported
_NEEDED_WITH_TORCH = 640 << 20


def default_reserve(limit: int) -> int:
    """Return the bytes that stay free of a memory: a twenty-fifth, at least 256 MiB but never more than a quarter."""
    return min(max(_LEAST_RESERVE, int(limit * _RESERVE_SHARE)), _MOST_RESERVE, int(limit * _MOST_SHARE))


def needed_bytes(imported: Collection[str]) -> int:
    """Return what a supervisor and one child take before the first job, with these modules imported."""
    return _NEEDED_WITH_TORCH if "torch" in imported else _NEEDED_BYTES


def doubts(room: Room | None, reserve: int, needed: int, ended_together: Sequence[Path]) -> list[str]:
    """Return what a person should know of the memory before anything runs, each with what to do about it."""
    found = []
    if ended_together:
        text = f"the kernel ends everything in `{ended_together[0]}` at once when its memory runs out"
        text += " (`memory.oom.group` is 1); hint: set `singleProcessOOMKill` for the kubelet"
        if not reserve:
            text += ", or `GEN_WORKER_MEMORY_RESERVE`, so that a child is ended before that"
        found.append(text)
    if room is not None and room.limit - reserve < needed:
        text = f"the memory's limit is {_size(room.limit)} ({room.source})"
        text += f", of which {_size(reserve)} stay free: a supervisor and one child take {_size(needed)}"
        found.append(f"{text}; hint: give it more memory")
    return found


def memory_read(fleet: Fleet, happening: MemoryRead, now: float) -> list[Action]:
    """Learn how much memory is left; end a child when it is too little."""
    reading = fleet.memory = happening.reading
    children = [child for child in fleet.children() if child.phase not in _GONE]
    for child in children:
        _learn(child, reading)
    left, reserve = reading.limit - reading.used, fleet.memory_reserve
    if not reserve or left >= reserve:
        fleet.short_looks = 0
        if fleet.short_told and left >= reserve * EASED_SHARE:
            fleet.short_told = False
            return [Note("info", "memory", f"is short no more: {_figures(reading)}")]
        return []
    if any(_comes_back(child) for child in children):
        fleet.short_looks = -LOOKS_BETWEEN
        return []
    fleet.short_looks += 1
    return _make_room(fleet, children, reading, now) if fleet.short_looks >= 0 else []


def _learn(child: Child, reading: MemoryReading) -> None:
    """Take note of what a child takes, and of the least of that."""
    rss = reading.children.get(child.generation, 0)
    if not rss:  # it was not looked at, or could not be
        return
    child.rss = rss
    child.usual_rss = min(child.usual_rss, rss)


def weighed(fleet: Fleet, happening: Weighed, now: float) -> list[Action]:
    """Learn what a child takes when it has set up what it has, and before it runs anything."""
    child = happening.child
    child.rss = child.usual_rss = child.device.usual_rss = happening.rss
    return []


def _comes_back(child: Child) -> bool:
    """Whether a child is about to be gone, and its memory with it."""
    return child.killed and child.device.health not in (Health.WEDGED, Health.RETIRED)


def _make_room(fleet: Fleet, children: Sequence[Child], reading: MemoryReading, now: float) -> list[Action]:
    living = [child for child in children if not child.killed]
    coming = [child for child in living if child is child.device.coming and child.rss >= WORTH_BYTES]
    if coming:
        return _end(fleet, coming[0], reading, "and nobody needs it yet", now)
    grown = most_over(living)
    if grown is not None:
        over = grown.rss - usual_of(grown, living)
        return _end(fleet, grown, reading, f"{_size(over)} more than usual", now)
    if fleet.short_looks < LOOKS_BETWEEN:  # a child that is new may have been left out
        return []
    if reading.models:
        size = min(reading.models, int(fleet.memory_reserve * EASED_SHARE) - (reading.limit - reading.used))
        fleet.short_looks, fleet.short_told = -LOOKS_BETWEEN, True
        text = f"is short: {_figures(reading)}; models in host memory are let go of"
        return [Note("warning", "memory", text), FreeMemory(size)]
    largest = max(living, key=lambda child: child.rss, default=None)
    last = reading.limit - reading.used < fleet.memory_reserve * LAST_SHARE
    if last and largest is not None and largest.rss >= WORTH_BYTES:
        largest.retiring = True  # whoever took the memory, it was not this one
        return _end(fleet, largest, reading, "the most of all", now)
    if fleet.short_told:
        return []
    fleet.short_told = True
    return [Note("warning", "memory", f"is short: {_figures(reading)}; no child takes more than usual")]


def most_over(children: Sequence[Child]) -> Child | None:
    """Return the child that takes most more than it usually does; None when none is worth ending.

    Of those that differ little one that runs a job on its device comes first, then the one whose job is the newest.
    """
    over = {child.generation: child.rss - usual_of(child, children) for child in children}
    most = max(over.values(), default=0)
    if most < WORTH_BYTES:
        return None
    least = max(WORTH_BYTES, most - WORTH_BYTES + 1)
    guilty = [child for child in children if over[child.generation] >= least]
    return max(guilty, key=lambda child: (child.used["device"] > 0, _newest(child)))


def usual_of(child: Child, children: Sequence[Child]) -> int:
    """Return what a child usually takes.

    One of which that is not known yet is like the one before it, or the largest of the others.
    """
    return child.usual_rss or max([child.device.usual_rss, *(other.usual_rss for other in children)])


def _newest(child: Child) -> float:
    return max((job.started or 0.0 for job in child.leased.values()), default=child.born)


def _end(fleet: Fleet, child: Child, reading: MemoryReading, why: str, now: float) -> list[Action]:
    child.doom = HOST_OOM
    fleet.short_looks, fleet.short_told = -LOOKS_BETWEEN, True
    text = f"is short: {_figures(reading)}; child {child.pid} of {child.device.name} is ended"
    return [Note("error", "memory", f"{text}: it takes {_size(child.rss)}, {why}"), *kill_child(fleet, child, now)]


def is_victim(child: Child) -> bool:
    """Whether a child is ended for lack of memory though it took no more than usual."""
    return child.doom == HOST_OOM and child.retiring


def cause_known(child: Child, death: Death) -> Death:
    """Return a death with the lack of memory as its cause, where that is what ended the child: by us or the kernel."""
    if child.doom:
        return replace(death, cause=child.doom)
    killed = death.signal == "SIGKILL" and not child.killed
    return replace(death, cause=HOST_OOM) if killed and death.oom_kills else death


def _figures(reading: MemoryReading) -> str:
    left = _size(max(0, reading.limit - reading.used))
    return f"{left} of {_size(reading.limit)} are left ({reading.source})"


def _size(size: int) -> str:
    return f"{size / (1 << 30):.2f} GiB" if size >= 1 << 30 else f"{size / (1 << 20):.0f} MiB"
