"""What a client says and understands: any frames in any order end every job once, and only in typed errors."""

import fcntl
import gc
import os
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gen_worker import __version__
from gen_worker.client.conversation import Conversation, JobError, Question, RemoteJob
from gen_worker.rundir import SupervisorUnreachable
from gen_worker.wire import control
from gen_worker.wire.regions import OwnRegion

HELLO = control.Opened(control.CONTROL_PROTOCOL, "boot", 1, "9.9")
NAMES = ["a", "b", "c"]
names = st.sampled_from([*NAMES, "nobody", ""])
decode = msgspec.msgpack.Decoder(control.ClientFrame).decode


def said(talk: Conversation) -> list[Any]:
    """Take the frames that are to be sent."""
    frames = [decode(data) for data, _ in talk.outgoing]
    talk.outgoing.clear()
    return frames


def tell(talk: Conversation, frame: control.ServerFrame, descriptors: list[int] | None = None) -> Any:
    return talk.heard(memoryview(msgspec.msgpack.encode(frame)), descriptors or [])


def opened() -> Conversation:
    talk = Conversation("test")
    tell(talk, HELLO)
    said(talk)
    return talk


def submit(talk: Conversation, name: str = "a", **options: Any) -> RemoteJob:
    job = talk.submit(name, "echo", talk.outbox.pack({}), **options)
    said(talk)
    return job


# --- results and their acknowledgement --------------------------------------------------------------------------------


def test_a_result_is_acknowledged_when_it_is_taken_and_not_before() -> None:
    talk = opened()
    job = submit(talk)
    tell(talk, control.Accepted("a", 1))
    assert tell(talk, control.Result("a", 3, b"\x01")) is job
    assert job.ended
    assert said(talk) == []
    talk.taken(job)
    assert said(talk) == [control.Ack("a", 3)]
    talk.taken(job)
    assert said(talk) == []


def test_an_error_is_acknowledged_as_a_result_is_and_a_refusal_never() -> None:
    talk = opened()
    failed, refused = submit(talk, "a"), submit(talk, "b")
    tell(talk, control.Error("a", 1, "killed", "ended", False))
    tell(talk, control.Error("b", 0, "not_found", "no such function", False))
    talk.taken(failed)
    talk.taken(refused)
    assert said(talk) == [control.Ack("a", 1)]


def test_a_result_that_the_caller_cannot_use_stays_with_the_supervisor() -> None:
    talk = opened()
    job = submit(talk)
    tell(talk, control.Result("a", 1, b"\x01"))
    talk.spoil(job)
    assert said(talk) == []
    submit(talk, "a")


def test_what_comes_of_a_job_that_was_given_up_is_acknowledged_at_once() -> None:
    talk = opened()
    job = submit(talk)
    talk.abandon(job)
    talk.abandon(job)
    assert said(talk) == [control.Cancel("a")]
    tell(talk, control.Item("a", b"\x01"))
    tell(talk, control.Result("a", 1, b"\x01"))
    assert said(talk) == [control.Ack("a", 1)]
    assert not job.items
    assert isinstance(job.error, JobError)


def test_a_name_is_in_use_until_its_result_is_taken_or_dropped() -> None:
    talk = opened()
    job = submit(talk)
    with pytest.raises(ValueError, match="`a` has not ended yet"):
        submit(talk)
    tell(talk, control.Result("a", 1, b"\x01"))
    with pytest.raises(ValueError, match="nobody has taken"):
        submit(talk)
    talk.taken(job)
    job = submit(talk)
    tell(talk, control.Result("a", 1, b"\x01"))
    del job
    gc.collect()
    submit(talk)


def test_jobs_whose_callers_dropped_them_are_not_remembered_for_ever() -> None:
    talk = opened()
    for number in range(1000):
        submit(talk, f"job-{number}")
        tell(talk, control.Result(f"job-{number}", 1, b"\x01"))
    assert len(talk._untaken) < 200


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_request_that_cannot_be_sent_is_a_typed_error_and_leaves_nothing() -> None:
    talk = opened()
    with pytest.raises(JobError, match="300 characters, the limit is 256"):
        submit(talk, "r" * 300)
    with pytest.raises(JobError, match="the limit is 65536"):
        talk.submit("a", "f" * 70_000, talk.outbox.pack({}))
    assert said(talk) == []
    submit(talk, "a")


