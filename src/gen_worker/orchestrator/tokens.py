"""Who is a worker: tokens that the control plane signs, checks and renews. RS256, as workers expect of a JWKS."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gen_worker.orchestrator.folder import make_state_folder
from gen_worker.orchestrator.views import PlaneError

if TYPE_CHECKING:
    from joserfc.jwk import RSAKey

ISSUER = "gen-worker-orchestrator"
AUDIENCE = "gen-worker"
ALGORITHM = "RS256"
KEY_FILE = "worker-tokens.pem"
KEY_BITS = 2048
LIFETIME_S = 4 * 3600.0
LEEWAY_S = 30  # between two clocks


class TokenError(PlaneError):
    """A token is no worker's; the text says why, and has nothing of the token in it."""


class WorkerClaims(msgspec.Struct, frozen=True):
    """Whom a token makes a worker, and from when to when, in unix times."""

    worker_id: str
    release_id: str
    issued: float
    expires: float


class Tokens:
    """One key pair, and the tokens that are signed with it."""

    def __init__(self, key: "RSAKey") -> None:
        self._key = key
        self._key.ensure_kid()

    @classmethod
    def create(cls, folder: Path) -> "Tokens":
        """Take the key in a folder, or make one there that only its owner can read; raise `TokenError`."""
        from joserfc.errors import JoseError
        from joserfc.jwk import RSAKey

        path = folder / KEY_FILE
        try:
            make_state_folder(folder)
            if not path.exists():
                _write_new(path, RSAKey.generate_key(KEY_BITS).as_pem(private=True))
            return cls(RSAKey.import_key(path.read_bytes()))
        except OSError as error:
            raise TokenError(f"the key for workers' tokens cannot be had: {error}") from error
        except (JoseError, ValueError) as error:
            raise TokenError(f"{path} has no RSA key in it") from error

    def worker_token(self, worker_id: str, release_id: str = "", lifetime_s: float = LIFETIME_S) -> str:
        """Return a token with which one worker connects."""
        from joserfc import jwt

        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": worker_id,
            "release_id": release_id,
            "iat": now,
            "exp": now + int(lifetime_s),
        }
        return jwt.encode({"alg": ALGORITHM, "typ": "JWT", "kid": self._key.kid or ""}, claims, self._key)

    def verify(self, token: str) -> WorkerClaims:
        """Return whom a token makes a worker; raise `TokenError`."""
        from joserfc import jwt
        from joserfc.errors import ExpiredTokenError, JoseError

        rules = jwt.JWTClaimsRegistry(
            leeway=LEEWAY_S,
            iss={"essential": True, "value": ISSUER},
            aud={"essential": True, "value": AUDIENCE},
            sub={"essential": True},
            exp={"essential": True},
        )
        try:
            claims = jwt.decode(token, self._key, algorithms=[ALGORITHM]).claims
            rules.validate(claims)
        except ExpiredTokenError:
            raise TokenError("the worker's token has expired") from None
        except (JoseError, ValueError, TypeError):
            raise TokenError("the worker's token is not from here") from None
        return WorkerClaims(str(claims["sub"]), str(claims.get("release_id", "")), claims["iat"], claims["exp"])

    def jwks(self) -> dict[str, list[dict[str, object]]]:
        """Return the public key as workers read it from `SCHEDULER_JWKS_URL`."""
        return {"keys": [{**self._key.as_dict(private=False), "alg": ALGORITHM, "use": "sig"}]}


def _write_new(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    draft = path.with_suffix(f".{os.getpid()}")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
