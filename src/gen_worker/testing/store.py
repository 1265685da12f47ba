"""The platform's store of files on the loopback, for tests: uploads by parts or by a grant, and what can go wrong."""

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

from gen_worker.fetch.uploading.signing import Keys, authorization
from gen_worker.testing.contents import Content
from gen_worker.testing.faults import Corrupt, Fault, Faults, InProgress, NoETag, matches
from gen_worker.testing.origin import Answer, Origin, Request

Way: TypeAlias = Literal["parts", "grant"]
_BUCKET = "media"
_ETAG = re.compile(rb"<PartNumber>(\d+)</PartNumber><ETag>([^<]*)</ETag>")


@dataclass(frozen=True)
class StoredFile:
    """A file that was uploaded."""

    ref: str
    owner: str
    content: bytes = field(repr=False)
    mime_type: str
    request_id: str
    media_id: str

    @property
    def blake3(self) -> str:
        """The hex digest of what was stored."""
        return Content(self.content).digest("blake3")

    @property
    def sha256(self) -> str:
        """The hex digest of what was stored."""
        return hashlib.sha256(self.content).hexdigest()


@dataclass(eq=False)
class _Upload:
    """One that was begun: by the URLs of its parts, or by keys for an object of the bucket."""

    name: str
    owner: str
    ref: str
    asked: Mapping[str, Any]
    keys: Keys | None = None
    signature: str = ""
    s3_id: str = ""
    parts: dict[int, bytes] = field(default_factory=dict)
    whole: bytes | None = None

    @property
    def content(self) -> bytes:
        return self.whole if self.whole is not None else b"".join(self.parts[at] for at in sorted(self.parts))


