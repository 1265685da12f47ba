"""The answers that jobs get when they do not end well, in words and in kinds.

Pure: a value in, an `Outcome` out.
"""

from math import isfinite
from typing import Literal, assert_never

from gen_worker.wire.fetching import FetchFailed
from gen_worker.wire.messages import Body, ErrorDetail, ErrorKind, Region
from gen_worker_supervisor.core.blame import Charge
from gen_worker_supervisor.core.ladder import Ending, Reason, Rung
from gen_worker_supervisor.core.phases import JobState
from gen_worker_supervisor.core.state import Death, Function, Job, Outcome

PRINTED_CHARS = 400  # of each line of a job's last words that its client is told, so that they fit a frame
STATE_OF: dict[ErrorKind, JobState] = {
    "usage": JobState.INVALID,
    "not_found": JobState.INVALID,
    "invalid": JobState.INVALID,
    "canceled": JobState.CANCELED,
    "killed": JobState.CANCELED,
    "retryable": JobState.RETRYABLE,
    "out_of_memory": JobState.RETRYABLE,
    "busy": JobState.RETRYABLE,
    "draining": JobState.RETRYABLE,
    "unavailable": JobState.RETRYABLE,
}


def failure(
    kind: ErrorKind, message: str, *, retryable: bool = False, run_s: float = 0.0, detail: ErrorDetail | None = None
) -> Outcome:
    """Return the outcome of a job that ended badly."""
    state = STATE_OF.get(kind, JobState.RETRYABLE if retryable else JobState.FATAL)
    return Outcome(state, kind=kind, message=message, retryable=retryable, run_s=run_s, detail=detail)


def refused(function: Function, now: float) -> Outcome:
    """Return the outcome of a job of a function that is not available for now."""
    verdict, left_s = function.verdict, function.available_at - now
    again = f"; tried again in {left_s:.0f} s" if verdict.retryable and isfinite(left_s) else ""
    detail = ErrorDetail(stack=list(function.stack) or None, hint=verdict.hint or None)
    text = f"`{function.name}` is unavailable: {function.unavailable}{again}"
    return failure(verdict.kind, text, retryable=verdict.retryable, detail=detail)


def draining() -> Outcome:
    """Return the outcome of a job that a supervisor on its way out cannot run."""
    return failure("draining", "the worker is shutting down", retryable=True)


def body_length(body: Body) -> int:
    """Return the length of a body wherever it lies."""
    return body.length if isinstance(body, Region) else len(body)


def too_large(what: Literal["input", "output"], length: int, limit: int) -> Outcome:
    """Return the outcome of a payload or output over its limit."""
    variable = f"WORKER_MAX_{what.upper()}_BYTES"
    return failure("invalid", f"the {what} has {length} bytes, the limit is {limit} (`{variable}`)")


def unresolved(function: Function, refused: FetchFailed) -> Outcome:
    """Return the outcome of a job whose model cannot be had."""
    detail = ErrorDetail(cause=refused.kind, hint=refused.hint or None)
    text = f"`{function.name}` cannot run: {refused.message}"
    return failure("model_resolution", text, retryable=refused.retryable, detail=detail)


def quarantine(job: Job, charge: Charge, now: float) -> Outcome:
    """Return the outcome of a job whose payload is quarantined."""
    text = f"this payload of `{job.function.name}` has killed {charge.deaths} children: {charge.cause}"
    text += f"; it is refused for {charge.until - now:.0f} s more"
    return failure(
        "quarantined",
        text,
        detail=ErrorDetail(cause=charge.cause, stack=charge.stack or None, postmortem=charge.postmortem or None),
    )


def death_detail(death: Death, job: Job) -> ErrorDetail:
    """Return what a job's client is told of its child's death; of all that was printed, what the job printed itself."""
    printed = [line[:PRINTED_CHARS] for number, line in death.printed if number == job.number]
    return ErrorDetail(
        cause=death.cause,
        signal=death.signal,
        exit_code=death.exit_code,
        stack=list(death.stack) or None,
        stderr=printed or None,
        postmortem=(job.child.postmortem or None) if job.child is not None else None,
    )


def ended_outcome(job: Job, death: Death | None) -> Outcome:
    """Return the answer of a job that somebody wanted ended: what was climbed of the ladder, and where the job was."""
    ending = job.ending
    assert ending is not None
    detail = ErrorDetail() if death is None else death_detail(death, job)
    detail.cause = _CAUSES.get(ending.reason, str(ending.reason))
    detail.rung, detail.rungs = int(ending.rung) or None, list(ending.climbed) or None
    detail.stack, detail.hang = detail.stack or ending.stack or None, ending.hang or None
    match ending.reason:
        case Reason.KILL:
            return failure("killed", f"killed by an operator{_by_rung(ending)}", detail=detail)
        case Reason.DEADLINE:
            return failure("deadline", "deadline exceeded", detail=detail)
        case Reason.DRAIN:
            return failure("draining", "the worker is shutting down", retryable=True, detail=detail)
        case Reason.RESTART:
            return failure("retryable", "its child is restarted by an operator", retryable=True, detail=detail)
        case Reason.STALL:
            text = f"it hung ({ending.hang or 'in a way that nothing tells'}): nothing of its child moved any more"
            detail.hint = _STALLED
            return failure("retryable", text, retryable=True, detail=detail)
        case Reason.CANCEL | Reason.DISCONNECT:
            return failure("canceled", "canceled", detail=detail)
        case _:
            assert_never(ending.reason)


_STALLED = "a handler that waits long tells how far it is; `GEN_WORKER_STALL_TIMEOUT_S` says how long it may be silent"
_CAUSES = {Reason.KILL: "killed", Reason.STALL: "hang"}
"""What a job's error names as its cause, where that is not the reason itself."""


def _by_rung(ending: Ending) -> str:
    return f" (rung {ending.rung}: {Rung(ending.rung).name.lower()})" if ending.rung else " before it started"
