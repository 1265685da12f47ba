"""The life cycles are tables; these tests walk them."""

from typing import Any

import pytest

from gen_worker_supervisor.core.phases import (
    ENDED,
    NEXT_HEALTH,
    NEXT_JOB,
    NEXT_PHASE,
    Health,
    ImpossibleStepError,
    JobState,
    Phase,
    step,
)

TABLES = [NEXT_PHASE, NEXT_HEALTH, NEXT_JOB]


def reachable(table: dict[Any, set[Any]], start: Any) -> set[Any]:
    found = {start}
    while more := set().union(*(table[state] for state in found)) - found:
        found |= more
    return found


@pytest.mark.parametrize(
    ("table", "start"), [(NEXT_PHASE, Phase.FORKING), (NEXT_HEALTH, Health.OK), (NEXT_JOB, JobState.QUEUED)]
)
def test_every_state_has_a_row_and_is_reached(table: dict[Any, set[Any]], start: Any) -> None:
    assert set(table) == set(type(start).__members__.values()) == reachable(table, start)


@pytest.mark.parametrize("table", TABLES)
def test_only_the_steps_of_the_table_are_taken(table: dict[Any, set[Any]]) -> None:
    for now, allowed in table.items():
        for then in table:
            if then in allowed:
                assert step(table, now, then) is then
            else:
                with pytest.raises(ImpossibleStepError, match=f"from {now} to {then}"):
                    step(table, now, then)


def test_a_job_that_has_ended_never_goes_on() -> None:
    assert all(NEXT_JOB[state] == set() for state in ENDED)


def test_a_job_that_has_emitted_is_never_queued_again() -> None:
    assert NEXT_JOB[JobState.EMITTED] == ENDED


def test_a_retired_device_stays_retired() -> None:
    assert reachable(NEXT_HEALTH, Health.RETIRED) == {Health.RETIRED}


@pytest.mark.parametrize("phase", sorted(set(Phase) - {Phase.DYING, Phase.SETTLING, Phase.BACKOFF}))
def test_a_living_child_can_be_killed_at_any_time(phase: Phase) -> None:
    assert Phase.DYING in NEXT_PHASE[phase]


@pytest.mark.parametrize("phase", sorted(set(Phase) - {Phase.SETTLING, Phase.BACKOFF}))
def test_a_living_child_can_die_at_any_time_and_its_device_gets_another(phase: Phase) -> None:
    assert Phase.SETTLING in NEXT_PHASE[phase]
    assert NEXT_PHASE[Phase.SETTLING] == {Phase.BACKOFF}
    assert NEXT_PHASE[Phase.BACKOFF] == {Phase.FORKING}
