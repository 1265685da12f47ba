"""The small changes to a fleet that several happenings have in common.

Pure, like everything that `apply` is made of.
"""

import signal
from math import inf, isfinite

from gen_worker.wire.fetching import FetchFailed
from gen_worker.wire.messages import Body, Drain, Recall, Region
from gen_worker_supervisor.core.actions import Action, Answer, Discard, Finish, Send, Signal
from gen_worker_supervisor.core.catalog import Model
from gen_worker_supervisor.core.ladder import Reason, Rung
from gen_worker_supervisor.core.outcomes import draining, ended_outcome, failure, refused, unresolved
from gen_worker_supervisor.core.phases import Health, JobState, Phase
from gen_worker_supervisor.core.state import (
    Child,
    Device,
    Fleet,
    Function,
    Job,
    Outcome,
    drained_away,
    holds,
    unheld,
)
from gen_worker_supervisor.core.verdicts import SETUP_FAILED, Verdict

DRAIN_LIMIT_S = 5.0  # what `shutdown()` of the author's classes may take
REPLACE_AGAIN_S = 60.0  # after a child that was to take another's place and did not
WEDGED_AFTER_S = 10.0  # a SIGKILL that was not reaped


def end_job(fleet: Fleet, job: Job, outcome: Outcome, child: Child | None = None) -> Action:
    """Give a job its one answer; it may still be in a child, whose later frames for it are dropped."""
    if job.waiting:
        fleet.dequeue(job)
    elif job.fetching:
        fleet.unpark(job)
    job.move(outcome.state)
    if job.ending is not None and job.ending.reason is Reason.STALL and outcome.state is not JobState.OK:
        _charge_hang(fleet, job, outcome)
    del fleet.jobs[job.number]
    if job.named and fleet.by_identity.get(job.identity) is job:
        del fleet.by_identity[job.identity]
    if outcome.state is JobState.OK:
        fleet.done += 1
    else:
        fleet.failed += 1
    if job.alone:
        for device in fleet.devices:
            if device.child is not None and device.child.reserved is job:
                fleet.unreserve(device.child)
    return Answer(job, outcome, child)


def _charge_hang(fleet: Fleet, job: Job, outcome: Outcome) -> None:
    """Charge a job that hung as if it had killed its child, which had to be ended for it."""
    ending, function = job.ending, job.function
    assert ending is not None
    stack = (outcome.detail.stack or []) if outcome.detail is not None else []
    cause = f"it hung ({ending.hang})" if ending.hang else "it hung"
    kept = job.child.postmortem if job.child is not None else ""
    payload, deaths = job.payload.digest(), job.deaths + 1
    fleet.blame.charge(function.name, payload, ending.asked, deaths=deaths, cause=cause, stack=stack, postmortem=kept)
    fleet.doubt(function.name)


def take_back(job: Job) -> None:
    """Record that no child has a job any more, which has no answer yet."""
    job.move(JobState.QUEUED)
    job.child = None
    job.started = None
    job.recalled = False
    job.again = True
    job.unread = job.saving = 0


def run_again(fleet: Fleet, job: Job, now: float) -> list[Action]:
    """Put a job that a child gave back, or died with, first into its queue again; answer it if it cannot be run now."""
    refusal = closed(fleet, job.function, now)
    if refusal is not None:
        job.move(JobState.QUEUED)
        return [end_job(fleet, job, refusal)]
    take_back(job)
    fleet.enqueue(job, front=True)
    return []


def closed(fleet: Fleet, function: Function, now: float) -> Outcome | None:
    """Return the answer of all jobs of a function that cannot be run as things are now."""
    if fleet.draining or fleet.finished:
        return draining()
    if function.unavailable is not None:
        if now < function.available_at:
            return refused(function, now)
        function.unavailable = None
    reason = _unavailable(fleet, function, now)
    if reason is not None:
        return failure("unavailable", f"`{function.name}` is unavailable: {reason}", retryable=True)
    missing = fleet.catalog.failure(function.surveyed.slots, now)
    return None if missing is None else unresolved(function, missing)


def _unavailable(fleet: Fleet, function: Function, now: float) -> str | None:
    devices = [device for device in fleet.devices if holds(device, function)]
    if not devices:
        return unheld(fleet, function)
    if all(device.lost for device in devices):
        return devices[0].loss
    return fleet.blame.breaker(function.name, now) or drained_away(fleet, function) or None


def mark_started(job: Job, now: float) -> None:
    """Record that a job's handler was called."""
    job.started = job.moved_at = now
    if job.state is JobState.LEASED:
        job.move(JobState.STARTED)


def got_on(job: Job, now: float) -> None:
    """Record that a job has made progress, and learn how long that may take."""
    gap_s = now - job.moved_at
    if gap_s > job.function.longest_gap_s:
        job.function.longest_gap_s = gap_s
    job.moved_at = now


def leave_child(child: Child, job: Job) -> None:
    """Free what a job held in its child."""
    if child.leased.pop(job.number, None) is not None:
        child.used[job.function.lane] -= 1
    if child.reserved is job:
        child.reserved = None
    child.settle_phase()


def after_leave(fleet: Fleet, child: Child, job: Job, now: float) -> list[Action]:
    """A child whose job needed rung 2 or more is replaced: the interrupt may have fired inside a lock."""
    if job.ending is not None and job.ending.rung >= Rung.INTERRUPT and not child.retiring:
        return retire_child(fleet, child, now)
    return drain_if_empty(fleet, child, now) if child.retiring else []


