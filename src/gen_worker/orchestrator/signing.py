"""What carries its own permission: URLs that are good for a while, and the tokens by which jobs store files.

Pure: works on texts and the time that it is handed.
"""

import base64
import binascii
import hashlib
import hmac
from urllib.parse import quote

import msgspec

SECRET_BYTES = 32
_HEADER = b'{"alg":"HS256","typ":"JWT"}'


class SignatureError(Exception):
    """A signature is not ours, or its time is over; `expired` tells which."""

    def __init__(self, message: str, *, expired: bool = False) -> None:
        super().__init__(message)
        self.expired = expired


class JobClaims(msgspec.Struct, frozen=True, kw_only=True):
    """What the token of a job allows: to store files for this attempt, so many bytes in all and in one."""

    request_id: str
    attempt: int
    exp: int
    iat: int = 0
    owner: str = ""
    max_total_bytes: int = 0
    max_bytes_per_file: int = 0
    aud: str = "files"


class Signer:
    """Signs with one secret, and knows its own signatures."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < SECRET_BYTES:
            raise ValueError(f"a secret has at least {SECRET_BYTES} bytes, this one has {len(secret)}")
        self._secret = secret

    # --- URLs ---------------------------------------------------------------------------------------------------------

    def sign(self, method: str, path: str, expires: int) -> str:
        """Return a path with the query that allows one method on it until a unix time."""
        return f"{quote(path)}?expires={expires}&signature={self._of_url(method, path, expires)}"

    def check(self, method: str, path: str, *, expires: str, signature: str, now: float) -> None:
        """Raise `SignatureError` unless `sign` made this for the method (GET allows HEAD) and it is still good."""
        if not (expires.isascii() and expires.isdigit() and len(expires) <= 12):
            raise SignatureError("the URL has no time until which it is good")
        method = "GET" if method == "HEAD" else method
        if not hmac.compare_digest(self._of_url(method, path, int(expires)).encode(), signature.encode()):
            raise SignatureError("the URL's signature is wrong")
        if now > int(expires):
            raise SignatureError("the URL was good until a while ago", expired=True)

    def _of_url(self, method: str, path: str, expires: int) -> str:
        return _text(self._mac(f"url\n{method}\n{path}\n{expires}".encode()))

    # --- keys ---------------------------------------------------------------------------------------------------------

    def lent(self, upload: str, expires: str) -> str:
        """Return the secret key that is lent for one upload until a unix time."""
        return _text(self._mac(f"lent\n{upload}\n{expires}".encode()))

    # --- tokens -------------------------------------------------------------------------------------------------------

    def token(self, claims: JobClaims) -> str:
        """Return a job's token: a JWT, HMAC with SHA-256, whose claims its holder can read."""
        body = f"{_text(_HEADER)}.{_text(msgspec.json.encode(claims))}"
        return f"{body}.{_text(self._mac(body.encode()))}"

    def claims(self, token: str, now: float) -> JobClaims:
        """Return what a token allows; raise `SignatureError` for one that is not ours or no longer good."""
        body, _, signature = token.rpartition(".")
        header, _, claims = body.partition(".")
        if not hmac.compare_digest(_text(self._mac(body.encode())).encode(), signature.encode()):
            raise SignatureError("the token's signature is wrong")
        try:
            found = msgspec.json.decode(_bytes(claims), type=JobClaims)
        except (msgspec.MsgspecError, binascii.Error):
            raise SignatureError("the token says nothing about a job") from None
        if header != _text(_HEADER) or found.aud != "files":
            raise SignatureError("the token is for something else")
        if now > found.exp:
            raise SignatureError("the token was good until a while ago", expired=True)
        return found

    def _mac(self, content: bytes) -> bytes:
        return hmac.digest(self._secret, content, hashlib.sha256)


def _text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
