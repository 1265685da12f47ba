from random import Random
from typing import Any, TypeVar

import pytest
from hypothesis import given as whatever
from hypothesis import settings
from hypothesis import strategies as st

from gen_worker.orchestrator.decide import apply, backoff_s, gather, restore
from gen_worker.orchestrator.state import (
    NEXT_PHASE,
    Acknowledge,
    Action,
    CancelAsked,
    Close,
    DrainAsked,
    Ending,
    Happening,
    Job,
    Joined,
    Left,
    Limits,
    OpAsked,
    Phase,
    Plane,
    Prefetch,
    Record,
    Recorded,
    Run,
    Said,
    Save,
    Saved,
    Send,
    Submitted,
    Tell,
    Ticked,
)
from gen_worker.orchestrator.views import JobRequest
from gen_worker.wire.scheduler import (
    EVENT_TYPE,
    CancelJob,
    Drain,
    FnUnavailable,
    Hello,
    InFlightJob,
    JobAccepted,
    JobMetrics,
    JobProgress,
    JobResult,
    JobStatus,
    ModelEvent,
    ModelOp,
    ModelOpKind,
    ModelResidency,
    ModelState,
    ResidencyTier,
    StateDelta,
    WorkerFrame,
    WorkerPhase,
)

A = TypeVar("A")
READY = StateDelta(phase=WorkerPhase.READY, available_functions=("echo",))
OK, RETRYABLE, FATAL, CANCELED = JobStatus.OK, JobStatus.RETRYABLE, JobStatus.FATAL, JobStatus.CANCELED


class Desk:
    """A control plane's core, and a disk that writes at once unless it is told not to."""

    def __init__(self, *, disk: bool = True, **plane: Any) -> None:
        self.plane = Plane(random=Random(1), **plane)
        self.now = 100.0
        self.disk = disk
        self.sessions = 0
        self.unwritten: list[Happening] = []

    def happens(self, happening: Happening) -> list[Action]:
        actions = apply(self.plane, happening, self.now)
        self.unwritten += [Saved(a.job.request_id, a.job.attempt) for a in actions if isinstance(a, Save) and a.confirm]
        self.unwritten += [Recorded(a.job.request_id) for a in actions if isinstance(a, Record)]
        if self.disk:
            actions += self.writes()
        return actions

    def writes(self) -> list[Action]:
        written, self.unwritten = self.unwritten, []
        return [action for happening in written for action in self.happens(happening)]

    def joins(self, name: str, *in_flight: tuple[str, int], state: StateDelta = READY, **hello: Any) -> list[Action]:
        self.sessions += 1
        held = tuple(InFlightJob(request_id=request_id, attempt=attempt) for request_id, attempt in in_flight)
        return self.happens(Joined(self.sessions, Hello(worker_id=name, state=state, in_flight=held, **hello), 5.0))

    def leaves(self, name: str) -> list[Action]:
        session = self.plane.workers[name].session
        assert session is not None
        return self.happens(Left(session))

    def says(self, name: str, frame: WorkerFrame) -> list[Action]:
        session = self.plane.workers[name].session
        assert session is not None
        return self.happens(Said(session, frame, 6.0))

    def submits(self, request_id: str = "r", function: str = "echo", **request: Any) -> list[Action]:
        asked = JobRequest(function=function, request_id=request_id, **request)
        return self.happens(Submitted(Job(asked, 1.0, refs=self.plane.refs(asked))))

    def waits(self, seconds: float) -> list[Action]:
        self.now += seconds
        return self.happens(Ticked())


def of(kind: type[A], actions: list[Action]) -> list[A]:
    return [action for action in actions if isinstance(action, kind)]


def given(actions: list[Action]) -> list[tuple[str, int, str]]:
    """Who was given what."""
    return [
        (run.job.request_id, run.job.attempt, run.job.worker.worker_id) for run in of(Run, actions) if run.job.worker
    ]


def said(actions: list[Action]) -> list[object]:
    return [send.frame for send in of(Send, actions)]


def ended(actions: list[Action]) -> list[Ending]:
    return [tell.job.ending for tell in of(Tell, actions) if tell.kind == "result" and tell.job.ending]


