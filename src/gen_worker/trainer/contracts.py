"""What a training's parts are to each other: the plugin, the loop, who is told, who keeps the files. Values only."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

StateT = TypeVar("StateT")
"""What a plugin's `configure` makes and its other hooks work on."""

RawBatchT = TypeVar("RawBatchT", contravariant=True)
"""What the data is made of."""

PreparedBatchT = TypeVar("PreparedBatchT")
"""What a plugin's `prepare_batch` makes of a raw batch."""


class TrainingCanceled(Exception):
    """A training was asked to end before it was done; `step` is the last one that was taken."""

    def __init__(self, message: str = "training canceled", *, step: int = 0) -> None:
        super().__init__(message)
        self.step = step


@dataclass(frozen=True)
class EarlyStop:
    """When a training is as good as it gets: `metric` has not become better by `min_delta` for `patience` looks.

    It is looked at whenever metrics are told, every `metric_every` steps.
    """

    metric: str = "train/loss"
    patience: int = 5
    min_delta: float = 0.0
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        if not self.metric:
            raise ValueError("`metric` of `early_stop` is empty")
        if self.patience < 1:
            raise ValueError(f"`patience` of `early_stop` takes 1 or more, not {self.patience}")
        if not (isfinite(self.min_delta) and self.min_delta >= 0):
            raise ValueError(f"`min_delta` of `early_stop` takes 0 or more, not {self.min_delta:g}")
        if self.mode not in ("min", "max"):
            raise ValueError(f"`mode` of `early_stop` is `min` or `max`, not {self.mode!r}")


@dataclass(frozen=True)
class TrainingJobSpec:
    """One training: how many steps, and every how many steps something is told or kept; 0 stands for never.

    A negative number, or an empty `request_id`, raises `ValueError`.
    """

    request_id: str
    max_steps: int
    trainer_api_version: str = "v1"
    metric_every: int = 10
    checkpoint_every: int = 0
    sample_every: int = 0
    owner: str = ""
    release_ref: str = ""
    hyperparams: Mapping[str, Any] = field(default_factory=dict)
    early_stop: EarlyStop | None = field(default=None, kw_only=True)
    allow_non_finite_loss: bool = field(default=False, kw_only=True)
    """Else a loss that is no finite number ends the training, before a checkpoint of that step is written."""

    def __post_init__(self) -> None:
        if not isinstance(self.request_id, str) or not self.request_id.strip():
            raise ValueError("`request_id` is empty")
        for name in ("max_steps", "metric_every", "checkpoint_every", "sample_every"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"`{name}` takes a whole number, 0 or more, not {value!r}")


@dataclass(frozen=True)
class TrainerAuthContext:
    """Who a training acts for at the platform, and what it may do there."""

    owner: str = ""
    token: str = field(default="", repr=False)
    scope: str = ""


def _never() -> bool:
    return False


@dataclass
class StepContext:
    """What a plugin's hooks know beside their state. A plugin may set any field in `setup` or `configure`.

    Models, optimizers and schedulers that are here are kept in each checkpoint and are restored from it.
    """

    job: TrainingJobSpec
    model_handles: dict[str, Any] = field(default_factory=dict)
    dataset: Any = None
    optimizer: Any = None
    scheduler: Any = None
    device: str = "cuda:0"
    dtype: str = "bf16"
    is_canceled: Callable[[], bool] = field(default_factory=lambda: _never)


@dataclass(frozen=True)
class StepControlHints:
    """What a step asks of the loop: to tell and keep nothing after it, to wait, or to let it be the last one."""

    skip_cadence_emit: bool = False
    backoff_seconds: float = 0.0
    stop: bool = field(default=False, kw_only=True)


@dataclass(frozen=True)
class StepResult:
    """What a step has come to: numbers by their names, and what only a developer wants to see."""

    metrics: Mapping[str, Any] = field(default_factory=dict)
    debug: Mapping[str, Any] = field(default_factory=dict)
    control: StepControlHints = field(default_factory=StepControlHints)


