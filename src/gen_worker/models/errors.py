"""Why a model cannot be had: one error class, whose kind says what can be done about it."""

from typing import Literal, TypeAlias

ModelErrorKind: TypeAlias = Literal[
    "not_found",
    "revision_not_found",
    "file_not_found",
    "gated",
    "unauthorized",
    "not_configured",
    "offline",
    "absent",
    "no_weights",
    "pickle_refused",
    "remote_code_refused",
    "too_large",
    "bad_manifest",
    "insufficient_disk",
    "read_only",
    "digest_mismatch",
    "url_expired",
    "rate_limited",
    "unreachable",
    "stalled",
    "canceled",
    "download_failed",
    "load_failed",
]
MEANINGS: dict[ModelErrorKind, str] = {
    "not_found": "no such repository, model or version, or it is private and there is no token for it",
    "revision_not_found": "no such branch, tag, commit or flavor",
    "file_not_found": "a file that is listed, or that `files=` names, is not there",
    "gated": "its terms must be accepted on the provider's site",
    "unauthorized": "the token is wrong, or lacks the right",
    "not_configured": "the address of its hub is not set",
    "offline": "it is not on this machine and nothing may be fetched",
    "absent": "it is not on this machine; between processes only",
    "no_weights": "nothing in it that may be loaded",
    "pickle_refused": "its weights are pickles, which run code when they are loaded",
    "remote_code_refused": "it brings Python code of its own",
    "too_large": "more bytes than one model may have",
    "bad_manifest": "hostile or impossible names, sizes or digests",
    "insufficient_disk": "no room for it, even after evicting what may go",
    "read_only": "the cache cannot be written to",
    "digest_mismatch": "what came is not what the provider said, three times",
    "url_expired": "its URLs are over and no fresh ones are to be had",
    "rate_limited": "the provider wants fewer requests, after all tries",
    "unreachable": "the provider does not answer, after all tries",
    "stalled": "no byte for too long",
    "canceled": "somebody asked for it",
    "download_failed": "anything else",
    "load_failed": "it is on disk, but cannot be made into what `setup()` asks for",
}
RETRYABLE: frozenset[ModelErrorKind] = frozenset(
    ("insufficient_disk", "url_expired", "rate_limited", "unreachable", "stalled", "canceled", "download_failed")
)


class ModelError(Exception):
    """A model cannot be had.

    The text names the ref and, where one is to blame, the file; `hint` says what a person can do. Neither ever holds a
    token or the query of a URL.
    """

    def __init__(self, kind: ModelErrorKind, message: str, hint: str = "", *, ref: str = "", file: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.hint = hint
        self.ref = ref
        self.file = file

    @property
    def retryable(self) -> bool:
        """Whether the same wish may come true later without anybody changing anything."""
        return self.kind in RETRYABLE
