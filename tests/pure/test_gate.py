"""Who is let in by a token, and who is shut out."""

import pytest

from gen_worker_supervisor.sockets.gate import KNOWN_ADDRESSES, SHUT_OUT_S, WRONG_A_SECOND, Gate


@pytest.mark.promise(41)
def test_only_the_very_token_admits() -> None:
    gate = Gate("hunter22")
    assert gate.admits("hunter22")
    assert not any(map(gate.admits, (None, "", "hunter2", "hunter222", "Hunter22", "hunter22\0", "\udcff")))


def test_a_token_of_any_characters_admits() -> None:
    assert Gate("schlüssel\udcff").admits("schlüssel\udcff")


@pytest.mark.promise(41)
def test_more_wrong_tokens_than_allowed_in_a_second_shut_an_address_out_for_a_second() -> None:
    gate = Gate("hunter22")
    for number in range(WRONG_A_SECOND):
        assert not gate.note_wrong("guesser", 10 + number / 10)
    assert not gate.is_shut("guesser", 10.5)
    assert gate.note_wrong("guesser", 10.9)
    assert gate.is_shut("guesser", 10.9)
    assert not gate.is_shut("another", 10.9)
    assert gate.is_shut("guesser", 10.9 + SHUT_OUT_S - 0.01)
    assert not gate.is_shut("guesser", 10.9 + SHUT_OUT_S)


def test_wrong_tokens_that_come_slowly_shut_nobody_out() -> None:
    gate = Gate("hunter22")
    for number in range(100):
        gate.note_wrong("clumsy", number * 0.25)
        assert not gate.is_shut("clumsy", number * 0.25)


def test_however_many_addresses_guess_few_are_remembered() -> None:
    gate = Gate("hunter22")
    for number in range(KNOWN_ADDRESSES * 2):
        for _ in range(WRONG_A_SECOND + 1):
            gate.note_wrong(f"host-{number}", 10.0)
    assert len(gate._wrong) <= KNOWN_ADDRESSES
    assert len(gate._shut_until) <= KNOWN_ADDRESSES
    assert gate.is_shut(f"host-{KNOWN_ADDRESSES * 2 - 1}", 10.5)
