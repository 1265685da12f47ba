"""After every end of a connection the link knows where to dial next, and when, or that there is no use."""

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen_worker_supervisor.link.dialing import ACK_S, HOPS, LONGEST_PAUSE_S, STEADY_S, Dial, Dialing, Ended, Fatal
from gen_worker_supervisor.link.target import Target

A, B, C = Target("a", 1, False), Target("b", 2, True), Target("c", 3, False)
REFUSED = Ended("UNAVAILABLE", "connection refused")
STRANGER = Ended("UNAUTHENTICATED", "expired")


def longest(_low: float, high: float) -> float:
    """Draw the longest pause there may be."""
    return high


def dialing(*targets: Target, timeout_s: float = 600.0, chance: Callable[[float, float], float] = longest) -> Dialing:
    return Dialing(targets or (A,), chance, disconnected_timeout_s=timeout_s, now=0.0)


def dial(after: Dial | Fatal) -> Dial:
    """It must not be the end."""
    assert isinstance(after, Dial), after
    return after


def lost(lived_s: float) -> Ended:
    """A connection that was there for so long."""
    return Ended("UNAVAILABLE", "reset", lived_s=lived_s, acknowledged=True)


def leader(address: str) -> Ended:
    """A redirect."""
    return Ended("FAILED_PRECONDITION", f"not_leader:{address}")


def test_the_first_dial_is_at_once() -> None:
    assert dialing(A, B).first() == Dial(A, 0.0)


@pytest.mark.promise(15)
def test_pauses_double_up_to_half_a_minute() -> None:
    link = dialing()
    assert [dial(link.ended(REFUSED, 0.0)).after_s for _ in range(8)] == [1, 2, 4, 8, 16, 30, 30, 30]


@pytest.mark.promise(15)
def test_pauses_have_full_jitter() -> None:
    drawn: list[tuple[float, float]] = []

    def quarter(low: float, high: float) -> float:
        drawn.append((low, high))
        return 0.25

    link = dialing(chance=quarter)
    assert dial(link.ended(REFUSED, 0.0)).after_s == 0.25
    assert drawn == [(0.0, 1.0)]


def test_pauses_begin_again_after_a_connection_that_lived_for_a_minute() -> None:
    link = dialing()
    for _ in range(4):
        link.ended(REFUSED, 0.0)
    link.acknowledged(2)
    assert dial(link.ended(lost(59.0), 100.0)).after_s == 16
    link.acknowledged(2)
    assert dial(link.ended(lost(60.0), 200.0)).after_s == 1


def test_a_failed_attempt_moves_on_to_the_next_address() -> None:
    link = dialing(A, B, C)
    assert [dial(link.ended(REFUSED, 0.0)).target for _ in range(4)] == [B, C, A, B]


def test_a_lost_connection_is_dialed_again_first() -> None:
    link = dialing(A, B)
    link.ended(REFUSED, 0.0)
    link.acknowledged(2)
    assert dial(link.ended(lost(5.0), 10.0)).target == B
    assert dial(link.ended(REFUSED, 11.0)).target == A


def test_redirects_are_followed_at_once_three_times_in_a_row() -> None:
    link = dialing(A)
    hops = [dial(link.ended(leader(f"l{n}:9"), 0.0)) for n in range(HOPS + 1)]
    assert hops[:HOPS] == [Dial(Target(f"l{n}", 9, False), 0.0, redirect=True) for n in range(HOPS)]
    assert hops[HOPS] == Dial(A, 1.0)
    assert dial(link.ended(leader("l9:9"), 1.0)).redirect


def test_a_redirect_keeps_tls() -> None:
    link = dialing(B)
    assert dial(link.ended(leader("l:9"), 0.0)).target == Target("l", 9, True)
    assert dial(link.ended(leader("grpc://l:9"), 0.0)).target == Target("l", 9, False)
    assert dial(link.ended(leader("m:9"), 0.0)).target == Target("m", 9, False)


def test_a_connection_that_lived_refreshes_the_hops() -> None:
    link = dialing(A)
    for _ in range(HOPS):
        link.ended(leader("l:9"), 0.0)
    link.acknowledged(2)
    assert dial(link.ended(Ended("FAILED_PRECONDITION", "not_leader:m:9", 1.0, True), 1.0)).redirect


def test_two_orchestrators_that_name_each_other_are_not_dialed_without_a_pause() -> None:
    link = dialing(A)
    pauses = []
    for number in range(3 * HOPS):
        link.acknowledged(2)
        pauses.append(dial(link.ended(Ended("FAILED_PRECONDITION", "not_leader:b:9", 0.01, True), number)).after_s)
    assert sum(pause > 0 for pause in pauses) >= 2


def test_a_redirect_to_nowhere_is_an_end_like_any_other() -> None:
    assert dialing(A).ended(leader(""), 0.0) == Dial(A, 1.0)


@pytest.mark.parametrize(
    "words",
    ["protocol_version_mismatch", "worker_id_mismatch: w1", "release_id_mismatch", "refused: missing worker identity"],
)
def test_what_no_other_try_would_mend_is_fatal(words: str) -> None:
    fatal = dialing().ended(Ended("FAILED_PRECONDITION", words), 0.0)
    assert isinstance(fatal, Fatal)
    assert fatal.message
    assert fatal.hint
    assert isinstance(dialing().ended(Ended("UNAVAILABLE", words), 0.0), Dial)


