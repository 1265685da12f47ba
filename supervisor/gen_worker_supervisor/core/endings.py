"""End what somebody wants ended: one job by the ladder, or all of them and their children."""

import signal
from typing import assert_never

from gen_worker.wire.messages import Cancel, Interrupt
from gen_worker_supervisor.core.actions import Action, Send, Signal
from gen_worker_supervisor.core.ladder import Ending, Reason, Rung
from gen_worker_supervisor.core.naming import kind_at_the_dump
from gen_worker_supervisor.core.outcomes import ended_outcome, failure
from gen_worker_supervisor.core.phases import JobState, Phase
from gen_worker_supervisor.core.state import Child, Fleet, Job
from gen_worker_supervisor.core.steps import (
    after_leave,
    end_job,
    finish_if_drained,
    kill_child,
    leave_child,
    retire_child,
)

LOOK_AGAIN_S = 1.0
TERMINATE_LIMIT_S = 1.0


def end_asked(fleet: Fleet, job: Job, reason: Reason, at_once: bool, now: float) -> list[Action]:
    """Begin to end a job, or hasten what has begun; one that waits ends at once."""
    if job.ended:
        return []
    if job.ending is None:
        job.ending = Ending(reason, now, at_once)
    else:
        job.ending.hasten(reason, now, at_once=at_once)
    if job.state is JobState.QUEUED:
        return [end_job(fleet, job, ended_outcome(job, None))]
    return climb(fleet, job, now)


def climb(fleet: Fleet, job: Job, now: float) -> list[Action]:
    """Climb the rungs of the ladder that are due."""
    ending, child = job.ending, job.child
    assert ending is not None
    assert child is not None
    actions: list[Action] = []
    for rung in ending.climb(now):
        if job.state is JobState.LEASED and rung >= Rung.DUMP:
            actions.append(Send(child, Cancel(job.number, unheard=True)))
            actions.append(end_job(fleet, job, ended_outcome(job, None)))
            fleet.arm(now + LOOK_AGAIN_S, ("look", None))  # it may have begun just now: then the ladder goes on
            return actions
        actions += _perform_rung(fleet, job, child, rung, now)
    due = ending.next_due()
    if due is not None:
        fleet.arm(due, ("ending", (child, job.number)))  # not the job: it would be kept until then, with its client
    return actions


def _perform_rung(fleet: Fleet, job: Job, child: Child, rung: Rung, now: float) -> list[Action]:
    child.spoilt = child.spoilt or rung >= Rung.INTERRUPT
    match rung:
        case Rung.COOPERATE:
            return [Send(child, Cancel(job.number, job.ending is not None and job.ending.unheard))]
        case Rung.INTERRUPT:
            return [Send(child, Interrupt(job.number))]
        case Rung.DUMP:
            if child.phase in (Phase.READY, Phase.BUSY, Phase.LOADING):
                child.move(Phase.SUSPECT)
            assert job.ending is not None
            job.ending.hang = job.ending.hang or kind_at_the_dump(fleet, child, now) or ""
            return [Signal(child, signal.SIGUSR2)]
        case Rung.TERMINATE:
            child.ending = job.ending
            if job.ending is not None and job.ending.reason is Reason.STALL:
                child.doom = "hang"
            child.move(Phase.DYING)
            fleet.arm(now + TERMINATE_LIMIT_S, ("drain", child))  # the job may end now; the child must
            return [Signal(child, signal.SIGTERM)]
        case Rung.KILL:
            return kill_child(fleet, child, now)
        case _:
            assert_never(rung)


def unsent(fleet: Fleet, child: Child, job: Job, reason: str, now: float) -> list[Action]:
    """A leased job could not be handed over: end it, so that its caller may try again."""
    leave_child(child, job)
    outcome = failure("retryable", reason, retryable=True)
    return [end_job(fleet, job, outcome), *after_leave(fleet, child, job, now)]


def drain_overdue(fleet: Fleet, child: Child, now: float) -> list[Action]:
    """A drained child, or one that hung, is still there: SIGTERM, and after that SIGKILL."""
    if child.phase is Phase.DRAINING or (child.doom and child.phase is Phase.SUSPECT):
        child.move(Phase.DYING)
        fleet.arm(now + TERMINATE_LIMIT_S, ("drain", child))
        return [Signal(child, signal.SIGTERM)]
    return kill_child(fleet, child, now) if child.phase is Phase.DYING else []


def drain_fleet(fleet: Fleet, within_s: float | None, now: float) -> list[Action]:
    """Take no more jobs, refuse those that wait, let the others end in time, drain every child.

    Asked again, the sooner end counts.
    """
    actions: list[Action] = []
    if not fleet.draining:
        fleet.draining = True
        fleet.doubt()
        for job in list(fleet.jobs.values()):
            if job.state is JobState.QUEUED:
                actions += end_asked(fleet, job, Reason.DRAIN, False, now)
    if within_s == 0:
        actions += _end_running(fleet, now, at_once=False)
    elif within_s is not None:
        fleet.arm(now + within_s, ("drained", None))
    for child in fleet.children():
        if child.phase is not Phase.BACKOFF and not child.retiring:
            actions += retire_child(fleet, child, now)
    return actions + finish_if_drained(fleet)


def drain_over(fleet: Fleet, now: float) -> list[Action]:
    """The time that running jobs had is over: they end now."""
    return _end_running(fleet, now, at_once=True)


def _end_running(fleet: Fleet, now: float, *, at_once: bool) -> list[Action]:
    return [action for job in list(fleet.jobs.values()) for action in end_asked(fleet, job, Reason.DRAIN, at_once, now)]