def test_a_supervisor_of_another_protocol_is_refused_with_both_versions_and_what_to_do() -> None:
    talk = Conversation("test")
    tell(talk, control.Opened(control.CONTROL_PROTOCOL + 1, "boot", 1, "9.9"))
    assert talk.broken is not None
    ours = control.CONTROL_PROTOCOL
    assert str(talk.broken) == (
        f"the supervisor (gen-worker 9.9) speaks control protocol {ours + 1}, "
        f"this client (gen-worker {__version__}) speaks {ours}"
    )
    assert talk.broken.hint == f"use the client of gen-worker 9.9, or serve with gen-worker {__version__}"
    assert talk.opening.error is not None


def test_a_refusal_that_is_of_no_job_ends_everything_with_its_reason() -> None:
    talk = opened()
    job, question = submit(talk), talk.ask(control.List(), control.Listed)
    tell(talk, control.Error("", 0, "usage", "not a frame", False))
    for errand in (job, question):
        assert isinstance(errand.error, SupervisorUnreachable)
        assert str(errand.error) == "the supervisor refuses this client: not a frame"
    with pytest.raises(SupervisorUnreachable, match="not a frame"):
        submit(talk, "b")
    assert talk.ask(control.List(), control.Listed).has_news()


def test_questions_of_one_kind_are_answered_in_their_order() -> None:
    talk = opened()
    first, second = (talk.ask(control.Kill("a"), control.Killed) for _ in range(2))
    other = talk.ask(control.Kill("b"), control.Killed)
    assert tell(talk, control.Killed("b", "finished")) is other
    assert tell(talk, control.Killed("a", "killed")) is first
    assert tell(talk, control.Killed("a", "not_found")) is second
    assert tell(talk, control.Killed("a", "not_found")) is None


# --- shared memory ----------------------------------------------------------------------------------------------------


def test_a_region_is_given_back_when_nobody_looks_at_it_also_when_nobody_ever_did() -> None:
    talk = opened()
    with OwnRegion.create(1 << 16, shared_with_readers_only=True) as region:
        job, other = submit(talk), submit(talk, "b")
        tell(talk, control.Result("a", 1, control.Attached(50_000, 7)), [os.dup(region.fd)])
        tell(talk, control.Item("nobody", control.Attached(50_000, 8)), [os.dup(region.fd)])
        talk.taken(other)
        assert said(talk) == [control.Release(8)]
        talk.taken(job)
        assert said(talk) == [control.Ack("a", 1), control.Release(7)]
    talk.end(SupervisorUnreachable("over"))


def test_bodies_that_nobody_reads_hold_few_regions() -> None:
    talk = opened()
    jobs = [submit(talk, f"job-{number}") for number in range(100)]
    with OwnRegion.create(1 << 16, shared_with_readers_only=True) as region:
        region.view[:1] = b"\x2a"
        for number in range(100):
            body = control.Attached(50_000, number + 1)
            tell(talk, control.Result(f"job-{number}", 1, body), [os.dup(region.fd)])
        assert all(job.body is not None and job.body[0] == 0x2A for job in jobs)
        talk.taken(jobs.pop())
        assert len([frame for frame in said(talk) if isinstance(frame, control.Release)]) == 68
    talk.end(SupervisorUnreachable("over"))


# --- anything in any order --------------------------------------------------------------------------------------------

bodies = st.binary(max_size=8) | st.builds(
    control.Attached, st.integers(-1, 70_000) | st.just(2**62), st.integers(0, 3) | st.just(2**63)
)
frames = st.one_of(
    st.just(HELLO),
    st.builds(control.Accepted, names, st.integers(0, 2)),
    st.builds(control.Item, names, bodies),
    st.builds(control.Event, names, st.sampled_from(["progress", "log"]), st.sampled_from([b"{}", b"[]", b"{", b""])),
    st.builds(control.Result, names, st.integers(0, 2), bodies, st.integers(-1, 3)),
    st.builds(
        control.Error,
        st.sampled_from([*NAMES, "nobody"]),
        st.integers(0, 2),
        st.just("killed"),
        st.text(),
        st.booleans(),
    ),
    st.builds(control.Canceled, names, st.booleans()),
    st.builds(control.Killed, names, st.sampled_from(["killed", "finished", "not_found", "ambiguous"])),
    st.builds(control.Listed, bodies),
)


