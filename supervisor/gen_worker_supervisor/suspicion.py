"""Whether a job that has waited may still run, now that payloads of its function have killed children.

Pure. A payload that killed one child runs alone and once at a time, until that tells whether it was to blame; what has
killed two meets no third, however many jobs with it were waiting by then.
"""

from gen_worker_supervisor.outcomes import failure, quarantine
from gen_worker_supervisor.state import Action, Fleet, Function, Job, Outcome
from gen_worker_supervisor.steps import end_job


def next_unsuspicious(fleet: Fleet, function: Function, now: float, actions: list[Action]) -> Job | None:
    """Return a function's next job that may run now, None when there is none; answer those that may not run at all."""
    while function.waiting:
        job = fleet.first(function, now)
        refusal = _refusal(fleet, job, now)
        if refusal is None:
            return None if _must_wait(fleet, job, now) else job
        actions.append(end_job(fleet, job, refusal))
    return None


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
    under_way = (other for child in fleet.children() for other in child.leased.values() if not other.ended)
    return any(other.function.name == name and other.payload.digest() == digest for other in under_way)
