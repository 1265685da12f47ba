"""The loop inside an endpoint: a request that comes again goes on, and what was made is a file of the request."""

from pathlib import Path
from typing import Any

import pytest

from gen_worker import CanceledError, TrainingContext
from gen_worker.api.context import CancelFlag
from gen_worker.trainer import StepContext
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
            ctx, trainer=trainer, batches=range(1, 11), max_steps=10, folder=tmp_path / "kept", checkpoint_every=4
        )

    with pytest.raises(CanceledError, match="after step 6"):
        attempt(6)
    trainer, trained = attempt(-1)
    assert (trainer.steps, trained.step) == (4, 10)
    assert trained.checkpoint is not None
    assert trained.checkpoint.read_text() == "55"
    assert trained.tensors is not None
    assert (trained.tensors.ref, trained.tensors.format) == ("checkpoints/sum.safetensors", "safetensors")
    progress = [each["payload"]["progress"] for each in told if each["type"] == "request.progress"]
    assert progress == [step / 10 for step in range(1, 11)]
