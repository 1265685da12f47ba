"""What of a training with torch is kept, and that it comes back bit for bit."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gen_worker.trainer import (
    OptimizerBundle,
    StepContext,
    TrainingJobSpec,
    build_default_adamw_bundle,
    load_trainable_module_checkpoint,
    save_trainable_module_checkpoint,
    seed_everything,
    to_float_scalar,
)
from gen_worker.trainer.checkpoints import CheckpointFolder, read_checkpoint
from gen_worker.trainer.contracts import StatePayload
from gen_worker.trainer.keeping import Keeper, UnfitCheckpointError
from gen_worker.trainer.modules import DamagedCheckpointError
from gen_worker.trainer.optimization import schedule
from gen_worker.trainer.randomness import undisturbed

pytestmark = pytest.mark.needs("torch", "safetensors")


@dataclass
class State:
    """As a plugin may have it: nothing of it stands in the context."""

    module: Any
    average: Any
    optimizer: Any
    scheduler: Any
    dice: Any


def made(seed: int, width: int = 4) -> tuple[StepContext, State]:
    import torch

    torch.manual_seed(seed)
    module = torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.BatchNorm1d(width), torch.nn.Linear(width, 1))
    module[2].bias.requires_grad_(False)
    average = torch.nn.Linear(3, width).requires_grad_(False)
    params = [each for each in module.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=0.1)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 3], gamma=0.5)
    state = State(module, average, optimizer, scheduler, torch.Generator().manual_seed(seed))
    return StepContext(TrainingJobSpec("r", 9)), state


def step(state: State) -> None:
    import torch

    loss = state.module(torch.randn(5, 3, generator=state.dice)).square().mean()
    state.optimizer.zero_grad()
    loss.backward()
    state.optimizer.step()
    state.scheduler.step()
    with torch.no_grad():  # an average of weights, which no optimizer knows of
        for mean, value in zip(state.average.parameters(), state.module[0].parameters(), strict=True):
            mean.lerp_(value, 0.1)


def everything(state: State) -> list[Any]:
    return [
        *state.module.state_dict().values(),
        *state.average.state_dict().values(),
        *(each for slot in state.optimizer.state_dict()["state"].values() for each in slot.values()),
        state.dice.get_state(),
    ]


def test_a_training_comes_back_bit_for_bit_through_a_file(tmp_path: Path) -> None:
    ctx, state = made(1)
    keeper = Keeper(ctx, state)
    step(state)
    writer = CheckpointFolder(tmp_path, "r")
    payload = StatePayload({}, {"step": 1, "kept": keeper.keep()})
    path = writer.write_checkpoint(step=1, state_payload=payload, trainer=None, state=state, ctx=ctx)
    step(state)
    step(state)
    other_ctx, other = made(2)
    other.module[2].bias.data.copy_(state.module[2].bias)  # what is frozen the plugin loads again
    runtime = read_checkpoint(Path(path)).payload.runtime
    assert runtime is not None
    Keeper(other_ctx, other).restore(runtime["kept"])
    step(other)
    step(other)
    assert all(one.equal(two) for one, two in zip(everything(state), everything(other), strict=True))
    assert other.optimizer.param_groups[0]["lr"] == state.optimizer.param_groups[0]["lr"] == 0.025


def test_tensors_whose_places_read_alike_are_kept_apart(tmp_path: Path) -> None:
    import torch

    one, two, three, four = (torch.tensor(float(each)) for each in range(4))
    state = {"a.b": one, "a": {"b": two}, "c": {0: three, "0": four}}
    writer = CheckpointFolder(tmp_path, "r")
    path = writer.write_checkpoint(
        step=1, state_payload=StatePayload(state, {"step": 1}), trainer=None, state=None, ctx=None
    )
    assert read_checkpoint(Path(path)).payload == state


def test_what_is_frozen_and_unchanged_takes_no_room_in_a_checkpoint() -> None:
    ctx, state = made(1)
    kept = Keeper(ctx, state).keep()
    assert not [name for name in kept["weights"] if "average" in name or name.endswith("2.bias")]
    names = sorted(name for name in kept["weights"] if "#" in name)
    assert names == [f"state.module#1.{name}" for name in ("num_batches_tracked", "running_mean", "running_var")]


def test_a_checkpoint_of_a_training_that_is_made_otherwise_is_refused_by_name() -> None:
    kept = Keeper(*made(1)).keep()
    with pytest.raises(UnfitCheckpointError, match=r"running_mean` of \(4,\), here it is \(5,\)"):
        Keeper(*made(1, width=5)).restore(kept)
    ctx, state = made(1)
    state.optimizer = None
    with pytest.raises(UnfitCheckpointError, match=r"this training has none"):
        Keeper(ctx, state).restore(kept)


def test_trained_weights_are_files_that_tell_when_they_are_damaged(tmp_path: Path) -> None:
    _, state = made(1)
    step(state)
    meta = save_trainable_module_checkpoint(
        module=state.module, optimizer=state.optimizer, output_dir=tmp_path, step=3, metadata={"base": "acme/tiny"}
    )
    assert sorted(os.listdir(tmp_path)) == ["checkpoint_meta.json", "lora.safetensors", "optimizer.pt"]
    assert (meta["format"], meta["step"], meta["final"], meta["base"]) == ("safetensors", 3, False, "acme/tiny")
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    _, other = made(2)
    load_trainable_module_checkpoint(module=other.module, optimizer=other.optimizer, checkpoint_dir=moved)
    assert other.module[0].weight.equal(state.module[0].weight)
    assert str(other.optimizer.state_dict()) == str(state.optimizer.state_dict())
    content = bytearray((moved / "lora.safetensors").read_bytes())
    content[-1] ^= 1
    (moved / "lora.safetensors").write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=r"`lora\.safetensors`"):
        load_trainable_module_checkpoint(module=other.module, checkpoint_dir=moved)
    with pytest.raises(ValueError, match="nothing of the module can be trained"):
        save_trainable_module_checkpoint(module=state.average, output_dir=tmp_path, step=1)


@pytest.mark.parametrize(("folder", "weights"), [(0o755, 0o644), (0o777, 0o644), (0o750, 0o640), (0o700, 0o600)])
def test_who_may_read_the_folder_may_read_the_weights(tmp_path: Path, folder: int, weights: int) -> None:
    tmp_path.chmod(folder)
    meta = save_trainable_module_checkpoint(module=made(1)[1].module, output_dir=tmp_path, step=1)
    assert Path(meta["primary_path"]).stat().st_mode & 0o777 == weights


def test_the_usual_optimizer_goes_by_the_hyperparameters() -> None:
    _, state = made(1)
    told = {"learning_rate": 0.01, "betas": [0.8, 0.9], "weight_decay": 0.1, "warmup_steps": 2, "max_steps": 6}
    bundle = build_default_adamw_bundle(state.module, hyperparams=told)
    group = bundle.optimizer.param_groups[0]
    assert (group["initial_lr"], group["betas"], group["weight_decay"]) == (0.01, (0.8, 0.9), 0.1)
    assert group["lr"] == pytest.approx(0.005)
    assert [round(schedule(at, warmup=2, total=6), 3) for at in range(7)] == [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    assert schedule(99, warmup=0, total=0) == 1.0
    with pytest.raises(ValueError, match="nothing can be trained"):
        build_default_adamw_bundle(state.average, hyperparams={})


def test_without_torch_there_is_no_optimizer_and_without_safetensors_weights_are_torchs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, state = made(1)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    meta = save_trainable_module_checkpoint(module=state.module, output_dir=tmp_path, step=1)
    assert (meta["format"], Path(meta["primary_path"]).name) == ("pt", "lora.pt")
    _, other = made(2)
    load_trainable_module_checkpoint(module=other.module, checkpoint_dir=tmp_path)
    assert other.module[0].weight.equal(state.module[0].weight)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert build_default_adamw_bundle(state.module, hyperparams={}) == OptimizerBundle()


def test_chance_is_seeded_and_what_is_drawn_aside_disturbs_nothing() -> None:
    import random

    import numpy
    import torch

    def draw() -> tuple[float, ...]:
        return random.random(), float(numpy.random.rand()), float(torch.rand(1))

    seed_everything(5)
    first = (draw(), draw())
    seed_everything(5)
    one = draw()
    with undisturbed():
        draw()
    assert (one, draw()) == first


def test_numbers_are_taken_from_whatever_holds_one() -> None:
    import numpy
    import torch

    ones = (2, 2.0, numpy.float32(2), numpy.array([2]), torch.tensor(2), torch.tensor([[2.0]], requires_grad=True))
    assert {to_float_scalar(each) for each in ones} == {2.0}
    for odd in (torch.tensor([1, 2]), "two", None, object()):
        with pytest.raises(TypeError, match="number"):
            to_float_scalar(odd)
