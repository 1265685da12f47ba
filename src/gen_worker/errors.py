"""What a handler may raise: the module of the earlier API, whose classes are those of `gen_worker.api.errors`."""

from gen_worker.api.errors import (
    AuthError,
    CanceledError,
    FatalError,
    ResourceError,
    RetryableError,
    ValidationError,
    WorkerError,
)

__all__ = [
    "AuthError",
    "CanceledError",
    "FatalError",
    "ResourceError",
    "RetryableError",
    "ValidationError",
    "WorkerError",
]
