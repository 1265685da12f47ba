"""The end of a training at its platform: its last checkpoint is stored, or it is said why not."""

from pathlib import Path
from typing import Any

import pytest

from gen_worker import TrainingContext
from gen_worker.api.errors import ArtifactTransferError
from gen_worker.outputs import SavedFile
from gen_worker.trainer import TrainingCanceled
from gen_worker.trainer.checkpoints import FINAL
from gen_worker.trainer.events import EventFile
from gen_worker.trainer.spec import checked
from gen_worker.trainer.uploading import PlatformUploader

SPEC = {"trainer": "m:T", "request_id": "r", "max_steps": 3, "owner": "acme", "upload_patience_seconds": 10}
GONE = ArtifactTransferError("nobody is there", retryable=True)


class Store:
    """Takes files, after it has raised what it was told to."""

    def __init__(self, *refusals: Exception) -> None:
        self.refusals = list(refusals)
        self.refs: list[str] = []

    def save(self, ref: str, *, data: bytes | None, path: Path | None, create: bool = False, **into: Any) -> SavedFile:
        if self.refusals:
            raise self.refusals.pop(0)
        self.refs.append(ref)
        return SavedFile("", 7, "0" * 64, ref=ref, blake3="1" * 64)


class Clock:
    """Goes on only when somebody says so."""

    def __init__(self, *, each_look: float = 0.0) -> None:
        self.now = 0.0
        self._each_look = each_look

    def __call__(self) -> float:
        self.now += self._each_look
        return self.now


def uploader(folder: Path, store: Store, clock: Clock, *, canceled: bool = False) -> PlatformUploader:
    events = EventFile(folder / "events.jsonl", "r")
    (folder / "weights.bin").write_bytes(b"weights")
    ctx = TrainingContext(request_id="r", sink=store)
    return PlatformUploader(
        ctx, checked(SPEC), folder, events.path, stores_files=True, is_canceled=lambda: canceled, clock=clock
    )


def finish(made: PlatformUploader, folder: Path) -> None:
    (folder / FINAL).write_text("{}")
    made.upload_checkpoint(local_path=str(folder / "weights.bin"), step=3)


def test_the_end_is_patient_from_its_beginning_however_long_ago_something_was_stored(tmp_path: Path) -> None:
    store, clock = Store(GONE), Clock()
    made = uploader(tmp_path, store, clock)
    clock.now += 3600
    finish(made, tmp_path)
    assert store.refs == ["v1/acme/jobs/r/checkpoints/final-weights.bin"]
    assert (made.final["final"], made.final["blob_digest"]) == (True, f"blake3:{'1' * 64}")


def test_the_end_gives_up_on_a_platform_that_takes_nothing_for_so_long(tmp_path: Path) -> None:
    store = Store(*[GONE] * 1000)
    with pytest.raises(ArtifactTransferError, match="nobody is there"):
        finish(uploader(tmp_path, store, Clock(each_look=3.0)), tmp_path)


def test_what_is_refused_for_good_is_not_tried_again(tmp_path: Path) -> None:
    store = Store(ArtifactTransferError("no such owner"), GONE)
    with pytest.raises(ArtifactTransferError, match="no such owner"):
        finish(uploader(tmp_path, store, Clock()), tmp_path)
    assert len(store.refusals) == 1


def test_a_training_that_is_asked_to_end_waits_for_no_platform(tmp_path: Path) -> None:
    with pytest.raises(TrainingCanceled, match="before its final checkpoint was stored"):
        finish(uploader(tmp_path, Store(GONE, GONE), Clock(), canceled=True), tmp_path)
