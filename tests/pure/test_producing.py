"""What the contexts of producers promise, with a platform that a test plays."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from blake3 import blake3

from gen_worker import ConversionContext, DatasetContext, TrainingContext
from gen_worker.api.context import CancelFlag
from gen_worker.api.errors import ArtifactTransferError, AuthError, CanceledError, ValidationError
from gen_worker.api.platform import failure_of
from gen_worker.api.producers import ProducerContext, begin
from gen_worker.api.types import DestinationRepo, SourceRepo
from gen_worker.outputs import Repository, SavedFile
from gen_worker.wire.platform import (
    AbortCommit,
    BeginCommit,
    CommitBegun,
    CommitFile,
    Done,
    FetchRepo,
    FinishCommit,
    KeepContent,
    Located,
    Materialize,
    Materialized,
    PublishDataset,
    PublishedDataset,
    Verb,
    answer_of,
    encoded,
    verb_of,
)

SKIPPED = {"ok": False, "skipped": True, "reason": "missing_worker_capability_channel"}


class Played:
    """A platform that answers as it is told, and remembers what it was asked."""

    def __init__(self, **has: bytes) -> None:
        self.has = {blake3(content).hexdigest(): content for content in has.values()}
        self.asked: list[Verb[Any]] = []
        self.sent: dict[str, bytes] = {}
        self.fails: Callable[[Verb[Any]], Exception | None] = lambda verb: None

    def call(self, asked: Verb[Any], file: int | None = None) -> Any:
        verb: Any = verb_of(encoded(asked))  # as it travels
        self.asked.append(verb)
        if (error := self.fails(verb)) is not None:
            raise error
        return answer_of(verb, encoded(self.answer(verb, file)))

    def answer(self, verb: Verb[Any], file: int | None) -> Any:
        match verb:
            case BeginCommit():
                missing = [each["path"] for each in verb.document["operations"] if each["blake3"] not in self.has]
                return CommitBegun("r1", missing)
            case CommitFile():
                assert file is not None
                self.sent[verb.path] = os.pread(file, verb.length, 0)
                return Done()
            case KeepContent():
                assert file is not None
                self.sent[verb.ref] = os.pread(file, verb.length, 0)
                return Done()
            case PublishDataset():
                return PublishedDataset("d1", existed=False)
            case FetchRepo():
                return Located("/models/source", verb.ref)
            case Materialize():
                assert file is not None
                content = self.has[verb.digest.removeprefix("blake3:")]
                os.write(file, content)
                return Materialized(len(content))
        return Done({"state": "finalized"})

    def close(self) -> None:
        """Be told that the job has ended."""


def producer(kind: type[ProducerContext] = ConversionContext, **given: Any) -> Any:
    return kind(request_id="r1", **given)


class Job(msgspec.Struct):
    source: SourceRepo | None = None
    destination: DestinationRepo | None = None


# --- publishing -------------------------------------------------------------------------------------------------------


def test_a_revision_is_made_of_saved_files_and_only_what_the_platform_lacks_is_sent(tmp_path: Path) -> None:
    platform = Played(there=b"known")
    ctx = producer(platform=platform, local_output_dir=tmp_path / "out")
    made = tmp_path / "made.safetensors"
    made.write_bytes(b"weights")
    saved = ctx.save_checkpoint("a/made.safetensors", made, step_number=3, attributes={"why": "test"})
    made.unlink()
    known = ctx.save_checkpoint_bytes("b/known.bin", b"known")
    assert (saved.format, known.format) == ("safetensors", "bin")
    ctx.set_repo_spec(kind="model", library_name="words")
    told = ctx.publish_repo_revision(
        destination_repo="acme/tiny",
        artifact_refs={"made.safetensors": saved, "known.bin": "b/known.bin"},
        destination_repo_tags=["Beta", "alpha", "beta"],
        metadata={"license": "mit"},
    )
    assert told["ok"]
    assert (told["revision_id"], told["tags"], told["state"]) == ("r1", ["alpha", "beta"], "finalized")
    assert platform.sent == {"made.safetensors": b"weights"}
    document = platform.asked[0].document  # type: ignore[attr-defined]
    assert document["kind"] == "model"
    assert document["metadata"]["checkpoints"] == {
        "made.safetensors": {"step_number": 3, "attributes": {"why": "test"}}
    }
    assert document["tags"] == [{"tag": "alpha"}, {"tag": "beta"}]


def test_a_commit_that_was_forgotten_begins_anew_and_one_that_fails_is_given_up(tmp_path: Path) -> None:
    platform, failures = Played(), [ArtifactTransferError("forgotten", retryable=True)]
    platform.fails = lambda verb: failures.pop() if isinstance(verb, CommitFile) and failures else None
    ctx = producer(platform=platform, local_output_dir=tmp_path)
    saved = ctx.save_checkpoint_bytes("a.bin", b"weights")
    assert ctx.publish_repo_revision(destination_repo="a/b", artifact_refs=[saved])["ok"]
    kinds = [type(verb) for verb in platform.asked]
    assert kinds == [BeginCommit, CommitFile, AbortCommit, BeginCommit, CommitFile, FinishCommit]

    failures.append(AuthError("no"))  # type: ignore[arg-type]
    platform.asked.clear()
    with pytest.raises(AuthError):
        ctx.publish_repo_revision(destination_repo="a/b", artifact_refs=[saved])
    assert [type(verb) for verb in platform.asked] == [BeginCommit, CommitFile, AbortCommit]


@pytest.mark.parametrize("kind", [ConversionContext, DatasetContext, TrainingContext])
def test_without_a_platform_publishing_and_metadata_are_skipped_and_say_so(kind: Any, tmp_path: Path) -> None:
    ctx = producer(kind, local_output_dir=tmp_path, destination_info={"ref": "a/b"})
    saved = ctx.save_checkpoint_bytes("a.bin", b"weights")
    told = ctx.publish_repo_revision(artifact_refs=[saved])
    assert told == {**SKIPPED, "destination_repo": "a/b"}
    assert ctx.read_repo_metadata() == {**SKIPPED, "exists": False, "metadata": {}}
    assert ctx.write_repo_metadata(metadata={})["skipped"] is True
    if kind is DatasetContext:
        told = ctx.publish_dataset_revision(destination_dataset="a/rows", features_json={})
        assert told == {**SKIPPED, "owner": "a", "name": "rows"}
    with pytest.raises(FileNotFoundError, match="there is no platform to ask"):
        ctx.materialize_blob("0" * 64, tmp_path / "content")
    assert not list(tmp_path.glob(".materializing*"))


def test_the_files_of_a_data_set_that_lie_here_alone_are_sent_before_it_is_published(tmp_path: Path) -> None:
    platform = Played()
    ctx = producer(DatasetContext, platform=platform, local_output_dir=tmp_path)
    saved = ctx.save_checkpoint_bytes("rows.txt", b"one row")
    assert saved.blob_digest == f"blake3:{blake3(b'one row').hexdigest()}"
    manifest = [
        {"path": "train/rows.txt", "digest": saved.blob_digest, "size_bytes": 7},
        {"path": "there.txt", "digest": "blake3:" + "0" * 64, "size_bytes": 9},
    ]
    assert ctx.publish_dataset_revision(destination_dataset="a/rows", features_json={}, snapshot_manifest=manifest)[
        "ok"
    ]
    assert [type(verb) for verb in platform.asked] == [KeepContent, PublishDataset]
    assert platform.sent == {"train/rows.txt": b"one row"}

    stored = producer(DatasetContext, platform=platform, local_output_dir=tmp_path / "store", remote=True)
    stored.save_checkpoint_bytes("rows.txt", b"one row")
    platform.asked.clear()
    stored.publish_dataset_revision(destination_dataset="a/rows", features_json={}, snapshot_manifest=manifest)
    assert [type(verb) for verb in platform.asked] == [PublishDataset], "what a store has is not sent again"


class Store:
    """A sink that leads to a platform's store, and what it was told."""

    def __init__(self) -> None:
        self.into: list[Repository | None] = []

    def save(self, ref: str, *, data: bytes | None, path: Path | None, into: Repository | None = None, **_: Any) -> Any:
        self.into.append(into)
        return SavedFile("", len(data or b""), "", ref=ref, blake3=blake3(data or b"").hexdigest())


