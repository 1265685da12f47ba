"""The worker's token, as the worker itself looks at it."""

import base64
import binascii
from typing import Any

import msgspec

KEYS_BYTES = 1 << 20  # the longest set of keys that is read
KEYS_TIMEOUT_S = 10.0
LEEWAY_S = 30  # between two clocks


class TokenError(Exception):
    """The worker's own token is not good; the text has nothing of it. `hint` says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def claims(token: str) -> dict[str, Any]:
    """Return what a JWT claims, without checking who signed it; nothing for what is no JWT."""
    parts = token.split(".")
    if len(parts) != 3:
        return {}
    try:
        told = msgspec.json.decode(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
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
    from joserfc.errors import ClaimError, ExpiredTokenError, JoseError
    from joserfc.jwk import KeySet

    rules = jwt.JWTClaimsRegistry(leeway=LEEWAY_S, exp={"essential": True})
    for name, value in (("iss", issuer), ("aud", audience)):
        if value:
            rules.options[name] = {"essential": True, "value": value}
    try:
        key_set = KeySet.import_key_set(msgspec.json.decode(keys))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, JoseError, ValueError, TypeError, KeyError):
        raise TokenError(
            "what `SCHEDULER_JWKS_URL` leads to is no JSON Web Key Set", "see what is served there"
        ) from None
    renew = "ask whoever runs the orchestrator for a new `WORKER_JWT`"
    try:
        rules.validate(jwt.decode(token, key_set, algorithms=["RS256"]).claims)
    except ExpiredTokenError:
        raise TokenError("the worker's token has expired", renew) from None
    except ClaimError as error:
        named = {"iss": " (`SCHEDULER_JWT_ISSUER`)", "aud": " (`SCHEDULER_JWT_AUDIENCE`)"}.get(error.claim, "")
        raise TokenError(f"the worker's token has the wrong `{error.claim}`{named}", renew) from None
    except (JoseError, ValueError, TypeError):
        raise TokenError(
            "the worker's token is not signed with one of the keys of `SCHEDULER_JWKS_URL`", renew
        ) from None
