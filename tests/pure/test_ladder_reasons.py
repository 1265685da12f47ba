"""Whoever wants a job ended, and for whatever reason: the same ladder, and an answer that tells it."""

import signal

import pytest

from gen_worker.wire.messages import Cancel, ErrorDetail, Failed, InputAsset, InputFile, Interrupt, NeedsInputs
from gen_worker_supervisor.core.happenings import InputsCame
from gen_worker_supervisor.core.ladder import GRACE_S, Reason, Rung
from gen_worker_supervisor.core.phases import Phase
from gen_worker_supervisor.core.state import Death
from tests.pure.host import Host, function, held_by, sent, signals

TERMINATED = Death("SIGTERM", signal="SIGTERM", stack=("File x, line 1 in f",))

# reason: kind, state, retryable, cause
ANSWERS = {
    Reason.CANCEL: ("canceled", "canceled", False, "cancel"),
    Reason.DISCONNECT: ("canceled", "canceled", False, "disconnect"),
    Reason.KILL: ("killed", "canceled", False, "killed"),
    Reason.DEADLINE: ("deadline", "fatal", False, "deadline"),
    Reason.DRAIN: ("draining", "retryable", True, "drain"),
    Reason.RESTART: ("retryable", "retryable", True, "restart"),
    Reason.STALL: ("retryable", "retryable", True, "hang"),
}
GENTLE = [(1, "cooperate"), (2, "interrupt"), (3, "dump"), (4, "terminate"), (5, "kill")]


def test_every_reason_has_an_answer() -> None:
    assert set(ANSWERS) == set(Reason) == set(GRACE_S)


@pytest.mark.promise(6, 45)
@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("reason", Reason)
def test_whatever_the_reason_the_ladder_is_climbed_and_told_with_its_times(reason: Reason, at_once: bool) -> None:
    host = Host()
    job = host.started()
    child = held_by(job)
    wanted = host.ends(job, reason, at_once=at_once)
    assert len(sent(wanted, Cancel)) == (not at_once)
    wanted += host.passes((0 if at_once else GRACE_S[reason]) + 2)
    assert len(sent(wanted, Interrupt)) == (not at_once)
    assert signals(wanted) == [signal.SIGUSR2, signal.SIGTERM, signal.SIGKILL]
    assert child.phase is Phase.DYING
    host.dies(child, TERMINATED)
    outcome = host.answer(job)
    assert outcome.detail is not None
    assert (outcome.kind, outcome.state, outcome.retryable, outcome.detail.cause) == ANSWERS[reason]
    assert outcome.detail.stack == list(TERMINATED.stack)
    assert outcome.detail.rung == 5
    climbed = outcome.detail.rungs or []
    assert [(step.rung, step.name) for step in climbed] == GENTLE[2 if at_once else 0 :]
    ends = 0.0 if at_once else GRACE_S[reason]
    due = [ends, ends + 0.3, ends + 1.3]
    assert [step.after_s for step in climbed][-3:] == pytest.approx(due, abs=0.002)
    assert job.deaths == 0, "what is ended by us is no death of the job's making"


@pytest.mark.promise(45)
@pytest.mark.parametrize("reason", Reason)
def test_a_job_that_ends_when_it_is_asked_says_so_and_costs_no_child(reason: Reason) -> None:
    host = Host()
    job = host.started()
    child = held_by(job)
    host.ends(job, reason)
    host.passes(2)
    host.fails(job, "canceled")
    outcome = host.answer(job)
    assert outcome.detail is not None
    assert (outcome.kind, outcome.detail.rung) == (ANSWERS[reason][0], 1)
    assert [step.name for step in outcome.detail.rungs or []] == ["cooperate"]
    assert child.phase is Phase.READY