@pytest.mark.parametrize(
    "hints",
    [
        {"destination_repo": "a/b", "job_id": "j"},
        {"repo": "a/b", "conversion_job_id": "j"},
        {"output_repo": "cozy:a/b:best", "training_job_id": "j"},
    ],
)
def test_what_is_saved_goes_into_the_destinations_repository_where_the_job_has_a_name(hints: dict[str, str]) -> None:
    sink = Store()
    ctx = producer(sink=sink, remote=True, execution_hints=hints)
    ctx.save_checkpoint_bytes("model.bin", b"weights")
    ctx.set_repo_spec(kind="model")
    ctx.save_bytes("card.md", b"# card")
    assert sink.into == [
        Repository("a/b", {"job_id": "j"}),
        Repository("a/b", {"job_id": "j", "kind": "model"}),
    ]


@pytest.mark.parametrize(
    "given",
    [
        {"remote": True, "job_id": "j"},
        {"remote": True, "destination_info": {"ref": "a/b"}},
        {"remote": True, "job_id": "j", "destination_info": {"ref": "s3://bucket/folder"}},
        {"remote": False, "job_id": "j", "destination_info": {"ref": "a/b"}},
    ],
)
def test_what_is_saved_otherwise_stays_with_the_job(given: dict[str, Any]) -> None:
    sink = Store()
    producer(sink=sink, **given).save_bytes("a.bin", b"weights")
    assert sink.into == [None]


