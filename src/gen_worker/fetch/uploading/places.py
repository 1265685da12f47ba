"""Where the bytes of an upload go: to URLs that the store signed, or into a bucket with keys that it lent."""

import hashlib
import html
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.network.origins import Url
from gen_worker.fetch.network.transport import Body, Transport
from gen_worker.fetch.uploading.asking import Answer, ask
from gen_worker.fetch.uploading.failure import UploadError
from gen_worker.fetch.uploading.journal import Journal
from gen_worker.fetch.uploading.pace import may_pass
from gen_worker.fetch.uploading.signing import EMPTY_SHA256, Keys, encoded_path, encoded_query, presigned, signed
from gen_worker.fetch.uploading.source import Digests, Part, Text
from gen_worker.models.errors import ModelError
from gen_worker.secret import without

PART_BYTES = 64 << 20  # where the store names no size
MOST_PARTS = 10_000  # of a multipart upload
_READABLE_S = 12 * 3600  # longer than any download; keys that are lent end before
_TAGS = {name: re.compile(rf"<{name}>([^<]*)</{name}>") for name in ("UploadId", "ETag", "Code")}
_CAPITAL = re.compile("[A-Z]")


class Created(msgspec.Struct):
    """What the store says of an upload that begins."""

    dedup: bool = False
    """It has these bytes already; the answer describes the file."""

    upload_id: str = ""
    part_urls: list[str] | None = None
    part_size: int | None = None
    transfer_grant: dict[str, Any] | None = None
    s3_transfer_grant: dict[str, Any] | None = None

    def __repr__(self) -> str:
        """Leave out signatures and keys."""
        return without(self, "part_urls", "transfer_grant", "s3_transfer_grant")


class Place(Protocol):
    """Takes the parts of a file. Any thread may put one."""

    part_bytes: int

    def put(self, number: int, part: Part, cancel: Cancel) -> str:
        """Send a part, once, and return its ETag; raise `UploadError`."""

    def finish(self, etags: list[str], cancel: Cancel) -> Mapping[str, object]:
        """All parts are there: return what the store has to know to complete the upload."""

    def abandon(self) -> None:
        """Nothing more comes."""


