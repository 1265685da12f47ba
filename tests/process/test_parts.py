"""Large files that the platform's hub keeps in parts are there whole; what it grants comes from its bucket."""

import json
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qsl, urlsplit

import pytest
from blake3 import blake3

from gen_worker.models.wanted import Wanted
from gen_worker.testing import LoopbackHub
from gen_worker.testing.faults import Corrupt, Status
from tests.fetchers import Having, config_for, contents, fetcher_for, refused, weights

pytestmark = pytest.mark.process

HUB = Wanted("tensorhub", "acme/large")
WHOLE = weights(400_000)
PART_BYTES = 300_000
CONFIG = {"config.json": b"{}"}


def in_parts(path: str, content: bytes, changes: Mapping[str, object] = {}) -> dict[str, bytes]:
    """Return what the hub has of a file that it keeps in parts."""
    parts = [content[at : at + PART_BYTES] for at in range(0, len(content), PART_BYTES)]
    listed: dict[str, object] = {
        "original_path": path,
        "parts": [{"digest": f"blake3:{blake3(part).hexdigest()}"} for part in parts],
    }
    files = {f"{path}.part{number:04}": part for number, part in enumerate(parts)}
    return {f"{path}.parts.json": json.dumps({**listed, **changes}).encode(), **files}


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def fetcher(hub: LoopbackHub, tmp_path: Path) -> Iterator[Having]:
    with fetcher_for(config_for(tmp_path / "cache", hub.url)) as fetcher:
        yield fetcher


def left(fetcher: Having) -> list[str]:
    """Return the names of all blobs, and of what lies beside them."""
    blobs = Path(fetcher.config.root, "cas", "blobs")
    return sorted(path.name for path in blobs.rglob("*") if path.is_file())


@pytest.mark.parametrize("path", ["model.safetensors", "unet/model.safetensors"])
def test_a_file_in_parts_is_put_together_and_its_parts_are_not_shown(
    hub: LoopbackHub, fetcher: Having, path: str
) -> None:
    hub.add_snapshot("acme/large", CONFIG | in_parts(path, WHOLE))
    had = fetcher.have(HUB)
    assert contents(had.snapshot) == CONFIG | {path: WHOLE}
    assert had.fetched_bytes >= len(WHOLE)
    assert len(left(fetcher)) == 2, "the file and its config, once each"
    assert fetcher.have(HUB).fetched_bytes == 0


def test_parts_that_are_alike_count_as_often_as_they_are_named(hub: LoopbackHub, fetcher: Having) -> None:
    zeros = bytes(900_000)
    hub.add_snapshot("acme/large", in_parts("zeros.bin", zeros))
    assert contents(fetcher.have(HUB).snapshot) == {"zeros.bin": zeros}


def test_an_orchestrator_may_describe_a_file_in_parts(hub: LoopbackHub, fetcher: Having) -> None:
    files = hub.signed_files("acme/large", CONFIG | in_parts("model.safetensors", WHOLE))
    had = fetcher.have(HUB, snapshot=files)
    assert contents(had.snapshot) == CONFIG | {"model.safetensors": WHOLE}
    assert hub.leaks == []


def test_a_download_goes_on_after_the_last_whole_part_of_a_file(hub: LoopbackHub, fetcher: Having) -> None:
    files = in_parts("model.safetensors", WHOLE)
    hub.add_snapshot("acme/large", files)
    hub.fail("*part0002*", Status(404))
    assert refused(fetcher, HUB).file.endswith("part0002")
    hub.heal()
    before = hub.wire_bytes()
    assert contents(fetcher.have(HUB).snapshot) == {"model.safetensors": WHOLE}
    assert hub.wire_bytes() - before < 400_000, "the third part and the list of them"


def test_what_a_crash_has_left_of_a_file_is_read_again_before_it_counts(hub: LoopbackHub, fetcher: Having) -> None:
    hub.add_snapshot("acme/large", in_parts("model.safetensors", WHOLE))
    hub.fail("*part0002*", Status(404))
    refused(fetcher, HUB)
    (draft,) = (path for path in Path(fetcher.config.root, "cas", "blobs").rglob("*.part") if path.stat().st_size)
    with draft.open("r+b") as file:
        file.seek(400_000)
        file.write(b"\0" * 1000)
    hub.heal()
    assert contents(fetcher.have(HUB).snapshot) == {"model.safetensors": WHOLE}
    assert left(fetcher) == [draft.name.removesuffix(".part")]


def test_a_part_that_is_not_what_it_should_be_is_never_part_of_the_file(hub: LoopbackHub, fetcher: Having) -> None:
    hub.add_snapshot("acme/large", in_parts("model.safetensors", WHOLE))
    hub.fail("*part0001*", Corrupt())
    assert refused(fetcher, HUB).kind == "digest_mismatch"


