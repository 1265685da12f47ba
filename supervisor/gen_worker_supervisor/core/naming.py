"""How a child hangs, in one word, from five signals: progress, beats, processor time, the kernel's view, the device.

Pure: takes what was seen of a child, changes nothing.
"""

from math import inf
from typing import NamedTuple

from gen_worker.wire.messages import Lane
from gen_worker_supervisor.core.evidence import Evidence, Hang
from gen_worker_supervisor.core.phases import JobState, Phase
from gen_worker_supervisor.core.state import Child, Fleet, Function, Job

LIMIT_S = 30.0  # without progress, before a job that does not say otherwise is said to hang
LONGEST_GAPS = 3.0  # so many times the longest that a function took to get on, and got on
UNBEATEN_S = 2.5  # beats come every second, and a frame that comes in between puts one off by another
BREATH_S = 3.0  # what is judged by its speed is judged by so much of it
COMPUTING = 0.2  # of a processor

HELD_BACK = frozenset({Hang.LOADING_SLOW, Hang.UNMEASURABLE})
"""What is no hang, or cannot be said to be one."""


OF_ALL = frozenset({Hang.GIL_HELD, Hang.STOPPED, Hang.KERNEL_D})
"""What nothing in the child gets on in, whoever is to blame."""


class Work(NamedTuple):
    """What a child is at, and since when that has not got on."""

    words: str
    moved_at: float
    limit_s: float
    jobs: tuple[Job, ...] = ()  # any of which may be what holds the device or the loop; none: a set-up, an import


def is_hung(child: Child) -> bool:
    """Whether a child is said to hang."""
    return child.hang is not None and child.hang not in HELD_BACK


def floor_s(fleet: Fleet) -> float:
    """Return the shortest time without progress that is called a hang: a quarter of what ends a job."""
    return min(LIMIT_S, fleet.stall_timeout_s / 4) if fleet.stall_timeout_s else LIMIT_S


def stall_limit_s(fleet: Fleet, function: Function) -> float:
    """Return how long a job of a function may take to get on before it is said to hang."""
    return max(floor_s(fleet), LONGEST_GAPS * function.longest_gap_s)


def work_of(fleet: Fleet, child: Child) -> Work | None:
    """Return what holds a child's device or its asyncio loop, if anything does.

    Jobs that wait on the loop hold nothing, and one that is held up by its reader or by us is not to blame.
    """
    if child.loading is not None:
        known = fleet.instances.get(child.loading)
        learned_s = known.load_s if known is not None and known.learned else 0.0
        words = f"setup of `{child.loading}`"
        known_at = child.watch.load_at if child.watch.load[0] == child.loading else inf
        return Work(words, known_at, max(floor_s(fleet), LONGEST_GAPS * learned_s))
    if child.phase in (Phase.FORKING, Phase.IMPORTING):
        return Work("the import of the endpoint's module", child.born, floor_s(fleet))
    if child.used["device"]:
        for job in _begun(child, "device"):
            if job.held_up:
                return None
            return Work(_words(job), job.moved_at, stall_limit_s(fleet, job.function), (job,))
    jobs = _begun(child, "loop") if loop_is_held(child) else []
    if jobs:
        words = _words(jobs[0]) if len(jobs) == 1 else f"one of {len(jobs)} requests on the asyncio loop"
        return Work(words, child.looks[-1].loop_at, floor_s(fleet), tuple(jobs))
    return None


def _begun(child: Child, lane: Lane) -> list[Job]:
    begun = [job for job in child.leased.values() if job.state in (JobState.STARTED, JobState.EMITTED)]
    return [job for job in begun if job.function.surveyed.lane == lane]


def _words(job: Job) -> str:
    return f"request {job.request_id} of `{job.function.name}`"


def loop_is_held(child: Child) -> bool:
    """Whether a child's asyncio loop does not turn although the child beats."""
    look = child.looks[-1] if child.looks and child.used["loop"] else None
    return look is not None and look.loop_at > 0 and look.beat_at - look.loop_at >= UNBEATEN_S


def silent_s(child: Child, work: Work, now: float) -> float:
    """Return for how long a child's work has not got on, as far as it was watched."""
    return max(0.0, now - max(work.moved_at, child.watch.since))


def hang_of(fleet: Fleet, child: Child, now: float) -> Hang | None:
    """Return how a child hangs by the latest look at it, None when it does not."""
    look = child.looks[-1] if child.looks else None
    if look is None:
        return None
    if look.state == "T":
        return Hang.STOPPED
    if look.state == "D" and quiet_s(child, now) >= UNBEATEN_S:
        return Hang.KERNEL_D
    loading_moves = child.loading is not None and now - child.watch.io_at < BREATH_S
    if child.ready and now - max(look.beat_at, child.watch.since) >= UNBEATEN_S and not loading_moves:
        return Hang.GIL_HELD
    work = work_of(fleet, child)
    if work is None or silent_s(child, work, now) < work.limit_s:
        return None
    return kind_of(child, look, now)


def kind_of(child: Child, look: Evidence, now: float) -> Hang:
    """Return what a child that does not get on is at."""
    if not look.measured:
        return Hang.UNMEASURABLE
    computes = look.gpu_busy or _processors(child, look) > COMPUTING
    if now - child.watch.io_at < BREATH_S and (child.loading is not None or not child.ready or not computes):
        return Hang.LOADING_SLOW
    if computes:
        return Hang.SPIN_NO_PROGRESS
    return Hang.PYTHON_STUCK if look.wchan.startswith("futex") else Hang.NATIVE_WAIT


def kind_at_the_dump(fleet: Fleet, child: Child, now: float) -> Hang | None:
    """Return how a child hangs whose job is asked for its stack: of one that was watched too shortly, nothing."""
    if child.hang is not None or not child.looks:
        return child.hang
    found = hang_of(fleet, child, now)
    work = work_of(fleet, child)
    if found is None and work is not None and silent_s(child, work, now) >= BREATH_S:
        return kind_of(child, child.looks[-1], now)
    return found


def quiet_s(child: Child, now: float) -> float:
    """Return for how long nothing at all has moved in a child, as far as it was watched."""
    stir = child.watch.stir
    return now - max(stir.at if stir is not None else now, child.watch.since)


def _processors(child: Child, look: Evidence) -> float:
    """Return how many processors a child used lately."""
    before = next((each for each in child.looks if look.at - each.at <= BREATH_S), look)
    return (look.cpu_s - before.cpu_s) / (look.at - before.at) if look.at > before.at else 0.0
