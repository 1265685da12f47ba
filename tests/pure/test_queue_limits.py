"""How much may wait: jobs by their count and their bytes, in all, of one function, of one tenant."""

import pytest

from gen_worker_supervisor.core.phases import JobState
from gen_worker_supervisor.core.state import Job, Outcome
from gen_worker_supervisor.core.verdicts import SETUP_FAILED
from tests.pure.host import Host, function


@pytest.mark.promise(34)
def test_jobs_that_would_hold_too_many_bytes_while_they_wait_are_busy_and_retryable() -> None:
    host = Host(max_queued_bytes=100)
    host.started(body=b"x" * 90)  # what runs does not wait
    assert host.unanswered(host.submit(body=b"x" * 60))
    refused = host.answer(host.submit(body=b"x" * 41))
    assert (refused.kind, refused.retryable) == ("busy", True)
    assert "60 bytes" in refused.message
    assert "100" in refused.message
    assert host.unanswered(host.submit(body=b"x" * 40))


def test_a_job_longer_than_the_limit_may_wait_where_nothing_else_does() -> None:
    host = Host(max_queued_bytes=100)
    host.started()
    assert host.submit(body=b"x" * 500).state is JobState.QUEUED


def test_the_bytes_that_wait_are_counted_down_when_jobs_start_and_when_they_are_canceled() -> None:
    host = Host(max_queued_bytes=100)
    running = host.started()
    jobs = [host.submit(body=b"x" * 30) for _ in range(3)]
    assert host.fleet.queued_bytes == 90
    host.ends(jobs[2])
    assert host.fleet.queued_bytes == 60
    host.done(running)
    assert host.fleet.queued_bytes == 30
    host.done(jobs[0])
    host.done(jobs[1])
    assert host.fleet.queued_bytes == 0


def busy(host: Host, job: Job) -> Outcome:
    """Return the answer of a job that was refused because too many wait."""
    answer = host.answer(job)
    assert (answer.state, answer.kind, answer.retryable) == (JobState.RETRYABLE, "busy", True)
    return answer


def waits(host: Host, number: int, name: str = "f", tenant: str = "") -> int:
    """Return how many of some jobs were taken."""
    return sum(host.unanswered(host.submit(name, tenant=tenant)) for _ in range(number))


def retry_after_s(outcome: Outcome) -> float:
    """Return when a job that was refused may come again."""
    assert outcome.detail is not None
    assert outcome.detail.retry_after_s is not None
    return outcome.detail.retry_after_s


# --- of one function --------------------------------------------------------------------------------------------------


@pytest.mark.promise(34)
def test_one_functions_queue_is_full_while_others_take_jobs() -> None:
    host = Host(function("f"), function("g"), max_queued_per_function=3)
    host.started()
    assert waits(host, 10) == 3
    answer = busy(host, host.submit())
    assert answer.message.startswith(
        "3 jobs of `f` wait already, the limit is 3 (`GEN_WORKER_MAX_QUEUED_PER_FUNCTION`)"
    )
    assert host.unanswered(host.submit("g"))


def test_jobs_that_wait_for_their_files_count_with_their_function() -> None:
    host = Host(function("f"), max_queued_per_function=1)
    parked = host.started()
    host.fleet.functions["f"].parked += 1
    host.fleet.queued += 1
    assert busy(host, host.submit())
    assert host.unanswered(parked)


def test_what_is_wrong_with_a_function_is_said_before_that_the_queue_is_full() -> None:
    host = Host(function("f"), function("g"), max_queued=1)
    host.started()
    host.submit()
    closed = host.fleet.functions["g"]
    closed.unavailable, closed.available_at, closed.verdict = "no weights", host.now + 30, SETUP_FAILED
    assert host.answer(host.submit("g")).kind == "unavailable"
    assert busy(host, host.submit())


# --- when to come again -----------------------------------------------------------------------------------------------


def test_who_is_refused_is_told_when_about_there_is_room() -> None:
    host = Host(max_queued=2)
    for _ in range(8):
        host.done(host.submit(), run_s=4.0)
    host.started()
    host.submit()
    host.submit()
    answer = busy(host, host.submit())
    assert retry_after_s(answer) == 4.0
    assert answer.message == "2 jobs wait already, the limit is 2 (`GEN_WORKER_MAX_QUEUED`)"


