"""A job's token is exchanged for a fresh one: `POST /v1/worker/capability/renew`, with the worker's own token."""

import msgspec

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.platform.api import NO_ROUTE
from gen_worker.fetch.platform.failure import PlatformError, of_model, of_upload
from gen_worker.fetch.uploading.asking import ask, read
from gen_worker.fetch.uploading.failure import UploadError
from gen_worker.fetch.uploading.pace import may_pass
from gen_worker.fetch.uploading.source import Text
from gen_worker.fetch.uploading.store import Transports, refusal_code
from gen_worker.models.errors import ModelError
from gen_worker.secret import without
from gen_worker.wire.fetching import RenewToken, TokenRenewed

ROUTE = "/v1/worker/capability/renew"


class _Fresh(msgspec.Struct):
    capability_token: str = ""
    token: str = ""

    def __repr__(self) -> str:
        """Leave out the tokens."""
        return without(self, "capability_token", "token")


def renew(order: RenewToken, transports: Transports, cancel: Cancel) -> TokenRenewed:
    """Ask once, and have the fresh token shown from now on; whoever ordered it asks again where that may help."""
    try:
        token = _asked(order, transports, cancel)
    except UploadError as error:
        return _failed(order, of_upload(error))
    except ModelError as error:
        return _failed(order, of_model(error))
    except PlatformError as error:
        return _failed(order, error)
    transports.tokens.renewed(order.destination, token)
    return TokenRenewed(order.number, token)


def _asked(order: RenewToken, transports: Transports, cancel: Cancel) -> str:
    to = order.destination
    headers = {"Authorization": f"Bearer {order.worker_token}", "Content-Type": "application/json"}
    if not order.worker_token:
        del headers["Authorization"]  # a platform that knows its workers without one
    document = {"request_id": to.request_id, "attempt": to.attempt, "capability_token": transports.tokens.of(to)}
    url, body = to.base_url.rstrip("/") + ROUTE, Text(msgspec.json.encode(document))
    answer = ask(transports.questions, "POST", url, headers=headers, body=body, cancel=cancel)
    if answer.status >= 300:
        said = refusal_code(answer)
        text = f"`{answer.shown}` answers {answer.status}{f' `{said}`' if said else ''}"
        raise PlatformError("transfer", text, retryable=may_pass(answer.status), status=answer.status)
    fresh = read(answer.content.decode("utf-8", "replace"), _Fresh, answer.shown)
    token = fresh.capability_token or fresh.token
    if not token or not token.isascii() or not token.isprintable():
        raise PlatformError("transfer", f"`{answer.shown}` answers without a `capability_token`")
    return token


def _failed(order: RenewToken, error: PlatformError) -> TokenRenewed:
    known = error.status not in NO_ROUTE
    return TokenRenewed(order.number, error=str(error), retryable=error.retryable, known=known)
