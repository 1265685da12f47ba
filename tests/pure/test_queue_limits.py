"""How much may wait: jobs by their count and their bytes."""

import pytest

from gen_worker_supervisor.phases import JobState
from tests.pure.host import Host


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