def test_the_columns_of_a_data_set_may_be_given_as_json() -> None:
    told: list[dict[str, Any]] = []
    ctx = producer(DatasetContext, publishes=False, emitter=told.append)
    for features in ({"text": "string"}, '{"text": "string"}'):
        ctx.publish_dataset_revision(destination_dataset="a/rows", features_json=features)
    assert told[0]["payload"] == told[1]["payload"]
    for no_features in ("{", "[]", None):
        with pytest.raises(TypeError, match="`features_json`"):
            ctx.publish_dataset_revision(destination_dataset="a/rows", features_json=no_features)


@pytest.mark.parametrize("tag", ["latest", "a b", "-x", "x" * 64, "ü"])
def test_a_tag_that_cannot_be_given_is_refused(tag: str) -> None:
    with pytest.raises(ValidationError, match="cannot be given"):
        producer().publish_repo_revision(destination_repo="a/b", destination_repo_tags=[tag])


def test_a_producer_that_is_told_no_destination_says_who_names_one() -> None:
    with pytest.raises(ValidationError, match="give it to the call, or the request a `destination`"):
        producer().publish_repo_revision(destination_repo=" ")


@pytest.mark.parametrize("repo", ["a", "a/b/c", "/b", "a/..", "a/"])
def test_a_destination_that_is_no_repository_is_refused(repo: str) -> None:
    with pytest.raises(ValidationError, match="is no `owner/name`"):
        producer().publish_repo_revision(destination_repo=repo)


def test_what_was_not_saved_cannot_be_published() -> None:
    with pytest.raises(ValidationError, match="nothing was saved under `gone`"):
        producer(platform=Played()).publish_repo_revision(destination_repo="a/b", artifact_refs=["gone"])
    with pytest.raises(ValidationError, match="a revision has files"):
        producer(platform=Played()).publish_repo_revision(destination_repo="a/b")


# --- the source -------------------------------------------------------------------------------------------------------


def test_the_source_is_here_before_the_handler_and_the_payload_fills_the_context() -> None:
    ctx = producer(platform=Played())
    with begin(ctx, Job(SourceRepo("acme/words"), DestinationRepo("acme/loud", ["beta"]))):
        assert ctx.source_path == "/models/source"
        assert (ctx.source["ref"], ctx.destination["tags"]) == ("acme/words", ["beta"])


def test_a_folder_stands_for_the_source_and_nobody_is_asked() -> None:
    platform = Played()
    ctx = producer(platform=platform, source_path="/here")
    with begin(ctx, Job(SourceRepo("acme/words"))):
        assert (ctx.source_path, platform.asked) == ("/here", [])


def test_a_source_without_a_ref_is_the_callers_mistake() -> None:
    with pytest.raises(ValidationError, match=r"`source\.ref` is empty"):
        begin(producer(platform=Played()), Job(SourceRepo("  ")))


