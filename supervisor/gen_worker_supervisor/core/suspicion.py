"""Whether a job that has waited may still run, now that payloads of its function have killed children.

Pure. A payload that killed one child runs alone and once at a time, until that tells whether it was to blame; jobs with
other payloads go past those that are held for it. What has killed two meets no third, however many were waiting.
"""

from collections import deque

from gen_worker_supervisor.core.actions import Action
from gen_worker_supervisor.core.outcomes import failure, quarantine
from gen_worker_supervisor.core.state import Fleet, Function, Job, Outcome
from gen_worker_supervisor.core.steps import closed, end_job


def next_unsuspicious(fleet: Fleet, function: Function, now: float, actions: list[Action]) -> Job | None:
    """Return a function's next job that may run now, None when there is none.

    Those before it that may not run at all are answered, those that may not run yet are held.
    """
    while function.waiting:
        job = fleet.first(function, now)
        refusal = _refusal(fleet, job, now)
        if refusal is not None:
            actions.append(end_job(fleet, job, refusal))
        elif _must_wait(fleet, job, now):
            _hold(fleet, job)
        else:
            return job
    return None


def release(fleet: Fleet, now: float) -> list[Action]:
    """Put the jobs that were held back into their queues once nothing like them runs: one, or all where it is clear.

    Those that cannot be run any more are answered.
    """
    actions: list[Action] = []
    for (name, digest), jobs in list(fleet.held.items()):
        if _under_way(fleet, name, digest):
            continue
        unclear = fleet.blame.suspected(name, digest, now) and fleet.blame.quarantined(name, digest, now) is None
        while jobs:
            job = jobs.popleft() if unclear else jobs.pop()
            if job.ended:
                continue
            refusal = closed(fleet, job.function, now)
            if refusal is not None:
                actions.append(end_job(fleet, job, refusal))
                continue
            fleet.unpark(job)
            job.held = False
            fleet.enqueue(job, front=True)
            if unclear:
                break
        if not jobs:
            del fleet.held[name, digest]
    return actions


def _refusal(fleet: Fleet, job: Job, now: float) -> Outcome | None:
    name = job.function.name
    charge = fleet.blame.quarantined(name, job.payload.digest(), now)
    if charge is not None:
        return quarantine(job, charge, now)
    reason = fleet.blame.breaker(name, now)
    return None if reason is None else failure("unavailable", f"`{name}` is unavailable: {reason}", retryable=True)


def _must_wait(fleet: Fleet, job: Job, now: float) -> bool:
    """Whether another job with the same suspicious payload is on its way to tell what that does."""
    name, digest = job.function.name, job.payload.digest()
    if not fleet.blame.suspected(name, digest, now):
        return False
    job.alone = True
    return _under_way(fleet, name, digest)


def _under_way(fleet: Fleet, name: str, digest: bytes) -> bool:
    held = (job for child in fleet.children() for job in child.leased.values() if not job.ended)
    return any(job.function.name == name and job.payload.digest() == digest for job in held)


def _hold(fleet: Fleet, job: Job) -> None:
    fleet.dequeue(job)
    fleet.park(job)
    job.held = True
    fleet.held.setdefault((job.function.name, job.payload.digest()), deque()).append(job)
