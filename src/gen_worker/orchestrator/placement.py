"""Which job goes next, and to which worker. Pure."""

import heapq
from collections.abc import Iterator
from typing import NamedTuple

from gen_worker.orchestrator.state import Job, Phase, Plane, Queue, QueueKey, Worker
from gen_worker.wire.scheduler import ResidencyTier

# Seconds until a model can be used; what counts is that each step is far from the next.
LOAD_S: dict[ResidencyTier, float] = {
    ResidencyTier.VRAM: 0.0,
    ResidencyTier.RAM: 2.0,
    ResidencyTier.DISK: 10.0,
    ResidencyTier.UNSPECIFIED: 60.0,
}
STARTING_S = 30.0  # until a function that its worker still loads can be called


class Placed(NamedTuple):
    """A job and the worker that it goes to."""

    job: Job
    worker: Worker


def placements(plane: Plane, only: QueueKey | None = None) -> Iterator[Placed]:
    """Yield jobs with the workers that they go to, for as long as one has room for one; `only` those of one kind.

    Jobs of the highest priority go first, among them the tenant's that was served longest ago, and then the kind's that
    was. Whoever asks for the next one has carried out the one before.
    """
    able = _with_room(plane)
    waiting = [(_turn(plane, queue), queue.key) for queue in _queues(plane, able, only)]
    heapq.heapify(waiting)
    while waiting:
        turn, key = heapq.heappop(waiting)
        queue = plane.queue(key)
        if queue is None:
            continue
        if turn != (now := _turn(plane, queue)):  # its tenant was served meanwhile
            heapq.heappush(waiting, (now, key))
            continue
        if (worker := choose(plane, queue)) is None:
            continue
        plane.turn += 1
        queue.served = plane.tenants[key.tenant] = plane.turn
        yield Placed(queue.jobs[0], worker)
        if plane.queue(key) is not None:
            heapq.heappush(waiting, (_turn(plane, queue), key))
        if not worker.has_room:
            able = _with_room(plane)
            waiting = [each for each in waiting if each[1].function in able]
            heapq.heapify(waiting)


def _with_room(plane: Plane) -> set[str]:
    """Return the functions that a worker with room can run."""
    return {function for worker in plane.workers.values() if worker.has_room for function in worker.offered}


def _queues(plane: Plane, able: set[str], only: QueueKey | None) -> Iterator[Queue]:
    """Return those of which a job could go; what no worker can take costs nothing, however much of it waits."""
    if only is None:
        for function in able & plane.queues.keys():
            yield from plane.queues[function].values()
    elif only.function in able and (queue := plane.queue(only)) is not None:
        yield queue


def _turn(plane: Plane, queue: Queue) -> tuple[int, int, int]:
    return -queue.key.priority, plane.tenants[queue.key.tenant], queue.served


def choose(plane: Plane, queue: Queue) -> Worker | None:
    """Return the worker for the first job of a queue; None where waiting is better, or all there is."""
    job = queue.jobs[0]
    able = [worker for worker in plane.workers.values() if _may_take(worker, queue.key)]
    able = [worker for worker in able if worker.worker_id not in job.avoids] or able
    if not able:
        return None
    best = min(able, key=lambda worker: (cost_s(plane, worker, queue), len(worker.jobs), worker.worker_id))
    return best if best.has_room else None


def _may_take(worker: Worker, key: QueueKey) -> bool:
    if worker.session is None or worker.draining or key.function in worker.gated:
        return False
    return worker.offers(key.function)


def cost_s(plane: Plane, worker: Worker, queue: Queue) -> float:
    """Return about how long a queue's next job would take to begin on a worker.

    Where there is no room, it would wait behind all of its own kind: what one hot worker cannot do in the time that a
    load takes goes to another one, too.
    """
    key = queue.key
    ahead_s = sum(plane.run_s(job.request.function) for job in worker.jobs.values())
    if not worker.has_room:
        ahead_s += len(queue.jobs) * plane.run_s(key.function)
    starting_s = 0.0 if key.function in worker.state.available_functions else STARTING_S
    return ahead_s / worker.lanes + starting_s + sum(_load_s(worker, ref) for ref in key.refs)


def _load_s(worker: Worker, ref: str) -> float:
    tier = worker.tier(ref)
    if tier is not ResidencyTier.VRAM and any(ref in job.refs for job in worker.jobs.values()):
        tier = max(tier, ResidencyTier.RAM)  # it is being loaded for another job
    return LOAD_S[tier]


def is_served(plane: Plane, function: str) -> bool:
    """Whether a worker has a function that takes jobs, or says that it cannot run it."""
    there = (worker for worker in plane.workers.values() if worker.session is not None and not worker.draining)
    return any(worker.offers(function) or function in worker.gated for worker in there)


def waiting_for(plane: Plane, job: Job) -> str:
    """Return what a job waits for, in words for people; nothing where a worker has it, or it has ended."""
    function = job.request.function
    if job.worker is not None:
        lost = job.live and job.worker.session is None
        return f"the return of its worker, `{job.worker.worker_id}`" if lost else ""
    if job.phase is Phase.WAITING:
        return "its next try"
    if job.phase is not Phase.QUEUED:
        return ""
    if is_served(plane, function):
        return "room on a worker"
    known = function in plane.heard
    return f"a worker that has `{function}`" + ("" if known else ", which no worker has had since the start")


def unable(plane: Plane, function: str) -> str | None:
    """Return why no worker can run a function, None while one can or may yet.

    A function that nobody knows is waited for: its worker may still come. One that workers have refused is not, unless
    one that ran it may come back.
    """
    if plane.gathering or plane.missed[function]:
        return None
    reasons = {worker.gated[function]: None for worker in plane.workers.values() if function in worker.gated}
    others = [worker for worker in plane.workers.values() if function not in worker.gated]
    if not reasons or any(worker.starting or worker.offers(function) for worker in others):
        return None
    return "; ".join(reasons)


def victim(worker: Worker, spared: set[str]) -> str | None:
    """Return the model in a worker's VRAM that was used longest ago."""
    held = [ref for ref, model in worker.models.items() if model.tier is ResidencyTier.VRAM and ref not in spared]
    return min(held, key=lambda ref: worker.used.get(ref, 0), default=None)
