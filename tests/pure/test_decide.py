"""Which child runs the next job: stories on the pure core."""

from gen_worker.wire.messages import Load, Recall
from gen_worker_supervisor.core.decide import CROWDED, STUCK_BEHIND_S
from gen_worker_supervisor.core.phases import JobState, Phase
from gen_worker_supervisor.core.state import LEASED_AHEAD, Device, Job
from tests.pure.host import Host, function, held_by, runs, sent


def learn(host: Host, name: str = "f", *, run_s: float = 0.001) -> None:
    """Have one run of a function end, so that its time is known."""
    host.done(host.started(name), run_s=run_s)


def leased(jobs: list[Job]) -> list[Job]:
    """Return those that are in a child."""
    return [job for job in jobs if job.state is not JobState.QUEUED]


# --- fairness and places ----------------------------------------------------------------------------------------------


def test_jobs_of_one_function_run_in_the_order_they_came() -> None:
    host = Host()
    jobs = [host.submit() for _ in range(4)]
    order = []
    while waiting := [job for job in jobs if not job.ended]:
        (running,) = leased(waiting)
        order.append(running)
        host.done(running)
    assert order == jobs


def test_a_long_queue_of_one_function_does_not_hold_up_another() -> None:
    host = Host(function("many"), function("few"))
    first = host.submit("many")
    crowd = [host.submit("many") for _ in range(20)]
    few = [host.submit("few") for _ in range(2)]
    order = []
    running = first
    for _ in range(5):
        (running,) = runs(host.done(running))
        order.append(running.function.name)
    assert order == ["many", "few", "many", "few", "many"]
    assert all(job.ended or job.state is not JobState.QUEUED for job in few)
    assert len(leased(crowd)) == 3


def test_jobs_spread_over_children_that_idle() -> None:
    host = Host(devices=3)
    jobs = [host.submit() for _ in range(4)]
    assert {held_by(job).device.name for job in jobs[:3]} == {"cpu:0", "cpu:1", "cpu:2"}
    assert jobs[3].state is JobState.QUEUED


def test_many_jobs_of_an_async_function_share_children_evenly() -> None:
    host = Host(function("loop", shape="async", lane="loop"), devices=2)
    for _ in range(10):
        host.submit("loop")
    assert [host.child(index).used["loop"] for index in (0, 1)] == [5, 5]


def test_async_jobs_run_beside_a_job_on_the_device() -> None:
    host = Host(function("f"), function("loop", shape="async", lane="loop"))
    jobs = [host.submit("f"), *(host.submit("loop") for _ in range(64))]
    assert leased(jobs) == jobs
    assert host.submit("loop").state is JobState.QUEUED, "its credits are spent"


def test_a_job_for_the_device_goes_where_nothing_runs_on_the_loop_if_it_can() -> None:
    host = Host(function("f"), function("loop", shape="async", lane="loop"), devices=3)
    host.started("loop")
    host.started("loop")
    beside = host.submit("f")
    assert held_by(beside).used["loop"] == 0
    for _ in range(2):
        host.submit("f")
    assert [child.used["device"] for child in host.fleet.children()] == [1, 1, 1]


# --- loads ------------------------------------------------------------------------------------------------------------


def test_a_warm_child_is_preferred_to_one_that_would_have_to_load() -> None:
    host = Host(function("a", instance="C"), devices=2)
    job = host.submit("a")
    warm = next(child for child in (host.child(0), host.child(1)) if child.loading)
    host.loaded(warm, seconds=60.0)
    for _ in range(5):
        host.starts(job)
        assert held_by(job) is warm
        host.done(job)
        job = host.submit("a")
    assert len(sent(host.actions, Load)) == 1


def test_a_second_child_loads_when_the_queue_is_worth_it() -> None:
    host = Host(function("a", instance="C"), devices=2)
    host.submit("a")
    host.loaded(host.child(0) if host.child(0).loading else host.child(1), seconds=3.5)
    for _ in range(3):
        host.submit("a")
    assert len(sent(host.actions, Load)) == 1, "three jobs of a second each: less than a load"
    host.submit("a")
    assert len(sent(host.actions, Load)) == 2


def test_one_job_has_its_instance_set_up_in_one_child_however_long_that_takes() -> None:
    host = Host(function("a", instance="C"), function("other"), devices=2)
    host.submit("a")
    for _ in range(3):
        host.now += 30
        host.happens()
    assert [child.loading for child in host.fleet.children()].count("C") == 1
    assert host.submit("other").state is JobState.LEASED


def test_jobs_wait_for_the_load_of_their_own_instance_only() -> None:
    host = Host(function("a", instance="C"), function("loop", shape="async", lane="loop"))
    waiting = host.submit("a")
    assert host.child().phase is Phase.LOADING
    assert host.submit("loop").state is JobState.LEASED
    assert waiting.state is JobState.QUEUED


# --- devices ----------------------------------------------------------------------------------------------------------


