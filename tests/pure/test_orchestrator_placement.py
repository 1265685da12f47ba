import heapq
from collections import Counter, OrderedDict
from collections.abc import ValuesView
from random import Random
from typing import NamedTuple

from gen_worker.orchestrator.decide import apply
from gen_worker.orchestrator.placement import placements
from gen_worker.orchestrator.state import (
    TENANTS_KEPT,
    USES_KEPT,
    Happening,
    Job,
    Joined,
    Plane,
    Queue,
    QueueKey,
    Record,
    Recorded,
    Run,
    Said,
    Submitted,
)
from gen_worker.orchestrator.views import JobRequest
from gen_worker.wire.scheduler import (
    Hello,
    JobAccepted,
    JobMetrics,
    JobProgress,
    JobResult,
    JobStatus,
    ModelBinding,
    ModelEvent,
    ModelResidency,
    ModelState,
    ResidencyTier,
    StateDelta,
    WorkerPhase,
    WorkerResources,
)

DISK, RAM, VRAM = ResidencyTier.DISK, ResidencyTier.RAM, ResidencyTier.VRAM


def plane_with(*workers: Hello) -> Plane:
    plane = Plane(random=Random(1))
    for number, hello in enumerate(workers):
        apply(plane, Joined(number, hello, 0.0), 0.0)
    return plane


def hello(name: str, *functions: str, gpus: int = 1, loading: tuple[str, ...] = (), **tiers: ResidencyTier) -> Hello:
    return Hello(
        worker_id=name,
        resources=WorkerResources(gpu_count=gpus),
        state=StateDelta(
            phase=WorkerPhase.READY, available_functions=functions or ("draw",), loading_functions=loading
        ),
        models=tuple(ModelResidency(ref=ref, tier=tier) for ref, tier in tiers.items()),
    )


def submit(plane: Plane, function: str = "draw", *refs: str, tenant: str = "", priority: int = 0) -> list[Run]:
    number = len(plane.jobs) + 1
    models = tuple(ModelBinding(slot="model", ref=ref) for ref in refs)
    request = JobRequest(function=function, request_id=f"r{number}", models=models, tenant=tenant, priority=priority)
    actions = apply(plane, Submitted(Job(request, 0.0, refs=plane.refs(request))), 0.0)
    return [action for action in actions if isinstance(action, Run)]


def given(runs: list[Run]) -> list[str]:
    return [run.job.worker.worker_id for run in runs if run.job.worker is not None]


def finish(plane: Plane, name: str) -> list[Job]:
    """End a worker's first job; return what it is given for it."""
    worker = plane.workers[name]
    job = next(iter(worker.jobs.values()))
    result = JobResult(request_id=job.request_id, attempt=job.attempt, status=JobStatus.OK)
    assert worker.session is not None
    return [action.job for action in apply(plane, Said(worker.session, result, 0.0), 0.0) if isinstance(action, Run)]


# --- which worker -----------------------------------------------------------------------------------------------------


def test_a_job_goes_where_its_model_is_nearest() -> None:
    assert given(submit(plane_with(hello("a"), hello("b", m=DISK), hello("c", m=RAM)), "draw", "m")) == ["c"]
    assert given(submit(plane_with(hello("a", m=DISK), hello("b", m=VRAM)), "draw", "m")) == ["b"]


def test_jobs_without_models_are_spread() -> None:
    plane = plane_with(hello("a"), hello("b"))
    assert Counter(name for _ in range(4) for name in given(submit(plane))) == {"a": 2, "b": 2}


def test_a_worker_with_more_devices_takes_more() -> None:
    plane = plane_with(hello("a", gpus=1), hello("b", gpus=4))
    assert Counter(name for _ in range(7) for name in given(submit(plane))) == {"a": 2, "b": 5}


def test_what_a_worker_already_loads_for_another_job_is_not_loaded_again_elsewhere() -> None:
    plane = plane_with(hello("a"), hello("b"))
    assert given(submit(plane, "draw", "m")) == ["a"]
    assert given(submit(plane, "draw", "m")) == ["a"]


def test_a_function_that_is_there_is_preferred_to_one_that_is_coming() -> None:
    plane = plane_with(hello("a", "other", loading=("draw",)), hello("b", "draw"))
    assert given(submit(plane)) == ["b"]
    assert given(submit(plane_with(hello("a", "other", loading=("draw",))))) == ["a"]
    assert given(submit(plane_with(hello("a", "other")))) == []


