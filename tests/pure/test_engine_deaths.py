"""What follows when an engine server dies under its instance, and when it boots."""

import pytest

from gen_worker.wire.messages import Engine, Load, Loaded, Resident, Returned, Unloaded
from gen_worker_supervisor.core.evidence import Evidence, MemoryReading
from gen_worker_supervisor.core.happenings import MemoryRead, Watched
from gen_worker_supervisor.core.phases import Phase
from gen_worker_supervisor.core.replacing import has_room_for_two
from gen_worker_supervisor.core.state import Device, Job
from gen_worker_supervisor.core.verdicts import LOAD_TRIES, UNAVAILABLE_S
from tests.pure.host import Host, function, sent

DIED = Unloaded("e", "its engine `vllm` died: SIGKILL", ["CUDA error", "bye"])
UP = Engine("e", "vllm", "up", 4242, 40000)


def loaded(host: Host) -> None:
    host.reports(host.child(), UP, Loaded("e", 0.5, [Resident("slot0", "a/m", "DISK", 0)]))


@pytest.fixture
def host() -> Host:
    """A child that has the instance with the engine, and has done a job on it."""
    host = Host(function("chat", instance="e", models=["a/m"]))
    job = host.submit("chat")
    host.fetched(*host.ordered())
    loaded(host)
    host.done(job)
    return host


def dies_at_a_job(host: Host) -> Job:
    job = host.submit("chat")
    host.starts(job)
    host.reports(host.child(), DIED)
    host.fails(job, "retryable", cause="engine_died")
    return job


def test_an_instance_whose_engine_died_is_set_up_at_once_without_a_request(host: Host) -> None:
    assert host.child().engines == {"e": UP}
    actions = host.reports(host.child(), DIED)
    assert [order.instance for order in sent(actions, Load)] == ["e"]
    assert host.child().engines == {}
    assert "e" not in host.child().loaded


def test_jobs_that_had_not_begun_wait_for_the_next_engine(host: Host) -> None:
    job = host.submit("chat")
    actions = host.reports(host.child(), DIED, Returned(job.number))
    assert sent(actions, Load)
    assert host.unanswered(job)
    loaded(host)
    host.done(job)
    assert host.answer(job).state.value == "ok"


def test_the_second_death_in_a_row_costs_a_pause(host: Host) -> None:
    dies_at_a_job(host)
    loaded(host)
    dies_at_a_job(host)
    assert host.child().loading is None
    assert sent(host.passes(0.7), Load) == []
    assert [order.instance for order in sent(host.passes(0.4), Load)] == ["e"]


def test_after_some_deaths_in_a_row_the_function_is_unavailable_for_a_while(host: Host) -> None:
    for _ in range(LOAD_TRIES):
        dies_at_a_job(host)
        host.passes(2.0)
        if host.child().loading is not None:
            loaded(host)
    refused = host.answer(host.submit("chat"))
    assert refused.kind == "unavailable"
    assert "3rd time" in refused.message
    host.passes(UNAVAILABLE_S)
    job = host.submit("chat")
    assert host.child().loading == "e"
    loaded(host)
    host.done(job)
    assert host.fleet.instance("e").engine_deaths == 0


def test_a_job_that_ends_well_makes_the_next_death_a_first_one(host: Host) -> None:
    for _ in range(2 * LOAD_TRIES):
        dies_at_a_job(host)
        assert host.child().loading == "e"
        loaded(host)
        host.done(host.submit("chat"))


def test_a_child_that_drains_sets_nothing_up_again(host: Host) -> None:
    host.drains()
    assert sent(host.reports(host.child(), DIED), Load) == []


def test_an_engine_that_boots_is_what_moves_in_its_child() -> None:
    host = Host(function("chat", instance="e", models=["a/m"]))
    host.fleet.stall_timeout_s = 40.0
    host.submit("chat")
    host.fetched(*host.ordered())
    child = host.child()
    for _ in range(30):
        host.reports(child, Engine("e", "vllm", "booting", 4242, 40000))
        host.passes(2.0)
        host.happens(Watched([(child, Evidence(at=host.now, state="S", beat_at=host.now))]))
        assert child.hang is None
    assert child.phase is Phase.LOADING


def test_engines_of_instances_that_a_child_does_not_have_are_not_believed(host: Host) -> None:
    for number in range(100):
        host.reports(host.child(), Engine(f"x{number}", "vllm", "up", 1, 2))
    assert list(host.child().engines) == ["e"]


def test_the_death_of_an_engine_that_a_child_does_not_have_changes_nothing(host: Host) -> None:
    for number in range(100):
        host.reports(host.child(), Unloaded(f"x{number}", "its engine died", []))
    assert set(host.fleet.instances) == {"e"}
    assert host.fleet.ordered == {}


def test_of_a_gpu_an_engine_takes_what_nobody_has_counted_so_its_child_goes_first() -> None:
    gpu = Device("cuda:0", kind="cuda", index=0, vram_total=80 << 30, vram_used=0)
    host = Host(function("chat", instance="e", models=["a/m"]), devices=[gpu])
    host.submit("chat")
    host.fetched(*host.ordered())
    host.happens(MemoryRead(MemoryReading(0.0, 1 << 30, 64 << 30, "host", {})))
    assert has_room_for_two(host.fleet, gpu, host.child())
    loaded(host)
    assert not has_room_for_two(host.fleet, gpu, host.child())
