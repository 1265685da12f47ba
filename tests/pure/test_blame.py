"""Who is to blame for dead children."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen_worker.wire.messages import FRAME_LIMIT
from gen_worker_supervisor.core.blame import BREAKER_PAYLOADS, HASHED_WHOLE, QUARANTINE_S, Blame, charges_told, digest
from gen_worker_supervisor.core.fates import backoff_s


def charge(blame: Blame, payload: bytes, *, now: float = 0.0, function: str = "f", times: int = 1) -> None:
    for _ in range(times):
        blame.charge(function, payload, now, deaths=1, cause="SIGSEGV", stack=["line 1"])


@pytest.mark.promise(2)
def test_a_payload_is_quarantined_when_it_has_killed_two_children() -> None:
    blame = Blame()
    charge(blame, b"p")
    assert blame.quarantined("f", b"p", 1.0) is None
    charge(blame, b"p")
    found = blame.quarantined("f", b"p", 1.0)
    assert found is not None
    assert (found.deaths, found.cause, found.stack) == (2, "SIGSEGV", ["line 1"])


def test_deaths_in_company_count_once_the_payload_has_died_alone() -> None:
    blame = Blame()
    blame.charge("f", b"p", 0.0, deaths=2, cause="SIGSEGV", stack=[])
    assert blame.quarantined("f", b"p", 1.0) is not None


def test_other_payloads_and_other_functions_are_not_quarantined_with_it() -> None:
    blame = Blame()
    charge(blame, b"p", times=2)
    assert blame.quarantined("f", b"q", 1.0) is None
    assert blame.quarantined("g", b"p", 1.0) is None
    assert blame.suspects("f", 0.0)
    assert not blame.suspects("g", 0.0)


def test_quarantine_passes() -> None:
    blame = Blame()
    charge(blame, b"p", times=2)
    assert blame.quarantined("f", b"p", QUARANTINE_S - 1) is not None
    assert blame.quarantined("f", b"p", QUARANTINE_S) is None
    assert not blame.suspects("f", 0.0)


def test_two_deaths_that_lie_far_apart_do_not_add_up() -> None:
    blame = Blame()
    charge(blame, b"p", now=0.0)
    charge(blame, b"p", now=QUARANTINE_S + 1)
    assert blame.quarantined("f", b"p", QUARANTINE_S + 2) is None


def test_a_success_clears_the_payload() -> None:
    blame = Blame()
    charge(blame, b"p")
    blame.clear("f", b"p")
    charge(blame, b"p")
    assert blame.quarantined("f", b"p", 1.0) is None


@pytest.mark.promise(2)
def test_a_function_is_stopped_when_five_different_payloads_of_it_have_killed() -> None:
    blame = Blame()
    for number in range(BREAKER_PAYLOADS):
        assert blame.breaker("f", 1.0) is None
        charge(blame, bytes([number]), now=float(number), times=2)
    assert BREAKER_PAYLOADS == 5
    assert blame.breaker("f", 5.0) == "5 different payloads of it killed children; refused for 595 s more"
    assert blame.breaker("g", 5.0) is None
    assert blame.breaker("f", QUARANTINE_S + 1) is None


def test_payloads_that_killed_once_stop_no_function() -> None:
    blame = Blame()
    for number in range(20):
        charge(blame, bytes([number]))
    assert blame.breaker("f", 1.0) is None


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_a_digest_tells_payloads_apart(one: bytes, other: bytes) -> None:
    assert (digest(one) == digest(other)) == (one == other)
    assert digest(memoryview(one)) == digest(one)


@pytest.mark.parametrize("at", [0, HASHED_WHOLE // 2, HASHED_WHOLE + 3000])
def test_a_very_long_payload_is_told_from_others_by_its_length_start_and_end(at: int) -> None:
    body = bytearray(HASHED_WHOLE + 4096)
    before = digest(memoryview(body))
    assert digest(bytes(len(body) + 1)) != before
    if at != HASHED_WHOLE // 2:  # in between it is only sampled
        body[at] = 1
        assert digest(memoryview(body)) != before


@pytest.mark.promise(3)
def test_the_pause_before_the_next_child_doubles_up_to_a_minute() -> None:
    assert [backoff_s(deaths, 0) for deaths in range(9)] == [0, 1, 2, 4, 8, 16, 32, 60, 60]


@given(st.integers(1, 10_000), st.integers(0, 10**9))
def test_the_pause_is_jittered_by_at_most_a_fifth(deaths: int, salt: int) -> None:
    whole = backoff_s(deaths, 0)
    assert 0.8 * whole <= backoff_s(deaths, salt) <= whole


@pytest.mark.promise(2)
def test_with_0_seconds_nothing_is_refused_and_a_suspect_is_known_all_the_same() -> None:
    blame = Blame(0.0)
    for number in range(2 * BREAKER_PAYLOADS):
        charge(blame, bytes([number]), times=3)
    assert blame.quarantined("f", bytes([0]), 1.0) is None
    assert blame.breaker("f", 1.0) is None
    assert blame.refused(1.0) == 0
    assert blame.suspected("f", bytes([0]), 1.0)


def test_a_charge_stands_as_long_as_was_said() -> None:
    blame = Blame(60.0)
    charge(blame, b"p", times=2)
    assert blame.quarantined("f", b"p", 59.0) is not None
    assert blame.quarantined("f", b"p", 60.0) is None


def test_what_an_operator_is_told_fits_a_frame_the_latest_first() -> None:
    blame = Blame()
    stack = ["x" * 400] * 20
    for number in range(1000):
        digest_ = number.to_bytes(16, "big")
        blame.charge(
            "f" * 100, digest_, float(number), deaths=2, cause="secret " * 99, stack=stack, postmortem="p" * 60
        )
    for number in range(BREAKER_PAYLOADS * 200):
        charge(blame, number.to_bytes(2, "big"), function=f"{number % 200:0100d}", times=2, now=900.0)
    functions = [f"{number:0100d}" for number in range(200)]
    told = charges_told(blame, functions, lambda text: text.replace("secret", "***"), 1000.0)
    assert len(msgspec.msgpack.encode(told)) <= FRAME_LIMIT
    assert told.charges[0].digest == (999).to_bytes(16, "big").hex()
    assert told.charges[0].stack
    assert "secret" not in told.charges[0].cause
    assert len(told.charges) + told.left_out == len(blame.listed(1000.0))