class LoopbackStore:
    """A store and the bucket that its files go to, two origins of 127.0.0.1, served by threads until `close`.

    A worker is led to it by `HelloAck.file_base_url` and shows one of `tokens`; the bucket goes by signatures, and must
    see no token. With `way="grant"` the store lends keys for the bucket instead of giving URLs of parts.
    """

    def __init__(self, *, port: int = 0, part_bytes: int = 64 << 20, way: Way = "parts", camel_case: bool = False):
        self.way = way
        self.part_bytes = part_bytes
        self.camel_case = camel_case
        """Whether grants spell their fields so: `accessKeyId`."""
        self.dedup = True
        """Whether what is there already is not asked for again."""
        self.tokens = {f"job_{os.urandom(8).hex()}"}
        """Who may upload; add to it."""
        self.files: dict[str, StoredFile] = {}
        """What is stored, by ref."""
        self.renews: Callable[[], str] | None = None
        """Makes the token that a job's is exchanged for at `/v1/worker/capability/renew`; None: there is no such route.

        The one that it had is refused from then on.
        """
        self.strange: dict[str, Any] = {}
        """What the answer to the creation of an upload says instead of what it should."""
        self.revisions: dict[str, str] = {}
        """The revisions of repositories that are open, by id: `owner/name`."""
        self.published: list[tuple[str, dict[str, Any]]] = []
        """What was made visible: `owner/name`, and with which document."""
        self.posted: list[tuple[str, dict[str, Any]]] = []
        """What was posted to `/posts/NAME`: the name, and the document."""
        self._finalizing: dict[str, str] = {}
        self._faults = Faults()
        self._lock = threading.RLock()
        self._uploads: dict[str, _Upload] = {}
        self._bucket = Origin("bucket", 0, self._faults, self._answer_bucket, self._target_in_bucket)
        try:
            self._store = Origin("store", port, self._faults, self._answer_store, self._target_in_store)
        except OSError:  # the port is taken
            self._bucket.close()
            raise
        self._bucket.requests = self._store.requests  # one list, in the order in which they came

    def __enter__(self) -> "LoopbackStore":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """End every connection and every thread."""
        self._store.close()
        self._bucket.close()

    # --- where it is, what it has, what it has seen -------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where uploads begin: the `file_base_url`."""
        return self._store.url

    @property
    def bucket_url(self) -> str:
        """Where the bytes go."""
        return self._bucket.url

    @property
    def token(self) -> str:
        """One of the tokens that may upload."""
        return min(self.tokens)

    @property
    def requests(self) -> list[Request]:
        """All requests, in the order in which they came; clear it to count anew."""
        return self._store.requests

    @property
    def leaks(self) -> list[Request]:
        """The requests that showed the bucket a token, in a header or anywhere in the URL."""
        bucket = [request for request in self.requests if request.origin == "bucket"]
        return [each for each in bucket if any(token in f"{each.headers} {each.query}" for token in self.tokens)]

    @property
    def uploads(self) -> list[str]:
        """The uploads that were begun and neither completed nor aborted."""
        with self._lock:
            return sorted(self._uploads)

    def seen(self, glob: str) -> list[Request]:
        """Return the requests that a glob means, as in `fail`."""
        return [request for request in self.requests if matches(request.target, glob)]

    # --- what goes wrong ----------------------------------------------------------------------------------------------

    def fail(self, glob: str, fault: Fault, *, times: int | None = None) -> None:
        """Have a fault hit the next so many requests that a glob means, or all of them.

        A glob is for `create:REF`, `part:REF:NUMBER` (1 is the first; a whole object is part 1), `complete:REF`,
        `abort:REF` or `finalize:OWNER/NAME`; `*` matches `/`, too. `Slow`, `Stall` and `Cut` hit the body of a part as
        it comes, `NoETag` its answer; `Corrupt` hits what is kept of a part, or what is told of a file when it is
        complete; `InProgress` is for `complete:` and `finalize:`.
        """
        self._faults.plan(glob, fault, times)

    def forget(self) -> None:
        """Know nothing more of any upload that was begun and not completed."""
        with self._lock:
            self._uploads.clear()

    def heal(self) -> None:
        """Have nothing go wrong any more."""
        self._faults.clear()

    # --- the store ----------------------------------------------------------------------------------------------------

    def _answer_store(self, request: Request) -> Answer:
        parts = request.segments
        if parts == ("v1", "worker", "capability", "renew") and self.renews is not None:
            return self._renew(self.renews(), request)
        if parts[0] not in ("api", "posts"):
            return _json(404, f"other:{request.path}", _error("not_found"))
        if request.token not in self.tokens:
            return _json(401, f"other:{request.path}", _error("unauthorized"))
        with self._lock:
            if parts[0] == "posts" and request.method == "POST" and len(parts) == 2:
                self.posted.append((parts[1], json.loads(request.body)))
                return _json(200, f"post:{parts[1]}", {"taken": True})
            scope, rest = _uploads_of(parts)
            if scope:
                return self._answer_uploads(scope, rest, request)
            if parts[:3] == ("api", "v1", "repos") and parts[5:6] == ("revisions",):
                return self._answer_revisions("/".join(parts[3:5]), parts[6:], request)
        return _json(404, f"other:{request.path}", _error("not_found"))

    def _answer_uploads(self, scope: str, rest: tuple[str, ...], request: Request) -> Answer:
        repo, _, revision = scope.partition("@")
        if revision and self.revisions.get(revision) != repo:
            return _json(404, f"other:{request.path}", _error("no_such_revision"))
        if not rest and request.method == "POST":
            return self._create(scope, request)
        upload = self._uploads.get(rest[0] if rest else "")
        if upload is None or upload.owner != scope:
            return _json(404, f"other:{request.path}", _error("no_such_upload"))
        if request.method == "DELETE" and len(rest) == 1:
            del self._uploads[upload.name]
            return Answer(204, f"abort:{upload.ref}")
        if request.method == "POST" and rest[1:] == ("complete",):
            return self._complete(upload, json.loads(request.body))
        return _json(405, f"other:{request.path}", _error("method_not_allowed"))

    def _answer_revisions(self, repo: str, rest: tuple[str, ...], request: Request) -> Answer:
        if not rest and request.method == "POST":
            revision = f"rev-{os.urandom(4).hex()}"
            self.revisions[revision] = repo
            return _json(201, f"open:{repo}", {"session_id": revision, "expires_at": "2100-01-01T00:00:00Z"})
        known = self.revisions.get(rest[0] if rest else "") == repo or rest[:1] in [
            (each,) for each in self._finalizing
        ]
        if not known:
            return _json(404, f"other:{request.path}", _error("no_such_revision"))
        if request.method == "DELETE" and len(rest) == 1:
            del self.revisions[rest[0]]
            return Answer(204, f"give-up:{repo}")
        if request.method == "POST" and rest[1:] == ("finalize",):
            self.published.append((repo, json.loads(request.body)))
            self._finalizing[rest[0]] = self.revisions.pop(rest[0])
        target = f"finalize:{repo}"
        if self._faults.take(target, InProgress):
            where = {"Location": f"/api/v1/repos/{repo}/revisions/{rest[0]}", "Retry-After": "0"}
            answer = _json(202, target, {"state": "finalizing"})
            answer.headers.update(where)
            return answer
        return _json(200, target, {"state": "finalized", "checkpoints": [{"checkpoint_id": rest[0]}]})

    def _renew(self, fresh: str, request: Request) -> Answer:
        asked = json.loads(request.body)
        target = f"renew:{asked['request_id']}"
        with self._lock:
            if asked["capability_token"] not in self.tokens:
                return _json(401, target, _error("unauthorized"))
            self.tokens = self.tokens - {asked["capability_token"]} | {fresh}
        return _json(200, target, {"capability_token": fresh})

    def _target_in_store(self, request: Request) -> str:
        scope, rest = _uploads_of(request.segments)
        if scope and not rest and request.method == "POST" and request.body:
            return f"create:{_ref(json.loads(request.body))}"
        with self._lock:
            upload = self._uploads.get(rest[0] if rest else "")
        if upload is None:
            return f"other:{request.path}"
        return f"{'abort' if request.method == 'DELETE' else 'complete'}:{upload.ref}"

    def _create(self, owner: str, request: Request) -> Answer:
        asked = json.loads(request.body)
        ref, target = _ref(asked), f"create:{_ref(asked)}"
        if self.dedup and (known := self._known(asked["blake3"])) is not None:
            self.files[ref] = StoredFile(ref, owner, known, _type(asked), asked["request_id"], os.urandom(8).hex())
            return _json(200, target, {"dedup": True, **_meta(self.files[ref])})
        upload = _Upload(os.urandom(8).hex(), owner, ref, asked)
        self._uploads[upload.name] = upload
        if self.way == "grant":
            return _json(
                200, target, {"upload_id": upload.name, "s3_transfer_grant": self._grant(upload), **self.strange}
            )
        upload.signature = os.urandom(16).hex()
        count = -(-asked["size_bytes"] // self.part_bytes)
        urls = [
            f"{self.bucket_url}/parts/{upload.name}/{n}?X-Signature={upload.signature}" for n in range(1, count + 1)
        ]
        told = {"upload_id": upload.name, "part_urls": urls, "part_size": self.part_bytes, "total_parts": count}
        return _json(200, target, told | self.strange)

    def _known(self, blake3: str) -> bytes | None:
        return next((file.content for file in self.files.values() if file.blake3 == blake3), None)

    def _grant(self, upload: _Upload) -> dict[str, str]:
        upload.keys = Keys(
            access_key_id=f"LENT{os.urandom(4).hex()}",
            secret_access_key=os.urandom(16).hex(),
            session_token=os.urandom(16).hex(),
        )
        names = ("endpoint_url", "bucket", "key", "access_key_id", "secret_access_key", "session_token", "region")
        keys = (upload.keys.access_key_id, upload.keys.secret_access_key, upload.keys.session_token, upload.keys.region)
        grant = dict(zip(names, (self.bucket_url, _BUCKET, f"{upload.name}/{upload.ref}", *keys), strict=True))
        return {_camel(name): value for name, value in grant.items()} if self.camel_case else grant

    def _complete(self, upload: _Upload, told: Mapping[str, Any]) -> Answer:
        target, content = f"complete:{upload.ref}", upload.content
        if self._faults.take(target, InProgress):
            return _json(409, target, _error("upload_complete_in_progress"))
        if upload.keys is None:
            named = {each["part_number"]: each["etag"] for each in told["parts"]}
        else:
            named = {0: told["transfer"]["etag"]} if told["transfer"]["mode"] == "s3_sdk" else {}
        if named != _etags(upload):
            return _json(400, target, _error("etag_mismatch"))
        asked = upload.asked
        if len(content) != asked["size_bytes"] or Content(content).digest("blake3") != asked["blake3"]:
            return _json(400, target, _error("checksum_mismatch"))
        file = StoredFile(upload.ref, upload.owner, content, _type(asked), asked["request_id"], os.urandom(8).hex())
        meta = _meta(file)
        if self._faults.take(target, Corrupt):
            meta["blake3"] = "0" * 64
        self.files[upload.ref] = file
        del self._uploads[upload.name]
        return _json(200, target, meta)

    # --- the bucket ---------------------------------------------------------------------------------------------------

    def _target_in_bucket(self, request: Request) -> str:
        with self._lock:
            upload = self._uploads.get(request.segments[1] if len(request.segments) > 1 else "")
            if upload is None:
                return f"other:{request.path}"
            number = request.parameters.get("partNumber", "1") if upload.keys else request.segments[2]
            if request.method == "PUT":
                return f"part:{upload.ref}:{number}"
            return f"object:{upload.ref}"

    def _answer_bucket(self, request: Request) -> Answer:
        target = self._target_in_bucket(request)
        with self._lock:
            upload = self._uploads.get(request.segments[1] if len(request.segments) > 1 else "")
            if upload is None:
                return _xml(404, target, "NoSuchUpload")
            if upload.keys is None:
                if request.parameters.get("X-Signature") != upload.signature:
                    return _xml(403, target, "SignatureDoesNotMatch")
                return self._keep_part(upload, int(request.segments[2]), request.body, target)
            if (wrong := _wrong(request, upload.keys)) is not None:
                return _xml(403, target, wrong)
            return self._answer_s3(upload, request, target)

    def _answer_s3(self, upload: _Upload, request: Request, target: str) -> Answer:
        asked = request.parameters
        if request.method == "POST" and "uploads" in asked:
            upload.s3_id = os.urandom(8).hex()
            return _xml(200, target, f"<UploadId>{upload.s3_id}</UploadId>")
        if "uploadId" not in asked and request.method == "PUT":
            upload.whole = self._kept(request.body, target)
            return Answer(200, target, {"ETag": _etag(upload.whole)})
        if asked.get("uploadId") != upload.s3_id:
            return _xml(404, target, "NoSuchUpload")
        if request.method == "PUT":
            return self._keep_part(upload, int(asked["partNumber"]), request.body, target)
        if request.method == "DELETE":
            upload.s3_id, upload.parts = "", {}
            return Answer(204, target)
        named = {int(number): etag.decode().replace("&quot;", '"') for number, etag in _ETAG.findall(request.body)}
        if named != {number: _etag(part) for number, part in upload.parts.items()}:
            return _xml(200, target, "<Error><Code>InvalidPart</Code></Error>")
        upload.whole = upload.content
        return _xml(200, target, f"<ETag>{_etag(upload.whole).replace(chr(34), '&quot;')}</ETag>")

    def _keep_part(self, upload: _Upload, number: int, body: bytes, target: str) -> Answer:
        upload.parts[number] = kept = self._kept(body, target)
        headers = {} if self._faults.take(target, NoETag) else {"ETag": _etag(kept)}
        return Answer(200, target, headers)

    def _kept(self, body: bytes, target: str) -> bytes:
        fault = self._faults.take(target, Corrupt)
        if fault is None or not body:
            return body
        at = min(fault.at, len(body) - 1)
        return body[:at] + bytes([body[at] ^ 0xFF]) + body[at + 1 :]


def _uploads_of(parts: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Return where uploads of a route go, an owner's media or `owner/name@revision`, and the route's rest; "": none."""
    match parts:
        case ("api", "v1", "media", owner, "uploads", *rest):
            return owner, tuple(rest)
        case ("api", "v1", "repos", owner, name, "revisions", revision, "uploads", *rest):
            return f"{owner}/{name}@{revision}", tuple(rest)
    return "", ()


def _ref(asked: Mapping[str, Any]) -> str:
    return str(asked["ref"] if "ref" in asked else asked["path"])


def _wrong(request: Request, keys: Keys) -> str | None:
    """Return why a signed request is refused."""
    if request.headers.get("x-amz-content-sha256") != hashlib.sha256(request.body).hexdigest():
        return "XAmzContentSHA256Mismatch"
    if request.headers.get("x-amz-security-token", "") != keys.session_token:
        return "InvalidToken"
    names = ("host", "x-amz-content-sha256", "x-amz-date", "x-amz-security-token")
    headers = {name: request.headers[name] for name in names if name in request.headers}
    path = "/" + "/".join(quote(segment, safe="~") for segment in request.segments)
    expected = authorization(keys, method=request.method, path=path, query=request.parameters, headers=headers)
    return None if request.headers.get("authorization") == expected else "SignatureDoesNotMatch"


def _etags(upload: _Upload) -> dict[int, str]:
    if upload.keys is not None:
        return {} if upload.whole is None else {0: _etag(upload.whole)}
    return {number: _etag(part) for number, part in upload.parts.items()}


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


def _type(asked: Mapping[str, Any]) -> str:
    return str(asked.get("content_type", "application/octet-stream"))


def _meta(file: StoredFile) -> dict[str, Any]:
    size = len(file.content)
    known = {"ref": file.ref, "size_bytes": size, "sha256": file.sha256, "blake3": file.blake3}
    return {**known, "mime_type": file.mime_type, "media_id": file.media_id}


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(each.capitalize() for each in others)


def _error(code: str) -> dict[str, Any]:
    return {"error": {"code": code}}


def _json(status: int, target: str, value: Mapping[str, Any]) -> Answer:
    return Answer(status, target, {"Content-Type": "application/json"}, Content(json.dumps(value).encode()))


def _xml(status: int, target: str, content: str) -> Answer:
    inner = content if content.startswith("<") else f"<Error><Code>{content}</Code></Error>"
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<Result>{inner}</Result>'
    return Answer(status, target, {"Content-Type": "application/xml"}, Content(text.encode()))
