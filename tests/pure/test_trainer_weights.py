"""Weights by themselves: a training begins with them, at step 0, and with nothing else of where they come from."""

from pathlib import Path
from typing import Any

import pytest

from gen_worker.trainer import StepContext, StepResult, TrainingJobSpec, save_trainable_module_checkpoint
from gen_worker.trainer.checkpoints import CheckpointError, CheckpointFolder
from gen_worker.trainer.contracts import StatePayload
from gen_worker.trainer.keeping import Keeper, UnfitCheckpointError
from gen_worker.trainer.loop import run_training_loop
from gen_worker.trainer.running import checkpoint_at
from gen_worker.trainer.weights import is_weights

pytestmark = pytest.mark.needs("torch", "safetensors")


def module(seed: int) -> Any:
    import torch

    torch.manual_seed(seed)
    made = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
    made[1].bias.requires_grad_(False)
    return made


def saved(path: Path, tensors: Any) -> Path:
    from safetensors.torch import save_file

    save_file(dict(tensors), path)
    return path


def weights_at(path: Path) -> dict[str, Any]:
    found = checkpoint_at(path, lambda text: None, loads=False)
    assert (found.step, found.checkpoint_dir, found.payload.runtime) == (0, None, None)
    assert found.weights is not None
    return dict(found.weights)


def test_weights_are_a_file_whatever_it_is_called_a_folder_of_some_or_one_that_a_plugin_wrote(tmp_path: Path) -> None:
    state = module(1).state_dict()
    whole = saved(tmp_path / "blake3-0123", state)
    assert is_weights(whole)
    assert weights_at(whole).keys() == state.keys()
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "model.safetensors.index.json").write_text("{}")
    for number in (0, 1):
        names = [name for name in state if name.startswith(str(number))]
        saved(parts / f"model-0000{number}.safetensors", {name: state[name] for name in names})
    assert weights_at(parts).keys() == state.keys()
    own = tmp_path / "own"
    save_trainable_module_checkpoint(module=module(1), output_dir=own, step=7)
    assert sorted(weights_at(own)) == ["0.bias", "0.weight", "1.weight"]


def test_a_folder_goes_to_the_trainer_that_loads_its_own_and_a_step_file_is_more_than_weights(tmp_path: Path) -> None:
    own = tmp_path / "own"
    save_trainable_module_checkpoint(module=module(1), output_dir=own, step=7)
    found = checkpoint_at(own, lambda text: None, loads=True)
    assert (found.checkpoint_dir, found.weights) == (str(own), None)
    writer = CheckpointFolder(tmp_path / "steps", "r")
    payload = StatePayload({"a": 1}, {"step": 7})
    writer.write_checkpoint(step=7, state_payload=payload, trainer=None, state=None, ctx=None)
    found = checkpoint_at(tmp_path / "steps", lambda text: None, loads=False)
    assert (found.step, found.payload, found.weights) == (7, {"a": 1}, None)


def test_what_has_no_weights_is_refused_by_what_it_is(tmp_path: Path) -> None:
    def refused(path: Path, said: str) -> None:
        with pytest.raises(CheckpointError, match=said):
            checkpoint_at(path, lambda text: None, loads=False)

    pickled = tmp_path / "model.bin"
    pickled.write_bytes(b"\x80\x04]\x94.")
    refused(pickled, "no step file, no archive of one, and no safetensors file")
    refused(tmp_path / "nowhere", "no such file")
    folder = tmp_path / "folder"
    folder.mkdir()
    refused(folder, "has no checkpoint")
    (folder / "notes.txt").write_text("hello")
    refused(folder, "no step file and no safetensors file, and the trainer has no `load_checkpoint`")
    for name in ("a", "b"):
        saved(folder / f"{name}.safetensors", module(1).state_dict())
    refused(folder, r"has `0\.bias` twice")
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes((folder / "a.safetensors").read_bytes()[:-1])
    refused(torn, "is damaged")
    own = tmp_path / "own"
    save_trainable_module_checkpoint(module=module(1), output_dir=own, step=7)
    (own / "lora.safetensors").write_bytes(torn.read_bytes())
    refused(own, r"cannot be used: `lora\.safetensors`")