class SignedUrls:
    """One URL for each part."""

    def __init__(self, created: Created, length: int, transport: Transport, who: str) -> None:
        self.part_bytes = created.part_size or PART_BYTES
        self._urls = created.part_urls or []
        self._transport = transport
        wanted = -(-length // self.part_bytes) if self.part_bytes > 0 else 0
        if not 0 < wanted <= len(self._urls):
            text = f"`{who}` gives {len(self._urls)} URLs for parts of {self.part_bytes} bytes of a file of {length}"
            raise UploadError("transfer", text)

    def put(self, number: int, part: Part, cancel: Cancel) -> str:
        """Send a part, once, and return its ETag; raise `UploadError`."""
        answer = ask(self._transport, "PUT", self._urls[number - 1], body=part, cancel=cancel)
        return etag_of(answer, number)

    def finish(self, etags: list[str], cancel: Cancel) -> Mapping[str, object]:
        """Return the parts by number."""
        return {"parts": [{"part_number": at, "etag": etag} for at, etag in enumerate(etags, 1)]}

    def abandon(self) -> None:
        """Leave it to the store."""


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """An object of a bucket, and the keys for it."""

    endpoint_url: str
    bucket: str
    key: str
    keys: Keys

    @property
    def origin(self) -> str:
        """Whom it is asked of."""
        split = urlsplit(self.endpoint_url)
        return f"{split.scheme}://{split.netloc}"

    @property
    def path(self) -> str:
        """What it is asked by, encoded."""
        return encoded_path(f"{urlsplit(self.endpoint_url).path.rstrip('/')}/{self.bucket}/{self.key}")

    def readable(self, now: float) -> str:
        """Return a URL that gives the object to whoever asks, from the unix time `now` on for half a day."""
        return presigned(self.keys, origin=self.origin, path=self.path, now=now, seconds=_READABLE_S)


class _Names(msgspec.Struct):
    endpoint_url: str
    bucket: str
    key: str
    access_key_id: str
    secret_access_key: str
    session_token: str | None = ""
    region: str | None = ""

    def __repr__(self) -> str:
        """Leave out the keys."""
        return without(self, "secret_access_key", "session_token")


def grant_of(document: Mapping[str, Any], who: str) -> Grant:
    """Read a grant, its names as `access_key_id` or `accessKeyId`; raise `UploadError` for what is none."""
    names = {_CAPITAL.sub(lambda found: f"_{found[0].lower()}", name): value for name, value in document.items()}
    try:
        read = msgspec.convert(names, type=_Names)
        urlsplit(read.endpoint_url)
    except ValueError as error:
        raise UploadError("transfer", f"`{who}` grants what cannot be read: {error}") from None
    keys = Keys(
        access_key_id=read.access_key_id,
        secret_access_key=read.secret_access_key,
        session_token=read.session_token or "",
        region=read.region or "auto",
    )
    return Grant(endpoint_url=read.endpoint_url, bucket=read.bucket, key=read.key, keys=keys)


class Bucket:
    """An object of a store that speaks S3: put at once when it is one part, else as a multipart upload."""

    def __init__(
        self,
        grant: Grant,
        length: int,
        digests: Digests,
        journal: Journal,
        transport: Transport,
        part_bytes: int = PART_BYTES,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.part_bytes = max(part_bytes, -(-length // MOST_PARTS))
        self._grant = grant
        self._length = length
        self._digests = digests
        self._journal = journal
        self._transport = transport
        self._now = now
        self._whole = length <= self.part_bytes
        self._origin, self._path = grant.origin, grant.path

    def begin(self, cancel: Cancel) -> None:
        """Have the bucket expect parts, unless it does or needs not."""
        if self._whole or self._journal.multipart:
            return
        name = _tag("UploadId", self._ask("POST", {"uploads": ""}, cancel))
        if not name:
            raise UploadError("transfer", f"the bucket at `{self._origin}` names no upload")
        self._journal.note_multipart(name)

    def put(self, number: int, part: Part, cancel: Cancel) -> str:
        """Send a part, once, and return its ETag; raise `UploadError`."""
        if self._whole:
            answer = self._ask("PUT", {}, cancel, part, self._digests.sha256)
        else:
            query = {"partNumber": str(number), "uploadId": self._journal.multipart}
            answer = self._ask("PUT", query, cancel, part, part.sha256())
        return etag_of(answer, number)

    def finish(self, etags: list[str], cancel: Cancel) -> Mapping[str, object]:
        """Have the bucket join the parts, and return the object."""
        if not self._whole and not self._journal.joined:
            self._journal.note_joined(self._joined(etags, cancel))
        etag = etags[0] if self._whole else self._journal.joined
        grant, known = self._grant, {"size_bytes": self._length, "blake3": self._digests.blake3}
        return {"transfer": {"mode": "s3_sdk", "bucket": grant.bucket, "key": grant.key, **known, "etag": etag}}

    def abandon(self) -> None:
        """Have the bucket drop the parts; whether it hears that does not matter."""
        if self._journal.multipart:
            with suppress(UploadError, ModelError):
                self._ask("DELETE", {"uploadId": self._journal.multipart}, Cancel())

    def _joined(self, etags: list[str], cancel: Cancel) -> str:
        each = (
            f"<Part><PartNumber>{at}</PartNumber><ETag>{html.escape(etag)}</ETag></Part>"
            for at, etag in enumerate(etags, 1)
        )
        text = f"<CompleteMultipartUpload>{''.join(each)}</CompleteMultipartUpload>".encode()
        digest = hashlib.sha256(text).hexdigest()
        answer = self._ask("POST", {"uploadId": self._journal.multipart}, cancel, Text(text), digest)
        if etag := _tag("ETag", answer):
            return etag
        code = _tag("Code", answer)  # S3 may say 200 before it knows
        what = f"the bucket at `{self._origin}` did not join the parts{f': {code[:80]}' if code else ''}"
        raise UploadError("transfer", what, retryable=code in ("InternalError", "ServiceUnavailable", "SlowDown"))

    def _ask(
        self,
        method: str,
        query: Mapping[str, str],
        cancel: Cancel,
        body: Body | None = None,
        payload_sha256: str = EMPTY_SHA256,
    ) -> Answer:
        url = self._origin + self._path + (f"?{encoded_query(query)}" if query else "")
        headers = signed(
            self._grant.keys,
            method=method,
            host=str(Url(url).origin),
            path=self._path,
            query=query,
            payload_sha256=payload_sha256,
            now=self._now(),
        )
        answer = ask(self._transport, method, url, headers=headers, body=body, cancel=cancel)
        return checked(answer)


def checked(answer: Answer) -> Answer:
    """Return an answer of 2xx; raise `UploadError` for others."""
    if 200 <= answer.status < 300:
        return answer
    code = _tag("Code", answer)
    text = f"`{answer.shown}` answers {answer.status}{f' {code[:80]}' if code else ''}"
    raise UploadError("transfer", text, retryable=may_pass(answer.status), status=answer.status)


def etag_of(answer: Answer, number: int) -> str:
    """Return what names a part that was taken; raise `UploadError` where nothing does."""
    etag = checked(answer).headers.get("etag", "")
    if not etag:
        raise UploadError("transfer", f"`{answer.shown}` took part {number} without naming it by an `ETag`")
    return etag


def _tag(name: str, answer: Answer) -> str:
    found = _TAGS[name].search(answer.content.decode("utf-8", "replace"))
    return "" if found is None else html.unescape(found[1])
