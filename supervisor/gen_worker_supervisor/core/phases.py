"""The life cycles of children, devices and jobs, as tables.

The tables are also the diagrams of the documentation, and every change of a phase goes through `step`.
"""

from enum import StrEnum
from typing import TypeVar


class Phase(StrEnum):
    """Where a child is in its life."""

    FORKING = "forking"
    IMPORTING = "importing"
    READY = "ready"
    LOADING = "loading"
    BUSY = "busy"
    DRAINING = "draining"
    SUSPECT = "suspect"
    DYING = "dying"
    SETTLING = "settling"
    BACKOFF = "backoff"


class Health(StrEnum):
    """What a device is good for."""

    OK = "ok"
    DIRTY = "dirty"
    WEDGED = "wedged"
    RETIRED = "retired"


class JobState(StrEnum):
    """Where a job is in its life; the terminal states end it for good."""

    QUEUED = "queued"
    LEASED = "leased"
    STARTED = "started"
    EMITTED = "emitted"
    OK = "ok"
    INVALID = "invalid"
    FATAL = "fatal"
    RETRYABLE = "retryable"
    CANCELED = "canceled"


class ModelState(StrEnum):
    """Where a model is on its way to this host."""

    COLD = "cold"
    SEEKING = "seeking"
    QUEUED = "queued"
    FETCHING = "fetching"
    DISK = "disk"
    FAILED = "failed"


_LEAVING = {Phase.DRAINING, Phase.SUSPECT, Phase.DYING, Phase.SETTLING}

NEXT_PHASE: dict[Phase, set[Phase]] = {
    Phase.FORKING: {Phase.IMPORTING, *_LEAVING},
    Phase.IMPORTING: {Phase.READY, *_LEAVING},
    Phase.READY: {Phase.LOADING, Phase.BUSY, *_LEAVING},
    Phase.LOADING: {Phase.READY, Phase.BUSY, *_LEAVING},
    Phase.BUSY: {Phase.READY, Phase.LOADING, *_LEAVING},
    Phase.DRAINING: {Phase.SUSPECT, Phase.DYING, Phase.SETTLING},
    Phase.SUSPECT: {Phase.READY, Phase.BUSY, Phase.DRAINING, Phase.DYING, Phase.SETTLING},
    Phase.DYING: {Phase.SETTLING},
    Phase.SETTLING: {Phase.BACKOFF},
    Phase.BACKOFF: {Phase.FORKING},
}

NEXT_HEALTH: dict[Health, set[Health]] = {
    Health.OK: {Health.DIRTY, Health.WEDGED, Health.RETIRED},
    Health.DIRTY: {Health.OK, Health.WEDGED, Health.RETIRED},
    Health.WEDGED: {Health.OK, Health.DIRTY, Health.RETIRED},
    Health.RETIRED: set(),
}

ENDED = {JobState.OK, JobState.INVALID, JobState.FATAL, JobState.RETRYABLE, JobState.CANCELED}

NEXT_JOB: dict[JobState, set[JobState]] = {
    JobState.QUEUED: {JobState.LEASED, *ENDED},
    JobState.LEASED: {JobState.QUEUED, JobState.STARTED, *ENDED},
    JobState.STARTED: {JobState.QUEUED, JobState.EMITTED, *ENDED},
    JobState.EMITTED: ENDED,
    **{state: set() for state in ENDED},
}

NEXT_MODEL: dict[ModelState, set[ModelState]] = {
    ModelState.COLD: {ModelState.SEEKING},
    ModelState.SEEKING: {ModelState.DISK, ModelState.QUEUED, ModelState.FAILED},
    ModelState.QUEUED: {ModelState.FETCHING},
    ModelState.FETCHING: {ModelState.DISK, ModelState.QUEUED, ModelState.FAILED},
    ModelState.DISK: {ModelState.COLD},
    ModelState.FAILED: {ModelState.SEEKING},
}

State = TypeVar("State", Phase, Health, JobState, ModelState)


class ImpossibleStepError(Exception):
    """A life cycle was asked for a step its table does not have."""


def step(table: dict[State, set[State]], now: State, then: State) -> State:
    """Return `then`; raise `ImpossibleStepError` when the table has no such step."""
    if then not in table[now]:
        raise ImpossibleStepError(f"from {now} to {then}")
    return then
