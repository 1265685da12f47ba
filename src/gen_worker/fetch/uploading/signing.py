"""Requests to a store that speaks S3, signed with keys that it lent. Pure.

Source: "AWS Signature Version 4 for S3", with the payload's SHA-256 in the signature, so that the store verifies it.
"""

import hashlib
import hmac
import time
from collections.abc import Mapping
from urllib.parse import quote

import msgspec

from gen_worker.secret import without

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
_ALGORITHM = "AWS4-HMAC-SHA256"


class Keys(msgspec.Struct, frozen=True, kw_only=True):
    """Keys that are good for one upload, and for a while."""

    access_key_id: str
    secret_access_key: str
    session_token: str = ""
    region: str = "auto"

    def __repr__(self) -> str:
        """Leave out what nobody may see."""
        return without(self, "secret_access_key", "session_token")


def signed(
    keys: Keys,
    *,
    method: str,
    host: str,
    path: str,
    query: Mapping[str, str],
    payload_sha256: str,
    now: float,
) -> dict[str, str]:
    """Return the headers that a request has to carry at the unix time `now`; `path` is encoded already."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    headers = {"Host": host, "X-Amz-Content-Sha256": payload_sha256, "X-Amz-Date": stamp}
    if keys.session_token:
        headers["X-Amz-Security-Token"] = keys.session_token
    return {**headers, "Authorization": authorization(keys, method=method, path=path, query=query, headers=headers)}


def authorization(keys: Keys, *, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str]) -> str:
    """Return the `Authorization` of a request with exactly these headers; date and digest are among them."""
    fields = {name.lower(): " ".join(value.split()) for name, value in headers.items()}
    stamp, payload_sha256 = fields["x-amz-date"], fields["x-amz-content-sha256"]
    scope, signature = _signature(keys, method, path, query, fields, stamp, payload_sha256)
    names = ";".join(sorted(fields))
    return f"{_ALGORITHM} Credential={keys.access_key_id}/{scope}, SignedHeaders={names}, Signature={signature}"


def presigned(keys: Keys, *, origin: str, path: str, now: float, seconds: int) -> str:
    """Return a URL that gives an object to whoever asks within so many seconds from the unix time `now`.

    `path` is encoded already. Source: "Authenticating Requests: Using Query Parameters".
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    query = {
        "X-Amz-Algorithm": _ALGORITHM,
        "X-Amz-Credential": f"{keys.access_key_id}/{_scope(keys, stamp)}",
        "X-Amz-Date": stamp,
        "X-Amz-Expires": str(seconds),
        "X-Amz-SignedHeaders": "host",
    }
    if keys.session_token:
        query["X-Amz-Security-Token"] = keys.session_token
    host = {"host": origin.partition("://")[2]}
    _, signature = _signature(keys, "GET", path, query, host, stamp, "UNSIGNED-PAYLOAD")
    return f"{origin}{path}?{encoded_query(query)}&X-Amz-Signature={signature}"


def _signature(
    keys: Keys,
    method: str,
    path: str,
    query: Mapping[str, str],
    fields: Mapping[str, str],
    stamp: str,
    payload: str,
) -> tuple[str, str]:
    """Return what a signature is good for, and the signature; the names of `fields` are in lower case."""
    request = "\n".join(
        (
            method,
            path,
            encoded_query(query),
            *(f"{name}:{fields[name]}" for name in sorted(fields)),
            "",
            ";".join(sorted(fields)),
            payload,
        )
    )
    scope = _scope(keys, stamp)
    text = "\n".join((_ALGORITHM, stamp, scope, hashlib.sha256(request.encode()).hexdigest()))
    return scope, hmac.new(_key(keys, stamp[:8]), text.encode(), hashlib.sha256).hexdigest()


def _scope(keys: Keys, stamp: str) -> str:
    return f"{stamp[:8]}/{keys.region}/s3/aws4_request"


def encoded_path(path: str) -> str:
    """Return a path as it is sent and signed."""
    return quote(path, safe="/~")


def encoded_query(query: Mapping[str, str]) -> str:
    """Return a query as it is sent and signed."""
    pairs = sorted((quote(name, safe="~"), quote(value, safe="~")) for name, value in query.items())
    return "&".join(f"{name}={value}" for name, value in pairs)


def _key(keys: Keys, day: str) -> bytes:
    key = f"AWS4{keys.secret_access_key}".encode()
    for part in (day, keys.region, "s3", "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key
