"""How the context of a producer asks its platform for something, wherever the calls are made in the end."""

from typing import Protocol

from gen_worker.api.errors import (
    ArtifactTransferError,
    AuthError,
    CanceledError,
    OutputTooLargeError,
    ValidationError,
    WorkerError,
)
from gen_worker.wire.platform import Answer, Verb


class NoPlatformError(WorkerError):
    """There is no platform to ask: the job came without an address or without a token of one."""


class Platform(Protocol):
    """Asks the platform of one job, and waits for the answer."""

    def call(self, verb: Verb[Answer], file: int | None = None) -> Answer:
        """Return the answer; `file` is the descriptor that the verb speaks of, which stays the caller's.

        Raises `NoPlatformError`, `AuthError`, `ArtifactTransferError`, `ValidationError`, and `CanceledError` once the
        job was asked to end.
        """


def failure_of(kind: str, text: str, *, retryable: bool, status: int) -> Exception:
    """Return what a context raises for a call that failed in a way of `gen_worker.wire.platform.CallFailure`."""
    match kind:
        case "unconfigured":
            return NoPlatformError(text)
        case "auth":
            return AuthError(text)
        case "invalid":
            return ValidationError(text)
        case "too_large":
            return OutputTooLargeError(size_bytes=0, max_bytes=0, message=text)
        case "canceled":
            return CanceledError("canceled")
    return ArtifactTransferError(text, "platform", "call", retryable, status or None)