def retire_child(fleet: Fleet, child: Child, now: float) -> list[Action]:
    """Give a child no more work and drain it when it has none left."""
    child.retiring = True
    recalls: list[Action] = [
        Send(child, Recall(job.number)) for job in child.leased.values() if job.state is JobState.LEASED
    ]
    return recalls + drain_if_empty(fleet, child, now)


def drain_if_empty(fleet: Fleet, child: Child, now: float) -> list[Action]:
    """Drain a child that is to go and has nothing left to do."""
    if child.leased or child.phase in (Phase.DRAINING, Phase.DYING, Phase.SETTLING, Phase.BACKOFF):
        return []
    child.move(Phase.DRAINING)
    fleet.arm(now + DRAIN_LIMIT_S, ("drain", child))
    return [Send(child, Drain())]


def kill_child(fleet: Fleet, child: Child, now: float) -> list[Action]:
    """Kill a child; watch that it dies."""
    if child.killed:
        return []  # its time runs from the first SIGKILL, whatever else wants it dead
    child.move(Phase.DYING)
    child.killed = True
    fleet.arm(now + WEDGED_AFTER_S, ("unkillable", child))
    return [Signal(child, signal.SIGKILL)]


def forgo_coming(fleet: Fleet, device: Device, now: float) -> list[Action]:
    """End the child that was to take the place of a device's, if there is one."""
    child = device.coming
    if child is None:
        return []
    device.coming, child.forgone = None, True
    device.leaving.append(child)
    device.replace_at = now + REPLACE_AGAIN_S
    return kill_child(fleet, child, now)


def load_failed(
    fleet: Fleet, child: Child, instance: str, text: str, stack: tuple[str, ...], now: float, verdict: Verdict
) -> list[Action]:
    """Count a failed load; after the last try its device is spared, and where nothing else can load it jobs end."""
    known = fleet.instance(instance)
    known.failures += 1
    if fleet.loads.get(instance) == "":
        fleet.loads[instance] = "load_failed"
    if (instance, child.device.name) in fleet.ordered:
        fleet.ordered[instance, child.device.name] = text
    if fleet.eager and fleet.booting:
        return give_up(fleet, verdict.exit_code, text)
    if known.failures < verdict.tries:
        return []
    spare(fleet, child, instance, now + verdict.lasts_s)
    actions: list[Action] = []
    for function in fleet.variants():
        if function.surveyed.instance == instance and not _goes_on(fleet, function, verdict, now):
            actions += make_unavailable(fleet, function, text, stack, now, verdict)
    return actions


def spare(fleet: Fleet, child: Child, instance: str, until: float) -> None:
    """Load an instance no more on a child's device before that time."""
    fleet.instance(instance).refused[child.device.name] = until
    if isfinite(until):
        fleet.arm(until, ("look", None))


def _goes_on(fleet: Fleet, function: Function, verdict: Verdict, now: float) -> bool:
    """Whether jobs of a function whose load failed on one device can still be run."""
    instance = function.surveyed.instance
    if any(instance in child.loaded and not child.device.drained for child in fleet.serving()):
        return True
    spared = fleet.instance(instance).refused
    able = [each for each in fleet.devices if holds(each, function) and not (each.lost or each.drained)]
    return verdict.of_device and any(spared.get(device.name, 0.0) <= now for device in able)


def make_unavailable(
    fleet: Fleet, function: Function, reason: str, stack: tuple[str, ...], now: float, verdict: Verdict = SETUP_FAILED
) -> list[Action]:
    """End what waits for a function and refuse its jobs for a while."""
    able = any(holds(device, function) and not device.lost for device in fleet.devices)
    function.unavailable, function.stack, function.clear = reason, stack, False
    function.verdict, function.available_at = verdict, now + (verdict.lasts_s if able else inf)
    outcome = refused(function, now)
    return [end_job(fleet, job, outcome) for job in list(function.queue)]


def make_available(fleet: Fleet, instance: str) -> None:
    """An instance was set up after all: what was refused for its sake is taken again."""
    for function in fleet.variants():
        if function.surveyed.instance == instance:
            function.unavailable = None


def model_failed(fleet: Fleet, model: Model, refused: FetchFailed) -> list[Action]:
    """End what waits for a model that cannot be had."""
    actions: list[Action] = []
    for function in fleet.variants():
        if any(fleet.catalog.of(slot.wanted) is model for slot in function.surveyed.slots):
            function.clear = False
            outcome = unresolved(function, refused)
            actions += [end_job(fleet, job, outcome) for job in list(function.queue)]
    return actions


def discard(child: Child, body: Body) -> list[Action]:
    """Give the region of a body that nobody reads back to its child."""
    return [Discard(child, body)] if isinstance(body, Region) else []


def give_up(fleet: Fleet, status: int, message: str) -> list[Action]:
    """End the supervisor with a failure, which whoever waits for a job is told."""
    fleet.finished = True
    actions: list[Action] = []
    for job in list(fleet.jobs.values()):
        text = f"`{job.function.name}` is unavailable: {message or 'the worker ends'}"
        lost = failure("unavailable", text, retryable=True)
        actions.append(end_job(fleet, job, lost if job.ending is None else ended_outcome(job, None)))
    return [*actions, Finish(status, message)]


def finish_if_drained(fleet: Fleet) -> list[Action]:
    """End the supervisor once every child is gone."""
    gone = all(
        child.phase in (Phase.SETTLING, Phase.BACKOFF) or child.device.health is Health.RETIRED
        for child in fleet.children()
    )
    if not gone or fleet.finished:
        return []
    fleet.finished = True
    return [Finish(0)]