def test_a_content_is_had_at_a_path_by_its_digest(tmp_path: Path) -> None:
    platform = Played(content=b"content")
    path = producer(platform=platform).materialize_blob(next(iter(platform.has)), tmp_path / "deep" / "file")
    assert path.read_bytes() == b"content"
    assert [each.name for each in path.parent.iterdir()] == ["file"]


# --- output streams ---------------------------------------------------------------------------------------------------


def test_a_stream_is_hashed_while_it_is_written_and_kept_when_its_body_ends(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    ctx = producer(local_output_dir=tmp_path, emitter=events.append)
    with ctx.open_output_stream("a/file.bin", expected_size_bytes=6) as stream:
        assert (stream.write(b"abc"), stream.write(bytearray(b"de")), stream.write(memoryview(b"f"))) == (3, 2, 1)
        stream.flush()
    asset = stream.finalize()
    assert stream.finalize() is asset
    assert Path(asset.local_path).read_bytes() == b"abcdef"
    assert asset.sha256 == hashlib.sha256(b"abcdef").hexdigest()
    assert asset.blake3 == blake3(b"abcdef").hexdigest()
    assert (stream.bytes_written, stream.bytes_uploaded, stream.stream_mode) == (6, 0, "local_fallback")
    told = [event["payload"]["stage"] for event in events if event["type"] == "request.upload_progress"]
    assert told == ["stream_upload", "stream_finalized"]
    with pytest.raises(ValueError, match="is closed"):
        stream.write(b"more")


def test_a_stream_whose_body_raises_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    events: list[dict[str, Any]] = []
    ctx = producer(local_output_dir=tmp_path / "out", emitter=events.append)
    stream = ctx.open_checkpoint_stream("model.safetensors")
    stream.write(b"half")
    with pytest.raises(RuntimeError, match="no more"), stream:
        raise RuntimeError("no more")
    assert events[-1]["payload"]["error_class"] == "RuntimeError"
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "tmp").iterdir())
    stream.close()


def test_a_stream_that_is_not_as_long_as_expected_is_not_kept(tmp_path: Path) -> None:
    stream = producer(local_output_dir=tmp_path).open_output_stream("x", expected_size_bytes=5)
    with pytest.raises(ValueError, match="was to have 5 bytes, 4 were written"), stream:
        stream.write(b"four")
    with pytest.raises(ValueError, match="is closed"):
        stream.write(b"!")


def test_a_stream_takes_nothing_once_its_request_was_asked_to_end(tmp_path: Path) -> None:
    flag = CancelFlag()
    stream = producer(local_output_dir=tmp_path, cancel=flag).open_output_stream("x")
    stream.write(b"some")
    flag.set()
    with pytest.raises(CanceledError):
        stream.write(b"more")
    with pytest.raises(CanceledError):
        stream.finalize()
    stream.close()
    assert not (tmp_path / "x").exists()


# --- construction and failures ----------------------------------------------------------------------------------------


def test_hints_say_where_a_producer_publishes_and_for_which_job(tmp_path: Path) -> None:
    hints = {"output_repo": "a/b", "training_job_id": "j1", "kind": "model"}
    ctx = producer(execution_hints=hints, checkpoint_root=tmp_path, file_api_base_url="http://x", hf_token="t")
    assert ctx.destination == {"ref": "a/b"}
    assert ctx.checkpoint_dir(key="k") == tmp_path / "j1" / "k"


def test_copying_leaves_what_is_converted_and_what_is_there(tmp_path: Path) -> None:
    source, out = tmp_path / "from", tmp_path / "to"
    for name in ("model.safetensors", "vae/config.json", "unet/weights.bin", ".git/head", "there.txt"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("old")
    out.mkdir()
    (out / "there.txt").write_text("new")
    copied = producer().copy_unconverted_components(source, out, skip=["unet", "model.safetensors"])
    assert [str(path) for path in copied] == ["vae/config.json"]
    assert (out / "there.txt").read_text() == "new"


@pytest.mark.parametrize(
    ("kind", "raised"),
    [
        ("auth", AuthError),
        ("invalid", ValidationError),
        ("transfer", ArtifactTransferError),
        ("canceled", CanceledError),
    ],
)
def test_a_call_that_fails_raises_what_its_job_ends_with(kind: str, raised: type[Exception]) -> None:
    assert isinstance(failure_of(kind, "why", retryable=True, status=503), raised)
