"""Producers on the whole platform: what one job publishes, another one runs on."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_orchestrator_platform import platform
from tests.e2e.test_run import run
from tests.served import until

pytestmark = pytest.mark.process

CONVERTER = """
from pathlib import Path
from typing import Any

import msgspec

from gen_worker import ConversionContext, DatasetContext, TrainingContext, endpoint
from gen_worker.api.types import DestinationRepo, SourceRepo


class Job(msgspec.Struct):
    source: SourceRepo | None = None
    destination: DestinationRepo | None = None
    text: str = ""


class Told(msgspec.Struct):
    told: dict[str, Any]


@endpoint(kind="conversion")
def convert(ctx: ConversionContext, payload: Job) -> Told:
    words = "" if ctx.source_path is None else (Path(ctx.source_path) / "words.txt").read_text()
    made = ctx.mktemp() / "words.txt"
    made.write_text(words + payload.text)
    saved = ctx.save_checkpoint("made/words.txt", made, step_number=3)
    made.unlink()
    with ctx.open_checkpoint_stream("made/model.safetensors", format="safetensors") as stream:
        for _ in range(3):
            stream.write(bytes(1 << 20))
    ctx.set_repo_spec(kind="model", library_name="words")
    told = ctx.publish_repo_revision(
        artifact_refs={"words.txt": saved, "model.safetensors": stream.finalize()},
        metadata={"why": "a test"},
        source_repo=ctx.source.get("ref", ""),
    )
    noted = ctx.write_repo_metadata(metadata={"license": "mit"})
    return Told({**told, "noted": noted, "read": ctx.read_repo_metadata()})


@endpoint(kind="dataset")
def gather(ctx: DatasetContext, payload: Job) -> Told:
    saved = ctx.save_checkpoint_bytes("rows.txt", payload.text.encode())
    entry = {"path": "rows.txt", "digest": saved.blob_digest, "size_bytes": saved.size_bytes}
    publish = ctx.publish_dataset_revision
    told = publish(destination_dataset="acme/rows", features_json={"text": "string"}, snapshot_manifest=[entry])
    return Told(told)


@endpoint(kind="training")
def train(ctx: TrainingContext, payload: Job) -> Told:
    rows = (Path(ctx.resolve_dataset("acme/rows")) / "rows.txt").read_text()
    return Told({"rows": rows, "compute": ctx.compute.accelerator})
"""

POET = """
from pathlib import Path

import msgspec

from gen_worker import Hub, RequestContext, endpoint


class Text(msgspec.Struct):
    text: str = ""


@endpoint(model=Hub("acme/tiny"))
class Poet:
    def setup(self, words: Path) -> None:
        self.words = (words / "words.txt").read_text()

    def speak(self, ctx: RequestContext, payload: Text) -> Text:
        return Text(self.words)
"""


def project(folder: Path, name: str, source: str) -> Path:
    place = folder / name
    place.mkdir()
    (place / "pyproject.toml").write_text(f'[tool.gen_worker]\nmain = "{name}"\n')
    (place / f"{name}.py").write_text(source)
    return place


def told_digest(stdout: str) -> str:
    return str(json.loads(stdout)["value"]["told"]["snapshot_digest"])


@pytest.mark.timeout(120)
def test_what_a_job_publishes_another_runs_on(tmp_path: Path) -> None:
    seed = tmp_path / "seed"
    seed.mkdir()
    (seed / "words.txt").write_text("so much ")
    converter, poet = project(tmp_path, "converter", CONVERTER), project(tmp_path, "poet", POET)
    given = ("--worker", str(converter), "--worker", str(poet), "--devices", "cpu:1", "--model", f"acme/seed={seed}")
    with platform(tmp_path, *given, variables={"TMPDIR": str(tmp_path)}) as running:
        told = running.run(
            "convert", source={"ref": "acme/seed"}, destination={"ref": "acme/tiny", "tags": ["prod"]}, text="depends"
        )["told"]
        assert told["ok"] is True, told
        assert told["noted"] == told["read"] == {"ok": True, "exists": True, "metadata": {"license": "mit"}}
        assert running.run("speak") == {"text": "so much depends"}

        made = running.run("gather", text="one row")["told"]
        assert (made["ok"], made["existed"]) == (True, False)
        assert running.run("gather", text="two rows")["told"] == {**made, "existed": True}
        assert running.run("train")["told"]["rows"] == "two rows"

        hub = {"COZY_HUB_URL": running.url, "COZY_HUB_TOKEN": "any", "TMPDIR": str(tmp_path)}
        asked = ("--method", "convert", "--allow-publish", "source.ref=acme/tiny", "destination.ref=acme/own", "text=!")
        done = run(*asked, cwd=converter, **hub)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["value"]["told"]["ok"] is True
        assert (
            running.run("convert", source={"ref": "acme/own"}, destination={"ref": "acme/tiny"})["told"]["ok"] is True
        )
        digest = json.loads(running.ask("/api/v1/repos/acme/tiny/resolve")[1])["digest"]
        assert digest == told_digest(done.stdout), "what `run` published is what a job made of it"

        done = run("--method", "gather", "--allow-publish", "text=rows of this machine", cwd=converter, **hub)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["value"]["told"] == {**made, "existed": True}
        assert running.run("train")["told"]["rows"] == "rows of this machine"

        status, body = running.ask("/v1/run/convert", {"source": {"ref": ""}})
        assert status == 400, body
        assert json.loads(body)["error"]["message"] == "`source.ref` is empty: name what to start from"


DYING = """
import os

