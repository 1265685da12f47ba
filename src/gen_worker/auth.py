"""The worker's token, as the worker itself looks at it."""

import base64
import binascii
import time
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from joserfc.jwk import RSAKey

KEYS_BYTES = 1 << 20  # the longest set of keys that is read
KEYS_TIMEOUT_S = 10.0
LEEWAY_S = 30  # between two clocks
YEARS_S = 10 * 365 * 24 * 3600.0  # what differs by more is no clock
SHOWN_KEYS = 8  # of those that a token is none of
RENEW = "ask whoever runs the orchestrator for a new `WORKER_JWT`"


class TokenError(Exception):
    """The worker's own token is not good; the text has nothing of it. `hint` says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class _KeySet(msgspec.Struct):
    keys: list[Any]


def claims(token: str) -> dict[str, Any]:
    """Return what a JWT claims, without checking who signed it; nothing for what is no JWT."""
    parts = token.split(".")
    if len(parts) != 3:
        return {}
    return _document(parts[1])


def _document(text: str) -> dict[str, Any]:
    """Return a part of a JWT; nothing for what is none."""
    try:
        told = msgspec.json.decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (binascii.Error, ValueError, msgspec.DecodeError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def check_own_token(token: str, jwks_url: str, issuer: str = "", audience: str = "", ca_bundle: str = "") -> None:
    """Raise `TokenError` unless a key from `jwks_url` signed the token by RS256 and it is still good.

    Its issuer and its audience are looked at where they are given. `ca_bundle` is a PEM file of further authorities.
    Asks once, and waits up to 10 s for each part of the answer.
    """
    if not token:
        raise TokenError(
            "`SCHEDULER_JWKS_URL` is set, and there is no token to check",
            "set `WORKER_JWT`, or unset `SCHEDULER_JWKS_URL`",
        )
    _check(token, _keys(jwks_url, ca_bundle), issuer, audience)


def _keys(url: str, ca_bundle: str) -> bytes:
    """Return what a server says that its keys are."""
    import http.client
    import ssl
    import urllib.request

    shown = url.partition("?")[0]
    try:
        context = ssl.create_default_context()
        if ca_bundle:
            context.load_verify_locations(cafile=ca_bundle)
        with urllib.request.urlopen(url, timeout=KEYS_TIMEOUT_S, context=context) as answer:
            content: bytes = answer.read(KEYS_BYTES + 1)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise TokenError(
            f"the keys for the worker's token cannot be had from {shown}: {error}",
            "`SCHEDULER_JWKS_URL` must lead to a JSON Web Key Set that this machine can reach",
        ) from error
    if len(content) > KEYS_BYTES:
        raise TokenError(f"{shown} sends more than {KEYS_BYTES} bytes", "see what `SCHEDULER_JWKS_URL` leads to")
    return content


def _check(token: str, keys: bytes, issuer: str, audience: str) -> None:
    from joserfc import jwt
    from joserfc.errors import ClaimError, ExpiredTokenError

    rules = jwt.JWTClaimsRegistry(leeway=LEEWAY_S, exp={"essential": True})
    for name, value in (("iss", issuer), ("aud", audience)):
        if value:
            rules.options[name] = {"essential": True, "value": value}
    claimed = _signed_claims(token, _signing_keys(keys))
    try:
        rules.validate(claimed)
    except ExpiredTokenError:
        raise TokenError(f"the worker's token has expired{_off(claimed.get('exp'))}", RENEW) from None
    except ClaimError as error:
        if error.claim in ("iat", "nbf"):
            text = f"the worker's token is not good yet{_off(claimed.get(error.claim))}"
            raise TokenError(text, "set this machine's clock right, or start the worker later") from None
        named = {"iss": " (`SCHEDULER_JWT_ISSUER`)", "aud": " (`SCHEDULER_JWT_AUDIENCE`)"}.get(error.claim, "")
        raise TokenError(f"the worker's token has the wrong `{error.claim}`{named}", RENEW) from None


def _off(at: object) -> str:
    """Return how far a point is from now, by a clock that need not be that of whoever made the token."""
    seconds = at - time.time() if isinstance(at, int | float) else 0.0
    if not 1 <= abs(seconds) < YEARS_S:
        return ""
    when = f"in {seconds:.0f} s" if seconds > 0 else f"{-seconds:.0f} s ago"
    return f": {when}, by this machine's clock"


def _signing_keys(content: bytes) -> "list[RSAKey]":
    """Return the keys of a set that may have signed a token; those of other kinds, or broken, are passed over."""
    from joserfc.errors import JoseError
    from joserfc.jwk import RSAKey

    try:
        listed = msgspec.json.decode(content, type=_KeySet).keys
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        listed = []
    keys = []
    for each in listed:
        if not isinstance(each, dict) or each.get("kty") != "RSA" or each.get("use", "sig") != "sig":
            continue
        try:
            keys.append(RSAKey.import_key(each))
        except (JoseError, ValueError, TypeError, KeyError):  # the others are good all the same
            continue
    if not keys:
        text = "what `SCHEDULER_JWKS_URL` leads to is no JSON Web Key Set with an RSA key"
        raise TokenError(text, "see what is served there")
    return keys


def _signed_claims(token: str, keys: "list[RSAKey]") -> dict[str, Any]:
    """Return what a token claims that one of the keys signed.

    A token that names its key was signed by that one, or by one without a name; any other, by any.
    """
    from joserfc import jwt
    from joserfc.errors import JoseError

    kid = _header(token).get("kid")
    for key in [key for key in keys if kid is None or key.kid in (kid, None)]:
        try:
            return dict(jwt.decode(token, key, algorithms=["RS256"]).claims)
        except (JoseError, ValueError, TypeError):
            continue
    names = ", ".join(f"`{key.kid}`" for key in keys[:SHOWN_KEYS] if key.kid)
    which = f"; it names `{str(kid)[:100]}`, and there are: {names}" if kid is not None and names else ""
    raise TokenError(f"the worker's token is not signed with one of the keys of `SCHEDULER_JWKS_URL`{which}", RENEW)


def _header(token: str) -> dict[str, Any]:
    return _document(token.partition(".")[0])
