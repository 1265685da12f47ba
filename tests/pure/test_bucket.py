"""The bucket of a control plane takes what is signed with keys that were lent for it, and nothing else."""

import asyncio
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from blake3 import blake3
from starlette.applications import Starlette

from gen_worker.fetch.uploading.places import Grant, grant_of
from gen_worker.fetch.uploading.signing import encoded_query, signed
from gen_worker.orchestrator.bucket import LENT_S, SKEW_S, Bucket
from gen_worker.orchestrator.files import FileLimits, FileStore, Upload
from gen_worker.orchestrator.http import Threads
from gen_worker.orchestrator.refusal import Refusal
from gen_worker.orchestrator.signing import JobClaims, Signer

OURS = JobClaims(request_id="r", attempt=1, exp=0, owner="us")
PART = 1000


class Said(NamedTuple):
    status: int
    etag: str
    text: str

    @property
    def code(self) -> str:
        found = re.search("<Code>(.*)</Code>", self.text)
        return found[1] if found else ""


class Held:
    """A bucket, an upload that keys were lent for, and who holds them."""

    def __init__(self, folder: Path, content: bytes, url: str = "http://plane:1") -> None:
        self.now = 1_700_000_000.0
        self.store = FileStore(folder, FileLimits(lent_part_bytes=PART))
        self.threads = Threads(2)
        self.bucket = Bucket(self.store, Signer(bytes(32)), self.threads, base_url=url, clock=lambda: self.now)
        self.app = Starlette(routes=self.bucket.routes())
        self.content = content
        begun = self.store.begin(OURS, "a/model.bin", blake3(content).hexdigest(), len(content), lent=True)
        assert isinstance(begun, Upload)
        self.upload = begun
        self.grant: Grant = grant_of(self.bucket.grant(begun), "plane")

    def ask(self, method: str, query: dict[str, str], body: bytes = b"", **changes: Any) -> Said:
        """Make a request as a holder of the keys does, but for the changes."""
        grant: Grant = changes.pop("grant", self.grant)
        front = urlsplit(grant.endpoint_url)
        path = f"{front.path}/{grant.bucket}/{changes.pop('key', grant.key)}"
        digest = changes.pop("digest", hashlib.sha256(body).hexdigest())
        headers = signed(
            grant.keys, method=method, host=front.netloc, path=path, query=query, payload_sha256=digest, now=self.now
        )
        headers |= {"Content-Length": str(len(body))}
        headers |= changes
        path = path[path.index("/v1/") :]  # as a proxy cuts it
        return asyncio.run(self._call(method, path, encoded_query(query), headers, body))

    async def _call(self, method: str, path: str, query: str, headers: dict[str, str], body: bytes) -> Said:
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        }
        coming = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return coming.pop() if coming else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        told = dict(sent[0]["headers"])
        text = b"".join(each.get("body", b"") for each in sent[1:]).decode()
        return Said(sent[0]["status"], told.get(b"etag", b"").decode(), text)

    def put(self, number: int) -> Said:
        part = self.content[(number - 1) * PART : number * PART]
        return self.ask("PUT", {"partNumber": str(number), "uploadId": self.upload.id}, part)

    def join(self, *etags: str) -> Said:
        parts = "".join(
            f"<Part><PartNumber>{at}</PartNumber><ETag>{etag}</ETag></Part>" for at, etag in enumerate(etags, 1)
        )
        text = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        return self.ask("POST", {"uploadId": self.upload.id}, text)

    def complete(self, etag: str) -> bytes:
        file = self.store.complete(OURS, self.upload.id, self.bucket.sent(self.upload, etag))
        return self.store.read(file)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Held]:
    yield from closing(Held(tmp_path, b"weights"))


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Held]:
    yield from closing(Held(tmp_path, bytes(range(250)) * 10))


def closing(held: Held) -> Iterator[Held]:
    yield held
    held.threads.close()
    held.store.close()


def test_an_object_is_put_at_once(small: Held) -> None:
    said = small.ask("PUT", {}, b"weights")
    assert said.status == 200
    assert small.complete(said.etag) == b"weights"
    assert small.complete(said.etag) == b"weights", "asked again, it gives the same answer"


