"""What each happening changes, and what must be done at once because of it.

Pure: `apply` takes the fleet, one happening and the time, changes the fleet and returns actions. Which job runs where
is `decide`'s business.
"""

import heapq
from collections.abc import Callable
from typing import Any, assert_never

from gen_worker_supervisor.core.actions import Action, Note
from gen_worker_supervisor.core.admission import submit
from gen_worker_supervisor.core.drains import device_drain_asked
from gen_worker_supervisor.core.endings import (
    LOOK_AGAIN_S,
    climb,
    drain_fleet,
    drain_over,
    drain_overdue,
    end_asked,
    unsent,
)
from gen_worker_supervisor.core.fates import BOOT_LIMIT_S, child_died, respawn, spawn_child, unkillable
from gen_worker_supervisor.core.guard import cause_known, memory_read, weighed
from gen_worker_supervisor.core.hangs import watched
from gen_worker_supervisor.core.happenings import (
    Began,
    CodeChanged,
    DeviceDrainAsked,
    DeviceFault,
    Died,
    DrainAsked,
    EndAsked,
    FetcherLost,
    FetcherReported,
    GpusRead,
    Happening,
    InputsCame,
    InputsRefused,
    LoadAsked,
    MemoryRead,
    Misbehaved,
    PinAsked,
    Reported,
    RestartAsked,
    Spawned,
    Submitted,
    Ticked,
    UnloadAsked,
    Unsent,
    Vanished,
    Watched,
    Weighed,
)
from gen_worker_supervisor.core.ladder import Reason
from gen_worker_supervisor.core.phases import Phase
from gen_worker_supervisor.core.pinning import load_asked, pin_asked
from gen_worker_supervisor.core.reloading import code_changed
from gen_worker_supervisor.core.replacing import age_told, restart_asked
from gen_worker_supervisor.core.reports import REPORTS, misbehaved, of_fetcher, on_began, vanished
from gen_worker_supervisor.core.settling import device_fault, gpus_read, settle_over
from gen_worker_supervisor.core.state import Child, Fleet, Job, Timer
from gen_worker_supervisor.core.steps import kill_child
from gen_worker_supervisor.core.tidying import unload

DEAF_S = 10.0  # what a child has to give back a job that it has not begun


def apply(fleet: Fleet, happening: Happening, now: float) -> list[Action]:
    """Record what happened and return what follows from it at once."""
    if isinstance(happening, Submitted):  # first, as a job takes the two first of these
        return submit(fleet, happening.job, now)
    fleet.changes += 1
    if isinstance(happening, Reported):
        return REPORTS.get(type(happening.message), _unheard)(fleet, happening.child, happening.message, now)
    return HAPPENINGS[type(happening)](fleet, happening, now)


def _spawned(_fleet: Fleet, happening: Spawned, _now: float) -> list[Action]:
    happening.child.pid = happening.pid
    return []


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
            return respawn(fleet, subject, now)
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
        case "recycle":
            return age_told(fleet, subject, now)
        case "settle":
            return settle_over(fleet, subject, now)
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
    for child in fleet.children():
        unreturned = [job for job in child.leased.values() if job.ended and job.started is None]
        again = again or bool(unreturned)
        if unreturned and len(unreturned) == len(child.leased) and all(_overdue(job, now) for job in unreturned):
            actions += misbehaved(fleet, child, f"silent for {DEAF_S:.0f} s to the end of a job it was handed", now)
    if again:
        fleet.arm(now + LOOK_AGAIN_S, ("look", None))
    return actions


def _overdue(job: Job, now: float) -> bool:
    return job.ending is not None and now > job.ending.ends + DEAF_S


HAPPENINGS: dict[type, Callable[[Fleet, Any, float], list[Action]]] = {
    EndAsked: lambda fleet, it, now: end_asked(fleet, it.job, it.reason, it.at_once, now),
    Ticked: lambda fleet, it, now: _ticked(fleet, now),
    Began: lambda fleet, it, now: on_began(fleet, it.child, it.number, it.since, now),
    Spawned: _spawned,
    Died: lambda fleet, it, now: child_died(fleet, it.child, cause_known(it.child, it.death), now),
    Misbehaved: lambda fleet, it, now: misbehaved(fleet, it.child, it.message, now),
    Unsent: lambda fleet, it, now: unsent(fleet, it.child, it.job, it.reason, now),
    DrainAsked: lambda fleet, it, now: drain_fleet(fleet, it.within_s, now),
    RestartAsked: restart_asked,
    CodeChanged: code_changed,
    DeviceDrainAsked: device_drain_asked,
    UnloadAsked: lambda fleet, it, now: unload(fleet, it.instances, it.device),
    LoadAsked: load_asked,
    PinAsked: pin_asked,
    Vanished: lambda fleet, it, now: vanished(fleet, it.child, it.message, now),
    FetcherReported: of_fetcher,
    FetcherLost: of_fetcher,
    InputsCame: of_fetcher,
    InputsRefused: of_fetcher,
    Watched: watched,
    MemoryRead: memory_read,
    Weighed: weighed,
    GpusRead: gpus_read,
    DeviceFault: device_fault,
}
"""What each happening leads to, but for jobs that come and frames of children."""
