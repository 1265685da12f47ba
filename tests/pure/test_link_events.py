"""An orchestrator learns how far a job is, and is not drowned in it."""

from hypothesis import given
from hypothesis.strategies import booleans, floats, lists, tuples

from gen_worker.wire.messages import Event
from gen_worker_supervisor.link.events import EVENTS_A_SECOND, Events


def progress(value: float) -> Event:
    return Event(1, "progress", b'{"progress":%g}' % value)


LINE = Event(1, "log", b'{"message":"m"}')


def test_an_event_goes_out_as_what_it_is() -> None:
    assert Events().offer(progress(0.5), 0.0) == b'{"event":"progress","value":{"progress":0.5}}'
    assert Events().offer(LINE, 0.0) == b'{"event":"log","value":{"message":"m"}}'


@given(lists(tuples(booleans(), floats(0.0, 0.3)), max_size=80))
def test_no_second_has_more_than_its_share(steps: list[tuple[bool, float]]) -> None:
    events, now = Events(), 0.0
    sent: list[float] = []
    for is_line, after in steps:
        now += after
        if events.due(now) is not None:
            sent.append(now)
        if events.offer(LINE if is_line else progress(now), now) is not None:
            sent.append(now)
    for first, later in zip(sent, sent[EVENTS_A_SECOND:], strict=False):
        assert later - first >= 1.0


def test_the_newest_progress_is_told_in_the_end() -> None:
    events = Events()
    for step in range(400):
        events.offer(progress(step), 0.0)
    assert events.waiting
    assert events.due(0.5) is None
    due = events.due(1.0)
    assert due is not None
    assert b"399" in due
    assert events.rest() is None


def test_progress_finds_room_beside_a_job_that_logs_all_the_time() -> None:
    events = Events()
    for _ in range(100):
        events.offer(LINE, 0.0)
    assert events.offer(progress(0.5), 0.0) is not None


def test_what_was_held_back_is_told_before_the_result() -> None:
    events = Events()
    for step in range(20):
        events.offer(progress(step), 0.0)
    rest = events.rest()
    assert rest is not None
    assert b"19" in rest