def accepted(request_id: str = "r", attempt: int = 1) -> JobAccepted:
    return JobAccepted(request_id=request_id, attempt=attempt)


def result(status: JobStatus, attempt: int = 1, message: str = "", request_id: str = "r") -> JobResult:
    return JobResult(request_id=request_id, attempt=attempt, status=status, safe_message=message)


# --- a job's way ------------------------------------------------------------------------------------------------------


def test_every_phase_has_a_way_to_the_end() -> None:
    assert set(NEXT_PHASE) == set(Phase)
    assert all(Phase.ENDED in after for phase, after in NEXT_PHASE.items() if phase is not Phase.ENDED)
    job = Job(JobRequest(function="echo"), 0.0)
    with pytest.raises(ValueError, match="a job that is queued cannot become running"):
        job.move(Phase.RUNNING)


def test_a_job_is_given_with_attempt_1_and_its_end_is_told_when_it_is_on_disk() -> None:
    desk = Desk(disk=False)
    desk.joins("one")
    assert given(desk.submits()) == [("r", 1, "one")]
    assert [tell.kind for tell in of(Tell, desk.says("one", accepted()))] == ["accepted"]
    actions = desk.says("one", result(OK))
    assert len(of(Record, actions)) == 1
    assert not ended(actions)
    assert desk.plane.jobs["r"].view().status == "running"
    (end,) = ended(desk.writes())
    assert (end.status, end.code) == ("ok", 200)
    assert not desk.plane.jobs


@pytest.mark.parametrize(
    ("status", "message", "code"),
    [
        (OK, "", 200),
        (JobStatus.INVALID, "no", 400),
        (CANCELED, "canceled", 499),
        (FATAL, "boom", 500),
        (FATAL, "deadline exceeded", 504),
        (JobStatus.UNSPECIFIED, "", 500),
    ],
)
def test_ends_have_http_codes(status: JobStatus, message: str, code: int) -> None:
    desk = Desk()
    desk.joins("one")
    desk.submits()
    (end,) = ended(desk.says("one", result(status, message=message)))
    assert (end.code, end.safe_message) == (code, message)


def test_what_is_not_accepted_is_said_again_three_times_and_then_goes_elsewhere() -> None:
    desk = Desk()
    desk.joins("one")
    desk.submits()
    desk.joins("two")
    for _ in range(2):
        assert not desk.waits(4.9)
        assert given(desk.waits(0.1)) == [("r", 1, "one")]
    actions = desk.waits(5.0)
    assert said(actions) == [CancelJob(request_id="r", attempt=1)]
    assert given(actions) == [("r", 2, "two")]


def test_what_is_accepted_is_not_said_again() -> None:
    desk = Desk()
    desk.joins("one")
    desk.submits()
    desk.says("one", accepted())
    assert not given(desk.waits(60))


def test_no_worker_sees_an_attempt_that_is_not_on_disk() -> None:
    desk = Desk(disk=False)
    desk.joins("one")
    desk.submits()
    desk.says("one", result(RETRYABLE, message="no"))
    assert not given(desk.waits(60))
    assert given(desk.writes()) == [("r", 2, "one")]


def test_only_the_worker_with_the_present_attempt_is_heard() -> None:
    desk = Desk()
    desk.joins("one")
    desk.joins("two")
    desk.submits()
    assert not desk.says("two", result(OK))
    assert not desk.says("one", result(OK, attempt=2))
    assert not desk.says("one", result(OK, attempt=0))
    assert not desk.says("one", JobProgress(request_id="r", attempt=2, seq=1, body=b"", content_type=""))
    assert ended(desk.says("one", result(OK)))
    assert not desk.says("one", result(OK))


def test_progress_and_log_lines_are_told_apart_from_chunks() -> None:
    desk = Desk()
    desk.joins("one")
    desk.submits()

    def progress(seq: int, body: bytes, content_type: str = EVENT_TYPE) -> list[tuple[str, bytes]]:
        frame = JobProgress(request_id="r", attempt=1, seq=seq, body=body, content_type=content_type)
        return [(tell.kind, tell.body) for tell in of(Tell, desk.says("one", frame))]

    assert progress(1, b"a", "text/plain") == [("accepted", b""), ("chunk", b"a")]
    assert progress(1, b"a", "text/plain") == []
    assert progress(2, b'{"event":"progress","value":{"fraction":0.5}}') == [("progress", b'{"fraction":0.5}')]
    assert desk.plane.jobs["r"].view().progress == b'{"fraction":0.5}'
    assert progress(3, b'{"event":"log","value":{"message":"hi"}}') == [("log", b'{"message":"hi"}')]
    ((kind, body),) = progress(4, b"\xff" * 1000)
    assert kind == "log"
    assert b"cannot be read" in body


