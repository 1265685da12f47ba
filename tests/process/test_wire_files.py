"""Bytes that an orchestrator lets a worker fetch and store: models by presigned URLs, outputs and saved files."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from gen_worker.testing import LoopbackStore
from tests.process.test_parts import in_parts
from tests.scripted.blobs import SIGNATURE, Blobs
from tests.scripted.entrypoint import Driven, driven
from tests.scripted.orchestrator import FATAL, INVALID, OK, RETRYABLE, Asked

pytestmark = [pytest.mark.process, pytest.mark.needs("grpc_tools")]
DOWNLOAD, LOAD, UNLOAD = 1, 2, 3
DOWNLOADING, ON_DISK, FAILED = 1, 2, 6
DISK = 1
INLINE = 2


class Shared(NamedTuple):
    """A worker, its orchestrator's store, and the blobs of its models."""

    driven: Driven
    store: LoopbackStore
    blobs: Blobs

    def run(self, function: str, payload: dict[str, Any], **fields: Any) -> Asked:
        """Send a job that may store files as `acme`."""
        given = {"capability_token": self.store.token, "tenant": "acme", **fields}
        return self.driven.connection.run(function, payload, **given)

    def operate(self, ref: str, snapshot: dict[str, Any] | None = None, op: int = DOWNLOAD) -> Any:
        """Send a ModelOp and return the event that ends it."""
        described = {} if snapshot is None else {"snapshot": snapshot}
        self.driven.connection.send(model_op={"op": op, "ref": ref, **described})
        return self.driven.connection.expect("model_event", ref=ref, where=lambda event: event.state != DOWNLOADING)


