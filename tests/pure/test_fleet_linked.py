"""What is different for jobs whose client may ask for them again elsewhere, on a device that it chose."""

import pytest

from gen_worker.wire.messages import Done, Drain, Loaded, Resident
from gen_worker_supervisor.core.blame import QUARANTINE_S
from gen_worker_supervisor.core.happenings import DrainAsked
from gen_worker_supervisor.core.ladder import Reason
from gen_worker_supervisor.core.phases import JobState
from gen_worker_supervisor.core.state import Death, Device
from tests.pure.host import Host, function, held_by, runs, sent, signals

SEGV = Death("SIGSEGV", signal="SIGSEGV", stack=("File main.py",))


def test_the_death_of_its_child_ends_a_started_job_at_once_with_the_cause() -> None:
    host = Host()
    job = host.submit(reruns=False)
    host.starts(job)
    host.dies(host.child(), SEGV)
    answer = host.answer(job)
    assert (answer.state, answer.kind, answer.retryable) == (JobState.RETRYABLE, "child_died", True)
    assert "SIGSEGV" in answer.message
    assert answer.detail is not None
    assert answer.detail.cause == "SIGSEGV"


def test_the_death_of_its_child_is_nothing_to_a_job_that_had_not_started() -> None:
    host = Host()
    job = host.submit(reruns=False)
    host.dies(host.child())
    assert host.unanswered(job)
    host.boot()
    assert job in runs(host.actions)


def test_a_payload_that_killed_two_children_is_refused_the_third_time() -> None:
    host = Host()
    for _ in range(2):
        job = host.submit(body=b"poison", reruns=False)
        host.starts(job)
        host.dies(host.child(), SEGV)
        host.passes(5)
        host.boot()
    third = host.submit(body=b"poison", reruns=False)
    assert (host.answer(third).state, host.answer(third).kind) == (JobState.FATAL, "quarantined")
    other = host.submit(body=b"fine", reruns=False)
    assert host.unanswered(other)


def test_jobs_that_died_together_run_alone_when_they_come_again() -> None:
    host = Host(function(shape="async", lane="loop"))
    pair = [host.submit(body=body, reruns=False) for body in (b"one", b"two")]
    host.starts(*pair)
    host.dies(host.child(), SEGV)
    assert all(host.answer(job).kind == "child_died" for job in pair)
    host.boot()
    first, second = (host.submit(body=body, reruns=False) for body in (b"one", b"two"))
    assert first.alone
    assert second.alone
    assert second.state is JobState.QUEUED
    host.starts(first)
    host.done(first)
    assert second.child is not None


def test_a_job_for_one_device_waits_for_it_while_another_idles() -> None:
    host = Host(function(), devices=2)
    fleet = host.fleet
    chosen = fleet.on_device(fleet.functions["f"], fleet.devices[1])
    first, second = host.submit(function=chosen), host.submit(function=chosen)
    assert held_by(first).device is fleet.devices[1]
    assert second.child is None
    anywhere = host.submit()
    assert held_by(anywhere).device is fleet.devices[0]
    host.starts(first)
    host.done(first)
    assert held_by(second).device is fleet.devices[1]


def test_a_job_for_a_device_that_is_lost_is_refused() -> None:
    host = Host(function(), devices=[Device("cpu:0", "cpu"), Device("cpu:1", "cpu")])
    fleet = host.fleet
    fleet.devices[1].given_up = "its child died 3 times before it was ready"
    job = host.submit(function=fleet.on_device(fleet.functions["f"], fleet.devices[1]))
    assert host.answer(job).kind == "unavailable"


def test_a_drain_with_time_lets_running_jobs_end_and_refuses_those_that_wait() -> None:
    host = Host()
    running = host.started()
    waiting = host.submit()
    actions = host.drains(30.0)
    assert host.answer(waiting).kind == "draining"
    assert host.unanswered(running)
    assert not signals(actions)
    host.passes(20)
    child = held_by(running)
    actions = host.reports(child, Done(running.number, b"1", 20.0))
    assert host.answer(running).state is JobState.OK
    assert sent(actions, Drain)


def test_a_drain_whose_time_is_over_ends_running_jobs() -> None:
    host = Host()
    running = host.started()
    host.drains(30.0)
    host.passes(29.9)
    assert host.unanswered(running)
    host.passes(2.0)
    assert running.ending is not None
    assert running.ending.reason is Reason.DRAIN
    host.dies(host.child(), Death("SIGKILL", signal="SIGKILL"))
    assert host.answer(running).kind == "draining"


def test_a_drain_without_a_limit_waits_for_running_jobs() -> None:
    host = Host()
    running = host.started()
    host.drains(None)
    host.passes(100_000)
    assert host.unanswered(running)


def test_of_two_drains_the_sooner_end_counts() -> None:
    host = Host()
    running = host.started()
    host.drains(None)
    host.happens(DrainAsked(1.0))
    host.passes(1.5)
    assert running.ending is not None


def test_a_job_whose_child_dies_during_a_drain_is_not_run_again() -> None:
    host = Host()
    job = host.started()
    host.drains(30.0)
    host.dies(host.child(), SEGV)
    assert host.answer(job).kind == "draining"


@pytest.mark.parametrize(
    "figures",
    [{"run_s": float("nan")}, {"run_s": -1.0}, {"run_s": float("inf")}, {"peak_rss": 1 << 63}, {"peak_vram": -1}],
)
def test_a_child_whose_figures_make_no_sense_is_not_believed(figures: dict[str, float]) -> None:
    host = Host()
    job = host.started()
    sane: dict[str, float] = {"run_s": 1.0, **figures}
    host.reports(held_by(job), Done(job.number, b"1", **sane))  # type: ignore[arg-type]
    assert host.unanswered(job)
    assert host.child().killed


def test_a_started_job_whose_child_is_ended_for_another_job_is_told_so_and_not_run_twice() -> None:
    host = Host(function(shape="async", lane="loop"))
    deaf, other = host.submit(reruns=False), host.submit(reruns=False)
    host.starts(deaf, other)
    host.ends(deaf, Reason.KILL, at_once=True)
    host.passes(2.0)
    host.dies(host.child(), Death("SIGKILL", signal="SIGKILL"))
    assert host.answer(deaf).kind == "killed"
    assert (host.answer(other).state, host.answer(other).kind) == (JobState.RETRYABLE, "child_died")
    assert not host.fleet.blame.suspects("f", host.now)


def test_a_suspect_payload_is_forgotten_in_time() -> None:
    host = Host(function(shape="async", lane="loop"))
    pair = [host.submit(body=body, reruns=False) for body in (b"one", b"two")]
    host.starts(*pair)
    host.dies(host.child(), SEGV)
    assert host.fleet.blame.suspects("f", host.now)
    assert not host.fleet.blame.suspects("f", host.now + QUARANTINE_S)


def test_a_job_that_kills_its_child_during_a_drain_is_told_of_that() -> None:
    host = Host()
    job = host.submit(reruns=False)
    host.starts(job)
    host.drains(30.0)
    host.dies(host.child(), SEGV)
    assert host.answer(job).message == "its child died while it ran: SIGSEGV"


@pytest.mark.parametrize("held", [-1, 1 << 63])
def test_a_child_that_holds_more_than_there_can_be_is_not_believed(held: int) -> None:
    host = Host(function(instance="C"))
    host.submit()
    child = host.child()
    host.reports(child, Loaded("C", 0.1, [Resident("s", "acme/a", "VRAM", held)]))
    assert child.killed