class TrainerPlugin(Protocol[StateT, RawBatchT, PreparedBatchT]):
    """What an author writes. Two more hooks are optional.

    `save_checkpoint(*, state, step, output_dir, final, ctx)` writes what others will load into `output_dir`, and
    returns a mapping with the `primary_path` among it. `load_checkpoint(*, state, checkpoint_dir, payload, ctx)` reads
    it back on a resume, before the runtime puts in place what it keeps itself.
    """

    def setup(self, ctx: StepContext) -> None:
        """Load what is needed: models, tokenizers."""
        ...

    def configure(self, ctx: StepContext) -> StateT:
        """Return the state that the steps work on, as it is before the first one."""
        ...

    def prepare_batch(self, raw: RawBatchT, state: StateT, ctx: StepContext) -> PreparedBatchT:
        """Make of a raw batch what a step takes."""
        ...

    def train_step(self, batch: PreparedBatchT, state: StateT, ctx: StepContext) -> StepResult:
        """Take one step."""
        ...

    def state_dict(self, state: StateT) -> dict[str, Any]:
        """Return what of the state a resume needs."""
        ...

    def load_state_dict(self, state: StateT, payload: dict[str, Any], ctx: StepContext) -> None:
        """Put back what `state_dict` returned."""
        ...


class TrainingReporter(Protocol):
    """Who is told how a training goes."""

    def started(self, *, run_id: str) -> None:
        """The first batch is about to be taken."""
        ...

    def metric(self, *, name: str, value: float, step: int) -> None:
        """A number, after a step."""
        ...

    def checkpoint(self, *, path: str, step: int) -> None:
        """A checkpoint is complete."""
        ...

    def sample(self, *, path: str, step: int) -> None:
        """A sample is complete."""
        ...

    def completed(self, *, step: int, final_checkpoint: str | None = None) -> None:
        """The training has come to its end."""
        ...

    def failed(self, *, step: int, error: str) -> None:
        """The training ended early; `error` begins with where: `train-step: ValueError: …`."""
        ...

    def is_canceled(self) -> bool:
        """Whether the training shall end."""
        ...


class ArtifactWriter(Protocol):
    """Who keeps the files of a training.

    `state_payload` is what the plugin's `state_dict` returned; what the loop keeps beside it is its attribute
    `runtime`. Given back to the loop as `resume_state_payload`, both of it are put in place.
    """

    def write_checkpoint(self, *, step: int, state_payload: dict[str, Any], trainer: Any, state: Any, ctx: Any) -> str:
        """Keep all that a resume needs; return the path. It is complete when this returns."""
        ...

    def write_samples(self, *, step: int, state: Any, ctx: Any) -> Sequence[str]:
        """Keep samples of what the model can do; return their paths."""
        ...

    def finalize(self, *, state_payload: dict[str, Any], trainer: Any, state: Any, ctx: Any) -> str | None:
        """Keep what the training was for; return its path, None where nothing is kept."""
        ...


class ArtifactUploader(Protocol):
    """Who takes files and numbers to where others have them."""

    def upload_checkpoint(self, *, local_path: str, step: int) -> object:
        """Take a checkpoint there."""
        ...

    def upload_sample(self, *, local_path: str, step: int) -> object:
        """Take a sample there."""
        ...

    def upload_metrics(self, *, metrics: Mapping[str, float], step: int) -> object:
        """Take the numbers of a step there."""
        ...


class StatePayload(dict[str, Any]):
    """What a plugin's `state_dict` returned, with what the loop keeps beside it."""

    def __init__(self, plugin: Mapping[str, Any], runtime: Mapping[str, Any] | None = None) -> None:
        super().__init__(plugin)
        self.runtime: dict[str, Any] | None = None if runtime is None else dict(runtime)


FAILURE_CATEGORIES = ("startup", "input", "auth", "upload", "model-load", "train-step")
"""What the error of a failed training begins with."""


class NonFiniteLossError(ArithmeticError):
    """A step has come to a loss that is no finite number: nothing is learned from there on."""


def checkpoint_folder(path: str | Path) -> Path:
    """Return the folder that goes with a step file: what a plugin's `save_checkpoint` wrote into."""
    return Path(path).with_suffix("")