def test_gpu_functions_and_others_do_not_share_a_child_where_there_are_gpus() -> None:
    gpu = Device("cuda:0", "cuda", takes_cpu_functions=False)
    cpu = Device("cpu:0", "cpu", takes_gpu_functions=False)
    host = Host(function("draw", gpu=True), function("call"), devices=[gpu, cpu])
    draws, calls = [[host.submit(name) for _ in range(2)] for name in ("draw", "call")]
    assert [job.child and job.child.device for job in draws] == [gpu, None]
    assert [job.child and job.child.device for job in calls] == [cpu, None]


def test_a_function_runs_only_where_its_memory_is() -> None:
    small = Device("cuda:0", "cuda", vram_total=8 << 30)
    big = Device("cuda:1", "cuda", vram_total=(24 << 30) - (30 << 20))
    host = Host(function(gpu=True, vram_gb=24), devices=[small, big])
    jobs = [host.submit(), host.submit()]
    assert [job.child and job.child.device for job in jobs] == [big, None]


# --- alone ------------------------------------------------------------------------------------------------------------


def test_a_suspect_waits_for_a_child_of_its_own_and_none_other_takes_its_place() -> None:
    host = Host(function("loop", shape="async", lane="loop"), devices=2)
    jobs = [host.submit("loop") for _ in range(4)]
    host.starts(*jobs)
    dead, other = host.child(0), host.child(1)
    victims = [job for job in jobs if job.child is dead]
    host.dies(dead)
    assert all(job.state is JobState.QUEUED for job in victims), "the other child has jobs"
    late = host.submit("loop")
    assert late.state is JobState.QUEUED
    new = host.boot()
    (alone,) = new.leased.values()
    assert alone in victims
    host.starts(alone)
    host.done(alone)
    assert list(new.leased.values()) != [alone]
    assert other.reserved is None


def test_a_suspect_that_is_cancelled_gives_its_child_back() -> None:
    host = Host(devices=1)
    guilty = host.started()
    host.dies(host.child())
    host.ends(guilty)
    host.boot()
    assert host.child().reserved is None
    assert host.submit().state is JobState.LEASED


# --- leases ahead and recalls -----------------------------------------------------------------------------------------


def test_jobs_of_fast_functions_are_leased_ahead_and_of_others_not() -> None:
    host = Host(function("fast"), function("slow"))
    learn(host, "fast", run_s=0.001)
    learn(host, "slow", run_s=0.5)
    fast = [host.submit("fast") for _ in range(40)]
    assert len(leased(fast)) == 1 + LEASED_AHEAD
    for job in fast:
        host.ends(job)
        if not job.ended:
            host.returns(job)
    slow = [host.submit("slow") for _ in range(3)]
    assert len(leased(slow)) == 1


def stuck_host() -> tuple[Host, Job, list[Job]]:
    """A host whose first child has jobs behind a running one, and whose second child has just come to idle."""
    host = Host(devices=2)
    for _ in range(2):
        learn(host)
    jobs = [host.submit() for _ in range(6)]
    mine = [job for job in jobs if job.child is host.child(0)]
    host.starts(mine[0])
    for job in [job for job in jobs if job.child is host.child(1)]:
        host.done(job, run_s=0.001)
    return host, mine[0], mine[1:]


def test_a_job_stuck_behind_another_goes_to_a_child_that_idles() -> None:
    host, running, behind = stuck_host()
    assert len(behind) < CROWDED
    assert sent(host.actions, Recall) == []
    (recall,) = sent(host.passes(STUCK_BEHIND_S + 0.001), Recall)
    assert recall.job == behind[-1].number
    host.returns(behind[-1])
    assert behind[-1].child is host.child(1)
    assert behind[-1].deaths == 0
    assert running.child is host.child(0)


def test_a_job_is_recalled_once_and_the_next_when_the_other_child_idles_again() -> None:
    host, _, behind = stuck_host()
    first, second = behind[-1], behind[-2]
    host.passes(5)
    assert sent(host.actions, Recall) == [Recall(first.number)]
    host.returns(first)
    assert sent(host.done(first, run_s=0.001), Recall) == [Recall(second.number)]


def test_a_job_that_started_before_the_recall_came_stays() -> None:
    host, running, behind = stuck_host()
    host.passes(STUCK_BEHIND_S + 0.001)
    host.done(running)
    host.starts(behind[-1])
    host.done(behind[-1])
    assert host.answer(behind[-1]).state is JobState.OK


def test_time_that_stands_still_asks_for_no_end_of_looks() -> None:
    host, _, _ = stuck_host()
    before = host.fleet.armed
    host.passes(STUCK_BEHIND_S / 2)
    host.passes(STUCK_BEHIND_S)
    assert host.fleet.armed - before < 10


def test_an_async_job_goes_where_nothing_is_at_work_on_the_device() -> None:
    host = Host(function("f"), function("loop", shape="async", lane="loop"), devices=2)
    busy = host.submit("f")
    beside = host.submit("loop")
    assert held_by(beside) is not held_by(busy)