class Trainer:
    """Trains one module."""

    def __init__(self, seed: int) -> None:
        self.module = module(seed)
        self.first: Any = None

    def setup(self, ctx: StepContext) -> None: ...

    def configure(self, ctx: StepContext) -> dict[str, Any]:
        import torch

        trained = [each for each in self.module.parameters() if each.requires_grad]
        ctx.optimizer = torch.optim.AdamW(trained, lr=0.1)
        return {"module": self.module}

    def prepare_batch(self, raw: int, state: Any, ctx: StepContext) -> Any:
        import torch

        self.first = self.first or {name: each.clone() for name, each in self.module.state_dict().items()}
        return torch.full((2, 3), float(raw))

    def train_step(self, batch: Any, state: Any, ctx: StepContext) -> StepResult:
        loss = self.module(batch).square().mean()
        ctx.optimizer.zero_grad()
        loss.backward()
        ctx.optimizer.step()
        return StepResult({"loss": loss})

    def state_dict(self, state: Any) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any, payload: dict[str, Any], ctx: StepContext) -> None:
        raise AssertionError("there is no state of a trainer's own")


class Deaf:
    """A reporter that remembers only what began with which weights."""

    def __init__(self) -> None:
        self.began: dict[str, Any] = {}

    def started(self, *, run_id: str) -> None: ...
    def metric(self, *, name: str, value: float, step: int) -> None: ...
    def checkpoint(self, *, path: str, step: int) -> None: ...
    def sample(self, *, path: str, step: int) -> None: ...
    def completed(self, *, step: int, final_checkpoint: str | None = None) -> None: ...
    def failed(self, *, step: int, error: str) -> None: ...

    def is_canceled(self) -> bool:
        return False

    def began_with(self, **told: Any) -> None:
        self.began = told


def test_a_training_begins_with_weights_at_step_0_and_with_a_fresh_optimizer(tmp_path: Path) -> None:
    weights = {name: each for name, each in module(1).state_dict().items() if name != "0.bias"}
    job = TrainingJobSpec("r", 3, checkpoint_every=1)
    trainer, reporter, ctx = Trainer(2), Deaf(), StepContext(job)
    writer = CheckpointFolder(tmp_path, "r")
    step = run_training_loop(
        job=job,
        ctx=ctx,
        trainer=trainer,
        batches=[1, 2, 3],
        reporter=reporter,
        artifact_writer=writer,
        resume_weights=weights,
    )
    assert step == 3
    assert reporter.began == {"model": "state.module", "count": 3, "lacking": 1}
    assert all(trainer.first[name].equal(value) for name, value in weights.items())
    assert trainer.first["0.bias"].equal(module(2).state_dict()["0.bias"])
    assert {int(slot["step"]) for slot in ctx.optimizer.state_dict()["state"].values()} == {3}
    kept = checkpoint_at(tmp_path / "step-00000001.json", lambda text: None, loads=False).payload.runtime
    assert kept is not None
    assert "state.module/1.bias" in kept["kept"]["weights"], "it is frozen, and not what the plugin loads"


def test_weights_of_no_model_or_of_several_are_refused_by_name() -> None:
    ctx = StepContext(TrainingJobSpec("r", 3))
    weights = module(1).state_dict()
    with pytest.raises(UnfitCheckpointError, match="there is no model for the weights"):
        Keeper(ctx, {}).put(weights)
    with pytest.raises(UnfitCheckpointError, match=r"the weights fit several models: `state\.a`, `state\.b`"):
        Keeper(ctx, {"a": module(1), "b": module(2)}).put(weights)
    with pytest.raises(UnfitCheckpointError, match=r"`other` is not in `state\.a`$"):
        Keeper(ctx, {"a": module(1)}).put({**weights, "other": weights["0.bias"]})
    with pytest.raises(
        UnfitCheckpointError, match=r"the checkpoint has `state\.a/0\.bias` of \(3,\), here it is \(4,\)"
    ):
        Keeper(ctx, {"a": module(1)}).put({"0.bias": weights["0.bias"][:3]})