def test_a_short_queue_waits_for_the_worker_that_has_the_model_and_a_long_one_does_not() -> None:
    plane = plane_with(hello("hot", m=VRAM), hello("cold", m=DISK))
    placed = Counter(name for _ in range(30) for name in given(submit(plane, "draw", "m")))
    assert placed["hot"] == plane.workers["hot"].limit
    assert placed["cold"] >= 1
    plane = plane_with(hello("hot", m=VRAM), hello("cold"))
    assert Counter(name for _ in range(30) for name in given(submit(plane, "draw", "m"))) == {"hot": 2}


def test_models_that_jobs_once_named_do_not_fill_the_memory_and_the_latest_are_known() -> None:
    plane = plane_with(hello("a"))
    for number in range(3 * USES_KEPT):
        submit(plane, "draw", f"m{number}")
        finish(plane, "a")
    used = plane.workers["a"].used
    assert len(used) <= USES_KEPT
    assert max(used, key=lambda ref: used[ref]) == f"m{3 * USES_KEPT - 1}"


# --- which job --------------------------------------------------------------------------------------------------------


def test_a_higher_priority_goes_first() -> None:
    plane = plane_with(hello("a"))
    for _ in range(5):
        submit(plane)
    submit(plane, priority=1)
    submit(plane, priority=-1)
    order = [job.request.priority for _ in range(5) for job in finish(plane, "a")]
    assert order == [1, 0, 0, 0, -1]


def test_tenants_take_turns_whatever_they_ask_and_however_much() -> None:
    plane = plane_with(hello("a", "draw", "speak"))
    for _ in range(20):
        submit(plane, "draw", tenant="big")
        submit(plane, "speak", tenant="big")
    for _ in range(3):
        submit(plane, "draw", tenant="small")
    order = [job.request.tenant for _ in range(6) for job in finish(plane, "a")]
    assert Counter(order) == {"big": 3, "small": 3}


def test_however_many_tenants_there_are_each_job_has_its_turn() -> None:
    plane = plane_with(hello("a"))
    tenants = TENANTS_KEPT + 100
    for number in range(tenants):
        submit(plane, tenant=f"t{number}")
    order = [job.request.tenant for _ in range(tenants - 2) for job in finish(plane, "a")]
    assert len(set(order)) == tenants - 2
    for number in range(tenants):
        submit(plane, tenant=f"later{number}")
        finish(plane, "a")
    assert len(plane.tenants) <= TENANTS_KEPT, "who waits for nothing is forgotten"


def test_a_tenant_s_functions_take_turns() -> None:
    plane = plane_with(hello("a", "draw", "speak"))
    for function in ("draw", "speak"):
        for _ in range(10):
            submit(plane, function)
    order = [job.request.function for _ in range(8) for job in finish(plane, "a")]
    assert Counter(order) == {"draw": 4, "speak": 4}


def test_ten_thousand_waiting_jobs_do_not_make_the_next_one_slow() -> None:
    plane = plane_with(hello("a"))
    for number in range(10_000):
        request = JobRequest(function="draw", request_id=f"r{number}", tenant=str(number % 50))
        job = Job(request, 0.0)
        plane.jobs[request.request_id] = job
        plane.enqueue(job)
    looked = 0

    class Counted(dict[QueueKey, Queue]):
        def get(self, key: QueueKey, default: object = None) -> Queue | None:  # type: ignore[override]
            nonlocal looked
            looked += 1
            return super().get(key)

    plane.queues["draw"] = Counted(plane.queues["draw"])
    assert next(iter(placements(plane)), None) is not None
    assert 0 < looked < 100


class Unseen(dict[QueueKey, Queue]):
    """Queues that are not to be looked at."""

    def get(self, key: QueueKey, default: object = None) -> Queue | None:  # type: ignore[override]
        raise AssertionError(f"{key} was looked at")

    def values(self) -> ValuesView[Queue]:  # type: ignore[override]
        raise AssertionError("all were looked at")


