"""Keep jobs away from a device while an operator wants that: what runs there ends, what is loaded stays.

Pure, like everything that `apply` and `decide` are made of.
"""

from gen_worker.wire.messages import Recall
from gen_worker_supervisor.core.actions import Action, Note, Send
from gen_worker_supervisor.core.happenings import DeviceDrainAsked
from gen_worker_supervisor.core.outcomes import failure
from gen_worker_supervisor.core.phases import JobState
from gen_worker_supervisor.core.state import Child, Device, Fleet, Job, drained_away, holds
from gen_worker_supervisor.core.steps import end_job


def device_drain_asked(fleet: Fleet, happening: DeviceDrainAsked, now: float) -> list[Action]:
    """Give a device no more jobs and take back those that it has not begun; or give it jobs again."""
    device, drained = happening.device, not happening.undo
    if device.drained is drained:
        return []
    device.drained = drained
    fleet.drained = any(each.drained for each in fleet.devices)
    fleet.doubt()
    if not drained:
        _try_again(fleet, device, now)
        return [Note("info", device.name, "an operator lets it have jobs again")]
    running = at_work(device)
    left = f": {len(running)} job{'' if len(running) == 1 else 's'} there may end" if running else ""
    actions: list[Action] = [Note("info", device.name, f"an operator drains it{left}")]
    for child in _children(device):
        actions += _take_back(child)
    return actions


def _try_again(fleet: Fleet, device: Device, now: float) -> None:
    """What could be loaded on no other device is on this one, or may be."""
    for function in fleet.variants():
        instance = function.surveyed.instance
        refused = fleet.instance(instance).refused.get(device.name, 0.0) > now
        there = device.child is not None and instance in device.child.loaded
        if holds(device, function) and (there or (function.verdict.of_device and not refused)):
            function.unavailable = None


def _take_back(child: Child) -> list[Action]:
    if child.reserved is not None and child.reserved.number not in child.leased:
        child.reserved = None
    waiting = [job for job in child.leased.values() if job.state is JobState.LEASED and not job.recalled]
    for job in waiting:
        job.recalled = True
    return [Send(child, Recall(job.number)) for job in waiting]


def at_work(device: Device) -> list[Job]:
    """Return the jobs that a device has yet to end."""
    return [job for child in _children(device) for job in child.leased.values()]


def _children(device: Device) -> list[Child]:
    return [child for child in (device.child, *device.leaving) if child is not None]


def give_back(fleet: Fleet) -> list[Action]:
    """Answer the jobs that wait for drained devices only: whoever asked may ask elsewhere."""
    actions: list[Action] = []
    for function in list(fleet.variants()):
        if not (function.waiting or function.parked) or not (reason := drained_away(fleet, function)):
            continue
        outcome = failure("unavailable", f"`{function.name}` is unavailable: {reason}", retryable=True)
        waiting = [job for job in fleet.jobs.values() if job.function is function and job.state is JobState.QUEUED]
        actions += [end_job(fleet, job, outcome) for job in waiting]
    return actions
