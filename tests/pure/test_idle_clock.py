"""When a server has had nothing to do for long enough."""

from gen_worker_supervisor.idle import IdleClock


def test_the_clock_starts_with_the_server() -> None:
    clock = IdleClock(10, now=100)
    assert not clock.has_passed(requests=0, live=0, now=109.9)
    assert clock.has_passed(requests=0, live=0, now=110)


def test_a_request_that_came_and_went_between_two_looks_starts_it_again() -> None:
    clock = IdleClock(10, now=100)
    assert not clock.has_passed(requests=1, live=0, now=109)
    assert not clock.has_passed(requests=1, live=0, now=118)
    assert clock.has_passed(requests=1, live=0, now=119)


def test_a_request_that_waits_or_runs_is_no_idleness_however_long() -> None:
    clock = IdleClock(10, now=100)
    for now in range(101, 1000):
        assert not clock.has_passed(requests=1, live=1, now=now)
    assert not clock.has_passed(requests=1, live=0, now=1008)
    assert clock.has_passed(requests=1, live=0, now=1009)


def test_it_is_looked_at_often_enough_to_be_a_tenth_late_at_most() -> None:
    assert IdleClock(0.5, now=0).look_every_s <= 0.05
    assert IdleClock(3600, now=0).look_every_s <= 1
