"""The bucket that keys are lent for: as much of S3 as an upload needs, signed with AWS Signature Version 4.

An object is put at once, or in parts that are joined. Its key is the upload's id, and so is the id of the multipart
upload; the keys are good for that one object, and for a while. Sizes of parts are the store's: 64 MiB but for the last.
"""

import hashlib
import hmac
import re
from calendar import timegm
from collections.abc import Callable, Iterator
from time import strptime, time
from typing import NamedTuple
from urllib.parse import urlsplit
from xml.sax.saxutils import escape

from blake3 import blake3
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from gen_worker.fetch.uploading.signing import Keys, authorization
from gen_worker.orchestrator.files import FileStore, Upload
from gen_worker.orchestrator.http import Threads, body_of, length_of, pieces
from gen_worker.orchestrator.refusal import Refusal
from gen_worker.orchestrator.signing import Signer

ROUTE = "/v1/bucket"
BUCKET = "uploads"
LENT_S = 6 * 3600.0
SKEW_S = 15 * 60.0  # between two clocks, as S3 has it
_JOIN_BYTES = 2 << 20  # a list of 10,000 parts
_UNSIGNED = "UNSIGNED-PAYLOAD"
_PART = re.compile(r"<PartNumber>\s*(\d{1,5})\s*</PartNumber>\s*<ETag>([^<]*)</ETag>|"
                   r"<ETag>([^<]*)</ETag>\s*<PartNumber>\s*(\d{1,5})\s*</PartNumber>")  # fmt: skip
_SIGNED = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/,]+)/(\d{8})/([^/,]+)/s3/aws4_request, ?"
    r"SignedHeaders=([a-z0-9;-]+), ?Signature=\w+"
)


