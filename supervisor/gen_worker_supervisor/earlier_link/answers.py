"""What an earlier orchestrator is told of a run's end: a type of error, whether to try again, texts. Pure."""

import re
from collections.abc import Callable

from gen_worker.wire.earlier import TaskExecutionResult
from gen_worker_supervisor.core.phases import JobState
from gen_worker_supervisor.core.state import Outcome
from gen_worker_supervisor.logs.redaction import redacted

TEXT_CHARS = 4096
SAFE_CHARS = 500
INTERNAL = "internal error"
BUSY = "worker busy"
_TYPES = {
    "CanceledError": "canceled",
    "InterruptedError": "canceled",
    "ValidationError": "validation",
    "ValueError": "validation",
    "RetryableError": "retryable",
    "ResourceError": "resource",
    "OutOfMemoryError": "resource",
    "WrongTypeError": "internal",  # what a child says of an output that is not of its type
    "FatalError": "fatal",
    "AuthError": "auth",
}
"""The type by the name of an exception's class, or of the next class above it that is named here."""

_KINDS = {
    "usage": "validation",
    "not_found": "internal",
    "invalid": "validation",
    "canceled": "canceled",
    "killed": "canceled",
    "out_of_memory": "resource",
    "deadline": "fatal",
    "quarantined": "fatal",
}
"""The type of what no exception of the author's has ended."""

_ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s\"'`<>]+", re.IGNORECASE)
_PATH = re.compile(r"(?<![\w.])~?(?:/[\w.@+-]+){2,}/?")


def error_type(outcome: Outcome) -> str:
    """Return the type of error that a run ended with; "" for one that ended well."""
    if outcome.kind is None:
        return ""
    if outcome.kind in ("canceled", "killed", "out_of_memory", "usage"):
        return _KINDS[outcome.kind]
    for name in outcome.raised:
        if name in _TYPES:
            return _TYPES[name]
    if outcome.kind in _KINDS:
        return _KINDS[outcome.kind]
    if outcome.state is JobState.RETRYABLE:
        return "retryable"
    return "fatal" if outcome.kind == "model_resolution" else "internal"


def failed(run_id: str, outcome: Outcome, hide: Callable[[str], str]) -> TaskExecutionResult:
    """Return the result of a run that did not end well; `hide` takes out secrets that are known by their value."""
    kind = error_type(outcome)
    text = "worker draining" if outcome.kind == "draining" else outcome.message.strip()
    if outcome.raised and not text.startswith(outcome.raised[0]):
        text = f"{outcome.raised[0]}: {text}"
    return refused(run_id, kind, redacted(hide(text)), safe=_told(outcome, kind, hide))


def refused(run_id: str, kind: str, text: str, *, safe: str = "") -> TaskExecutionResult:
    """Return the result of a run that failed with this type of error, or was not begun."""
    return TaskExecutionResult(
        run_id=run_id,
        error_message=text[:TEXT_CHARS],
        error_type=kind,
        retryable=kind == "retryable",
        safe_message=safe or safe_text(text),
    )


def safe_text(text: str) -> str:
    """Return a text that may be shown to anybody: without tokens, addresses and paths, and short."""
    return _PATH.sub("[path]", _ADDRESS.sub("[url]", redacted(text)))[:SAFE_CHARS]


def close_reason(outcome: Outcome, *, closed: bool) -> str:
    """Return why a realtime session is over."""
    if outcome.kind is None:
        return "closed" if closed else "completed"
    if outcome.raised:
        return f"error:{outcome.raised[0]}"
    if outcome.kind in ("canceled", "killed"):
        return error_type(outcome)
    return f"error:{'child_died' if outcome.kind == 'retryable' else outcome.kind}"  # nobody raised that


def _told(outcome: Outcome, kind: str, hide: Callable[[str], str]) -> str:
    if kind == "internal":
        return INTERNAL
    text = "worker draining" if outcome.kind == "draining" else outcome.message.strip()
    return safe_text(hide(text.removeprefix(f"{outcome.raised[0]}: ") if outcome.raised else text)) or kind
