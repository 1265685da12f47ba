"""The platform's HTTP API as one job may use it: JSON there, JSON back, tried again where that may help."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import msgspec

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.job_tokens import JobKey, job_key
from gen_worker.fetch.network.origins import Url, without_queries
from gen_worker.fetch.platform.failure import PlatformError, of_upload
from gen_worker.fetch.uploading.asking import Answer, ask
from gen_worker.fetch.uploading.failure import UploadError
from gen_worker.fetch.uploading.pace import Pace, may_pass
from gen_worker.fetch.uploading.source import Text
from gen_worker.fetch.uploading.store import Transports, refusal_code
from gen_worker.wire.fetching import Destination

Document = TypeVar("Document")
NO_ROUTE = (404, 405, 501)  # what platforms answer that know nothing of what is asked
NO_REPO = ("no_such_repo", "repo_not_found")  # what they say that know, and have not the repository


class Reply(NamedTuple):
    """What the platform said."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    said: str = ""
    """The word for why it refuses, where it does."""

    def wished_s(self, otherwise: float, longest: float) -> float:
        """Return how long the platform wants to be left alone, within reason; `otherwise` where it names no pause."""
        text = self.headers.get("retry-after", "")
        return min(longest, float(text)) if text.isascii() and text.isdigit() and len(text) < 6 else otherwise


class Api:
    """The platform of one job. Every method raises `PlatformError`, and `ModelError` when it is canceled."""

    def __init__(self, destination: Destination, transports: Transports, pace: Pace) -> None:
        if not destination.base_url or not destination.token:
            lacks = "names no platform" if not destination.base_url else "came without a token"
            raise PlatformError("unconfigured", f"nothing can be asked of the platform: the job {lacks}")
        self._destination = destination
        self._transports = transports
        self._pace = pace
        self.base = destination.base_url.rstrip("/")
        self.shown = str(Url(self.base).origin)
        """What people get to see of it."""

    @property
    def token(self) -> str:
        """The job's own, the one that is good now."""
        return self._transports.tokens.of(self._destination)

    @property
    def job(self) -> JobKey:
        """What names the job, whichever token it shows."""
        return job_key(self._destination)

    def ask(
        self, method: str, path: str, document: object = None, *, cancel: Cancel, accepted: tuple[int, ...] = ()
    ) -> Reply:
        """Return the answer to a request: one below 300, or of a status that is `accepted`.

        `path` begins at the platform's address; a whole URL is one that came with the job.
        """
        tries = 0
        while True:
            try:
                return self._once(method, path, document, cancel, accepted)
            except PlatformError as error:
                tries += 1
                if not error.retryable or tries >= self._pace.create_tries:
                    raise
            cancel.wait(self._pace.ask_again_s)

    def read(self, reply: Reply, kind: type[Document]) -> Document:
        """Return what the platform said as a value of a type."""
        try:
            return msgspec.json.decode(reply.content or b"{}", type=kind)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise PlatformError("transfer", f"`{self.shown}` answers what cannot be read: {error}") from None

    def _once(self, method: str, path: str, document: object, cancel: Cancel, accepted: tuple[int, ...]) -> Reply:
        url = path if "://" in path else self.base + path
        headers = self.headers()
        body = None
        if document is not None:
            headers["Content-Type"], body = "application/json", Text(msgspec.json.encode(document))
        try:
            answer = ask(self._transports.questions, method, url, headers=headers, body=body, cancel=cancel)
        except UploadError as error:
            raise of_upload(error) from None
        if answer.status < 300 or answer.status in accepted:
            said = "" if answer.status < 300 else refusal_code(answer)
            return Reply(answer.status, answer.headers, answer.content, said)
        raise self._refused(method, answer)

    def headers(self) -> dict[str, str]:
        """Return what every request shows."""
        headers = {"Authorization": f"Bearer {self.token}"}
        if owner := self._destination.owner:
            headers["X-Cozy-Owner"] = owner if owner.isascii() and owner.isprintable() else quote(owner)
        if self._destination.traceparent:
            headers["traceparent"] = self._destination.traceparent
        return headers

    def _refused(self, method: str, answer: Answer) -> PlatformError:
        status, who = answer.status, answer.shown
        if status in (401, 403):
            text = f"`{who}` refuses the job's token ({status}){_message(answer)}"
            return PlatformError("auth", text, status=status)
        said = refusal_code(answer)
        text = f"`{method} {who}` is answered {status}{f' `{said}`' if said else ''}{_message(answer)}"
        kind = "too_large" if status == 413 else "invalid" if 400 <= status < 500 and status != 429 else "transfer"
        return PlatformError(kind, text, retryable=may_pass(status), status=status)  # type: ignore[arg-type]


class _Said(msgspec.Struct):
    message: str = ""


class _Refusal(msgspec.Struct):
    error: _Said


def _message(answer: Answer) -> str:
    """Return what the platform gives as its reason, for people."""
    try:
        said = msgspec.json.decode(answer.content, type=_Refusal).error.message
    except (msgspec.MsgspecError, RecursionError):
        return ""
    return f": {without_queries(said)[:300]}" if said.isprintable() and said else ""


def repo_route(repo: str) -> str:
    """Return where a repository `owner/name` is found below a platform's address."""
    owner, slash, name = repo.partition("/")
    if not (owner and slash and name) or "/" in name or {owner, name} & {".", ".."}:
        raise PlatformError("invalid", f"`{repo[:200]}` is no repository: write `owner/name`")
    return f"/api/v1/repos/{quote(owner, safe='')}/{quote(name, safe='')}"


def documented(value: Any) -> dict[str, Any]:
    """Return what the platform said as a document; anything but an object says nothing."""
    return value if isinstance(value, dict) else {}
