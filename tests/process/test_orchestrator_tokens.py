import base64
import json
import stat
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import pytest

from gen_worker.auth import TokenError as OwnTokenError
from gen_worker.auth import check_own_token, claims
from gen_worker.orchestrator.tokens import AUDIENCE, ISSUER, KEY_FILE, TokenError, Tokens
from gen_worker.testing.contents import Content
from gen_worker.testing.faults import Faults
from gen_worker.testing.origin import Answer, Origin

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    return Tokens.create(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def keys(tokens: Tokens) -> Iterator[str]:
    """A server of the public key, and of nonsense."""
    content = json.dumps(tokens.jwks()).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = {"/jwks": content, "/nonsense": b"<html>"}.get(self.path.partition("?")[0])
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(found or b"")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_key_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    token = Tokens.create(tmp_path).worker_token("one")
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    assert Tokens.create(tmp_path).verify(token).worker_id == "one"
    assert {each.name for each in tmp_path.iterdir()} == {KEY_FILE, ".gitignore"}
    assert (tmp_path / ".gitignore").read_text() == "*\n"


def test_a_folder_for_the_key_is_for_its_owner_only(tmp_path: Path) -> None:
    Tokens.create(tmp_path / "state")
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_a_key_file_with_something_else_in_it_is_said(tmp_path: Path) -> None:
    (tmp_path / KEY_FILE).write_text("no key")
    with pytest.raises(TokenError, match="has no RSA key"):
        Tokens.create(tmp_path)


def test_a_token_says_who_the_worker_is_and_until_when(tokens: Tokens) -> None:
    found = tokens.verify(tokens.worker_token("one", "r7", lifetime_s=100))
    assert (found.worker_id, found.release_id) == ("one", "r7")
    assert found.expires - found.issued == 100
    assert found.issued == pytest.approx(time.time(), abs=5)


def test_the_public_key_has_nothing_private(tokens: Tokens) -> None:
    (key,) = tokens.jwks()["keys"]
    assert set(key) == {"kty", "n", "e", "kid", "alg", "use"}


def test_tokens_that_are_not_from_here_are_refused(tokens: Tokens, tmp_path: Path) -> None:
    good = tokens.worker_token("one")
    header, body, signature = good.split(".")
    unsigned = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
    forged = base64.urlsafe_b64encode(b'{"sub":"two"}').rstrip(b"=").decode()
    for token in (
        "",
        "a.b.c",
        "…",
        good[:-4],
        f"{header}.{forged}.{signature}",
        f"{unsigned}.{body}.",
        Tokens.create(tmp_path).worker_token("one"),
    ):
        with pytest.raises(TokenError, match="not from here") as refused:
            tokens.verify(token)
        assert not token or token not in str(refused.value)
    with pytest.raises(TokenError, match="expired"):
        tokens.verify(tokens.worker_token("one", lifetime_s=-100))


def test_a_worker_accepts_its_own_token(tokens: Tokens, keys: str) -> None:
    token = tokens.worker_token("one")
    check_own_token(token, f"{keys}/jwks")
    check_own_token(token, f"{keys}/jwks", ISSUER, AUDIENCE)
    assert claims(token)["sub"] == "one"


def test_a_worker_says_what_is_wrong_with_its_own_token(tokens: Tokens, keys: str, tmp_path: Path) -> None:
    good = tokens.worker_token("one")
    for token, place, issuer, audience, text in (
        ("", "jwks", "", "", "there is no token"),
        (good, "jwks", "somebody", "", "SCHEDULER_JWT_ISSUER"),
        (good, "jwks", "", "somebody", "SCHEDULER_JWT_AUDIENCE"),
        (good, "nonsense", "", "", "no JSON Web Key Set"),
        (good, "absent?signature=hidden", "", "", "404"),
        (tokens.worker_token("one", lifetime_s=-100), "jwks", "", "", "expired"),
        (Tokens.create(tmp_path).worker_token("one"), "jwks", "", "", "not signed with one of the keys"),
        ("nonsense", "jwks", "", "", "not signed with one of the keys"),
    ):
        with pytest.raises(OwnTokenError, match=text) as refused:
            check_own_token(token, f"{keys}/{place}", issuer, audience)
        assert refused.value.hint
        assert "hidden" not in str(refused.value)
        assert good not in str(refused.value)


class SignedWith(NamedTuple):
    """A token, and the keys that are there while its own is about to be replaced."""

    token: str
    keys: list[object]


@pytest.fixture(scope="module")
def rotating() -> Callable[..., SignedWith]:
    """Return tokens of a key that another one follows."""
    from joserfc import jwt
    from joserfc.jwk import RSAKey

    ours, other = (RSAKey.generate_key(2048) for _ in range(2))

    def rotated(
        kid: str | None, *named: str | None, beside: object = None, gone: bool = False, **at: float
    ) -> SignedWith:
        header = {"alg": "RS256"} | ({} if kid is None else {"kid": kid})
        claims = {"exp": time.time() + 600} | {name: time.time() + seconds for name, seconds in at.items()}
        keys: list[object] = [beside]
        for key, name in zip([other] if gone else [other, ours], named, strict=True):
            keys.append({**key.as_dict(private=False)} | ({} if name is None else {"kid": name}))
        return SignedWith(jwt.encode(header, claims, ours), keys)

    return rotated


def read_from(signed: SignedWith) -> None:
    content = Content(json.dumps({"keys": signed.keys}).encode())
    origin = Origin("keys", 0, Faults(), lambda request: Answer(200, "jwks", {}, content))
    try:
        check_own_token(signed.token, f"{origin.url}/jwks")
    finally:
        origin.close()


@pytest.mark.parametrize(
    ("kid", "named"), [("b", ("a", "b")), (None, ("a", "b")), ("b", (None, None)), ("b", ("b", "b"))]
)
def test_a_token_is_good_while_its_key_is_replaced_whatever_keys_are_called(
    rotating: Callable[..., SignedWith], kid: str | None, named: tuple[str | None, str | None]
) -> None:
    read_from(rotating(kid, *named))


@pytest.mark.parametrize(
    "beside",
    [
        {"kty": "OKP", "crv": "X9", "x": "abc", "kid": "b"},
        {"kty": "AKP", "alg": "ML-DSA-44", "pub": "abc"},
        {"kty": "RSA", "kid": "b"},
        {"kty": "oct", "k": "AAAA", "kid": "b"},
        "b",
    ],
)
def test_keys_of_other_kinds_do_not_hide_the_one_that_signed(
    rotating: Callable[..., SignedWith], beside: object
) -> None:
    read_from(rotating("b", "a", "b", beside=beside))


def test_a_token_whose_key_is_gone_is_told_with_the_keys_that_are_there(rotating: Callable[..., SignedWith]) -> None:
    with pytest.raises(OwnTokenError, match=r"it names `old`, and there are: `new`$"):
        read_from(rotating("old", "new", gone=True))


def test_a_clock_that_differs_from_the_makers_is_told_with_by_how_much(rotating: Callable[..., SignedWith]) -> None:
    read_from(rotating("b", "a", "b", iat=20, nbf=20))
    read_from(rotating("b", "a", "b", exp=-20))
    with pytest.raises(OwnTokenError, match=r"not good yet: in (99|100) s, by this machine's clock") as early:
        read_from(rotating("b", "a", "b", iat=100))
    assert "clock" in early.value.hint
    with pytest.raises(OwnTokenError, match=r"has expired: (99|10\d) s ago, by this machine's clock"):
        read_from(rotating("b", "a", "b", exp=-100))


def test_keys_that_cannot_be_reached_are_said(tokens: Tokens) -> None:
    with pytest.raises(OwnTokenError, match="cannot be had"):
        check_own_token(tokens.worker_token("one"), "http://127.0.0.1:1/jwks")
    with pytest.raises(OwnTokenError, match="cannot be had"):
        check_own_token(tokens.worker_token("one"), "http://127.0.0.1:1/jwks", ca_bundle="/absent.pem")
