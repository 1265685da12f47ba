"""When each rung of the ladder is due."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen_worker_supervisor.core.ladder import Ending, Reason, Rung

BEGAN = 100.0


def after(ending: Ending) -> list[tuple[float, Rung]]:
    """When each rung is due, from the start."""
    return [(round(at - BEGAN, 6), rung) for at, rung in ending.schedule()]


@pytest.mark.parametrize("reason", [Reason.KILL, Reason.DEADLINE])
def test_a_kill_and_a_deadline_leave_five_seconds_to_end_by_oneself(reason: Reason) -> None:
    assert after(Ending(reason, BEGAN)) == [
        (0.0, Rung.COOPERATE),
        (4.0, Rung.INTERRUPT),
        (5.0, Rung.DUMP),
        (5.3, Rung.TERMINATE),
        (6.3, Rung.KILL),
    ]


@pytest.mark.parametrize("reason", [Reason.CANCEL, Reason.DISCONNECT])
def test_a_cancel_leaves_thirty_seconds(reason: Reason) -> None:
    assert after(Ending(reason, BEGAN)) == [
        (0.0, Rung.COOPERATE),
        (29.0, Rung.INTERRUPT),
        (30.0, Rung.DUMP),
        (30.3, Rung.TERMINATE),
        (31.3, Rung.KILL),
    ]


def test_a_kill_at_once_leaves_time_for_a_stack_dump_only() -> None:
    ending = Ending(Reason.KILL, BEGAN, at_once=True)
    assert after(ending) == [(0.0, Rung.DUMP), (0.3, Rung.TERMINATE), (1.3, Rung.KILL)]


def test_each_rung_is_climbed_once_and_in_time() -> None:
    ending = Ending(Reason.KILL, BEGAN)
    assert ending.climb(BEGAN) == [Rung.COOPERATE]
    assert ending.climb(BEGAN + 3.9) == []
    assert ending.next_due() == BEGAN + 4.0
    assert ending.climb(BEGAN + 4.0) == [Rung.INTERRUPT]
    assert ending.climb(BEGAN + 9.0) == [Rung.DUMP, Rung.TERMINATE, Rung.KILL]
    assert ending.climb(BEGAN + 99.0) == []
    assert ending.next_due() is None


def test_an_operators_kill_hastens_a_cancel_and_gives_the_reason() -> None:
    ending = Ending(Reason.CANCEL, BEGAN)
    ending.climb(BEGAN)
    ending.hasten(Reason.KILL, BEGAN + 1, at_once=False)
    assert (ending.reason, ending.next_due()) == (Reason.KILL, BEGAN + 5.0)
    ending.hasten(Reason.KILL, BEGAN + 2, at_once=True)
    assert ending.climb(BEGAN + 2) == [Rung.DUMP]
    assert ending.next_due() == BEGAN + 2.3


def test_asking_for_a_kill_again_puts_nothing_off() -> None:
    ending = Ending(Reason.KILL, BEGAN, at_once=True)
    before = after(ending)
    ending.hasten(Reason.KILL, BEGAN + 0.2, at_once=False)
    ending.hasten(Reason.KILL, BEGAN + 0.2, at_once=True)
    assert after(ending) == before


def test_a_cancel_does_not_slow_a_deadline_down() -> None:
    ending = Ending(Reason.DEADLINE, BEGAN)
    ending.hasten(Reason.CANCEL, BEGAN + 1, at_once=False)
    assert ending.reason is Reason.DEADLINE
    assert ending.schedule() == Ending(Reason.DEADLINE, BEGAN).schedule()


def test_a_deadline_hastens_a_cancel() -> None:
    ending = Ending(Reason.CANCEL, BEGAN)
    ending.hasten(Reason.DEADLINE, BEGAN + 1, at_once=False)
    assert ending.schedule() == Ending(Reason.DEADLINE, BEGAN + 1).schedule()


@given(st.sampled_from(Reason), st.booleans(), st.lists(st.floats(0, 50), max_size=20))
def test_however_late_or_often_it_is_asked_no_rung_is_left_out_or_climbed_twice(
    reason: Reason, at_once: bool, times: list[float]
) -> None:
    ending = Ending(reason, BEGAN, at_once)
    climbed = [rung for at in sorted(times) for rung in ending.climb(BEGAN + at)]
    assert climbed == [rung for at, rung in ending.schedule() if times and at <= BEGAN + max(times)]