# --- failures ---------------------------------------------------------------------------------------------------------


def test_what_may_be_tried_again_is_tried_elsewhere_after_a_while_and_not_for_ever() -> None:
    desk = Desk()
    desk.joins("one")
    desk.submits()
    desk.joins("two")
    held = "one"
    for attempt in (1, 2, 3):
        actions = desk.says(held, result(RETRYABLE, attempt, "no"))
        assert not given(actions)
        ((_, again, other),) = given(desk.waits(0.5 * 2 ** (attempt - 1)))
        assert again == attempt + 1
        assert attempt > 1 or other == "two"
        held = other
    (end,) = ended(desk.says(held, result(RETRYABLE, 4, "no")))
    assert (end.status, end.code, end.safe_message) == ("retryable", 503, "no; it failed 4 times")


def test_the_wait_before_another_try_grows_to_half_a_minute_and_never_is_the_same() -> None:
    plane = Plane(random=Random(1))
    for failures, longest in ((1, 0.5), (2, 1.0), (3, 2.0), (7, 30.0), (60, 30.0)):
        waits = {backoff_s(plane, failures) for _ in range(50)}
        assert longest / 2 <= min(waits) < max(waits) <= longest


def test_a_worker_that_leaves_costs_its_jobs_no_try() -> None:
    desk = Desk(limits=Limits(max_attempts=1))
    desk.joins("one")
    desk.submits()
    desk.joins("two")
    assert given(desk.says("one", result(RETRYABLE, message="worker draining"))) == [("r", 2, "two")]
    assert not given(desk.submits("other")) or desk.plane.jobs["other"].worker is desk.plane.workers["two"]


def test_the_jobs_of_a_lost_worker_wait_for_it_and_then_go_elsewhere() -> None:
    desk = Desk()
    desk.joins("one")
    desk.submits()
    desk.says("one", accepted())
    desk.leaves("one")
    desk.joins("two")
    assert not given(desk.waits(4.9))
    assert given(desk.waits(0.2)) == [("r", 2, "two")]
    assert "one" not in desk.plane.workers


def test_a_worker_that_comes_back_in_time_keeps_its_jobs() -> None:
    desk = Desk()
    desk.joins("one")
    desk.submits()
    desk.says("one", accepted())
    desk.leaves("one")
    desk.waits(4.0)
    assert not given(desk.joins("one", ("r", 1)))
    assert not given(desk.waits(60))
    assert ended(desk.says("one", result(OK)))


def test_a_worker_and_its_control_plane_agree_on_what_it_has() -> None:
    desk = Desk()
    desk.joins("one")
    desk.submits("kept")
    desk.submits("missing")
    desk.says("one", accepted("kept"))
    desk.leaves("one")
    actions = desk.joins("one", ("kept", 1), ("unknown", 1), ("missing", 7))
    assert said(actions) == [CancelJob(request_id="unknown", attempt=1), CancelJob(request_id="missing", attempt=7)]
    assert given(actions) == [("missing", 2, "one")]
    assert isinstance(actions[0], Acknowledge)


def test_a_job_that_kills_every_worker_is_not_tried_for_ever() -> None:
    desk = Desk()
    desk.submits()
    ends: list[Ending] = []
    for attempt in range(1, 5):
        assert given(desk.joins("one")) == [("r", attempt, "one")]
        desk.says("one", accepted("r", attempt))
        desk.leaves("one")
        ends = ended(desk.waits(6.0))
    assert [(end.status, end.code) for end in ends] == [("retryable", 503)]
    assert ends[0].safe_message == "its worker was lost; it failed 4 times"


