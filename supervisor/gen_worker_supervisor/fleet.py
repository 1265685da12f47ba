"""What each happening changes, and what must be done at once because of it.

Pure: `apply` takes the fleet, one happening and the time, changes the fleet and returns actions. Which job runs where
is `decide`'s business.
"""

import heapq
from typing import assert_never

from gen_worker_supervisor.admission import submit
from gen_worker_supervisor.endings import LOOK_AGAIN_S, climb, drain_fleet, drain_over, drain_overdue, end_asked, unsent
from gen_worker_supervisor.fates import BOOT_LIMIT_S, child_died, spawn_child, unkillable
from gen_worker_supervisor.ladder import Reason
from gen_worker_supervisor.phases import Phase
from gen_worker_supervisor.reports import REPORTS, misbehaved, of_fetcher, on_began, vanished
from gen_worker_supervisor.state import (
    Action,
    Began,
    Child,
    Device,
    Died,
    DrainAsked,
    EndAsked,
    FetcherLost,
    FetcherReported,
    Fleet,
    Happening,
    InputsCame,
    InputsRefused,
    Job,
    Misbehaved,
    Note,
    Reported,
    Spawned,
    Submitted,
    Ticked,
    Timer,
    UnloadAsked,
    Unsent,
    Vanished,
)
from gen_worker_supervisor.steps import kill_child
from gen_worker_supervisor.tidying import unload

DEAF_S = 10.0  # what a child has to give back a job that it has not begun


def apply(fleet: Fleet, happening: Happening, now: float) -> list[Action]:
    """Record what happened and return what follows from it at once."""
    if isinstance(happening, Submitted):  # first, as a job takes the two first of these
        return submit(fleet, happening.job, now)
    fleet.changes += 1
    if isinstance(happening, Reported):
        return REPORTS.get(type(happening.message), _unheard)(fleet, happening.child, happening.message, now)
    if isinstance(happening, FetcherReported | FetcherLost | InputsCame | InputsRefused | UnloadAsked | Vanished):
        return _of_files(fleet, happening, now)
    match happening:
        case EndAsked(job, reason, at_once):
            return end_asked(fleet, job, reason, at_once, now)
        case Ticked():
            return _ticked(fleet, now)
        case Began(child, number, since):
            return on_began(fleet, child, number, since, now)
        case Spawned(child, pid):
            child.pid = pid
            return []
        case Died(child, death):
            return child_died(fleet, child, death, now)
        case Misbehaved(child, message):
            return misbehaved(fleet, child, message, now)
        case Unsent(child, job, reason):
            return unsent(fleet, child, job, reason, now)
        case DrainAsked(within_s):
            return drain_fleet(fleet, within_s, now)
        case _:
            assert_never(happening)


def _of_files(
    fleet: Fleet,
    happening: FetcherReported | FetcherLost | InputsCame | InputsRefused | UnloadAsked | Vanished,
    now: float,
) -> list[Action]:
    """What has become of models and inputs, or shall become of them."""
    if isinstance(happening, UnloadAsked):
        return unload(fleet, happening.instances)
    if isinstance(happening, Vanished):
        return vanished(fleet, happening.child, happening.message, now)
    return of_fetcher(fleet, happening, now)


def _unheard(_fleet: Fleet, _child: Child, _message: object, _now: float) -> list[Action]:
    """A frame that changes nothing of the fleet."""
    return []


def start(fleet: Fleet, now: float) -> list[Action]:
    """Return the actions that give every device its first child."""
    return [action for device in fleet.devices for action in spawn_child(fleet, device, now)]


def _ticked(fleet: Fleet, now: float) -> list[Action]:
    actions: list[Action] = []
    while fleet.timers and fleet.timers[0][0] <= now:
        _, _, timer = heapq.heappop(fleet.timers)
        actions += _due(fleet, timer, now)
    return actions


def _due(fleet: Fleet, timer: Timer, now: float) -> list[Action]:
    kind, subject = timer
    match kind:
        case "deadline":
            overdue = fleet.jobs.get(subject)
            return [] if overdue is None else end_asked(fleet, overdue, Reason.DEADLINE, False, now)
        case "ending":
            holder, number = subject
            job: Job | None = holder.leased.get(number)
            return [] if job is None else climb(fleet, job, now)
        case "respawn":
            device: Device = subject
            idle = device.child is not None and device.child.phase is Phase.BACKOFF
            return spawn_child(fleet, device, now) if idle and not fleet.draining else []
        case "boot":
            late: Child = subject
            if late.phase not in (Phase.FORKING, Phase.IMPORTING):
                return []
            note = Note("error", late.device.name, f"child {late.pid} was not ready after {BOOT_LIMIT_S:.0f} s")
            return [note, *kill_child(fleet, late, now)]
        case "drain":
            return drain_overdue(fleet, subject, now)
        case "drained":
            return drain_over(fleet, now)
        case "unkillable":
            return unkillable(fleet, subject, now)
        case "look":
            return _look_again(fleet, now)  # and `decide` looks after every happening
        case _:
            assert_never(kind)


def _look_again(fleet: Fleet, now: float) -> list[Action]:
    """Go on looking while some child holds a job that was answered before it was seen to begin.

    A child that holds nothing else and does not give it back reads nothing any more: it would keep its device for ever.
    """
    actions: list[Action] = []
    again = False
    for child in (device.child for device in fleet.devices if device.child is not None):
        unreturned = [job for job in child.leased.values() if job.ended and job.started is None]
        again = again or bool(unreturned)
        if unreturned and len(unreturned) == len(child.leased) and all(_overdue(job, now) for job in unreturned):
            actions += misbehaved(fleet, child, f"silent for {DEAF_S:.0f} s to the end of a job it was handed", now)
    if again:
        fleet.arm(now + LOOK_AGAIN_S, ("look", None))
    return actions


def _overdue(job: Job, now: float) -> bool:
    return job.ending is not None and now > job.ending.ends + DEAF_S
