"""Why a file could not be stored."""

from gen_worker.wire.fetching import UploadFailure


class UploadError(Exception):
    """A file could not be stored. The text never has a token or the query of a URL."""

    def __init__(
        self, kind: UploadFailure, message: str, *, retryable: bool = False, limit_bytes: int = 0, status: int = 0
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.retryable = retryable
        """Whether the same upload may come to a good end later."""
        self.limit_bytes = limit_bytes
        """What it is over, for `too_large`."""
        self.status = status
        """What the store answered, 0 where it did not."""

    def about(self, ref: str) -> "UploadError":
        """Return the same failure with a text that names the file."""
        if f"`{ref}`" in str(self):
            return self
        text = f"`{ref}` was not stored: {self}"
        return UploadError(self.kind, text, retryable=self.retryable, limit_bytes=self.limit_bytes, status=self.status)
