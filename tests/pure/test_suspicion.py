"""Jobs that wait while others like them kill children."""

import pytest

from gen_worker_supervisor.core.blame import BREAKER_PAYLOADS
from gen_worker_supervisor.core.happenings import DeviceFault
from gen_worker_supervisor.core.ladder import Reason
from gen_worker_supervisor.core.phases import JobState
from gen_worker_supervisor.core.state import Death, Device, Job
from tests.pure.host import Host, function, held_by

SEGV = Death("SIGSEGV", signal="SIGSEGV", stack=('File "main.py", line 3 in f',))


def kill(host: Host, job: Job, death: Death = SEGV) -> None:
    """Have a job start and kill its child, and the next one boot."""
    child = held_by(job)
    host.starts(job)
    host.dies(child, death)
    host.passes(61)
    host.boot(child.device)


@pytest.mark.promise(2)
@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("reruns", [True, False])
def test_a_payload_that_waits_many_times_kills_two_children_and_no_third(devices: int, reruns: bool) -> None:
    host = Host(devices=devices)
    blockers = [host.started(body=b"long") for _ in range(devices)]
    guilty = [host.submit(body=b"bad", reruns=reruns) for _ in range(20)]
    innocent = host.submit(body=b"good")
    deaths = 0
    host.done(blockers[0])
    for _ in range(100):
        running = [job for job in guilty if job.state is JobState.LEASED]
        if not running:
            break
        deaths += 1
        kill(host, running[0])
    assert deaths == 2
    assert all(host.answer(job).kind in ("quarantined", "child_died") for job in guilty)
    assert sum(host.answer(job).kind == "quarantined" for job in guilty) >= 18
    host.starts(innocent)
    host.done(innocent)
    assert host.answer(innocent).state is JobState.OK


@pytest.mark.promise(1)
def test_children_that_somebody_kills_at_once_cost_no_job_whatever_their_payloads_have_in_common() -> None:
    host = Host(devices=3)
    twins = [host.started(body=b"same") for _ in range(3)]
    waiting = [host.submit(body=b"same") for _ in range(3)]
    for child in [held_by(job) for job in twins]:
        host.dies(child, Death("SIGKILL", signal="SIGKILL"))
    host.passes(61)
    for device in host.fleet.devices:
        host.boot(device)
    for _ in range(len(twins + waiting)):
        job = next(each for each in twins + waiting if each.state is JobState.LEASED)
        host.starts(job)
        host.done(job)
    assert {host.answer(job).state for job in twins + waiting} == {JobState.OK}


@pytest.mark.promise(2)
@pytest.mark.parametrize("reruns", [True, False])
def test_a_payload_that_kills_its_child_as_somebody_might_kills_two_and_no_third(reruns: bool) -> None:
    host = Host()
    guilty = [host.submit(body=b"bad", reruns=reruns) for _ in range(5)]
    deaths = 0
    while running := [job for job in guilty if job.state is JobState.LEASED]:
        deaths += 1
        kill(host, running[0], Death("SIGKILL", signal="SIGKILL"))
    assert deaths == 2
    assert all(job.ended for job in guilty)


@pytest.mark.promise(2)
def test_a_payload_that_killed_once_runs_once_at_a_time_and_alone() -> None:
    host = Host(function(shape="async", lane="loop"), devices=2)
    twins = [host.submit(body=b"bad") for _ in range(3)]
    host.starts(twins[0])
    kill(host, twins[0])
    under_way = [job for job in twins if job.state is JobState.LEASED]
    assert len(under_way) == 1
    assert list(held_by(under_way[0]).leased.values()) == under_way
    host.starts(under_way[0])
    host.done(under_way[0])
    assert all(job.ended or job.state is JobState.LEASED for job in twins), "a success clears the others"


@pytest.mark.promise(2)
def test_waiting_jobs_of_a_function_that_is_stopped_are_told_so_and_kill_nobody() -> None:
    host = Host()
    jobs = [host.submit(body=bytes([number])) for number in range(20)]
    deaths = 0
    for _ in range(100):
        running = [job for job in jobs if job.state is JobState.LEASED]
        if not running:
            break
        deaths += 1
        kill(host, running[0])
    assert deaths == 2 * BREAKER_PAYLOADS
    kinds = [host.answer(job).kind for job in jobs]
    assert kinds == ["child_died"] * BREAKER_PAYLOADS + ["unavailable"] * (20 - BREAKER_PAYLOADS)
    assert all(host.answer(job).retryable for job in jobs[BREAKER_PAYLOADS:])


def test_a_waiting_job_of_a_pardoned_payload_runs() -> None:
    host = Host()
    first = host.submit(body=b"bad")
    kill(host, first)
    again = host.submit(body=b"bad")
    host.ends(first)
    host.starts(first)
    host.dies(held_by(first), SEGV)
    host.fleet.blame.pardon(host.now)
    host.passes(61)
    host.boot()
    assert again.state is JobState.LEASED


