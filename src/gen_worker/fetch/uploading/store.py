"""The platform's store of files, as its HTTP routes have it: an upload is created, completed, or given up.

`POST /api/v1/media/<owner>/uploads`, then `POST …/uploads/<id>/complete` or `DELETE …/uploads/<id>`. The job's token
goes to these and nowhere else. Where the bytes go is in the answer to the first: URLs of parts, or keys for a bucket.
"""

import re
import time
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import quote

import msgspec

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.config import FetchConfig
from gen_worker.fetch.job_tokens import JobTokens
from gen_worker.fetch.network.origins import Url
from gen_worker.fetch.network.patience import FOR_FILES
from gen_worker.fetch.network.transport import Transport
from gen_worker.fetch.uploading.asking import Answer, ask, read
from gen_worker.fetch.uploading.failure import UploadError
from gen_worker.fetch.uploading.pace import Pace, may_pass
from gen_worker.fetch.uploading.sending import Sender, Turns
from gen_worker.fetch.uploading.source import Digests, Text
from gen_worker.wire.fetching import Destination

NO_OWNER = "_"  # stands in the route for the owner of a job that has none
_IN_PROGRESS = "upload_complete_in_progress"
_CODE = re.compile(r"[a-z0-9_.-]{1,80}")


class Meta(msgspec.Struct):
    """What the store says of a file that it has."""

    ref: str = ""
    size_bytes: int | None = None
    sha256: str | None = ""
    blake3: str | None = ""
    mime_type: str | None = ""
    media_id: str | int | None = ""
    blob_digest: str | None = ""
    blob_domain: str | None = ""
    blob_path: str | None = ""
    snapshot_digest: str | None = ""


class _Reason(msgspec.Struct):
    code: str = ""


class _Refusal(msgspec.Struct):
    error: _Reason


class Transports:
    """The ways to a store and to where its bytes go, each with its own patience, and how much goes there at once.

    One for all uploads of a process.
    """

    def __init__(self, config: FetchConfig, pace: Pace) -> None:
        self.pace = pace
        self.tokens = JobTokens()
        """What jobs show."""
        self.sender = Sender(pace)
        self.files = Turns(pace.files)
        self.into_buckets = Turns(pace.lent_keys_files)
        config = msgspec.structs.replace(config, stall_timeout_s=0.0)  # that is for models
        self.questions = Transport(config, pace.patience(pace.quiet_s))
        self.parts = Transport(config, pace.patience(pace.quiet_s))
        self.completing = Transport(config, pace.patience(pace.complete_s))
        self.downloads = Transport(config, FOR_FILES)
        self.farewell = Transport(config, pace.patience(pace.farewell_s))


class Store:
    """One store as one job may use it."""

    def __init__(
        self, destination: Destination, transports: Transports, pace: Pace, route: str = "", *, in_repo: bool = False
    ) -> None:
        """Use the media of the job's owner, or the uploads at another `route` below the platform's address."""
        self._destination = destination
        self._in_repo = in_repo
        self._transports = transports
        self._pace = pace
        owner = quote(destination.owner or NO_OWNER, safe="")
        self._uploads = destination.base_url.rstrip("/") + (route or f"/api/v1/media/{owner}/uploads")
        self.shown = str(Url(self._uploads).origin)
        """What people get to see of it."""

    def create(self, ref: str, digests: Digests, size: int, mime_type: str, cancel: Cancel) -> str:
        """Begin an upload and return the store's answer as it came."""
        name = "path" if self._in_repo else "ref"
        asked: dict[str, object] = {name: ref, "blake3": digests.blake3, "size_bytes": size}
        asked["request_id"] = self._destination.request_id
        if mime_type and mime_type != "application/octet-stream":
            asked["content_type"] = mime_type
        if self._destination.job_id and not self._in_repo:
            asked["job_id"] = self._destination.job_id
        tries = 0
        while True:
            try:
                answer = self._post(self._transports.questions, "", asked, cancel)
                if answer.status < 300:
                    return answer.content.decode("utf-8", "replace")
                raise self._refused(answer, f"`{ref}` was not taken")
            except UploadError as error:
                tries += 1
                if not error.retryable or tries >= self._pace.create_tries:
                    raise
            cancel.wait(self._pace.ask_again_s)

    def complete(self, ref: str, upload_id: str, told: Mapping[str, object], cancel: Cancel) -> Meta:
        """Have the store make a file of what it got, and return what it says of it."""
        tries, until = 0, time.monotonic() + self._pace.poll_for_s
        while True:
            pause_s = self._pace.ask_again_s
            try:
                answer = self._post(self._transports.completing, f"/{_quoted(upload_id)}/complete", told, cancel)
                if answer.status < 300:
                    return read(answer.content.decode("utf-8", "replace"), Meta, self.shown)
                if answer.status != 409 or refusal_code(answer) != _IN_PROGRESS:
                    raise self._refused(answer, f"`{ref}` was not completed")
                pause_s = self._pace.poll_s
                if time.monotonic() + pause_s > until:
                    text = f"`{ref}` was not completed: `{self.shown}` is at it for {self._pace.poll_for_s:.0f} seconds"
                    raise UploadError("transfer", text, retryable=True)
            except UploadError as error:
                tries += 1
                if not error.retryable or tries >= self._pace.complete_tries or time.monotonic() > until:
                    raise
            cancel.wait(pause_s)

    def abort(self, upload_id: str) -> None:
        """Tell the store that nothing more comes of an upload; whether it hears that does not matter."""
        with suppress(UploadError):
            url = f"{self._uploads}/{_quoted(upload_id)}"
            ask(self._transports.farewell, "DELETE", url, headers=self._headers(), cancel=Cancel())

    def _post(self, transport: Transport, path: str, told: Mapping[str, object], cancel: Cancel) -> Answer:
        headers = {**self._headers(), "Content-Type": "application/json"}
        body = Text(msgspec.json.encode(told))
        return ask(transport, "POST", self._uploads + path, headers=headers, body=body, cancel=cancel)

    def _headers(self) -> dict[str, str]:
        headers = {"Authorization": f"Bearer {self._transports.tokens.of(self._destination)}"}
        if owner := self._destination.owner:
            headers["X-Cozy-Owner"] = owner if owner.isascii() and owner.isprintable() else quote(owner)
        if self._destination.traceparent:
            headers["traceparent"] = self._destination.traceparent
        return headers

    def _refused(self, answer: Answer, what: str) -> UploadError:
        status, code = answer.status, refusal_code(answer)
        if status in (401, 403):
            return UploadError("auth", f"{what}: `{self.shown}` refuses the job's token ({status})", status=status)
        if 300 <= status < 400:
            text = f"{what}: `{self.shown}` redirects ({status}), and no upload follows that"
            return UploadError("transfer", text, status=status)
        text = f"{what}: `{self.shown}` answers {status}{f' `{code}`' if code else ''}"
        return UploadError(
            "too_large" if status == 413 else "transfer", text, retryable=may_pass(status), status=status
        )


def _quoted(upload_id: str) -> str:
    return quote(upload_id, safe="")


def refusal_code(answer: Answer) -> str:
    """Return the word by which a store says why it refuses; empty where it says none."""
    try:
        code = msgspec.json.decode(answer.content, type=_Refusal).error.code
    except (msgspec.MsgspecError, RecursionError):
        return ""
    return code if _CODE.fullmatch(code) else ""
