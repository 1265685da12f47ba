"""Take a job into the table, or say why not."""

from collections.abc import Iterator
from statistics import fmean
from typing import Literal, NamedTuple

from gen_worker.wire.messages import ErrorDetail
from gen_worker_supervisor.core.actions import Action
from gen_worker_supervisor.core.outcomes import failure, quarantine, too_large
from gen_worker_supervisor.core.state import Child, Fleet, Function, Job, Outcome, holds
from gen_worker_supervisor.core.steps import closed, end_job
from gen_worker_supervisor.core.tenants import Held, Tenants, share

SOONEST_S, LATEST_S = 0.1, 60.0  # when a job that was refused may come again


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
    """Return why a job is not taken: what is wrong with itself and its function before what others have filled."""
    function, length = job.function, job.payload.length
    if length > fleet.max_input_bytes:
        return too_large("input", length, fleet.max_input_bytes)
    if function.clear and not (fleet.queued or job.tenant):
        return None  # the usual case
    if function.clear:
        return _crowded(fleet, job)
    return closed(fleet, function, now) or _crowded(fleet, job) or _suspected(fleet, job, now)


def stands_against(fleet: Fleet, job: Job, now: float) -> Outcome | None:
    """Return the answer of a job that cannot be run as things are now."""
    return closed(fleet, job.function, now) or _suspected(fleet, job, now)


def _suspected(fleet: Fleet, job: Job, now: float) -> Outcome | None:
    """Return the answer of a job with a payload that has ended children."""
    function = job.function
    if not fleet.blame.suspects(function.name, now):
        function.clear = True
        return None
    charge = fleet.blame.quarantined(function.name, job.payload.digest(), now)
    if charge is not None:
        return quarantine(job, charge, now)
    job.alone = not job.reruns and fleet.blame.suspected(function.name, job.payload.digest(), now)
    return None


# --- too many ---------------------------------------------------------------------------------------------------------


class _Places(NamedTuple):
    """Jobs or bytes that may wait, and who has taken them."""

    unit: Literal["jobs", "bytes"]
    variable: str
    limit: int
    taken: int
    wanted: int
    held: int  # by the tenant of the job that comes
    waiting: int  # so many tenants
    function: str = ""  # of whose jobs; empty: of the host's


def _crowded(fleet: Fleet, job: Job) -> Outcome | None:
    """Return the answer of a job for which there is no place."""
    if job.tenant:
        fleet.tenants.named = True
    length = job.payload.length
    half_empty = 2 * fleet.queued < fleet.max_queued and 2 * (fleet.queued_bytes + length) < fleet.max_queued_bytes
    if not fleet.queued or (half_empty and not fleet.max_queued_per_function):
        return None  # the usual case
    for places in _places(fleet, job):
        if places.taken + places.wanted > places.limit:
            return _busy(_full(places), _room_in_s(fleet, job.function))
        due = share(places.limit, places.waiting)
        if fleet.tenants.named and 2 * places.taken >= places.limit and places.held >= due:
            return _busy(_shared_out(places, job.tenant, due), places.waiting * _room_in_s(fleet, job.function))
    return None


def _places(fleet: Fleet, job: Job) -> Iterator[_Places]:
    everyone = Held(fleet.queued, fleet.queued_bytes)
    held, waiting = fleet.tenants.of(job.tenant, everyone), fleet.tenants.waiting(everyone)
    wanted = job.payload.length
    yield _Places("jobs", "GEN_WORKER_MAX_QUEUED", fleet.max_queued, everyone.jobs, 1, held.jobs, waiting)
    limit = fleet.max_queued_bytes
    yield _Places("bytes", "GEN_WORKER_MAX_QUEUED_BYTES", limit, everyone.bytes, wanted, held.bytes, waiting)
    if fleet.max_queued_per_function:
        name = job.function.name
        taken = Held(sum(each.waiting + each.parked for each in fleet.variants() if each.name == name))
        tenants = fleet.tenants_of.get(name, Tenants())
        jobs, waiting = tenants.of(job.tenant, taken).jobs, tenants.waiting(taken)
        limit, variable = fleet.max_queued_per_function, "GEN_WORKER_MAX_QUEUED_PER_FUNCTION"
        yield _Places("jobs", variable, limit, taken.jobs, 1, jobs, waiting, name)


def _full(places: _Places) -> str:
    if places.unit == "bytes":
        what = f"the jobs that wait hold {places.taken} bytes already"
    else:
        what = f"{places.taken} jobs{places.function and f' of `{places.function}`'} wait already"
    return f"{what}, the limit is {places.limit} (`{places.variable}`)"


def _shared_out(places: _Places, tenant: str, due: int) -> str:
    who = f"tenant `{tenant}` has" if tenant else "requests without a `tenant` have"
    what = f"{places.taken} {places.unit} that wait{places.function and f' for `{places.function}`'}"
    return f"{who} {places.held} of the {what}, the share of {places.limit} (`{places.variable}`) is {due} now"


def _busy(text: str, room_in_s: float) -> Outcome:
    after_s = round(min(max(room_in_s, SOONEST_S), LATEST_S), 1)
    return failure("busy", text, retryable=True, detail=ErrorDetail(retry_after_s=after_s))


def _room_in_s(fleet: Fleet, function: Function) -> float:
    """Return about when the next place is free: what a job takes of those that wait, as far as is known."""
    ahead = list(fleet.waiting.values()) or [function]
    return fmean(seconds_a_job(fleet, each) for each in ahead)


def seconds_a_job(fleet: Fleet, function: Function) -> float:
    """Return after how long another job of a function ends where many wait, as far as is known."""
    warm = sum(child.credits.get(function.lane, 0) for child in warm_children(fleet, function))
    return function.run_s / warm if warm else fleet.instance(function.surveyed.instance).load_s + function.run_s


def warm_children(fleet: Fleet, function: Function) -> list[Child]:
    """Return the children that may run a function's jobs without loading anything first."""
    instance = function.surveyed.instance
    return [child for child in fleet.serving() if instance in child.loaded and holds(child.device, function)]
