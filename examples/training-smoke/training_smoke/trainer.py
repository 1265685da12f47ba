"""A trainer: a classifier of short texts, a bag of words into a small network, trained on the CPU in seconds."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gen_worker.trainer import (
    OptimizerBundle,
    StepContext,
    StepResult,
    build_default_adamw_bundle,
    load_trainable_module_checkpoint,
    save_trainable_module_checkpoint,
)

LABELS = ("praise", "complaint")
WORDS = 512  # buckets that words are hashed into


class Classifier(nn.Module):
    """Which of `LABELS` a text is."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(WORDS, width)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(width, len(LABELS))

    def forward(self, words: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.drop(torch.relu(self.words(words, starts))))
        return scores


@dataclass
class State:
    """What the steps work on. The runtime keeps the model and the optimizer in each checkpoint, with all randomness."""

    model: Classifier
    bundle: OptimizerBundle


@dataclass
class Batch:
    """Texts and labels as the model takes them."""

    words: torch.Tensor
    starts: torch.Tensor
    labels: torch.Tensor


class Trainer:
    """The hooks that the loop calls, in this order."""

    def setup(self, ctx: StepContext) -> None:
        """One thread: the model is tiny, and sums come out the same wherever it is trained."""
        torch.set_num_threads(1)

    def configure(self, ctx: StepContext) -> State:
        """Make the model and its optimizer; what stands in the context is kept by the runtime."""
        model = Classifier()
        bundle = build_default_adamw_bundle(model, hyperparams=ctx.job.hyperparams)
        ctx.model_handles["model"] = model
        ctx.optimizer, ctx.scheduler = bundle.optimizer, bundle.scheduler
        return State(model, bundle)

    def prepare_batch(self, raw: Mapping[str, Any], state: State, ctx: StepContext) -> Batch:
        """Hash the words of each text."""
        words: list[int] = []
        starts: list[int] = []
        for text in raw["texts"]:
            starts.append(len(words))
            words += [bucket(word) for word in text.lower().split()]
        labels = [LABELS.index(label) for label in raw["labels"]]
        return Batch(torch.tensor(words), torch.tensor(starts), torch.tensor(labels))

    def train_step(self, batch: Batch, state: State, ctx: StepContext) -> StepResult:
        """Take one step of the optimizer."""
        state.model.train()
        loss = nn.functional.cross_entropy(state.model(batch.words, batch.starts), batch.labels)
        state.bundle.optimizer.zero_grad()
        loss.backward()
        state.bundle.optimizer.step()
        state.bundle.scheduler.step()
        return StepResult({"loss": loss})

    def state_dict(self, state: State) -> dict[str, Any]:
        """Nothing that the runtime does not keep itself."""
        return {}

    def load_state_dict(self, state: State, payload: dict[str, Any], ctx: StepContext) -> None:
        """Nothing to put back."""

    def save_checkpoint(
        self, *, state: State, step: int, output_dir: str, final: bool, ctx: StepContext
    ) -> dict[str, Any]:
        """Write the weights as others load them."""
        return save_trainable_module_checkpoint(module=state.model, output_dir=output_dir, step=step, final=final)

    def sample(
        self,
        *,
        prompts: list[dict[str, Any]],
        seed: int,
        step: int,
        state: State,
        output_dir: str,
        ctx: StepContext,
    ) -> list[dict[str, Any]]:
        """Say what the model makes of each prompt."""
        return [{"label": label_of(state.model, prompt["prompt"])} for prompt in prompts]


def bucket(word: str) -> int:
    """Return where a word goes; `hash()` is another in each process."""
    found = 0
    for letter in word.encode():
        found = (found * 31 + letter) % WORDS
    return found


def label_of(model: Classifier, text: str) -> str:
    """Return the label that a model gives a text."""
    model.eval()
    words = torch.tensor([bucket(word) for word in text.lower().split()])
    with torch.no_grad():
        return LABELS[int(model(words, torch.tensor([0])).argmax())]


def trained(folder: str | Path) -> Classifier:
    """Return the model that a training has left in a folder."""
    model = Classifier()
    load_trainable_module_checkpoint(module=model, checkpoint_dir=folder)
    return model