def test_an_object_is_put_in_parts_in_any_order_and_joined(large: Held) -> None:
    begun = large.ask("POST", {"uploads": ""})
    assert f"<UploadId>{large.upload.id}</UploadId>" in begun.text
    etags = {number: large.put(number).etag for number in (3, 1, 2)}
    joined = large.join(*(etags[number].replace('"', "&quot;") for number in (1, 2, 3)))
    assert joined.status == 200
    found = re.search("<ETag>(.*)</ETag>", joined.text)
    assert found is not None
    assert large.complete(found[1].replace("&quot;", '"')) == large.content


def test_a_proxy_in_front_may_name_another_host_and_cut_the_path(tmp_path: Path) -> None:
    for held in closing(Held(tmp_path, b"weights", "https://front.example/plane")):
        said = held.ask("PUT", {}, b"weights", Host="127.0.0.1:8081")
        assert held.complete(said.etag) == b"weights"


def test_what_did_not_come_whole_is_not_joined_and_not_completed(large: Held) -> None:
    etags = [large.put(number).etag for number in (1, 2)]
    assert large.join(*etags).code == "InvalidPart"
    with pytest.raises(Refusal, match="no object of that `etag`"):
        large.complete("0" * 64 + "-3")
    assert large.ask("DELETE", {"uploadId": large.upload.id}).status == 204
    assert not large.store.parts(large.upload.id)
    assert large.ask("PUT", {"partNumber": "1", "uploadId": large.upload.id}, b"short").code == "InvalidRequest"
    assert large.ask("PUT", {"partNumber": "x", "uploadId": large.upload.id}, b"").code == "InvalidArgument"
    assert large.ask("PUT", {"partNumber": "1", "uploadId": "another"}, b"").code == "NoSuchUpload"


def test_bytes_may_come_without_their_digest_in_the_signature(small: Held) -> None:
    assert small.ask("PUT", {}, b"weights", digest="UNSIGNED-PAYLOAD").status == 200


def test_who_does_not_hold_the_keys_puts_nothing(small: Held, tmp_path: Path) -> None:
    other = small.store.begin(OURS, "other", "0" * 64, 7, lent=True)
    assert isinstance(other, Upload)
    cases = {
        "AccessDenied": [
            {"authorization": ""},
            {"authorization": "Bearer me"},
            {"key": other.id},
            {"x-amz-date": "now"},
            {"x-amz-security-token": "never"},
        ],
        "SignatureDoesNotMatch": [{"x-amz-security-token": "99999999999"}, {"x-amz-date": "20231114T221300Z"}],
        "XAmzContentSHA256Mismatch": [{"digest": "0" * 64}],
        "NotImplemented": [{"digest": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"}],
    }
    for code, changed in cases.items():
        for changes in changed:
            changes = {_spelt(name): value for name, value in changes.items()}
            assert small.ask("PUT", {}, b"weights", **changes).code == code, changes
    assert not small.store.parts(small.upload.id)
    assert small.ask("POST", {}).code == "NotImplemented"


def _spelt(name: str) -> str:
    known = ("Authorization", "X-Amz-Date", "X-Amz-Security-Token", "Host")
    return {each.lower(): each for each in known}.get(name, name)


def test_keys_are_good_for_a_while_by_clocks_that_agree(small: Held) -> None:
    stale = small.now
    small.now += SKEW_S + 60
    late = small._call  # a request that was signed before
    headers = signed(
        small.grant.keys,
        method="PUT",
        host="plane:1",
        path=f"/v1/bucket/uploads/{small.grant.key}",
        query={},
        payload_sha256=hashlib.sha256(b"weights").hexdigest(),
        now=stale,
    )
    path = f"/v1/bucket/uploads/{small.grant.key}"
    assert asyncio.run(late("PUT", path, "", headers, b"weights")).code == "RequestTimeTooSkewed"
    small.now = stale + LENT_S + 1
    assert small.ask("PUT", {}, b"weights").code == "ExpiredToken"