def test_what_no_worker_can_take_slows_nothing_down_however_much_of_it_waits() -> None:
    plane = plane_with(hello("a"))
    for number in range(1000):
        submit(plane, f"unknown-{number}")
    for function, kind in plane.queues.items():
        plane.queues[function] = Unseen(kind)
    assert [len(submit(plane, "draw")) for _ in range(3)] == [1, 1, 0]
    assert len(finish(plane, "a")) == 1
    state = StateDelta(phase=WorkerPhase.READY, available_functions=("draw",), free_vram_bytes=1)
    apply(plane, Said(1, state, 0.0), 0.0)


def test_what_changes_nothing_for_those_who_wait_does_not_look_at_them() -> None:
    plane = plane_with(hello("a", "draw", "speak"), hello("b", "speak"))
    job = submit(plane, "draw")[0].job
    for _ in range(3):
        submit(plane, "draw")
    plane.queues["draw"] = Unseen(plane.queues["draw"])
    for frame in (
        JobAccepted(request_id=job.request_id, attempt=1),
        JobProgress(request_id=job.request_id, attempt=1, seq=1, body=b"", content_type="text/plain"),
        ModelEvent(ref="m", state=ModelState.DOWNLOADING, bytes_done=1),
    ):
        apply(plane, Said(1, frame, 0.0), 0.0)
    assert len(submit(plane, "speak")) == 1, "it goes to the one with room, past those who wait for another"


# --- a trial ----------------------------------------------------------------------------------------------------------


class Tried(NamedTuple):
    """What a trial came to."""

    cold_loads: int
    seconds: float


def trial(*, hot: bool, seed: int, jobs: int = 200) -> Tried:
    """Run jobs for 8 models on two workers that hold 3 each; a load takes 4 s, a job 1 s. `hot`: residency is told."""
    random = Random(seed)
    plane = plane_with(hello("a"), hello("b"))
    held: dict[str, OrderedDict[str, None]] = {"a": OrderedDict(), "b": OrderedDict()}
    free_at = {"a": 0.0, "b": 0.0}
    agenda: list[tuple[float, int, Happening]] = []
    names = [f"m{number}" for number in range(8)]
    weights = [1 / (number + 1) for number in range(8)]
    order = 0
    cold = 0
    for number in range(jobs):
        refs = (random.choices(names, weights)[0],)
        models = tuple(ModelBinding(slot="model", ref=ref) for ref in refs)
        job = Job(JobRequest(function="draw", request_id=f"r{number}", models=models), 0.0, refs=refs if hot else ())
        heapq.heappush(agenda, (number * 0.9, order := order + 1, Submitted(job)))
    now = 0.0
    while agenda:
        now, _, happening = heapq.heappop(agenda)
        for action in apply(plane, happening, now):
            if isinstance(action, Record):
                heapq.heappush(agenda, (now, order := order + 1, Recorded(action.job.request_id)))
            if not isinstance(action, Run) or action.job.worker is None:
                continue
            name, ref = action.job.worker.worker_id, action.job.request.models[0].ref
            begins = max(now, free_at[name])
            if ref not in held[name]:
                cold += 1
                begins += 4.0
                if len(held[name]) == 3:
                    gone, _ = held[name].popitem(last=False)
                    told = ModelEvent(ref=gone, state=ModelState.ON_DISK)
                    heapq.heappush(agenda, (begins, order := order + 1, Said(action.session, told, 0.0)))
                told = ModelEvent(ref=ref, state=ModelState.IN_VRAM)
                heapq.heappush(agenda, (begins, order := order + 1, Said(action.session, told, 0.0)))
            held[name][ref] = None
            held[name].move_to_end(ref)
            free_at[name] = begins + 1.0
            metrics = JobMetrics(runtime_ms=1000, queue_ms=round((begins - now) * 1000))
            ended = JobResult(request_id=action.job.request_id, attempt=1, status=JobStatus.OK, metrics=metrics)
            heapq.heappush(agenda, (free_at[name], order := order + 1, Said(action.session, ended, 0.0)))
    assert not plane.jobs
    return Tried(cold, now)


def test_going_where_the_model_is_saves_loads_and_time() -> None:
    trials = [(trial(hot=True, seed=seed), trial(hot=False, seed=seed)) for seed in range(5)]
    assert sum(hot.cold_loads for hot, _ in trials) < 0.6 * sum(blind.cold_loads for _, blind in trials)
    assert sum(hot.seconds for hot, _ in trials) < 0.9 * sum(blind.seconds for _, blind in trials)
