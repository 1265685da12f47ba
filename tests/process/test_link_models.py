"""Models of a worker as its orchestrator describes them, from presigned URLs to the author's code, over the wire."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.scripted.blobs import Blobs
from tests.scripted.entrypoint import Driven, driven
from tests.scripted.orchestrator import FATAL, INVALID, OK, RETRYABLE
from tests.served import until

pytestmark = [pytest.mark.process, pytest.mark.needs("grpc_tools")]

DOWNLOAD, LOAD, UNLOAD = 1, 2, 3
DOWNLOADING, ON_DISK, IN_RAM, IN_VRAM, EVICTED, FAILED = range(1, 7)
DISK, RAM = 1, 2
PROJECT = '[project]\nname = "hubbed"\nversion = "0"\n\n[tool.gen_worker]\nmain = "hubbed"\n'
Start = Callable[..., AbstractContextManager[Driven]]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an endpoint whose models are the platform's, and its lock."""
    folder = tmp_path_factory.mktemp("hubbed")
    shutil.copy(Path(__file__).parents[1] / "endpoints" / "hubbed.py", folder)
    (folder / "pyproject.toml").write_text(PROJECT)
    command = [sys.executable, "-m", "gen_worker.discovery"]
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=60, check=True)
    (folder / "endpoint.lock").write_bytes(done.stdout)
    return folder


def start(image: Path, folder: Path, **variables: str) -> AbstractContextManager[Driven]:
    """Run a worker with that endpoint, whose cache outlives it."""
    own = {
        "ENDPOINT_LOCK_PATH": str(image / "endpoint.lock"),
        "PYTHONPATH": str(image),
        "TENSORHUB_CACHE_DIR": str(folder.parent / "cache"),
        "GEN_WORKER_HOST_CACHE_BYTES": "0",
        "COZY_HUB_URL": "",
        **variables,
    }
    return driven(folder, {**own}, ready=False)


class Shared(NamedTuple):
    """A worker and the blobs of its models."""

    driven: Driven
    blobs: Blobs

    def described(self, text: str, *faults: str | int) -> dict[str, Any]:
        """Return a snapshot whose weights say this."""
        return self.blobs.snapshot({"weights.txt": text.encode()}, *faults)

    def run(self, function: str, snapshots: dict[str, Any] | None = None, **fields: Any) -> Any:
        """Run a job and return its result."""
        return self.driven.connection.run(function, snapshots=snapshots or {}, **fields).result()

    def text(self, function: str, snapshots: dict[str, Any] | None = None, **fields: Any) -> str:
        """Run a job, which must succeed, and return what its model says."""
        output = self.driven.connection.run(function, snapshots=snapshots or {}, **fields).output()
        text: str = output["text"]
        return text

    def operate(self, op: int, ref: str, snapshot: dict[str, Any] | None = None) -> None:
        """Want something done with a model."""
        described = {} if snapshot is None else {"snapshot": snapshot}
        self.driven.connection.send(model_op={"op": op, "ref": ref, **described})

    def event(self, ref: str, state: int) -> Any:
        """Return the next event that says this of a model."""
        return self.driven.connection.expect("model_event", ref=ref, state=state)

    def available(self) -> list[str]:
        """Return the functions that can be called, as the worker said last."""
        connection = self.driven.connection
        states = [connection.hello.state, *(each.message for each in connection.told("state_delta"))]
        return list(states[-1].available_functions)


