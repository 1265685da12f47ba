"""Take a job into the table, or say why not."""

from gen_worker_supervisor.outcomes import draining, failure, quarantine, refused, too_large, unresolved
from gen_worker_supervisor.state import Action, Fleet, Function, Job, Outcome, holds, unheld
from gen_worker_supervisor.steps import end_job


def submit(fleet: Fleet, job: Job, now: float) -> list[Action]:
    """Put a job into its function's queue, or end it at once with the reason."""
    refusal = _refusal(fleet, job, now)
    fleet.jobs[job.number] = job
    if job.named:
        fleet.by_identity[job.identity] = job
    if refusal is not None:
        return [end_job(fleet, job, refusal)]
    fleet.enqueue(job)
    if job.deadline is not None:
        fleet.arm(job.deadline, ("deadline", job.number))  # not the job: it would be kept until then
    return []


def _refusal(fleet: Fleet, job: Job, now: float) -> Outcome | None:
    function = job.function
    if job.payload.length > fleet.max_input_bytes:
        return too_large("input", job.payload.length, fleet.max_input_bytes)
    if fleet.queued >= fleet.max_queued:
        return failure("busy", f"{fleet.queued} jobs wait already, the limit is {fleet.max_queued}", retryable=True)
    if fleet.queued and fleet.queued_bytes + job.payload.length > fleet.max_queued_bytes:
        held, limit = fleet.queued_bytes, fleet.max_queued_bytes
        return failure("busy", f"the jobs that wait hold {held} bytes already, the limit is {limit}", retryable=True)
    return None if function.clear else stands_against(fleet, job, now)


def stands_against(fleet: Fleet, job: Job, now: float) -> Outcome | None:
    """Return the answer of a job that cannot be run as things are now."""
    function = job.function
    if fleet.draining:
        return draining()
    if function.unavailable is not None:
        if now < function.available_at:
            return refused(function, now)
        function.unavailable = None
    reason = _unavailable(fleet, function, now)
    if reason is not None:
        return failure("unavailable", f"`{function.name}` is unavailable: {reason}", retryable=True)
    missing = fleet.catalog.failure(function.surveyed.slots, now)
    if missing is not None:
        return unresolved(function, missing)
    if fleet.blame.suspects(function.name, now):
        charge = fleet.blame.quarantined(function.name, job.payload.digest(), now)
        if charge is not None:
            return quarantine(job, charge, now)
        job.alone = not job.reruns and fleet.blame.suspected(function.name, job.payload.digest(), now)
    else:
        function.clear = True
    return None


def _unavailable(fleet: Fleet, function: Function, now: float) -> str | None:
    devices = [device for device in fleet.devices if holds(device, function)]
    if not devices:
        return unheld(fleet, function)
    if all(device.lost for device in devices):
        return devices[0].given_up or f"{devices[0].name} is retired"
    return fleet.blame.breaker(function.name, now)