class AnyOrder(RuleBasedStateMachine):
    """A caller who does anything, and a supervisor who says anything."""

    def __init__(self) -> None:
        super().__init__()
        self.talk = Conversation("test")
        self.jobs: list[RemoteJob] = []
        self.ends: dict[RemoteJob, Any] = {}
        self.questions: list[Question[Any]] = []
        self.acks: list[control.Ack] = []
        self.descriptors = len(os.listdir("/proc/self/fd"))

    @initialize()
    def open(self) -> None:
        tell(self.talk, HELLO)

    @rule(name=st.sampled_from(NAMES), stream=st.booleans(), events=st.booleans(), big=st.booleans())
    def submit(self, name: str, stream: bool, events: bool, big: bool) -> None:
        packed = self.talk.outbox.pack(bytes(60_000) if big else {})
        try:
            job = self.talk.submit(name, "echo", packed, stream=stream, events=events)
        except (ValueError, SupervisorUnreachable):
            self.talk.outbox.recycle(packed)
            return
        self.jobs.append(job)

    @rule(name=names)
    def ask(self, name: str) -> None:
        self.questions.append(self.talk.ask(control.Cancel(name), control.Canceled))
        self.questions.append(self.talk.ask(control.Kill(name), control.Killed))
        self.questions.append(self.talk.ask(control.List(), control.Listed))

    @rule(frame=frames, attached=st.sampled_from([None, None, 1 << 16, 4096, 0]))
    def hear(self, frame: control.ServerFrame, attached: int | None) -> None:
        descriptors = []
        if attached is not None:
            fd = os.memfd_create("test", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
            os.ftruncate(fd, attached)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            descriptors.append(fd)
        tell(self.talk, frame, descriptors)

    @rule(data=st.binary(max_size=40))
    def hear_rubbish(self, data: bytes) -> None:
        self.talk.heard(memoryview(data), [])

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), how=st.sampled_from(["taken", "spoil", "abandon", "more"]))
    def deal(self, data: st.DataObject, how: str) -> None:
        job = self.jobs[data.draw(st.integers(0, len(self.jobs) - 1))]  # hypothesis keeps what it draws
        match how:
            case "taken" if job.ended:
                self.talk.taken(job)
            case "spoil" if job.ended:
                self.talk.spoil(job)
            case "abandon":
                self.talk.abandon(job)
            case "more":
                self.talk.more(job, 1)

    @rule()
    def end(self) -> None:
        self.talk.end(SupervisorUnreachable("over"))

    @invariant()
    def what_is_said_can_be_read(self) -> None:
        self.acks += [frame for frame in said(self.talk) if isinstance(frame, control.Ack)]
        assert len(self.acks) <= sum(job.ended for job in self.jobs)

    @invariant()
    def an_end_does_not_change(self) -> None:
        for job in self.jobs:
            if job.ended and not job.unwanted:
                assert self.ends.setdefault(job, (job.error, job.yielded)) == (job.error, job.yielded)

    @invariant()
    def after_the_last_frame_nothing_is_open(self) -> None:
        if self.talk.broken is not None:
            assert all(job.ended for job in self.jobs)
            assert all(question.has_news() for question in self.questions)
            assert not self.talk.outgoing

    def teardown(self) -> None:
        self.talk.end(SupervisorUnreachable("over"))
        self.after_the_last_frame_nothing_is_open()
        self.jobs.clear()
        self.ends.clear()
        assert len(os.listdir("/proc/self/fd")) == self.descriptors


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_bytes_that_are_no_frame_break_the_conversation_and_raise_nothing(data: bytes) -> None:
    talk = opened()
    job = submit(talk)
    talk.heard(memoryview(data), [])
    assert talk.broken is None or job.ended
