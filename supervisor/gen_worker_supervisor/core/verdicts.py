"""What a failed load means for its function: a table."""

from collections.abc import Mapping
from math import inf
from typing import NamedTuple

from gen_worker.wire.messages import ErrorKind, LoadFailure

LOAD_TRIES = 3
UNAVAILABLE_S = 30.0
INSUFFICIENT_DISK = "insufficient_disk"


class Verdict(NamedTuple):
    """What a failed load means: for whom it is tried again when, and what the jobs that wait are told."""

    kind: ErrorKind = "unavailable"
    retryable: bool = True
    tries: int = LOAD_TRIES
    lasts_s: float = UNAVAILABLE_S  # after that the next job of the function tries once more
    of_device: bool = False  # another device may well load it
    exit_code: int = 1  # of a server that was to load everything before it is ready
    hint: str = ""
    reason: str = "setup_failed"  # in one word, for an orchestrator
    axes: Mapping[str, str] = {}  # what was found and what is needed


SETUP_FAILED = Verdict()
NO_ROOM = Verdict(tries=1, of_device=True)
_VERDICTS: dict[LoadFailure, Verdict] = {
    "setup": SETUP_FAILED,
    "model": Verdict("model_resolution", retryable=False, tries=1, exit_code=3, reason="model_unavailable"),
    "out_of_memory": Verdict("out_of_memory", tries=1, of_device=True, reason="out_of_memory"),
    "hardware": Verdict(tries=1, lasts_s=inf, of_device=True),
}


def verdict_of(kind: LoadFailure, reason: str, hint: str, axes: Mapping[str, str]) -> Verdict:
    """Return what a failure means; a device or disk without room may have some later, a GPU too old stays so."""
    verdict = NO_ROOM if reason in ("insufficient_vram", INSUFFICIENT_DISK) else _VERDICTS[kind]
    return verdict._replace(hint=hint, reason=reason or verdict.reason, axes=axes)