@pytest.fixture(scope="module")
def shared(grpc_awake: None, image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """One worker for the module."""
    with Blobs() as blobs, start(image, tmp_path_factory.mktemp("shared") / "one") as made:
        made.worker.until(lambda: made.worker.log().count(" ready after ") == 2, "both children ready")
        yield Shared(made, blobs)


# --- what a job describes ---------------------------------------------------------------------------------------------


def test_a_job_of_a_function_whose_model_nobody_described_is_to_be_sent_again_with_it(shared: Shared) -> None:
    result = shared.run("free")
    assert result.status == RETRYABLE
    assert "`acme/free` is not on this host, and its orchestrator has not said what it consists of" in (
        result.safe_message
    )
    assert "free" not in shared.available()
    assert shared.text("free", {"acme/free": shared.described("described")}) == "described"
    assert shared.text("free") == "described", "what was described holds for the next job"


def test_jobs_run_on_the_snapshot_that_they_came_with_whatever_came_after_it(shared: Shared, tmp_path: Path) -> None:
    one, two = shared.described("one"), shared.described("two")
    gate = tmp_path / "gate"
    payload = {"wait_for": str(gate)}
    first = shared.driven.connection.run("first", payload, snapshots={"acme/first:prod": one})
    first.accepted()
    shared.event("acme/first:prod", IN_RAM)
    second = shared.driven.connection.run("first", snapshots={"acme/first": two})
    assert second.output()["text"] == "two"
    gate.touch()
    assert first.output()["text"] == "one"
    shared.driven.worker.until(lambda: "unloaded" in shared.driven.worker.log(), "the first snapshot unloaded")


def test_a_job_may_name_other_models_than_its_function_binds(shared: Shared) -> None:
    bound = {"acme/second:beta#fp8": shared.described("second"), "acme/vae": shared.described("vae")}
    assert shared.text("second", bound) == "second vae"
    other = {**bound, "acme/other": shared.described("other")}
    named = [{"slot": "weights", "ref": "acme/other"}]
    output = shared.driven.connection.run("second", snapshots=other, models=named).output()
    assert output["text"] == "other vae"
    assert output["models"] == {"weights": "acme/other", "vae": "acme/vae"}
    assert shared.text("second", bound) == "second vae"
    refused = shared.run("second", bound, models=[{"slot": "nope", "ref": "acme/other"}])
    assert refused.status == INVALID
    assert refused.safe_message == "no slot `nope` in `second`, there is: `weights`, `vae`"


def test_a_payload_may_name_a_model_where_its_author_allows_it(shared: Shared) -> None:
    mine = {"acme/free": shared.described("bound"), "acme/mine": shared.described("mine")}
    named = shared.driven.connection.run("free", {"_models": {"weights": "acme/mine"}}, snapshots=mine)
    assert named.output()["text"] == "mine"
    assert shared.text("free", mine) == "bound"


@pytest.mark.parametrize(
    ("fault", "status", "error"), [("corrupt", FATAL, "digest_mismatch"), (403, RETRYABLE, "url_expired")]
)
def test_a_job_whose_model_cannot_be_had_is_told_so_and_the_orchestrator_which_model(
    shared: Shared, fault: str | int, status: int, error: str
) -> None:
    ref = f"acme/bad-{fault}"
    named = [{"slot": "weights", "ref": ref}]
    result = shared.run("first", {ref: shared.described(f"bad {fault}", fault, "always")}, models=named)
    assert result.status == status
    assert ref in result.safe_message
    assert shared.event(ref, FAILED).error == error


# --- what an orchestrator wants done ----------------------------------------------------------------------------------


def test_a_model_is_loaded_refused_to_be_unloaded_while_it_is_used_and_unloaded(shared: Shared, tmp_path: Path) -> None:
    snapshot = shared.described("loaded")
    shared.operate(LOAD, "acme/first", snapshot)
    shared.event("acme/first", IN_RAM)
    until(lambda: "first" in shared.available(), what="the function being available")
    gate = tmp_path / "gate"
    running = shared.driven.connection.run("first", {"wait_for": str(gate)})
    running.accepted()
    shared.operate(UNLOAD, "acme/first")
    assert shared.event("acme/first", FAILED).error == "model_in_use"
    gate.touch()
    assert running.output()["text"] == "loaded"
    shared.operate(UNLOAD, "acme/first")
    shared.event("acme/first", ON_DISK)
    assert shared.text("first") == "loaded", "it comes back for a job"
    shared.event("acme/first", IN_RAM)


def test_a_load_whose_setup_fails_says_so(shared: Shared) -> None:
    shared.operate(LOAD, "acme/broken", shared.described("broken"))
    assert shared.event("acme/broken", FAILED).error == "load_failed"


def test_what_was_described_outlives_the_child_that_loaded_it(grpc_awake: None, image: Path, tmp_path: Path) -> None:
    with Blobs() as blobs, start(image, tmp_path / "one", GEN_WORKER_DEVICES="cpu:1") as made:
        shared = Shared(made, blobs)
        output = made.connection.run("first", snapshots={"acme/first": shared.described("crash")}).output()
        shared.event("acme/first", IN_RAM)
        os.kill(output["pid"], 9)
        again = made.connection.run("first").output()
        assert (again["text"], again["pid"] != output["pid"]) == ("crash", True)
        (model,) = made.redial().connection.hello.models
        assert (model.ref, model.tier) == ("acme/first", RAM)


# --- what outlives a worker -------------------------------------------------------------------------------------------


def test_a_worker_that_starts_again_says_what_is_on_its_disk_and_runs_with_it(
    grpc_awake: None, image: Path, tmp_path: Path
) -> None:
    with Blobs() as blobs:
        with start(image, tmp_path / "before") as made:
            before = Shared(made, blobs)
            assert before.text("first", {"acme/first": before.described("kept")}) == "kept"
            before.operate(DOWNLOAD, "acme/other:v2", before.described("other"))
            before.event("acme/other:v2", ON_DISK)
        hits = sum(blobs.hits.values())
        with start(image, tmp_path / "after") as made:
            after = Shared(made, blobs)
            assert {each.ref: each.tier for each in made.connection.hello.models} == {
                "acme/first": DISK,
                "acme/other:v2": DISK,
            }
            assert after.text("first") == "kept"
            after.event("acme/first", IN_RAM)
            after.operate(DOWNLOAD, "acme/other:v2")
            after.event("acme/other:v2", ON_DISK)
            assert sum(blobs.hits.values()) == hits, "nothing is fetched twice"


def test_a_worker_says_where_its_models_are_once_and_anew_on_each_connection(
    grpc_awake: None, image: Path, tmp_path: Path
) -> None:
    with Blobs() as blobs, start(image, tmp_path / "one") as made:
        shared = Shared(made, blobs)
        assert shared.text("first", {"acme/first": shared.described("told")}) == "told"
        shared.event("acme/first", IN_RAM)
        again = made.redial().connection
        assert {each.ref: each.tier for each in again.hello.models} == {"acme/first": RAM}
        again.run("first").output()
        assert again.told("model_event") == []
        assert again.run("first").result().status == OK
