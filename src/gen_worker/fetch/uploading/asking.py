"""One request to a store or its bucket, and its answer, or why there is none."""

from collections.abc import Mapping
from http.client import HTTPException
from ssl import SSLCertVerificationError
from typing import NamedTuple, TypeVar

import msgspec

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.network.origins import Url
from gen_worker.fetch.network.transport import Body, Transport, translated
from gen_worker.fetch.uploading.failure import UploadError
from gen_worker.models.errors import ModelError

ANSWER_BYTES = 16 << 20  # the URLs of 20,000 parts
Document = TypeVar("Document")


class Answer(NamedTuple):
    """What somebody answered."""

    status: int
    headers: Mapping[str, str]
    """By lower-case name."""

    content: bytes
    shown: str
    """Who answered, without the query."""


def ask(
    transport: Transport,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] = {},
    body: Body | None = None,
    cancel: Cancel,
) -> Answer:
    """Return the answer to one request, whatever its status.

    Raises `UploadError`; one that is retryable says that nobody answered. Raises `ModelError` when it is canceled.
    """
    try:
        with transport.send(method, url, headers=headers, body=body, cancel=cancel) as response:
            content = response.read(ANSWER_BYTES)
            return Answer(response.status, response.headers, content, response.url_shown)
    except (OSError, HTTPException) as error:
        cancel.raise_if_set()
        failure = translated(error, Url(url))
        retryable = not isinstance(error, SSLCertVerificationError)
        text = str(failure) if retryable else f"{failure}; {failure.hint}"
        raise UploadError("transfer", text, retryable=retryable) from None
    except ModelError as error:
        if error.kind == "canceled":
            raise
        raise UploadError("transfer", f"{error}; {error.hint}" if error.hint else str(error)) from None


def read(answer: str, kind: type[Document], who: str) -> Document:
    """Return what a store says in JSON; raise `UploadError` when it says something else."""
    try:
        return msgspec.json.decode(answer, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise UploadError("transfer", f"`{who}` answers what cannot be read: {error}") from None