@pytest.mark.parametrize(("run_s", "devices", "told_s"), [(0.001, 1, 0.1), (600.0, 1, 60.0), (8.0, 4, 2.0)])
def test_the_time_until_there_is_room_counts_the_children_and_is_bounded(
    run_s: float, devices: int, told_s: float
) -> None:
    host = Host(max_queued=1, devices=devices)
    for _ in range(8):
        host.done(host.submit(), run_s=run_s)
    while not host.fleet.queued:
        host.submit()
    assert retry_after_s(busy(host, host.submit())) == told_s


# --- of one tenant ----------------------------------------------------------------------------------------------------


@pytest.mark.promise(34)
def test_a_tenant_that_floods_leaves_room_for_another() -> None:
    host = Host(max_queued=100)
    host.started()
    assert waits(host, 200, tenant="a") == 50
    assert waits(host, 20, tenant="b") == 20
    answer = busy(host, host.submit(tenant="a"))
    assert answer.message.startswith(
        "tenant `a` has 50 of the 70 jobs that wait, the share of 100 (`GEN_WORKER_MAX_QUEUED`) is 33 now"
    )
    assert waits(host, 200, tenant="b") == 13


@pytest.mark.promise(34)
def test_where_nobody_names_a_tenant_the_whole_queue_is_everybodys() -> None:
    host = Host(max_queued=100)
    host.started()
    assert waits(host, 200) == 100


def test_a_flood_without_a_tenant_makes_room_for_one_that_is_named() -> None:
    host = Host(max_queued=10)
    running = host.started()
    assert waits(host, 20) == 10
    assert busy(host, host.submit(tenant="a")), "there was no room yet"
    host.done(running)
    answer = busy(host, host.submit())
    assert "requests without a `tenant` have 9 of the 9 jobs that wait" in answer.message
    assert host.unanswered(host.submit(tenant="a"))


def test_a_tenant_has_a_share_of_one_functions_places_and_of_the_bytes_too() -> None:
    host = Host(function("f"), function("g"), max_queued_per_function=10, max_queued_bytes=1000)
    host.started(body=b"")
    assert waits(host, 20, tenant="a") == 5
    assert waits(host, 20, tenant="b") == 3
    host.submit("g", b"x" * 600, tenant="a")
    answer = busy(host, host.submit("g", b"x" * 10, tenant="a"))
    assert "tenant `a` has 610 of the 616 bytes that wait" in answer.message
    assert host.unanswered(host.submit("g", b"x" * 10, tenant="b"))


def test_shares_are_counted_down_as_jobs_start_and_end() -> None:
    host = Host(max_queued=4, max_queued_per_function=4)
    host.started()
    jobs = [host.submit(tenant="a") for _ in range(2)]
    assert busy(host, host.submit(tenant="a"))
    for job in jobs:
        host.ends(job)
    assert waits(host, 5, tenant="b") == 2
    assert waits(host, 5, tenant="a") == 1


def test_a_higher_priority_and_each_tenant_in_its_turn_are_run_first() -> None:
    host = Host()
    running = host.started()
    flood = [host.submit(tenant="a") for _ in range(3)]
    other, urgent = host.submit(tenant="b"), host.submit(tenant="a", priority=1)
    order = []
    for _ in range(5):
        host.done(running)
        running = next(job for job in (*flood, other, urgent) if job.child is not None and not job.ended)
        host.starts(running)
        order.append(running)
    assert order == [urgent, flood[0], other, flood[1], flood[2]]


def test_a_functions_urgent_jobs_do_not_keep_another_function_waiting() -> None:
    host = Host(function("f"), function("g"))
    running = host.started()
    jobs = [host.submit(priority=100) for _ in range(5)]
    jobs += [host.submit("g", priority=-100) for _ in range(5)]
    order = []
    for _ in range(10):
        host.done(running, run_s=1.0)
        running = next(job for job in jobs if job.child is not None and not job.ended)
        host.starts(running)
        order.append(running.function.name)
    assert order == ["f", "g"] * 5


@pytest.mark.promise(2)
def test_a_job_that_waits_to_run_alone_keeps_nothing_free_when_another_goes_before_it() -> None:
    host = Host(devices=2)
    suspect = host.started(body=b'"suspect"')
    other = host.started()
    host.dies(host.child(0))
    assert suspect.alone
    urgent = host.submit(priority=1)
    host.passes(1.0)
    host.boot()
    assert urgent.child is host.child(0), "it was kept free for the suspect"
    host.done(urgent)
    assert suspect.child is host.child(0)
    host.done(suspect)
    host.done(other)
    assert not host.fleet.queued