class BucketError(Exception):
    """A request that the bucket refuses, by S3's word for why."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class _Signed(NamedTuple):
    """What a signature covers."""

    keys: Keys
    names: list[str]


class Bucket:
    """Takes the bytes of uploads whose keys were lent by `grant`."""

    def __init__(
        self,
        store: FileStore,
        signer: Signer,
        threads: Threads,
        *,
        base_url: str,
        clock: Callable[[], float] = time,
    ) -> None:
        self._store = store
        self._signer = signer
        self._threads = threads
        self._base_url = base_url
        self._clock = clock

    def routes(self) -> list[Route]:
        """Return the routes."""
        path = f"{ROUTE}/{BUCKET}/{{upload}}"
        return [Route(path, self._answer, methods=["PUT", "POST", "DELETE"])]

    def grant(self, upload: Upload) -> dict[str, str]:
        """Lend keys for an upload."""
        keys = self._keys(upload.id, str(int(self._clock() + LENT_S)))
        return {
            "endpoint_url": self._base_url + ROUTE,
            "bucket": BUCKET,
            "key": upload.id,
            "access_key_id": keys.access_key_id,
            "secret_access_key": keys.secret_access_key,
            "session_token": keys.session_token,
            "region": keys.region,
        }

    def sent(self, upload: Upload, etag: str) -> list[tuple[int, str]]:
        """Return the parts of an object of this ETag; raise `Refusal` where it is not what the bucket has."""
        parts = self._store.parts(upload.id)
        whole = parts.get(1, "") if upload.parts == 1 else _joined(parts)
        if not parts or not hmac.compare_digest(etag.strip('"').encode(), whole.encode()):
            raise Refusal(400, "wrong_parts", "the bucket has no object of that `etag`")
        return sorted(parts.items())

    def _keys(self, upload: str, expires: str) -> Keys:
        secret = self._signer.lent(upload, expires)
        return Keys(access_key_id=upload, secret_access_key=secret, session_token=expires)

    # --- one request --------------------------------------------------------------------------------------------------

    async def _answer(self, request: Request) -> Response:
        try:
            self._check(request)
            return await self._do(request)
        except BucketError as error:
            return _xml(error.status, f"<Code>{error.code}</Code><Message>{escape(str(error))}</Message>", "Error")
        except Refusal as error:
            code = {404: "NoSuchUpload", 507: "ServiceUnavailable"}.get(error.status, "InvalidRequest")
            status = 503 if error.status == 507 else error.status
            return _xml(status, f"<Code>{code}</Code><Message>{escape(str(error))}</Message>", "Error")
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it

    async def _do(self, request: Request) -> Response:
        asked, key = request.query_params, request.path_params["upload"]
        if "uploadId" in asked and asked["uploadId"] != key:
            raise BucketError(404, "NoSuchUpload", "there is no such multipart upload")
        match request.method, "uploadId" in asked:
            case "PUT", multipart:
                return await self._put(request, key, asked.get("partNumber", "") if multipart else "1")
            case "POST", False if "uploads" in asked:
                await self._threads.run(self._store.upload, key)
                told = f"<Bucket>{BUCKET}</Bucket><Key>{key}</Key><UploadId>{key}</UploadId>"
                return _xml(200, told, "InitiateMultipartUploadResult")
            case "POST", True:
                return await self._join(request, key)
            case "DELETE", True:
                await self._threads.run(self._store.restart, key)
                return Response(status_code=204)
        raise BucketError(501, "NotImplemented", "objects are put here, at once or in parts, and nothing else")

    async def _put(self, request: Request, key: str, number: str) -> Response:
        if not (number.isascii() and number.isdigit() and len(number) <= 5):
            raise BucketError(400, "InvalidArgument", "`partNumber` is a number from 1 on")
        length = length_of(request)
        if length is None:
            raise BucketError(411, "MissingContentLength", "an object says how long it is")
        expected = request.headers["x-amz-content-sha256"]
        filling = await self._threads.run(self._store.part, key, int(number), length)
        try:
            async for piece in pieces(request):
                await self._threads.run(filling.write, piece)
            if expected not in (_UNSIGNED, filling.sha256.hexdigest()):
                raise BucketError(400, "XAmzContentSHA256Mismatch", "other bytes came than were signed")
            etag = await self._threads.run(filling.finish)
        finally:
            filling.close()
        return Response(headers={"ETag": f'"{etag}"'})

    async def _join(self, request: Request, key: str) -> Response:
        body = await body_of(request, _JOIN_BYTES)
        if request.headers["x-amz-content-sha256"] not in (_UNSIGNED, hashlib.sha256(body).hexdigest()):
            raise BucketError(400, "XAmzContentSHA256Mismatch", "another list came than was signed")
        found = (each.groups() for each in _PART.finditer(body.decode("utf-8", "replace")))
        named = {int(first or last): _unquoted(etag or other) for first, etag, other, last in found}
        upload = await self._threads.run(self._store.upload, key)
        parts = await self._threads.run(self._store.parts, key)
        if named != parts or len(parts) != upload.parts:
            raise BucketError(400, "InvalidPart", f"{len(parts)} of {upload.parts} parts have come")
        told = f"<Bucket>{BUCKET}</Bucket><Key>{key}</Key><ETag>&quot;{_joined(parts)}&quot;</ETag>"
        return _xml(200, told, "CompleteMultipartUploadResult")

    # --- who may ask --------------------------------------------------------------------------------------------------

    def _check(self, request: Request) -> None:
        """Raise `BucketError` unless a request is signed with keys that were lent for its object."""
        headers = {name: request.headers.get(name, "") for name in ("x-amz-date", "x-amz-content-sha256")}
        signed = self._signed(request)
        missing = [name for name in ("host", *headers) if name not in signed.names]
        if missing or not all(headers.values()):
            raise BucketError(403, "AccessDenied", "host, date and digest are part of a signature here")
        if headers["x-amz-content-sha256"].startswith("STREAMING-"):
            raise BucketError(501, "NotImplemented", "bodies are sent as they are here, not in signed pieces")
        self._check_time(headers["x-amz-date"], signed.keys.session_token)
        shown = request.headers["authorization"].rpartition("Signature=")[2]
        if not any(hmac.compare_digest(shown.encode(), each.encode()) for each in self._signatures(request, signed)):
            raise BucketError(403, "SignatureDoesNotMatch", "the signature is wrong")

    def _signatures(self, request: Request, signed: _Signed) -> Iterator[str]:
        """Yield what the signature may be: a proxy may have changed the host that was signed, and cut the path."""
        front, headers = urlsplit(self._base_url), {name: request.headers.get(name, "") for name in signed.names}
        path = request.scope["raw_path"].decode("ascii", "replace").partition("?")[0]
        for host in dict.fromkeys((headers["host"], front.netloc)):
            for whole in dict.fromkeys((path, front.path.rstrip("/") + path)):
                found = authorization(
                    signed.keys,
                    method=request.method,
                    path=whole,
                    query=dict(request.query_params),
                    headers={**headers, "host": host},
                )
                yield found.rpartition("Signature=")[2]

    def _signed(self, request: Request) -> _Signed:
        found = _SIGNED.fullmatch(request.headers.get("authorization", ""))
        if found is None:
            raise BucketError(403, "AccessDenied", "a request is signed here: AWS4-HMAC-SHA256")
        access, _, region, names = found.groups()
        expires = request.headers.get("x-amz-security-token", "")
        if access != request.path_params["upload"]:
            raise BucketError(403, "AccessDenied", "the keys are lent for another object")
        keys = self._keys(access, expires)
        return _Signed(Keys(**{**_fields(keys), "region": region}), names.split(";"))

    def _check_time(self, stamp: str, expires: str) -> None:
        now = self._clock()
        try:
            skew = abs(now - timegm(strptime(stamp, "%Y%m%dT%H%M%SZ")))
            late = now > int(expires)
        except ValueError:
            raise BucketError(403, "AccessDenied", "`x-amz-date` and `x-amz-security-token` say no time") from None
        if skew > SKEW_S:
            raise BucketError(403, "RequestTimeTooSkewed", "the clocks of the two differ by more than 15 minutes")
        if late:
            raise BucketError(403, "ExpiredToken", "the keys were lent until a while ago")


def _fields(keys: Keys) -> dict[str, str]:
    return {name: getattr(keys, name) for name in keys.__struct_fields__}


def _joined(parts: dict[int, str]) -> str:
    """Return the ETag of an object that was made of parts."""
    return f"{blake3(''.join(etag for _, etag in sorted(parts.items())).encode()).hexdigest()}-{len(parts)}"


def _unquoted(etag: str) -> str:
    return etag.replace("&quot;", '"').replace("&#34;", '"').strip().strip('"')


def _xml(status: int, content: str, name: str) -> Response:
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<{name}>{content}</{name}>\n'
    return Response(text, status, media_type="application/xml")