@pytest.mark.promise(2)
def test_jobs_that_are_held_are_told_when_nothing_can_run_them_any_more() -> None:
    gpu, cpu = Device("cuda:0", "cuda", index=0, takes_cpu_functions=False), Device("cpu:0", "cpu")
    cpu.takes_gpu_functions = False
    host = Host(function(gpu=True), devices=[gpu, cpu])
    first = host.submit(body=b"bad")
    kill(host, first)
    held = [host.submit(body=b"bad") for _ in range(2)]
    assert all(job.held for job in held)
    host.happens(DeviceFault("cuda:0", "XID 79", True))
    assert [host.answer(job).kind for job in (first, *held)] == ["unavailable"] * 3
    assert not host.fleet.held
    assert host.fleet.queued == 0


@pytest.mark.promise(2)
def test_jobs_with_other_payloads_go_past_those_that_are_held() -> None:
    host = Host(devices=2)
    twins = [host.submit(body=b"bad") for _ in range(4)]
    kill(host, twins[0])
    (tried,) = [job for job in twins if job.state is JobState.LEASED]
    host.starts(tried)
    other = host.submit(body=b"good")
    assert other.state is JobState.LEASED
    assert sum(job.held for job in twins) == 3
    host.done(tried)
    assert not any(job.held for job in twins), "a success clears all"
    host.done(other)
    for _ in twins:
        for job in [job for job in twins if job.state is JobState.LEASED]:
            host.done(job)
    assert all(host.answer(job).state is JobState.OK for job in twins)
    assert not host.fleet.held
    assert host.fleet.queued == 0


@pytest.mark.promise(2)
def test_a_stream_whose_child_was_ended_for_another_job_is_no_suspect() -> None:
    host = Host(function(shape="async_generator", lane="loop"))
    stuck, other = (host.submit(body=body, stream=True, reruns=False) for body in (b"stuck", b"other"))
    host.starts(stuck, other)
    host.item(other)
    host.ends(stuck, Reason.KILL, at_once=True)
    host.passes(2.0)
    host.dies(held_by(stuck))
    assert host.answer(other).retryable
    assert host.answer(other).message.startswith("its child was ended with another job in it")
    assert not host.fleet.blame.listed(host.now)
    assert other.deaths == 0


@pytest.mark.promise(2)
def test_a_success_on_any_device_clears_a_payload() -> None:
    host = Host(devices=2)
    first, second = (host.fleet.on_device(host.fleet.functions["f"], device) for device in host.fleet.devices)
    other = host.submit(body=b"good", function=first)
    host.starts(other)
    host.done(other)
    kill(host, host.submit(body=b"bad", function=second, reruns=False))
    assert host.fleet.blame.listed(host.now)
    again = host.submit(body=b"bad", function=first, reruns=False)
    host.starts(again)
    host.done(again)
    assert not host.fleet.blame.listed(host.now)


def test_a_held_job_is_ended_like_any_that_waits() -> None:
    host = Host(devices=2)
    first = host.submit(body=b"bad")
    canceled, late = host.submit(body=b"bad"), host.submit(body=b"bad", timeout_s=100.0)
    host.submit(body=b"bad")
    kill(host, first)
    (tried,) = [job for job in host.fleet.jobs.values() if job.state is JobState.LEASED]
    waiting = [job for job in (canceled, late) if job.held]
    host.starts(tried)
    for job in waiting:
        host.ends(job)
    host.passes(200.0)
    assert all(host.answer(job).state in (JobState.CANCELED, JobState.FATAL) for job in waiting)
    host.drains()
    assert all(job is tried for job in host.fleet.jobs.values())
    assert host.fleet.queued == 0


def quick_host(devices: int = 1) -> Host:
    """A host with two functions so quick that jobs are leased ahead, of which one has a payload that killed."""
    host = Host(function("f"), function("g"), devices=devices)
    for made in host.fleet.functions.values():
        made.ran(0.001)
    kill(host, host.submit(body=b"bad", reruns=False))
    return host


def test_who_comes_before_one_that_waits_for_a_child_of_its_own_runs_at_once() -> None:
    host = quick_host(devices=2)
    busy = [host.submit(), host.submit()]
    host.starts(*busy)
    lonely = host.submit(body=b"bad", reruns=False)
    assert (lonely.alone, lonely.state) == (True, JobState.QUEUED)
    assert host.submit(priority=5).state is JobState.LEASED
    assert lonely.state is JobState.QUEUED


def test_jobs_of_other_functions_run_as_soon_as_no_child_is_kept_free_any_more() -> None:
    host = quick_host()
    host.starts(host.submit())
    host.submit(body=b"bad", reruns=False)
    other = host.submit("g")
    assert other.child is None, "the child is kept free"
    host.submit(priority=5)
    assert other.state is JobState.LEASED