def test_damage_in_a_file_of_parts_is_found(hub: LoopbackHub, fetcher: Having) -> None:
    hub.add_snapshot("acme/large", in_parts("model.safetensors", WHOLE))
    (entry,) = (had := fetcher.have(HUB)).snapshot.files
    place = Path(had.snapshot.source(entry))
    place.chmod(0o644)
    with place.open("r+b") as file:
        file.seek(500_000)
        file.write(b"\0" * 10)
    assert contents(fetcher.have(HUB).snapshot) != {"model.safetensors": WHOLE}
    had = fetcher.have(HUB, verify=True)
    assert (contents(had.snapshot), had.fetched_bytes >= len(WHOLE)) == ({"model.safetensors": WHOLE}, True)


@pytest.mark.parametrize(
    "changes",
    [
        {"original_path": "../x"},
        {"original_path": "/x"},
        {"original_path": "config.json"},
        {"original_path": 3},
        {"parts": []},
        {"parts": [{"digest": "ab" * 32}]},
        {"parts": [{"digest": "../x"}]},
        {"parts": "all"},
    ],
    ids=str,
)
def test_a_list_that_leads_elsewhere_or_names_what_is_not_there_is_refused(
    hub: LoopbackHub, fetcher: Having, changes: Mapping[str, object]
) -> None:
    hub.add_snapshot("acme/large", CONFIG | in_parts("model.safetensors", WHOLE, changes))
    error = refused(fetcher, HUB)
    assert error.kind == "bad_manifest"
    assert left(fetcher) == []


def test_a_file_that_is_only_called_like_a_list_is_a_file(hub: LoopbackHub, fetcher: Having) -> None:
    files = {"lego.parts.json": b"[1, 2]", "note.part1": b"x"}
    hub.add_snapshot("acme/large", files)
    assert contents(fetcher.have(HUB).snapshot) == files


# --- other ways in which the hub may say where a file is --------------------------------------------------------------


class Bucket:
    """A hub whose snapshots list `entries`, and the bucket that its grants are for, which asks for a signature."""

    def __init__(self, files: Mapping[str, bytes], **changes: object) -> None:
        bucket = self
        self.files = files
        self.changes = changes
        self.asked: list[str] = []

        class Exchange(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = bucket.answer(self.path)
                bucket.asked.append(f"{self.path} {self.headers.get('authorization', '')}")
                self.send_response(403 if body is None else 200)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Exchange)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def __enter__(self) -> "Bucket":
        return self

    def __exit__(self, *raised: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, target: str) -> bytes | None:
        url = urlsplit(target)
        if url.path.endswith("/resolve"):
            return json.dumps({"digest": "ab" * 32}).encode()
        if url.path.endswith("/manifest"):
            return json.dumps({"entries": [self.entry(name) for name in self.files]}).encode()
        query = dict(parse_qsl(url.query))
        if query.get("X-Amz-Security-Token") != "lent" or len(query.get("X-Amz-Signature", "")) != 64:
            return None
        return self.files[url.path.removeprefix("/base/models/").replace("%20", " ")]

    def entry(self, name: str) -> dict[str, object]:
        content = self.files[name]
        keys = {"accessKeyId": "id", "secretAccessKey": "very-secret", "sessionToken": "lent"}
        grant = {"endpointUrl": f"{self.url}/base/", "bucket": "models", "key": name, **keys, **self.changes}
        digest = f"blake3:{blake3(content).hexdigest()}"
        return {"path": name, "size_bytes": len(content), "digest": digest, "transfer_grant": grant}


def test_a_file_may_be_granted_in_place_of_a_url_and_its_keys_are_shown_to_nobody(tmp_path: Path) -> None:
    files = {**CONFIG, "a model.safetensors": WHOLE}
    with Bucket(files) as bucket, fetcher_for(config_for(tmp_path, bucket.url, cozy_hub_token="mine")) as fetcher:
        assert contents(fetcher.have(HUB).snapshot) == files
        assert not any("mine" in each or "very-secret" in each for each in bucket.asked if "/base/" in each)


@pytest.mark.parametrize("changes", [{"accessKeyId": 3}, {"endpointUrl": "http://["}, {"bucket": None}], ids=str)
def test_a_grant_that_cannot_be_read_is_refused(tmp_path: Path, changes: Mapping[str, object]) -> None:
    with Bucket(CONFIG, **changes) as bucket, fetcher_for(config_for(tmp_path, bucket.url)) as fetcher:
        error = refused(fetcher, HUB)
        assert (error.kind, "very-secret" in f"{error!r}{error}{error.__cause__!r}") == ("bad_manifest", False)
