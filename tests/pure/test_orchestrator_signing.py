"""URLs and tokens that carry their own permission."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen_worker.orchestrator.signing import JobClaims, SignatureError, Signer

SIGNER = Signer(bytes(range(32)))
CLAIMS = JobClaims(request_id="r", attempt=1, exp=100, owner="ada")


def parameters(url: str) -> dict[str, str]:
    return dict(each.split("=") for each in url.partition("?")[2].split("&"))


def test_a_signed_url_is_good_for_its_method_until_its_time() -> None:
    signed = parameters(SIGNER.sign("GET", "/v1/files/cat.png", 100))
    SIGNER.check("GET", "/v1/files/cat.png", **signed, now=100.0)
    SIGNER.check("HEAD", "/v1/files/cat.png", **signed, now=99.0)
    with pytest.raises(SignatureError) as raised:
        SIGNER.check("GET", "/v1/files/cat.png", **signed, now=101.0)
    assert raised.value.expired


@pytest.mark.parametrize(
    ("method", "path", "changed"),
    [
        ("PUT", "/v1/files/cat.png", {}),
        ("GET", "/v1/files/dog.png", {}),
        ("GET", "/v1/files/cat.png", {"expires": "999"}),
        ("GET", "/v1/files/cat.png", {"expires": ""}),
        ("GET", "/v1/files/cat.png", {"expires": "-1"}),
        ("GET", "/v1/files/cat.png", {"expires": "٣"}),
        ("GET", "/v1/files/cat.png", {"expires": "9" * 5000}),
        ("GET", "/v1/files/cat.png", {"signature": ""}),
        ("GET", "/v1/files/cat.png", {"signature": "ä"}),
    ],
)
def test_a_url_is_good_for_nothing_else(method: str, path: str, changed: dict[str, str]) -> None:
    signed = parameters(SIGNER.sign("GET", "/v1/files/cat.png", 100)) | changed
    with pytest.raises(SignatureError) as raised:
        SIGNER.check(method, path, **signed, now=50.0)
    assert not raised.value.expired


def test_a_url_of_another_secret_is_refused() -> None:
    signed = parameters(Signer(bytes(32)).sign("GET", "/a", 100))
    with pytest.raises(SignatureError, match="wrong"):
        SIGNER.check("GET", "/a", **signed, now=50.0)


def test_a_secret_that_could_be_guessed_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Signer(b"short")


def test_a_token_says_what_it_allows_until_its_time() -> None:
    token = SIGNER.token(CLAIMS)
    assert SIGNER.claims(token, 100.0) == CLAIMS
    with pytest.raises(SignatureError) as raised:
        SIGNER.claims(token, 101.0)
    assert raised.value.expired


@given(st.text(max_size=200))
def test_what_is_no_token_of_ours_is_refused(text: str) -> None:
    with pytest.raises(SignatureError):
        SIGNER.claims(text, 50.0)


@given(st.integers(min_value=0), st.characters(codec="ascii"))
def test_a_token_that_was_changed_is_refused(at: int, letter: str) -> None:
    token = SIGNER.token(CLAIMS)
    at %= len(token) - 1  # the last letter has bits that mean nothing
    changed = token[:at] + letter + token[at + 1 :]
    if changed != token:
        with pytest.raises(SignatureError):
            SIGNER.claims(changed, 50.0)
