"""Requests to S3 are signed as AWS publishes it, in the examples of its page on the `Authorization` header."""

from collections.abc import Mapping

import pytest

from gen_worker.fetch.uploading.signing import EMPTY_SHA256, Keys, authorization, encoded_path, presigned, signed

KEYS = Keys(
    access_key_id="AKIAIOSFODNN7EXAMPLE",
    secret_access_key="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    region="us-east-1",
)
HEADERS = {
    "Host": "examplebucket.s3.amazonaws.com",
    "x-amz-content-sha256": EMPTY_SHA256,
    "x-amz-date": "20130524T000000Z",
}


@pytest.mark.parametrize(
    ("method", "path", "query", "headers", "signature"),
    [
        pytest.param(
            "GET",
            "/test.txt",
            {},
            {"Range": "bytes=0-9"},
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
            id="a range of an object",
        ),
        pytest.param(
            "PUT",
            "/test$file.text",
            {},
            {
                "Date": "Fri, 24 May 2013 00:00:00 GMT",
                "x-amz-storage-class": "REDUCED_REDUNDANCY",
                "x-amz-content-sha256": "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
            },
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
            id="an object",
        ),
        pytest.param(
            "GET",
            "/",
            {"lifecycle": ""},
            {},
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
            id="a query without a value",
        ),
        pytest.param(
            "GET",
            "/",
            {"prefix": "J", "max-keys": "2"},
            {},
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
            id="a listing",
        ),
    ],
)
def test_a_request_is_signed_as_in_the_published_example(
    method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str], signature: str
) -> None:
    sent = HEADERS | dict(headers)
    text = authorization(KEYS, method=method, path=encoded_path(path), query=query, headers=sent)
    assert text.endswith(f"Signature={signature}")
    assert "Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request," in text


def test_a_url_is_signed_as_in_the_published_example() -> None:
    origin = "https://examplebucket.s3.amazonaws.com"
    url = presigned(KEYS, origin=origin, path="/test.txt", now=1369353600.0, seconds=86400)
    assert url == (
        f"{origin}/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256"
        "&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request"
        "&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"
        "&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    )


def test_the_session_token_is_signed_too() -> None:
    keys = Keys(access_key_id="a", secret_access_key="s", session_token="lent")
    headers = signed(
        keys, method="PUT", host="h:1", path="/b/k", query={}, payload_sha256=EMPTY_SHA256, now=1369353600.0
    )
    assert headers["X-Amz-Security-Token"] == "lent"
    assert headers["X-Amz-Date"] == "20130524T000000Z"
    assert "SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-security-token," in headers["Authorization"]


def test_keys_are_shown_to_nobody() -> None:
    keys = Keys(access_key_id="a", secret_access_key="very-secret", session_token="also-secret")
    assert "very-secret" not in repr(keys)
    assert "also-secret" not in repr(keys)
