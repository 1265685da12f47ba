"""What a job is told to have ended with: an exception, as a frame says it."""

import asyncio
from typing import Protocol

from gen_worker.api.context import CancelFlag
from gen_worker.api.errors import CanceledError, classify
from gen_worker.discovery.stacks import author_stack, briefly
from gen_worker.models.broken_context import breaks_context
from gen_worker.models.out_of_memory import is_host_out_of_memory
from gen_worker.wire.messages import ErrorDetail, Failed
from gen_worker.wire.regions import RegionError

STACK_LINES = 20
STACK_LINE_CHARS = 400
RAISED_NAMES, RAISED_CHARS = 8, 100
LESS_AT_ONCE = "ask for less at once, as a smaller output, or try again: others may have gone by then"


class Interrupted(BaseException):
    """Raised in the job's thread by rung 2 of the ladder; no `except Exception` of the author's stops it."""


class PayloadError(Exception):
    """The payload is not what the author's type asks for."""


class Failing(Protocol):
    """A job that has failed."""

    number: int
    cancel: CancelFlag


def failure_of(job: Failing, error: BaseException) -> Failed:
    """Return how a job has failed that this exception has ended."""
    if isinstance(error, PayloadError):
        return Failed(job.number, "usage", str(error), False, 0.0)
    asked = job.cancel.is_set() and isinstance(error, CanceledError)
    if isinstance(error, Interrupted):
        where = ErrorDetail(stack=_stack(error) or None)
        return Failed(job.number, "canceled", "canceled", False, 0.0, detail=where)
    if asked or isinstance(error, asyncio.CancelledError):
        return Failed(job.number, "canceled", "canceled", False, 0.0)
    if isinstance(error, RegionError):
        return Failed(job.number, "internal", str(error), False, 0.0)
    kind, message, retryable = classify(error)
    detail = ErrorDetail(stack=_stack(error) or None)
    raised = tuple(each.__name__[:RAISED_CHARS] for each in type(error).__mro__[:RAISED_NAMES])
    if kind == "out_of_memory":
        detail.cause, detail.hint = "host_oom" if is_host_out_of_memory(error) else "device_oom", LESS_AT_ONCE
    elif breaks_context(error):
        detail.cause = "cuda_error"
    return Failed(job.number, kind, message, retryable, 0.0, detail=detail, raised=raised)


def _stack(error: BaseException) -> list[str]:
    return [line[:STACK_LINE_CHARS] for line in briefly(author_stack(error), STACK_LINES)]


def give_memory_back() -> None:
    """Have what a job held that ran out of memory go back where it came from, before the next one begins."""
    from gen_worker.models.placement import free_cache

    free_cache()
