"""A job whose payload names files behind URLs waits for them without a device, and ends like any other that waits."""

import pytest

from gen_worker.wire.messages import MOST_INPUTS, InputAsset, InputFile, NeedsInputs, Recall
from gen_worker_supervisor.core.actions import Action, OrderInputs
from gen_worker_supervisor.core.happenings import InputsCame, InputsRefused
from gen_worker_supervisor.core.ladder import Reason
from gen_worker_supervisor.core.phases import JobState, Phase
from gen_worker_supervisor.core.state import Job
from tests.pure.host import Host, function, held_by, runs, sent, signals

ASSETS = [InputAsset("https://example.org/cat.png"), InputAsset("https://example.org/dog.png")]
FILES = [InputFile("/inputs/0.png", 10, "image/png"), InputFile("/inputs/1.png", 20, "image/png")]


def asks(host: Host, job: Job, assets: list[InputAsset] = ASSETS) -> list[Action]:
    """Have the child find that the payload names files."""
    return host.reports(held_by(job), NeedsInputs(job.number, assets))


def ordered(host: Host) -> list[OrderInputs]:
    return [action for action in host.actions if isinstance(action, OrderInputs)]


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def waiting(host: Host) -> Job:
    """A job that waits for its files."""
    job = host.started()
    asks(host, job)
    return job


def test_the_files_are_ordered_and_the_job_holds_nothing(host: Host, waiting: Job) -> None:
    assert ordered(host) == [OrderInputs(waiting, ASSETS)]
    assert waiting.state is JobState.QUEUED
    assert waiting.child is None
    assert host.child().phase is Phase.READY
    assert host.unanswered(waiting)


def test_other_jobs_run_meanwhile(host: Host, waiting: Job) -> None:
    other = host.submit()
    assert other.child is host.child()
    host.starts(other)
    host.done(other)
    assert host.answer(other).state is JobState.OK
    assert waiting.fetching


def test_with_its_files_it_is_the_next_to_run(host: Host, waiting: Job) -> None:
    running, queued = host.submit(), host.submit()
    assert runs(host.happens(InputsCame(waiting, FILES))) == []
    host.starts(running)
    assert runs(host.done(running)) == [waiting]
    assert waiting.inputs == FILES
    assert queued.state is JobState.QUEUED
    host.starts(waiting)
    host.done(waiting)
    assert host.answer(waiting).state is JobState.OK


def test_a_rerun_after_a_death_has_the_same_files(host: Host, waiting: Job) -> None:
    host.happens(InputsCame(waiting, FILES))
    host.starts(waiting)
    host.dies(host.child())
    assert runs(host.happens()) == []
    host.passes(5)
    host.boot()
    assert waiting.child is host.child()
    assert waiting.inputs == FILES
    assert len(ordered(host)) == 1


@pytest.mark.parametrize(
    ("invalid", "retryable", "state", "kind"),
    [
        (True, False, JobState.INVALID, "invalid"),
        (False, True, JobState.RETRYABLE, "retryable"),
        (False, False, JobState.FATAL, "internal"),
    ],
)
def test_a_file_that_cannot_be_had_ends_its_job(
    host: Host, waiting: Job, invalid: bool, retryable: bool, state: JobState, kind: str
) -> None:
    host.happens(InputsRefused(waiting, "`example.org` answers 404", retryable, invalid))
    outcome = host.answer(waiting)
    assert (outcome.state, outcome.kind, outcome.message) == (state, kind, "`example.org` answers 404")
    assert outcome.retryable is retryable
    assert host.fleet.queued == 0


@pytest.mark.parametrize(
    ("reason", "state"),
    [(Reason.CANCEL, JobState.CANCELED), (Reason.KILL, JobState.CANCELED), (Reason.DISCONNECT, JobState.CANCELED)],
)
def test_a_cancel_ends_the_wait(host: Host, waiting: Job, reason: Reason, state: JobState) -> None:
    host.ends(waiting, reason)
    assert host.answer(waiting).state is state
    assert (host.fleet.queued, host.fleet.queued_bytes) == (0, 0)


def test_the_deadline_ends_the_wait(host: Host) -> None:
    job = host.submit(timeout_s=5)
    asks(host, job)
    host.passes(6)
    outcome = host.answer(job)
    assert (outcome.state, outcome.message) == (JobState.FATAL, "deadline exceeded")


def test_a_drain_ends_the_wait(host: Host, waiting: Job) -> None:
    host.drains()
    outcome = host.answer(waiting)
    assert (outcome.state, outcome.kind) == (JobState.RETRYABLE, "draining")


