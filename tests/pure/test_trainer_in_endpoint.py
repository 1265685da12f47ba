"""The loop inside an endpoint: a request that comes again goes on, and what was made is a file of the request."""

from pathlib import Path
from typing import Any

import pytest

from gen_worker import CanceledError, TrainingContext
from gen_worker.api.context import CancelFlag
from gen_worker.trainer import StepContext
from gen_worker.trainer.archives import unpacked
from gen_worker.trainer.in_endpoint import Trained, train_in_endpoint


class Summing:
    """Adds up; asks for the end of its own request after some steps."""

    def __init__(self, cancel: CancelFlag, cancel_at: int = -1) -> None:
        self._cancel = cancel
        self._cancel_at = cancel_at
        self.steps = 0

    def setup(self, ctx: StepContext) -> None: ...

    def configure(self, ctx: StepContext) -> dict[str, int]:
        return {"sum": 0}

    def prepare_batch(self, raw: int, state: dict[str, int], ctx: StepContext) -> int:
        return raw

    def train_step(self, batch: int, state: dict[str, int], ctx: StepContext) -> dict[str, float]:
        state["sum"] += batch
        self.steps += 1
        if self.steps == self._cancel_at:
            self._cancel.set()
        return {"loss": 1.0 / state["sum"]}

    def state_dict(self, state: dict[str, int]) -> dict[str, int]:
        return state

    def load_state_dict(self, state: dict[str, int], payload: dict[str, Any], ctx: StepContext) -> None:
        state.update(payload)

    def save_checkpoint(
        self, *, state: dict[str, int], step: int, output_dir: str, final: bool, ctx: StepContext
    ) -> dict[str, str]:
        path = Path(output_dir, "sum.safetensors")
        path.write_text(str(state["sum"]))
        return {"primary_path": str(path)}


def test_a_request_that_comes_again_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []

    def attempt(cancel_at: int) -> tuple[Summing, Trained]:
        cancel = CancelFlag()
        ctx = TrainingContext(
            request_id="fit-1", cancel=cancel, emitter=told.append, local_output_dir=tmp_path / "outputs"
        )
        trainer = Summing(cancel, cancel_at)
        return trainer, train_in_endpoint(
            ctx,
            trainer=trainer,
            batches=range(1, 11),
            max_steps=10,
            folder=tmp_path / "kept",
            checkpoint_every=4,
            keep_checkpoints=1,
        )

    with pytest.raises(CanceledError, match="after step 6"):
        attempt(6)
    trainer, trained = attempt(-1)
    assert (trainer.steps, trained.step) == (4, 10)
    assert trained.checkpoint is not None
    assert trained.checkpoint.read_text() == "55"
    assert trained.tensors is not None
    assert (trained.tensors.ref, trained.tensors.format) == ("checkpoints/fit-1/sum.safetensors", "safetensors")
    assert [path.name for path in (tmp_path / "kept").glob("step-*.json")] == ["step-00000008.json"]
    progress = [each["payload"]["progress"] for each in told if each["type"] == "request.progress"]
    assert progress == [step / 10 for step in range(1, 11)]


class Folder(Summing):
    """Keeps what it makes in several files, and names none of them."""

    def save_checkpoint(
        self, *, state: dict[str, int], step: int, output_dir: str, final: bool, ctx: StepContext
    ) -> dict[str, str]:
        for name in ("sum", "step"):
            Path(output_dir, f"{name}.txt").write_text(str(state["sum"] if name == "sum" else step))
        return {}


def test_of_several_files_that_were_made_all_are_kept_and_no_other_request_replaces_them(tmp_path: Path) -> None:
    for request_id, last in (("fit-1", 3), ("fit-2", 4)):
        ctx = TrainingContext(request_id=request_id, local_output_dir=tmp_path / "outputs")
        trained = train_in_endpoint(
            ctx, trainer=Folder(CancelFlag()), batches=range(1, last), max_steps=9, folder=tmp_path / request_id
        )
        assert trained.tensors is not None
        assert trained.tensors.ref == f"checkpoints/{request_id}/final.tar"
    for request_id, steps, summed in (("fit-1", "2", "3"), ("fit-2", "3", "6")):
        folder = unpacked(tmp_path / "outputs/checkpoints" / request_id / "final.tar", tmp_path / "unpacked")
        assert {file.name: file.read_text() for file in folder.iterdir()} == {"sum.txt": summed, "step.txt": steps}


def test_a_number_of_checkpoints_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    ctx = TrainingContext(request_id="fit-1", local_output_dir=tmp_path)
    with pytest.raises(ValueError, match="`keep_checkpoints` takes 0 or more, not -1"):
        train_in_endpoint(ctx, trainer=Summing(CancelFlag()), batches=[1], max_steps=1, keep_checkpoints=-1)
