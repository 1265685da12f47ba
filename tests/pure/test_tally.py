"""What is counted of jobs, by function."""

import pytest

from gen_worker.wire.survey import SurveyedFunction
from gen_worker_supervisor.core.bodies import InlinePayload
from gen_worker_supervisor.core.outcomes import failure
from gen_worker_supervisor.core.phases import JobState
from gen_worker_supervisor.core.state import Function, Job, Outcome
from gen_worker_supervisor.history.records import record_of
from gen_worker_supervisor.history.tally import BOUNDS, Tally
from gen_worker_supervisor.supervisor import ANSWERED


def job(*, submitted: float = 100.0, started: float | None = None, tenant: str = "") -> Job:
    function = Function(SurveyedFunction("echo", "echo", "", "", "sync", "device", False, None))
    body = InlinePayload(b"{}")
    return Job(
        1, ANSWERED, "r1", 1, True, function, body, "json", False, False, submitted, started=started, tenant=tenant
    )


def test_jobs_are_counted_by_how_they_ended() -> None:
    tally = Tally()
    tally.ended(record_of(job(started=100.0), Outcome(JobState.OK, run_s=1.0), 101.0))
    tally.ended(record_of(job(started=100.0), Outcome(JobState.OK, run_s=1.0), 101.0))
    tally.ended(record_of(job(), failure("busy", "full"), 100.0))
    assert tally.functions["echo"].ended == {"ok": 2, "busy": 1}


def test_a_job_has_waited_until_it_started_and_ran_from_then_on() -> None:
    tally = Tally()
    tally.ended(record_of(job(started=100.3), Outcome(JobState.OK, run_s=2.0), 102.4))
    counted = tally.functions["echo"]
    assert counted.run.sum_s == 2.0
    assert counted.wait.sum_s == pytest.approx(0.3)
    assert counted.run.counts[BOUNDS.index(2.5)] == counted.wait.counts[BOUNDS.index(0.5)] == 1


def test_a_job_that_was_over_before_anybody_looked_has_waited_as_long_as_it_did_not_run() -> None:
    tally = Tally()
    tally.ended(record_of(job(), Outcome(JobState.OK, run_s=0.25), 101.0))
    counted = tally.functions["echo"]
    assert (counted.run.sum_s, counted.wait.sum_s) == (0.25, 0.75)


def test_a_job_whose_child_was_killed_ran_until_its_end() -> None:
    tally = Tally()
    tally.ended(record_of(job(started=101.0), failure("deadline", "deadline exceeded"), 131.0))
    assert tally.functions["echo"].run.sum_s == 30.0


def test_a_job_that_never_ran_has_no_times() -> None:
    tally = Tally()
    tally.ended(record_of(job(), failure("canceled", "canceled"), 400.0))
    counted = tally.functions["echo"]
    assert (sum(counted.run.counts), sum(counted.wait.counts)) == (0, 0)


def test_what_took_longer_than_every_bound_is_counted_last() -> None:
    tally = Tally()
    tally.loaded("disk", 1.0)
    tally.loaded("disk", BOUNDS[-1] + 1)
    found = tally.loads["disk"].status()
    assert (found.counts[BOUNDS.index(1.0)], found.counts[-1], len(found.counts)) == (1, 1, len(found.bounds) + 1)


def test_a_thousand_tenants_are_one_function() -> None:
    tally = Tally()
    for number in range(1000):
        tally.ended(record_of(job(tenant=f"tenant-{number}"), Outcome(JobState.OK, run_s=0.1), 101.0))
    assert (tally.functions["echo"].ended, len(tally.functions)) == ({"ok": 1000}, 1)
