"""What waits for the orchestrator is bounded, stays in order, and loses the least that it can."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen_worker.wire.scheduler import (
    EVENT_TYPE,
    FnUnavailable,
    JobAccepted,
    JobProgress,
    JobResult,
    JobStatus,
    ModelEvent,
    ModelState,
    StateDelta,
    WorkerFrame,
)
from gen_worker_supervisor.link.outbox import Outbox

BOUND = 4


def chunk(seq: int, body: bytes = b"x") -> JobProgress:
    """A piece of a stream."""
    return JobProgress(request_id="r", attempt=1, seq=seq, body=body, content_type="application/json")


def event(seq: int) -> JobProgress:
    """How far a job is."""
    return JobProgress(request_id="r", attempt=1, seq=seq, body=b"{}", content_type=EVENT_TYPE)


def accepted(name: str = "r") -> JobAccepted:
    return JobAccepted(request_id=name, attempt=1)


def result(name: str = "r") -> JobResult:
    return JobResult(request_id=name, attempt=1, status=JobStatus.OK)


def downloading(done: int, ref: str = "a/b") -> ModelEvent:
    return ModelEvent(ref=ref, state=ModelState.DOWNLOADING, bytes_done=done)


def filled(*frames: WorkerFrame, bound: int = BOUND) -> Outbox:
    """An outbox that has been given these; nothing may have been dropped."""
    outbox = Outbox(bound)
    for frame in frames:
        assert outbox.put(frame) == []
    return outbox


def content(outbox: Outbox) -> list[WorkerFrame]:
    """Everything that would be written."""
    return list(content_one_by_one(outbox))


def content_one_by_one(outbox: Outbox) -> Iterator[WorkerFrame]:
    """Take everything, and look at each step."""
    while (frame := outbox.pop()) is not None:
        yield frame


def test_messages_leave_in_the_order_in_which_they_came() -> None:
    frames: list[WorkerFrame] = [accepted(), chunk(1), event(2), result()]
    assert content(filled(*frames)) == frames


@pytest.mark.promise(12)
def test_when_it_is_full_the_oldest_progress_goes_what_a_job_says_before_what_it_makes() -> None:
    outbox = filled(chunk(1), event(2), chunk(3), event(4))
    assert outbox.put(chunk(5)) == [event(2)]
    assert outbox.put(accepted()) == [event(4)]
    assert outbox.put(chunk(6)) == [chunk(1)]
    assert content(outbox) == [chunk(3), chunk(5), accepted(), chunk(6)]


def test_new_progress_goes_itself_where_there_is_none_to_drop() -> None:
    outbox = filled(*(accepted(str(n)) for n in range(BOUND)))
    assert outbox.put(chunk(1)) == [chunk(1)]
    assert outbox.full


def test_everything_else_is_kept_and_says_that_there_is_too_much_of_it() -> None:
    outbox = filled(*(accepted(str(n)) for n in range(BOUND - 1)))
    assert not outbox.full
    outbox.put(accepted("last"))
    assert outbox.put(FnUnavailable(function_name="f", reason="no")) == []
    assert [outbox.full for _ in content_one_by_one(outbox)] == [True, False, False, False, False]


def test_progress_alone_never_holds_the_orchestrator_back() -> None:
    outbox = filled(*(chunk(n) for n in range(BOUND)))
    assert not outbox.full


@pytest.mark.promise(12)
def test_results_are_always_kept_and_take_no_room() -> None:
    outbox = filled(*(result(str(n)) for n in range(3 * BOUND)))
    assert len(outbox) == 3 * BOUND
    assert outbox.put(chunk(1)) == []
    assert not outbox.full


def test_a_newer_state_replaces_the_one_that_waits() -> None:
    outbox = filled(StateDelta(free_vram_bytes=1), accepted(), StateDelta(free_vram_bytes=2))
    assert content(outbox) == [accepted(), StateDelta(free_vram_bytes=2)]
    assert outbox.put(StateDelta(free_vram_bytes=3)) == []
    assert content(outbox) == [StateDelta(free_vram_bytes=3)]


def test_a_download_s_progress_replaces_only_its_own() -> None:
    done = ModelEvent(ref="a/b", state=ModelState.ON_DISK)
    outbox = filled(downloading(1), downloading(1, "c/d"), downloading(2), done)
    assert content(outbox) == [downloading(1, "c/d"), downloading(2), done]


def test_progress_is_bounded_by_its_size_too() -> None:
    outbox = Outbox(progress_bytes=10)
    assert outbox.put(chunk(1, b"x" * 6)) == []
    assert outbox.put(chunk(2, b"x" * 4)) == []
    assert outbox.put(chunk(3, b"x")) == [chunk(1, b"x" * 6)]
    assert outbox.put(chunk(4, b"x" * 20)) == [chunk(2, b"x" * 4), chunk(3, b"x")]
    assert outbox.put(result()) == []


def test_what_is_left_at_the_end_of_a_connection_is_given_back() -> None:
    frames: list[WorkerFrame] = [accepted(), chunk(1), StateDelta(), result()]
    outbox = filled(*frames)
    assert outbox.clear() == frames
    assert len(outbox) == 0
    assert outbox.pop() is None
    assert filled(*frames, bound=2000).clear() == frames


FRAMES = st.one_of(
    st.builds(chunk, st.integers(1, 9), st.binary(max_size=8)),
    st.builds(event, st.integers(1, 9)),
    st.builds(accepted, st.text("ab", max_size=2)),
    st.builds(result, st.text("ab", max_size=2)),
    st.builds(downloading, st.integers(0, 9), st.sampled_from(["a/b", "c/d"])),
    st.builds(StateDelta, free_vram_bytes=st.integers(0, 9)),
)


@given(st.lists(FRAMES | st.none()))
def test_nothing_is_lost_without_being_told_but_what_is_replaced(moves: list[WorkerFrame | None]) -> None:
    """And no more than the bound waits unless it says that it is full."""
    outbox = Outbox(BOUND, progress_bytes=16)
    put: list[int] = []
    gone: list[int] = []
    frames: list[WorkerFrame] = []  # kept, so that every id stays its own
    for frame in moves:
        if frame is None:
            popped = outbox.pop()
            gone += [] if popped is None else [id(popped)]
            continue
        frames.append(frame)
        put.append(id(frame))
        dropped = outbox.put(frame)
        assert not any(isinstance(each, JobResult) for each in dropped)
        gone += map(id, dropped)
        assert outbox.full or sum(not isinstance(each, JobResult) for each in outbox._waiting.values()) <= BOUND
    gone += map(id, outbox.clear())
    assert len(gone) == len(set(gone))
    by_id = {id(frame): frame for frame in frames}
    replaced = [by_id[each] for each in set(put) - set(gone)]
    assert all(isinstance(frame, StateDelta | ModelEvent) for frame in replaced)