@pytest.fixture(scope="module")
def shared(grpc_awake: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """One worker for the module, whose fetcher has been used."""
    folder = tmp_path_factory.mktemp("wired")
    with LoopbackStore() as store, Blobs() as blobs, driven(folder, file_base_url=store.url) as made:
        shared = Shared(made, store, blobs)
        with made.worker.explained():
            assert shared.operate("acme/first", blobs.snapshot({"a.txt": b"first"})).state == ON_DISK
        yield shared


def bytes_of(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "faults",
    [(), ("corrupt",), ("corrupt", "corrupt"), ("truncated",), (500,), (500, "truncated", "corrupt"), (408,)],
    ids=str,
)
def test_a_model_that_can_be_had_in_the_end_is_had(shared: Shared, faults: tuple[str | int, ...]) -> None:
    name = "-".join(map(str, faults))
    ref = f"acme/had-{name}"
    snapshot = shared.blobs.snapshot({"weights.bin": name.encode() + bytes_of(100_000, 1)}, *faults)
    event = shared.operate(ref, snapshot)
    assert (event.state, event.error) == (ON_DISK, "")


@pytest.mark.parametrize(
    ("faults", "error", "tries"),
    [
        (("corrupt", "always"), "digest_mismatch", 3),
        ((403, "always"), "url_expired", 1),
        ((404, "always"), "url_expired", 1),
        ((410, "always"), "url_expired", 1),
    ],
    ids=str,
)
def test_a_model_that_cannot_be_had_fails_after_as_many_tries_as_are_worth_it(
    shared: Shared, faults: tuple[str | int, ...], error: str, tries: int
) -> None:
    ref = f"acme/failed-{faults[0]}"
    snapshot = shared.blobs.snapshot({"weights.bin": f"{faults[0]}".encode() + bytes_of(50_000, 2)}, *faults)
    event = shared.operate(ref, snapshot)
    assert (event.state, event.error) == (FAILED, error)
    assert shared.blobs.hits[snapshot["files"][0]["blake3"]] == tries
    assert shared.driven.ask("echo", text="fine").output()["text"] == "fine"


def test_fresh_urls_undo_a_failure(shared: Shared) -> None:
    contents = {"weights.bin": bytes_of(50_000, 77)}
    assert shared.operate("acme/renewed", shared.blobs.snapshot(contents, 403)).error == "url_expired"
    assert shared.operate("acme/renewed", shared.blobs.snapshot(contents)).state == ON_DISK


def test_what_is_there_is_said_to_be_there_and_not_fetched_again(shared: Shared) -> None:
    snapshot = shared.blobs.snapshot({"weights.bin": bytes_of(50_000, 5)})
    assert shared.operate("acme/again", snapshot).state == ON_DISK
    hits = sum(shared.blobs.hits.values())
    assert shared.operate("acme/again", snapshot).state == ON_DISK
    assert sum(shared.blobs.hits.values()) == hits


def test_a_model_with_a_file_in_parts_is_had_and_its_urls_may_expire(shared: Shared) -> None:
    files = in_parts("large.bin", bytes_of(700_000, 17))
    expired = shared.blobs.snapshot(files, 403, "always")
    failed = shared.operate("acme/parts", expired)
    assert (failed.state, failed.error) == (FAILED, "url_expired")
    assert shared.operate("acme/parts", shared.blobs.snapshot(files)).state == ON_DISK


def test_another_digest_of_the_same_ref_is_fetched(shared: Shared) -> None:
    for seed in (1, 2):
        snapshot = shared.blobs.snapshot({"weights.bin": bytes_of(20_000, 1000 + seed)})
        assert shared.operate("acme/republished", snapshot).state == ON_DISK
        assert shared.blobs.hits[snapshot["files"][0]["blake3"]] == 1


def test_a_model_that_no_function_binds_cannot_be_loaded(shared: Shared) -> None:
    event = shared.operate("acme/unbound", shared.blobs.snapshot({"a": b"b"}), LOAD)
    assert (event.state, event.error) == (FAILED, "load_failed")


@pytest.mark.promise(37)
def test_paths_that_lead_out_of_a_snapshot_are_refused(shared: Shared) -> None:
    for number, path in enumerate(("../escape", "/etc/escape", "a/../../escape", "a\\..\\..\\escape")):
        event = shared.operate(f"acme/escape-{number}", shared.blobs.snapshot({path: b"out"}))
        assert (event.state, event.error) == (FAILED, "download_failed")
    assert not list(shared.driven.worker.folder.rglob("escape"))


def test_the_next_hello_says_what_is_on_the_disk(shared: Shared) -> None:
    shared.operate("acme/told", shared.blobs.snapshot({"a": b"told"}))
    last = shared.driven._replace(connection=shared.driven.orchestrator.connections[-1])
    hello = last.redial().connection.hello
    assert {each.ref: each.tier for each in hello.models}["acme/told"] == DISK


# --- outputs and saved files ------------------------------------------------------------------------------------------


@pytest.fixture
def live(shared: Shared) -> Shared:
    """The shared worker on its latest connection, its files going to the shared store."""
    connection = shared.driven.orchestrator.connections[-1]
    connection.acknowledge(file_base_url=shared.store.url)
    return shared._replace(driven=shared.driven._replace(connection=connection))


def test_a_large_output_is_stored_and_its_ref_is_sent(live: Shared) -> None:
    job = live.run("repeat", {"text": "0123456789", "times": 7000})
    result = job.result()
    assert result.status == OK
    assert result.WhichOneof("output") == "blob_ref"
    stored = live.store.files[result.blob_ref]
    assert result.blob_ref == f"results/{job.request_id}.msgpack"
    assert msgspec.msgpack.decode(stored.content)["text"] == "0123456789" * 7000
    assert stored.owner == "acme"


def test_a_saved_file_goes_to_the_store_and_its_asset_says_where(live: Shared) -> None:
    job = live.run("save", {"text": "pictures/one.bin", "times": 300_000})
    asset = job.output()
    stored = live.store.files[asset["ref"]]
    assert stored.content == b"x" * 300_000
    assert (asset["size_bytes"], asset["blake3"], asset["media_id"]) == (300_000, stored.blake3, stored.media_id)
    assert "local_path" not in asset
    assert "inline_bytes" not in asset
    assert stored.request_id == job.request_id
    assert not live.store.leaks


def test_a_saved_file_comes_inline_where_that_was_asked(live: Shared) -> None:
    before = len(live.store.files)
    asset = live.run("save", {"text": "small.bin", "times": 1000}, output_mode=INLINE).output()
    assert asset["inline_bytes"] == b"x" * 1000
    assert len(live.store.files) == before


def test_an_output_that_cannot_be_stored_is_to_be_made_elsewhere(live: Shared) -> None:
    result = live.run("repeat", {"text": "x", "times": 100_000}, capability_token="wrong").result()
    assert result.status == RETRYABLE
    assert result.safe_message.startswith("output upload failed")


def test_a_token_that_the_store_refuses_fails_the_save(live: Shared) -> None:
    result = live.run("save", {"text": "a.bin", "times": 10}, capability_token="wrong").result()
    assert result.status == FATAL
    assert result.safe_message.startswith("AuthError")


def test_a_second_acknowledgement_moves_files_to_another_store(live: Shared) -> None:
    with LoopbackStore() as other:
        live.driven.connection.acknowledge(file_base_url=other.url)
        asset = live.run("save", {"text": "moved.bin", "times": 10}, capability_token=other.token).output()
        assert asset["ref"] in other.files


# --- files that payloads name -----------------------------------------------------------------------------------------


def test_a_file_of_the_orchestrators_own_store_is_there_when_its_job_runs(live: Shared) -> None:
    live.driven.connection.acknowledge(file_base_url=live.blobs.url)
    content = b"\x89PNG\r\n\x1a\n" + bytes_of(10_000, 9)
    url = live.blobs.snapshot({"in": content})["files"][0]["url"]
    measured = live.run("measure", {"asset": {"ref": url}}).output()
    assert (measured["size"], measured["mime_type"]) == (len(content), "image/png")
    live.driven.worker.until(lambda: not Path(measured["path"]).parent.exists(), "the end of its folder")


@pytest.mark.promise(38)
def test_a_file_on_a_private_address_is_refused_and_its_signature_is_not_shown(live: Shared) -> None:
    url = live.blobs.snapshot({"in": b"private"})["files"][0]["url"]
    job = live.run("measure", {"asset": {"ref": url}})
    result = job.result()
    assert result.status == INVALID
    assert "127.0.0.1" in result.safe_message
    assert SIGNATURE not in result.safe_message
    assert live.driven.worker.runs()[job.request_id] == 0


@pytest.mark.promise(39)
def test_no_signature_and_no_token_is_in_a_log(live: Shared) -> None:
    log = live.driven.worker.log()
    assert SIGNATURE.partition("=")[2] not in log
    assert live.store.token not in log