def test_a_newer_stream_of_a_worker_ends_the_older_one() -> None:
    desk = Desk()
    desk.joins("one")
    desk.submits()
    desk.says("one", accepted())
    actions = desk.joins("one", ("r", 1))
    assert of(Close, actions) == [Close(1, "worker_stream_superseded")]
    assert not desk.happens(Said(1, result(OK), 7.0))
    assert not desk.happens(Left(1))
    assert ended(desk.says("one", result(OK)))


def test_another_version_of_the_protocol_is_refused() -> None:
    desk = Desk()
    actions = desk.joins("one", protocol_version=3)
    assert actions == [Close(1, "protocol_version_mismatch")]
    assert not desk.plane.workers


# --- cancel and drain -------------------------------------------------------------------------------------------------


def test_a_job_that_waits_is_canceled_at_once() -> None:
    desk = Desk()
    desk.submits()
    assert [end.code for end in ended(desk.happens(CancelAsked("r")))] == [499]
    assert not given(desk.joins("one"))
    assert not desk.happens(CancelAsked("r"))


def test_a_job_that_runs_is_canceled_by_its_worker() -> None:
    desk = Desk()
    desk.joins("one")
    desk.submits()
    assert said(desk.happens(CancelAsked("r"))) == [CancelJob(request_id="r", attempt=1)]
    assert not desk.happens(CancelAsked("r"))
    assert [end.status for end in ended(desk.says("one", result(CANCELED)))] == ["canceled"]


def test_a_worker_that_cannot_be_heard_just_now_is_not_taken_for_one_that_does_not_answer() -> None:
    desk = Desk()
    desk.joins("one")
    desk.submits()
    for _ in range(10):
        desk.now += 5.0
        assert not desk.happens(Ticked(deaf=True))
    assert [tell.kind for tell in of(Tell, desk.says("one", accepted()))] == ["accepted"]
    assert [end.status for end in ended(desk.says("one", result(OK)))] == ["ok"]


def test_a_job_that_ends_every_stream_that_it_is_sent_on_is_not_sent_for_ever() -> None:
    desk = Desk()
    desk.submits()
    runs = 0
    while desk.plane.jobs and runs < 100:
        desk.joins("one")
        runs += 1
        desk.leaves("one")
    assert 4 <= runs < 10


def test_a_canceled_job_is_not_tried_again() -> None:
    for happens in ("fails", "lost", "silent"):
        desk = Desk()
        desk.joins("one")
        desk.submits()
        desk.happens(CancelAsked("r"))
        if happens == "fails":
            actions = desk.says("one", result(RETRYABLE))
        elif happens == "lost":
            desk.leaves("one")
            actions = desk.waits(6.0)
        else:
            actions = desk.waits(60.0)
        assert [end.status for end in ended(actions)] == ["canceled"], happens


def test_a_worker_that_is_drained_gets_nothing_more() -> None:
    desk = Desk()
    desk.joins("one")
    assert said(desk.happens(DrainAsked("one", 500))) == [Drain(deadline_ms=500)]
    assert not given(desk.submits())
    assert given(desk.joins("one")) == [("r", 1, "one")]


# --- functions that cannot run ----------------------------------------------------------------------------------------


GATED = FnUnavailable(function_name="echo", reason="cuda_unavailable", detail="no GPU")
NOTHING = StateDelta(phase=WorkerPhase.READY)


def test_a_function_that_every_worker_refuses_is_not_waited_for() -> None:
    desk = Desk()
    desk.joins("one", state=NOTHING)
    assert not ended(desk.submits("before"))
    (end,) = ended(desk.says("one", GATED))
    assert (end.code, end.safe_message) == (424, "no worker can run `echo`: cuda_unavailable: no GPU")
    assert [end.code for end in ended(desk.submits("after"))] == [424]


def test_a_function_is_waited_for_while_a_worker_that_ran_it_may_come_back() -> None:
    desk = Desk()
    desk.joins("one", state=NOTHING)
    desk.says("one", GATED)
    desk.joins("two")
    desk.leaves("two")
    assert not ended(desk.waits(5.0)), "its grace is over, and it may still come back"
    assert not ended(desk.submits())
    assert given(desk.joins("two")) == [("r", 1, "two")]
    assert [end.status for end in ended(desk.says("two", result(OK)))] == ["ok"]
    desk.leaves("two")
    desk.waits(5.0)
    assert not ended(desk.submits("later"))
    assert [end.code for end in ended(desk.waits(30.0))] == [424], "it did not come back"


