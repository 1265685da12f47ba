"""Files that payloads name by refs, over the earlier wire: described by `HEAD`, fetched once, gone with their run."""

import hashlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gen_worker.testing.file_api import FileApi
from tests.process.test_earlier_wire import Shop, unpacked, working
from tests.scripted.earlier import Stream
from tests.served import until

pytestmark = pytest.mark.process

TEXT = "some words\n"
DIGEST = hashlib.sha256(TEXT.encode()).hexdigest()


class Store:
    """A file API with one file, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        (folder / "inputs").mkdir(parents=True)
        (folder / "inputs" / "words.txt").write_text(TEXT)
        self._lines: list[str] = []
        self.api = FileApi(folder, ("127.0.0.1", 0), token="file-token", tell=self._lines.append)

    @property
    def run(self) -> dict[str, str]:
        """What a run says of it."""
        return {"file_base_url": self.api.url, "file_token": "file-token", "tenant_id": "acme"}

    def asked(self) -> list[str]:
        """Return the methods by which it was asked since this was called last."""
        asked = [line.split()[0] for line in self._lines]
        self._lines.clear()
        return asked


@contextmanager
def looking(folder: Path, **variables: str) -> Iterator[tuple[Shop, Stream, Store]]:
    store = Store(folder / "store")
    with store.api, working(folder, "earlier_inputs", GEN_WORKER_DEVICES="cpu:1", **variables) as (worker, stream):
        yield worker, stream, store


def look(stream: Stream, run_id: str, run: dict[str, str], function: str = "look", **more: Any) -> dict[str, Any]:
    payload = {"asset": {"ref": "inputs/words.txt"}, **more}
    stream.run(function, payload, run_id=run_id, **run)
    return unpacked(stream.result(run_id))


def test_a_file_comes_once_and_each_run_has_its_own_copy(grpc_awake: None, tmp_path: Path) -> None:
    with looking(tmp_path) as (_, stream, store):
        runs, cached = tmp_path / "runs", tmp_path / "runs" / "cache" / DIGEST
        first = look(stream, "r-1", store.run)
        assert Path(first.pop("path")).parent == runs / "r-1" / "inputs"
        described = {"size_bytes": len(TEXT), "mime_type": "text/plain", "sha256": DIGEST, "tenant_id": "acme"}
        assert first == {"text": TEXT, **described}
        assert store.asked() == ["HEAD", "GET"]
        until(lambda: os.listdir(runs / "cache") == [DIGEST] and not (runs / "r-1").exists())

        assert look(stream, "spoiler", store.run, "spoil")["text"] == "spoilt"
        again = look(stream, "r-2", store.run)
        assert (again["text"], again["mime_type"], again["sha256"]) == (TEXT, "text/plain", DIGEST)
        assert store.asked() == ["HEAD", "HEAD"]

        stream.run("look", {"asset": {"ref": "inputs/words.txt"}}, run_id="who", **{**store.run, "file_token": "other"})
        assert stream.result("who").error_type == "auth"  # what is here is for who may have it
        assert store.asked() == ["HEAD"]

        cached.write_text("damaged")
        assert look(stream, "r-3", store.run)["text"] == TEXT
        assert store.asked() == ["HEAD", "GET"]
        assert cached.read_text() == TEXT
        cached.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(16))  # damaged, as a kind that the run does not take
        asset = {"ref": "inputs/words.txt", "url_allowed_mime_types": ["text/plain"]}
        assert look(stream, "r-4", store.run, asset=asset)["text"] == TEXT
        assert store.asked() == ["HEAD", "GET"]
        until(lambda: [name for name in os.listdir(runs) if not name.startswith("gen-worker-inputs-")] == ["cache"])


def test_what_a_killed_worker_left_goes_with_the_next_start_and_what_it_kept_is_used(
    grpc_awake: None, tmp_path: Path
) -> None:
    runs, kept = tmp_path / "runs", tmp_path / "kept"
    with looking(tmp_path, WORKER_CACHE_DIR=str(kept)) as (worker, stream, store):
        payload = {"asset": {"ref": "inputs/words.txt"}, "gate": "never"}
        stream.run("look", payload, run_id="cache", **store.run)
        worker.until_waits("never")
        left = runs / "run-cache"
        assert list((left / "inputs").iterdir())
        worker.process.send_signal(signal.SIGKILL)
        worker.process.wait()
    assert left.exists()
    (tmp_path / "never-waits").unlink()
    store = Store(tmp_path / "other")
    (tmp_path / "log").unlink()
    with (
        store.api,
        working(tmp_path, "earlier_inputs", GEN_WORKER_DEVICES="cpu:1", WORKER_CACHE_DIR=str(kept)) as (_, stream),
    ):
        until(lambda: not left.exists())
        assert look(stream, "next", store.run)["text"] == TEXT
        assert store.asked() == ["HEAD"]


def test_a_file_that_is_too_long_is_refused_and_what_no_run_says_stands_in_the_environment(
    grpc_awake: None, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "store" / "long").write_bytes(b"x" * 1001)
    variables = {
        "FILE_API_BASE_URL": store.api.url,
        "FILE_API_TOKEN": "file-token",
        "WORKER_MAX_INPUT_FILE_BYTES": "1000",
    }
    with store.api, working(tmp_path, "earlier_inputs", GEN_WORKER_DEVICES="cpu:1", **variables) as (worker, stream):
        assert look(stream, "own", {})["text"] == TEXT
        stream.run("look", {"asset": {"ref": "long"}}, run_id="long")
        result = stream.result("long")
        assert (result.error_type, result.retryable) == ("validation", False)
        assert result.error_message.endswith("has 1001 bytes, the limit is 1000")
        stream.run("look", {"asset": {"ref": "long"}}, run_id="elsewhere", file_base_url=store.api.url)
        assert stream.result("elsewhere").error_type == "auth"  # the worker's token is for its own place only
        assert "file-token" not in worker.log()