@pytest.mark.promise(19)
def test_another_version_in_the_acknowledgment_is_fatal() -> None:
    assert isinstance(dialing().acknowledged(3), Fatal)
    assert isinstance(dialing().acknowledged(0), Fatal)
    assert dialing().acknowledged(2) is None


def test_a_token_that_is_refused_for_a_minute_is_fatal() -> None:
    link = dialing()
    for now in (0.0, 1.0, 3.0, 59.9):
        assert isinstance(link.ended(STRANGER, now), Dial)
    fatal = link.ended(STRANGER, 60.0)
    assert isinstance(fatal, Fatal)
    assert "WORKER_JWT" in fatal.hint


def test_two_refusals_are_not_enough_however_far_apart() -> None:
    link = dialing()
    link.ended(STRANGER, 0.0)
    assert isinstance(link.ended(STRANGER, 100.0), Dial)
    assert isinstance(link.ended(STRANGER, 101.0), Fatal)


@pytest.mark.parametrize("mends", [lambda link: link.acknowledged(2), Dialing.refreshed])
def test_an_acknowledgment_or_a_new_token_ends_the_count_of_refusals(mends: Callable[[Dialing], object]) -> None:
    link = dialing()
    link.ended(STRANGER, 0.0)
    link.ended(STRANGER, 30.0)
    mends(link)
    assert isinstance(link.ended(STRANGER, 70.0), Dial)
    assert isinstance(link.ended(STRANGER, 80.0), Dial)


def test_refusals_count_only_in_a_row_but_nobody_there_says_nothing_of_the_token() -> None:
    link = dialing()
    for end in (STRANGER, REFUSED, STRANGER):
        link.ended(end, 0.0)
    assert isinstance(link.ended(STRANGER, 60.0), Fatal)
    link = dialing()
    for end in (STRANGER, Ended("INTERNAL"), STRANGER):
        link.ended(end, 0.0)
    assert isinstance(link.ended(STRANGER, 60.0), Dial)


def test_without_an_orchestrator_for_too_long_the_link_gives_up() -> None:
    link = dialing(timeout_s=10.0)
    assert link.ack_within_s(0.0) == 10.0
    assert dial(link.ended(REFUSED, 9.5)).after_s == 0.5
    assert link.given_up(9.9) is None
    fatal = link.given_up(10.0)
    assert link.ended(REFUSED, 10.0) == fatal
    assert isinstance(fatal, Fatal)
    assert "10 s" in fatal.message
    assert "connection refused" in fatal.message


def test_only_the_time_without_a_connection_counts() -> None:
    link = dialing(timeout_s=10.0)
    link.acknowledged(2)
    assert link.ack_within_s(500.0) == ACK_S
    assert isinstance(link.ended(lost(500.0), 500.0), Dial)
    assert isinstance(link.ended(REFUSED, 509.0), Dial)
    assert isinstance(link.ended(REFUSED, 510.0), Fatal)


def test_a_timeout_of_0_never_gives_up() -> None:
    link = dialing(timeout_s=0.0)
    assert isinstance(link.ended(REFUSED, 1e9), Dial)
    assert link.ack_within_s(1e9) == ACK_S


def test_an_orchestrator_whose_last_word_was_lost_is_asked_again_at_once_and_once() -> None:
    link = Dialing((A,), lambda low, high: high, disconnected_timeout_s=0.0, now=0.0)
    link.acknowledged(2)
    lost = Ended("INTERNAL", "Internal error from Core", 1.0, acknowledged=True)
    assert link.ended(lost, 1.0) == Dial(A)
    link.acknowledged(2)
    again = link.ended(lost, 2.0)
    assert isinstance(again, Dial)
    assert again.after_s > 0


ENDS = st.one_of(
    st.sampled_from([REFUSED, STRANGER, lost(1.0), lost(90.0), leader("l:9"), leader("m:9"), leader("")]),
    st.builds(Ended, st.sampled_from(["INTERNAL", "ABORTED", "OK", "DEADLINE_EXCEEDED"]), st.text(max_size=20)),
)


@given(
    st.lists(st.tuples(ENDS, st.floats(0.0, 40.0))), st.sampled_from([0.0, 300.0]), st.randoms(use_true_random=False)
)
def test_whatever_happens_there_is_a_place_and_a_time_or_an_end(
    ends: list[tuple[Ended, float]], timeout_s: float, random: Random
) -> None:
    """Pauses are bounded, redirects too, and nobody dials past the time at which the link gives up."""
    link = Dialing((A, B), random.uniform, disconnected_timeout_s=timeout_s, now=0.0)
    now, alone_since, hops = 0.0, 0.0, 0
    for end, took_s in ends:
        now += took_s
        if end.acknowledged:
            link.acknowledged(2)
            alone_since = now
            hops = 0 if end.lived_s >= STEADY_S else hops
        after = link.ended(end, now)
        if isinstance(after, Fatal):
            overdue = timeout_s and now - alone_since >= timeout_s - 1e-6
            assert overdue or end.status == "UNAUTHENTICATED"
            return
        assert 0.0 <= after.after_s <= LONGEST_PAUSE_S
        hops = hops + 1 if after.redirect else 0  # a pause may be of no time at all
        assert hops <= HOPS
        assert after.redirect or after.target in (A, B)
        now += after.after_s
        assert not timeout_s or now <= alone_since + timeout_s + 1e-6
        assert link.ack_within_s(now) <= ACK_S