import msgspec

from gen_worker import ConversionContext, endpoint
from gen_worker.wire.platform import BeginCommit


class Job(msgspec.Struct):
    pass


@endpoint(kind="conversion")
def die(ctx: ConversionContext, payload: Job) -> Job:
    added = {"type": "add", "path": "x", "blake3": "0" * 64, "size_bytes": 5}
    ctx._platform.call(BeginCommit(repo="a/b", document={"operations": [added]}))
    os.kill(os.getpid(), 9)


@endpoint(kind="conversion")
def note(ctx: ConversionContext, payload: Job) -> Job:
    much = {str(number): "x" * 1000 for number in range(200)}  # more than a frame takes
    ctx.write_repo_metadata(destination_repo="a/b", metadata=much)
    assert ctx.read_repo_metadata(destination_repo="a/b")["metadata"] == much
    return payload
"""


@pytest.mark.timeout(120)
def test_a_child_that_dies_while_it_publishes_leaves_no_half_revision(tmp_path: Path) -> None:
    dying = project(tmp_path, "dying", DYING)
    with platform(tmp_path, "--worker", str(dying), "--devices", "cpu:1") as running:
        assert running.run("note") == {}
        assert running.ask("/v1/run/die", {})[0] == 500

        def given_up() -> bool:
            with closing(sqlite3.connect(tmp_path / "state" / "repositories.sqlite")) as database:
                return not database.execute("SELECT id FROM revisions").fetchall()

        until(given_up, 10, what="the commits to be given up")
        assert running.run("note") == {}


KEEPING = """
import time
from pathlib import Path
from typing import Any

import msgspec

from gen_worker import ConversionContext, endpoint
from gen_worker.api.types import DestinationRepo


class Job(msgspec.Struct):
    destination: DestinationRepo
    gate: str
    publishes: bool = True


class Told(msgspec.Struct):
    told: dict[str, Any]


@endpoint(kind="conversion")
def convert(ctx: ConversionContext, payload: Job) -> Told:
    large = ctx.mktemp() / "large.bin"
    with large.open("wb") as file:
        for number in range(66):
            file.write(number.to_bytes(1, "big") * (1 << 20))
    saved = [ctx.save_checkpoint("large.bin", large), ctx.save_checkpoint_bytes("words.txt", b"so much depends")]
    while not Path(payload.gate).exists():
        ctx.raise_if_cancelled()
        time.sleep(0.02)
    told = ctx.publish_repo_revision(artifact_refs=saved) if payload.publishes else {}
    return Told({**told, "digests": [each.blob_digest for each in saved]})
"""


def opened(folder: Path) -> dict[str, str]:
    """Return the revisions that are stored into, and the repositories that they are of."""
    with closing(sqlite3.connect(folder / "state" / "repositories.sqlite")) as database:
        return dict(database.execute("SELECT id, repo FROM revisions WHERE id LIKE 'rev-%'").fetchall())


def stored(folder: Path, holder: str) -> dict[str, str]:
    """Return what is kept for somebody, by name."""
    with closing(sqlite3.connect(folder / "state" / "files" / "files.sqlite")) as database:
        asked = "SELECT name, blake3 FROM files WHERE request_id = ?"
        return dict(database.execute(asked, (holder,)).fetchall())


@pytest.mark.timeout(120)
def test_what_a_conversion_saves_lies_in_its_destination_before_it_is_published_and_nothing_half_is_left(
    tmp_path: Path,
) -> None:
    keeping, gate = project(tmp_path, "keeping", KEEPING), tmp_path / "gate"
    with platform(tmp_path, "--worker", str(keeping), "--devices", "cpu:1", variables={"TMPDIR": str(tmp_path)}) as up:
        payload = {"destination": {"ref": "acme/kept", "tags": ["prod"]}, "gate": str(gate)}
        status, body = up.ask("/v1/jobs", {"function": "convert", "request_id": "one", "payload": payload})
        assert status in (200, 201, 202), body

        def whole() -> dict[str, str]:
            held = {f"{repo}@{key}": repo for key, repo in opened(tmp_path).items()}
            found = stored(tmp_path, next(iter(held), "none"))
            return found if len(found) == 2 else {}

        kept = until(whole, 30, what="two files in the revision")
        assert sorted(kept or {}) == ["large.bin", "words.txt"]
        gate.touch()

        def answer() -> dict[str, Any]:
            job = json.loads(up.ask("/v1/jobs/one")[1])
            return job if job["status"] not in ("queued", "assigned", "running") else {}

        ended = until(answer, 30, what="the end of the job")
        assert ended is not None
        assert ended["status"] == "ok", ended
        told = ended["output"]["told"]
        assert (told["ok"], told["state"]) == (True, "finalized")
        assert sorted(told["digests"]) == sorted(f"blake3:{each}" for each in (kept or {}).values())
        until(lambda: not opened(tmp_path), 10, what="the revision to be given up after its contents were published")
        assert sorted(stored(tmp_path, f"acme/kept@{told['revision_id']}")) == ["large.bin", "words.txt"]

        assert up.run("convert", **payload, publishes=False)["told"].keys() == {"digests"}
        until(lambda: not opened(tmp_path), 10, what="the revision of a job that publishes nothing to be given up")
        assert sorted(stored(tmp_path, "one")) == ["large.bin", "words.txt"], "its files are the job's as well"