def test_after_a_restart_workers_have_time_to_come_back_before_a_function_counts_as_refused() -> None:
    desk = Desk()
    gather(desk.plane, desk.now)
    restore(desk.plane, Job(JobRequest(function="echo", request_id="r"), 1.0), "", desk.now)
    desk.joins("one", state=NOTHING)
    assert not ended(desk.says("one", GATED))
    assert not ended(desk.submits("new"))
    assert not ended(desk.waits(30.0))
    assert [end.code for end in ended(desk.waits(5.0))] == [424, 424], "none came"


def test_a_function_is_waited_for_while_some_worker_may_yet_run_it() -> None:
    desk = Desk()
    desk.joins("one", state=NOTHING)
    desk.joins("two", state=StateDelta(phase=WorkerPhase.BOOTING))
    desk.says("one", GATED)
    assert not ended(desk.submits())
    assert given(desk.says("two", READY)) == [("r", 1, "two")]


def test_a_function_that_comes_back_is_not_gated_any_more() -> None:
    desk = Desk()
    desk.joins("one")
    desk.says("one", GATED)
    desk.says("one", READY)
    assert given(desk.submits()) == [("r", 1, "one")]


def test_a_function_that_nobody_knows_is_waited_for() -> None:
    desk = Desk()
    desk.joins("one")
    assert not ended(desk.submits(function="later"))


# --- after a restart --------------------------------------------------------------------------------------------------


def test_after_a_restart_a_given_job_waits_for_its_worker() -> None:
    desk = Desk()
    restore(desk.plane, Job(JobRequest(function="echo", request_id="r"), 1.0, attempt=2, durable=2), "one", desk.now)
    assert not given(desk.joins("two"))
    assert not given(desk.joins("one", ("r", 2)))
    assert ended(desk.says("one", result(OK, 2)))


def test_after_a_restart_a_worker_that_does_not_come_back_loses_its_jobs() -> None:
    desk = Desk()
    restore(desk.plane, Job(JobRequest(function="echo", request_id="r"), 1.0), "one", desk.now)
    desk.joins("two")
    assert not given(desk.waits(34))
    assert given(desk.waits(2)) == [("r", 2, "two")]


# --- models -----------------------------------------------------------------------------------------------------------


def event(ref: str, state: ModelState, error: str = "") -> ModelEvent:
    return ModelEvent(ref=ref, state=state, error=error)


def test_models_that_functions_need_are_kept_and_fetched_ahead() -> None:
    desk = Desk(needs={"echo": ("o/a", "o/b"), "other": ("o/c",)})
    actions = desk.joins("one", models=(ModelResidency(ref="o/a", tier=ResidencyTier.DISK),))
    assert of(Acknowledge, actions) == [Acknowledge(1, ("o/a", "o/b"))]
    assert of(Prefetch, actions) == [Prefetch(1, "o/b")]


def test_urls_that_are_too_old_are_made_anew_a_few_times() -> None:
    desk = Desk()
    desk.joins("one")
    op = ModelOp(op=ModelOpKind.DOWNLOAD, ref="o/a")
    assert said(desk.happens(OpAsked("one", op))) == [op]
    expired = event("o/a", ModelState.FAILED, "url_expired")
    assert [said(desk.says("one", expired)) for _ in range(3)] == [[op], [op], []]


def test_a_load_that_has_no_room_sends_away_what_was_used_longest_ago() -> None:
    desk = Desk(needs={"echo": ("o/new",)})
    tiers = [ModelResidency(ref=ref, tier=ResidencyTier.VRAM) for ref in ("o/old", "o/new")]
    desk.joins("one", models=tuple(tiers))
    desk.submits()  # uses o/new
    load = ModelOp(op=ModelOpKind.LOAD, ref="o/big")
    desk.happens(OpAsked("one", load))
    oom = event("o/big", ModelState.FAILED, "oom")
    assert said(desk.says("one", oom)) == [ModelOp(op=ModelOpKind.UNLOAD, ref="o/old")]
    assert said(desk.says("one", event("o/old", ModelState.FAILED, "model_in_use"))) == [load]
    assert said(desk.says("one", oom)) == [ModelOp(op=ModelOpKind.UNLOAD, ref="o/new")]
    assert said(desk.says("one", event("o/new", ModelState.ON_DISK))) == [load]
    assert not said(desk.says("one", event("o/big", ModelState.IN_VRAM)))
    assert desk.plane.workers["one"].tier("o/new") is ResidencyTier.DISK