def test_the_loss_of_the_last_device_ends_the_wait(host: Host, waiting: Job) -> None:
    while not host.fleet.finished:
        host.dies(host.child())
        host.passes(61.0)
    assert host.answer(waiting).kind == "unavailable"


def test_files_that_come_for_a_job_that_has_ended_change_nothing(host: Host, waiting: Job) -> None:
    host.ends(waiting)
    assert host.happens(InputsCame(waiting, FILES), InputsRefused(waiting, "no")) == []
    assert host.answer(waiting).state is JobState.CANCELED


def test_a_job_that_was_asked_to_end_before_its_child_looked_orders_nothing(host: Host) -> None:
    job = host.started()
    host.ends(job)
    asks(host, job)
    assert ordered(host) == []
    assert host.answer(job).state is JobState.CANCELED
    assert host.child().phase is Phase.READY


def test_a_job_that_is_given_back_while_the_worker_drains_is_refused(host: Host) -> None:
    job = host.started()
    other = host.submit()
    host.drains()
    assert host.answer(other).kind == "draining"
    asks(host, job)
    assert ordered(host) == []
    assert host.answer(job).kind == "draining"


def test_a_job_asks_once(host: Host, waiting: Job) -> None:
    host.happens(InputsCame(waiting, FILES))
    asks(host, waiting)
    outcome = host.answer(waiting)
    assert (outcome.state, outcome.message) == (JobState.INVALID, "the files of a payload are asked for once")


def test_a_payload_of_too_many_files_is_refused_by_the_limit(host: Host) -> None:
    job = host.started()
    asks(host, job, ASSETS[:1] * (MOST_INPUTS + 1))
    outcome = host.answer(job)
    assert outcome.state is JobState.INVALID
    assert outcome.message == "the payload names 33 files by URLs, the limit is 32"
    assert ordered(host) == []


def test_a_child_that_asks_for_a_job_it_does_not_hold_is_killed(host: Host, waiting: Job) -> None:
    actions = host.reports(host.child(), NeedsInputs(waiting.number, ASSETS))
    assert signals(actions) == [9]
    assert waiting.fetching
    assert len(ordered(host)) == 1


def test_a_child_that_asks_for_nothing_or_after_its_first_item_is_killed() -> None:
    for assets, emitted in (([], False), (ASSETS, True)):
        host = Host()
        job = host.started(stream=True)
        if emitted:
            host.item(job)
        assert signals(asks(host, job, assets)) == [9]


def test_jobs_that_wait_for_files_count_as_jobs_that_wait() -> None:
    host = Host(max_queued=2)
    for _ in range(2):
        asks(host, host.submit(body=b"12345"))
    assert (host.fleet.queued, host.fleet.queued_bytes) == (2, 10)
    assert host.answer(host.submit()).kind == "busy"
    waiting = ordered(host)[0].job
    host.happens(InputsCame(waiting, FILES))
    assert waiting.child is host.child()
    assert (host.fleet.queued, host.fleet.queued_bytes) == (1, 5)


def test_a_function_that_cannot_run_any_more_does_not_take_a_job_back() -> None:
    host = Host(function("f", instance="A"), devices=1)
    job = host.submit()
    host.loaded(host.child())
    asks(host, job)
    host.fleet.functions["f"].unavailable = "it is broken"
    host.fleet.functions["f"].available_at = host.now + 60
    host.fleet.doubt()
    host.happens(InputsCame(job, FILES))
    assert host.answer(job).state is not JobState.OK
    assert "it is broken" in host.answer(job).message
    assert host.fleet.queued == 0


def test_a_child_that_retires_gives_the_job_up_and_goes(host: Host) -> None:
    job = host.started()
    host.ends(job, Reason.CANCEL)
    host.passes(29.5)  # rung 2: the child is to be replaced
    asks(host, job)
    assert host.answer(job).state is JobState.CANCELED
    assert sent(host.actions, Recall) == []
    assert host.child().retiring


def test_a_child_that_is_kept_free_for_the_next_job_is_there_for_the_one_that_comes_before_it() -> None:
    host = Host(function("g"), function("f", shape="async", lane="loop"))
    killer, first, second = host.started("g"), host.started("f"), host.started("f")
    other = host.submit("g")
    host.dies(host.child())
    host.boot()
    host.starts(killer)
    host.done(killer)
    assert first.child is host.child()  # each of them may have killed the child, so each runs alone
    assert runs(asks(host, first)) == [other]
    assert host.child().reserved is second
    host.happens(InputsCame(first, FILES))
    host.starts(other)
    assert runs(host.done(other)) == [first]
    host.starts(first)
    assert runs(host.done(first)) == [second]