@pytest.mark.parametrize("reason", Reason)
def test_a_job_that_takes_an_interrupt_tells_where_it_was_and_its_child_is_replaced(reason: Reason) -> None:
    host = Host()
    job = host.started()
    child = held_by(job)
    host.ends(job, reason)
    host.passes(GRACE_S[reason] - 0.5)
    where = ErrorDetail(stack=["File x, line 7 in f"])
    host.reports(child, Failed(job.number, "canceled", "canceled", False, 1.0, detail=where))
    outcome = host.answer(job)
    assert outcome.detail is not None
    assert (outcome.detail.rung, outcome.detail.stack) == (Rung.INTERRUPT, ["File x, line 7 in f"])
    assert child.phase is Phase.DRAINING


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("reason", Reason)
def test_a_job_that_waits_is_answered_at_once_with_no_rung(reason: Reason, at_once: bool) -> None:
    host = Host()
    host.started()
    waiting = host.submit()
    host.ends(waiting, reason, at_once=at_once)
    outcome = host.answer(waiting)
    assert outcome.detail is not None
    assert (outcome.kind, outcome.detail.rung, outcome.detail.rungs) == (ANSWERS[reason][0], None, None)


def test_a_second_reason_goes_on_where_the_first_one_was() -> None:
    host = Host()
    job = host.started()
    child = held_by(job)
    host.ends(job, Reason.CANCEL)
    host.passes(10)
    host.ends(job, Reason.KILL, at_once=True)
    host.passes(2)
    host.dies(child, TERMINATED)
    detail = host.answer(job).detail
    assert detail is not None
    steps = [(step.name, step.after_s) for step in detail.rungs or []]
    assert [name for name, _ in steps] == ["cooperate", "dump", "terminate", "kill"]
    assert [after_s for _, after_s in steps] == pytest.approx([0.0, 10.0, 10.3, 11.3], abs=0.002)


# --- deadlines --------------------------------------------------------------------------------------------------------


@pytest.mark.promise(6)
def test_a_deadline_counts_the_time_in_the_queue() -> None:
    host = Host()
    first = host.started()
    waiting = host.submit(timeout_s=10)
    host.passes(9.9)
    assert host.unanswered(waiting)
    host.passes(0.2)
    assert host.answer(waiting).kind == "deadline"
    assert host.unanswered(first)


@pytest.mark.promise(6)
def test_a_deadline_goes_on_in_a_job_that_had_waited() -> None:
    host = Host()
    first = host.started()
    job = host.submit(timeout_s=10)
    host.passes(8)
    host.done(first)
    host.starts(job)
    host.passes(2)
    assert job.ending is not None
    assert job.ending.reason is Reason.DEADLINE
    host.passes(7)
    host.dies(host.child(), TERMINATED)
    outcome = host.answer(job)
    assert (outcome.kind, outcome.message) == ("deadline", "deadline exceeded")


@pytest.mark.promise(6)
def test_a_deadline_counts_the_time_that_a_model_takes_to_come() -> None:
    host = Host(function(instance="m:C", models=["a/b"]))
    host.submit(timeout_s=10)
    job = host.submit(timeout_s=10)
    host.absent(*host.ordered())
    host.passes(11)
    assert host.answer(job).kind == "deadline"


@pytest.mark.promise(6)
def test_a_deadline_counts_the_time_that_a_set_up_takes() -> None:
    host = Host(function(instance="m:C"))
    job = host.submit(timeout_s=10)
    host.passes(11)
    assert host.answer(job).kind == "deadline"
    host.loaded(host.child(), 12.0)


@pytest.mark.promise(6)
@pytest.mark.parametrize("come", [False, True])
def test_a_deadline_counts_the_time_that_its_files_take_to_come(come: bool) -> None:
    host = Host()
    job = host.submit(timeout_s=10)
    host.starts(job)
    host.reports(held_by(job), NeedsInputs(job.number, [InputAsset("https://x/y")]))
    host.passes(8)
    if come:
        host.happens(InputsCame(job, [InputFile("/f", 1, "text/plain")]))
        host.starts(job)
        assert job.ending is None
    host.passes(2.5)
    if come:
        assert job.ending is not None
        host.fails(job, "canceled")
    assert host.answer(job).kind == "deadline"