# --- how much at once -------------------------------------------------------------------------------------------------


def test_a_worker_is_given_more_at_once_only_where_jobs_do_not_wait_in_it() -> None:
    desk = Desk()
    desk.joins("one")
    worker = desk.plane.workers["one"]
    first = worker.limit
    for number in range(200):
        desk.submits(f"r{number}")
    for number in range(40):
        metrics = JobMetrics(runtime_ms=1)
        desk.says("one", JobResult(request_id=f"r{number}", attempt=1, status=OK, metrics=metrics))
    assert first < worker.limit <= 64
    for number in range(40, 140):
        metrics = JobMetrics(runtime_ms=300, queue_ms=900)
        desk.says("one", JobResult(request_id=f"r{number}", attempt=1, status=OK, metrics=metrics))
    assert worker.limit == first


# --- what no worker should say ----------------------------------------------------------------------------------------


NUMBERS = st.integers(-(2**63), 2**63 - 1)
TEXTS = st.sampled_from(["", "r", "echo", "o/a", "\0", "x" * 1000])
FRAMES = st.one_of(
    st.builds(Hello, worker_id=TEXTS),
    st.builds(StateDelta, phase=st.sampled_from(WorkerPhase), available_functions=st.tuples(TEXTS, TEXTS)),
    st.builds(JobAccepted, request_id=TEXTS, attempt=NUMBERS | st.just(1)),
    st.builds(
        JobResult,
        request_id=TEXTS,
        attempt=NUMBERS | st.just(1),
        status=st.sampled_from(JobStatus),
        metrics=st.none() | st.builds(JobMetrics, runtime_ms=NUMBERS, queue_ms=NUMBERS, concurrency_at_start=NUMBERS),
    ),
    st.builds(
        JobProgress,
        request_id=TEXTS,
        attempt=NUMBERS | st.just(1),
        seq=NUMBERS,
        body=st.binary(max_size=50) | st.just(b"[" * 100_000) | st.just(b'{"event":"log","value":[]}'),
        content_type=st.sampled_from(["", EVENT_TYPE]),
    ),
    st.builds(
        ModelEvent, ref=TEXTS, state=st.sampled_from(ModelState), error=st.sampled_from(["", "oom", "url_expired"])
    ),
    st.builds(FnUnavailable, function_name=TEXTS, reason=TEXTS),
)


@settings(max_examples=150, deadline=None)
@whatever(st.lists(FRAMES, max_size=10))
def test_whatever_a_worker_says_it_harms_nobody_else(frames: list[WorkerFrame]) -> None:
    desk = Desk()
    desk.joins("good")
    desk.submits("kept")
    desk.says("good", accepted("kept"))
    desk.joins("bad")
    desk.happens(OpAsked("bad", ModelOp(op=ModelOpKind.LOAD, ref="o/a")))
    desk.submits()
    for frame in frames:
        desk.says("bad", frame)
    desk.waits(100)
    assert desk.plane.jobs["kept"].worker is desk.plane.workers["good"]
    (end,) = ended(desk.says("good", result(OK, request_id="kept")))
    assert end.status == "ok"
    assert all(run_s >= 0 for run_s in desk.plane.runs.values())


@pytest.mark.promise(34)
def test_who_finds_the_queue_full_is_told_when_about_a_job_ends() -> None:
    desk = Desk()
    assert desk.plane.room_in_s() == 1.0, "nothing is known"
    desk.joins("a")
    desk.joins("b")
    desk.plane.ran("echo", 8.0)
    for number in range(20):
        desk.submits(f"r{number}")
    assert desk.plane.room_in_s() == 4.0, "two workers"
    desk.plane.runs["echo"] = 3600.0
    assert desk.plane.room_in_s() == 60.0
