"""A trainer that trains twice: as the loop calls it, and by itself, round by round in the same process."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gen_worker.trainer import StepContext, StepResult

WIDTH, ROWS = 1024, 8


class Twin:
    """A model of a million weights and its optimizer: 12 MB of state."""

    def __init__(self) -> None:
        self.model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.GELU())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)

    def step(self, rows: torch.Tensor) -> torch.Tensor:
        """Learn from some rows; return the loss."""
        loss = (self.model(rows) - rows).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss

    def save(self, path: Path) -> None:
        """Write what a bare loop would, so that it outlives the machine."""
        with path.open("wb") as file:
            torch.save({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, file)
            file.flush()
            os.fsync(file.fileno())


def rows_of(raw: int) -> torch.Tensor:
    """Make of a raw batch what a step takes."""
    return torch.full((ROWS, WIDTH), float(raw))


class Trainer:
    """Measures each block of `steps` steps and the checkpoint after it, beside a bare block and a bare checkpoint.

    Steps by the processor's time, all threads of the process together, checkpoints by the wall's.
    """

    def setup(self, ctx: StepContext) -> None:
        torch.set_num_threads(1)
        self.steps = int(ctx.job.hyperparams["steps"])
        self.place = Path(ctx.job.hyperparams["place"])
        self.taken: dict[str, list[float]] = {"steps": [], "bare steps": [], "checkpoint": [], "bare checkpoint": []}
        self.count, self.began, self.ended = 0, 0.0, 0.0
        self.bare = Twin()

    def configure(self, ctx: StepContext) -> Twin:
        twin = Twin()
        ctx.model_handles["model"], ctx.optimizer = twin.model, twin.optimizer
        return twin

    def prepare_batch(self, raw: int, state: Twin, ctx: StepContext) -> torch.Tensor:
        if self.ended:
            self.taken["checkpoint"].append(time.perf_counter() - self.ended)
            self.ended = 0.0
        return rows_of(raw)

    def train_step(self, batch: torch.Tensor, state: Twin, ctx: StepContext) -> StepResult:
        if self.count % self.steps == 0:
            self.measure_bare()
            self.began = time.process_time()
        loss = state.step(batch)
        self.count += 1
        if self.count % self.steps == 0:
            self.taken["steps"].append((time.process_time() - self.began) / self.steps)
            self.ended = time.perf_counter()
        return StepResult({"loss": loss})

    def measure_bare(self) -> None:
        """The same steps without anybody around them, and the same state written by `torch.save`."""
        self.taken["bare steps"].append(timed(time.process_time, self.bare_steps) / self.steps)
        self.taken["bare checkpoint"].append(timed(time.perf_counter, lambda: self.bare.save(self.place / "bare.pt")))
        (self.place / "taken.json").write_text(json.dumps(self.taken))

    def bare_steps(self) -> None:
        """A block of steps."""
        for _ in range(self.steps):
            self.bare.step(rows_of(1))

    def state_dict(self, state: Twin) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Twin, payload: dict[str, Any], ctx: StepContext) -> None:
        """The runtime keeps everything."""


class Idle:
    """Learns nothing: what its steps take is the loop's."""

    def setup(self, ctx: StepContext) -> None:
        self.steps, self.place = int(ctx.job.hyperparams["steps"]), Path(ctx.job.hyperparams["place"])
        self.taken: list[float] = []
        self.began = 0.0

    def configure(self, ctx: StepContext) -> dict[str, int]:
        return {"steps": 0}

    def prepare_batch(self, raw: int, state: dict[str, int], ctx: StepContext) -> int:
        return raw

    def train_step(self, batch: int, state: dict[str, int], ctx: StepContext) -> dict[str, float]:
        if state["steps"] % self.steps == 0:
            now = time.process_time()
            self.taken.append((now - self.began) / self.steps)
            self.began = now
            (self.place / "idle.json").write_text(json.dumps(self.taken[1:]))
        state["steps"] += 1
        return {"loss": 1.0}

    def state_dict(self, state: dict[str, int]) -> dict[str, int]:
        return state

    def load_state_dict(self, state: dict[str, int], payload: dict[str, int], ctx: StepContext) -> None:
        state.update(payload)


def timed(clock: Callable[[], float], once: Callable[[], object]) -> float:
    """Return the seconds of a clock that something takes."""
    began = clock()
    once()
    return clock() - began
