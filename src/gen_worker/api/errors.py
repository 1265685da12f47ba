"""What a handler may raise, and what each exception means for its job.

Pure: `classify` looks at an exception and never logs, sends or raises.
"""

from typing import ClassVar, Literal, NamedTuple, TypeAlias

import msgspec

from gen_worker.capability import HardwareUnmetError, made_again
from gen_worker.models.out_of_memory import is_host_out_of_memory, is_out_of_memory
from gen_worker.wire.messages import ErrorKind

JobStatus: TypeAlias = Literal["INVALID", "RETRYABLE", "CANCELED", "FATAL"]

TYPED_TEXT_LIMIT = 1024
OTHER_TEXT_LIMIT = 512


class WorkerError(Exception):
    """The job failed and would fail again."""

    kind: ClassVar[ErrorKind] = "user_exception"
    status: ClassVar[JobStatus] = "FATAL"
    retryable: bool = False

    def __reduce__(self) -> tuple[object, ...]:  # else a pool of processes breaks by one whose `__init__` takes more
        return made_again, (type(self), *self.args), vars(self)


class ValidationError(WorkerError):
    """The caller sent something this function cannot work on."""

    kind = "invalid"
    status = "INVALID"


class InputTooLargeError(ValidationError):
    """An input is longer than the limit."""

    def __init__(self, *, size_bytes: int, max_bytes: int, source: str = "input") -> None:
        super().__init__(f"{source} has {size_bytes} bytes, the limit is {max_bytes}")
        self.size_bytes = size_bytes
        self.max_bytes = max_bytes
        self.source = source


class OutputTooLargeError(ValidationError):
    """An output is longer than the limit; a `message` says which."""

    def __init__(self, *, size_bytes: int, max_bytes: int, message: str = "") -> None:
        super().__init__(message or f"output has {size_bytes} bytes, the limit is {max_bytes}")
        self.size_bytes = size_bytes
        self.max_bytes = max_bytes


class RefCompatibilitySurprise(ValidationError):
    """A model ref turned out not to fit the function that it was given to."""

    def __init__(self, message: str = "", ref: str = "", axis: str = "") -> None:
        super().__init__(message or f"`{ref}` does not fit this function: {axis or 'unknown reason'}")
        self.ref = ref
        self.axis = axis


class RetryableError(WorkerError):
    """The job failed for a reason that may pass; run it again."""

    kind: ClassVar[ErrorKind] = "retryable"
    status = "RETRYABLE"
    retryable = True


class CanceledError(WorkerError):
    """The job ends because somebody asked it to."""

    kind = "canceled"
    status = "CANCELED"


class FatalError(WorkerError):
    """The job failed and shall not be run again."""


class WrongTypeError(FatalError, TypeError):
    """The handler gave something else than its annotation says."""


class ResourceError(WorkerError):
    """The job needs something this worker does not have."""


class AuthError(WorkerError):
    """A service refused the job's credentials."""


class ArtifactTransferError(WorkerError):
    """A file could not be moved; `retryable` says whether it is worth another try."""

    def __init__(
        self,
        message: str,
        provider: str = "",
        phase: str = "",
        retryable: bool = False,
        status_code: int | None = None,
        cause_type: str = "",
    ) -> None:
        known = {"provider": provider, "phase": phase, "status": status_code, "cause": cause_type}
        facts = ", ".join(f"{name}={value}" for name, value in known.items() if value not in ("", None))
        super().__init__(f"{message} ({facts})" if facts else message)
        self.provider = provider
        self.phase = phase
        self.retryable = retryable
        self.status_code = status_code
        self.cause_type = cause_type


class Verdict(NamedTuple):
    """What an exception means for its job."""

    kind: ErrorKind
    message: str
    retryable: bool


def classify(error: BaseException) -> Verdict:
    """Say what an exception from a handler means for the job; never raise, whatever the exception is."""
    if is_host_out_of_memory(error) or is_out_of_memory(error):
        return Verdict("out_of_memory", "out of memory", True)
    match error:
        case ValidationError() | RetryableError() | CanceledError():
            return Verdict(error.kind, _typed(error), error.retryable)
        case ArtifactTransferError(retryable=True) | HardwareUnmetError():
            return Verdict("retryable", _typed(error), True)
        case msgspec.EncodeError() | UnicodeEncodeError(encoding="utf-8"):
            # ValueErrors by inheritance, but what the handler made is wrong: no payload has half a character
            return Verdict("user_exception", _named(error), False)
        case ValueError() | msgspec.DecodeError():
            return Verdict("invalid", _typed(error), False)
        case _:
            return Verdict("user_exception", _named(error), False)


def _typed(error: BaseException) -> str:
    return (_text(error) or type(error).__name__)[:TYPED_TEXT_LIMIT]


def _named(error: BaseException) -> str:
    name = type(error).__name__
    lines = _text(error).splitlines()
    return (f"{name}: {lines[0]}" if lines else name)[:OTHER_TEXT_LIMIT]


def _text(error: BaseException) -> str:
    try:
        return str(error).strip()
    except Exception:  # noqa: BLE001  `__str__` is the author's code
        return ""
