"""Why the platform did not do what it was asked for."""

from gen_worker.fetch.uploading.failure import UploadError
from gen_worker.models.errors import ModelError
from gen_worker.wire.fetching import UploadFailure
from gen_worker.wire.platform import CallFailure


class PlatformError(Exception):
    """Something was not done. The text never has a token or the query of a URL."""

    def __init__(self, kind: CallFailure, message: str, *, retryable: bool = False, status: int = 0) -> None:
        super().__init__(message)
        self.kind = kind
        self.retryable = retryable
        """Whether the same call may come to a good end later."""
        self.status = status
        """What the platform answered, 0 where it did not."""


def of_upload(error: UploadError) -> PlatformError:
    """Return the same failure as one of a call."""
    kind: CallFailure = "invalid" if error.kind == "exists" else error.kind
    return PlatformError(kind, str(error), retryable=error.retryable, status=error.status)


def of_platform(error: PlatformError) -> UploadError:
    """Return the same failure as one of an upload."""
    kind: UploadFailure = error.kind if error.kind in ("auth", "too_large", "canceled") else "transfer"
    return UploadError(kind, str(error), retryable=error.retryable, status=error.status)


def of_model(error: ModelError) -> PlatformError:
    """Return why a repository is not here as the failure of a call."""
    text = f"{error}; {error.hint}" if error.hint else str(error)
    if error.kind == "canceled":
        return PlatformError("canceled", "canceled", retryable=True)
    if error.kind in ("unauthorized", "gated"):
        return PlatformError("auth", text)
    if error.kind in ("not_found", "revision_not_found", "file_not_found", "no_weights", "pickle_refused"):
        return PlatformError("invalid", text)
    return PlatformError("transfer", text, retryable=error.retryable)
