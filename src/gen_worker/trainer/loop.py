"""The loop of a training: what is called when, what is told when, and how it is gone on with.

Knows nothing of files, frames or networks: whom it is given does.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Any

from gen_worker.api.errors import AuthError
from gen_worker.trainer.contracts import (
    ArtifactUploader,
    ArtifactWriter,
    EarlyStop,
    NonFiniteLossError,
    StatePayload,
    StepContext,
    StepControlHints,
    StepResult,
    TrainingCanceled,
    TrainingJobSpec,
    TrainingReporter,
)
from gen_worker.trainer.keeping import Keeper
from gen_worker.trainer.optimization import to_float_scalar
from gen_worker.trainer.randomness import random_state, restore_random, undisturbed

LOSS, RATE = "train/loss", "train/lr"
METRIC_NAMES = {"loss": LOSS, "train_loss": LOSS, "lr": RATE, "learning_rate": RATE, "train_lr": RATE}
_LOSSES = (LOSS, "loss", "train_loss")
_RATES = (RATE, "lr", "learning_rate", "train_lr")
_LOOK_S = 0.05  # how soon a cancel ends a step's backoff


def run_training_loop(
    *,
    job: TrainingJobSpec,
    ctx: StepContext,
    trainer: Any,
    batches: Iterable[Any],
    reporter: TrainingReporter,
    artifact_writer: ArtifactWriter,
    uploader: ArtifactUploader | None = None,
    start_step: int = 0,
    resume_state_payload: Mapping[str, Any] | None = None,
    resume_checkpoint_path: str | None = None,
    resume_weights: Mapping[str, Any] | None = None,
    checkpoint_on_cancel: bool = False,
) -> int:
    """Train until `max_steps`, until the batches or the trainer end it, or until `early_stop`; return the last step.

    It goes on from `start_step` with a payload that an `ArtifactWriter` was given; then the batches that had been taken
    are passed over, or, where `batches` has `load_state_dict` or `skip`, it is told how far it was. `resume_weights`
    are tensors by the names that they have in one of the models, which begins with them.

    Raises `TrainingCanceled` when it is asked to end, with `checkpoint_on_cancel` after one more checkpoint,
    `NonFiniteLossError` where a loss is seen to be none, and whatever the trainer, the batches or the uploader raise;
    the reporter is told before. A reporter that has `stepped(*, step, max_steps)` is told of every step, one that has
    `began_with(*, model, count, lacking)` of weights that were put in place.
    """
    loop = _Loop(job, ctx, trainer, batches, reporter, artifact_writer, uploader, start_step)
    try:
        loop.begin(resume_state_payload, resume_checkpoint_path, resume_weights)
        loop.train(checkpoint_on_cancel)
        return loop.finish()
    except BaseException as error:
        reporter.failed(step=loop.step, error=failure_text(loop.category, error))
        raise


def failure_text(category: str, error: BaseException) -> str:
    """Return what a failure is told as: where it happened, and what; a token that is refused has a place of its own."""
    return f"{'auth' if isinstance(error, AuthError) else category}: {told(error)}"


def told(error: BaseException) -> str:
    """Return an exception in one line."""
    if isinstance(error, TrainingCanceled):
        return str(error)
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


@dataclass
class _Best:
    """The best value of the metric that decides when to stop early, and how many looks ago it was."""

    value: float | None = None
    looks_since: int = 0

    def look(self, rule: EarlyStop, value: float) -> bool:
        """Take a value into account; say whether it is time to stop."""
        gain = 0.0 if self.value is None else (self.value - value if rule.mode == "min" else value - self.value)
        if self.value is None or gain > rule.min_delta:
            self.value, self.looks_since = value, 0
        else:
            self.looks_since += 1
        return self.looks_since >= rule.patience


class _Loop:
    def __init__(
        self,
        job: TrainingJobSpec,
        ctx: StepContext,
        trainer: Any,
        batches: Iterable[Any],
        reporter: TrainingReporter,
        writer: ArtifactWriter,
        uploader: ArtifactUploader | None,
        start_step: int,
    ) -> None:
        self.step = start_step
        self.category = "model-load"
        self._job = job
        self._ctx = ctx
        self._trainer = trainer
        self._batches = batches
        self._reporter = reporter
        self._writer = writer
        self._uploader = uploader
        self._kept_step = start_step
        self._taken = 0
        self._best = _Best()
        self._stops = False
        self._losses: dict[str, Any] = {}  # of the last step, without the graph that they came from

    # --- its beginning ---

    def begin(
        self, payload: Mapping[str, Any] | None, checkpoint_path: str | None, weights: Mapping[str, Any] | None
    ) -> None:
        """Set everything up, as it was where a payload says so, and take the place in the data."""
        self._trainer.setup(self._ctx)
        self._state = self._trainer.configure(self._ctx)
        self._keeper = Keeper(self._ctx, self._state)
        self._random_at_start = random_state()
        if weights is not None:
            self._begin_with(weights)
        if payload is not None:
            self._trainer.load_state_dict(self._state, dict(payload), self._ctx)
        if checkpoint_path and hasattr(self._trainer, "load_checkpoint"):
            self._trainer.load_checkpoint(
                state=self._state, checkpoint_dir=checkpoint_path, payload=dict(payload or {}), ctx=self._ctx
            )
        runtime = payload.runtime if isinstance(payload, StatePayload) else None
        if runtime is not None:
            self._keeper.restore(runtime["kept"])
            self._best = _Best(**runtime["best"])
            self._stops = runtime["stopped"] == self._job.request_id  # another training may go on from there
        self.category = "input"
        self._find_place(runtime)
        self._reporter.started(run_id=self._job.request_id)

    def _begin_with(self, weights: Mapping[str, Any]) -> None:
        name, lacking = self._keeper.put(weights)
        if (began := getattr(self._reporter, "began_with", None)) is not None:
            began(model=name, count=len(weights), lacking=lacking)

    def _find_place(self, runtime: Mapping[str, Any] | None) -> None:
        """Take the place in the data that a payload names; what is drawn at random on the way is what was drawn."""
        if runtime is None:
            self._iterator = iter(self._batches)
            return
        self._taken = runtime["taken"]
        self._random_at_start = runtime["random_at_start"]
        restore_random(self._random_at_start)
        if runtime["batches"] is not None and hasattr(self._batches, "load_state_dict"):
            self._batches.load_state_dict(runtime["batches"])
            self._iterator = iter(self._batches)
        elif hasattr(self._batches, "skip"):
            self._batches.skip(self._taken)
            self._iterator = iter(self._batches)
        else:
            self._iterator = iter(self._batches)
            for _ in range(self._taken):
                self._check_cancel()
                next(self._iterator, None)
        restore_random(runtime["random"])

    # --- its steps ---

    def train(self, checkpoint_on_cancel: bool) -> None:
        """Take step after step."""
        try:
            while self.step < self._job.max_steps and not self._stops:
                self._check_cancel()
                self.category = "input"
                try:
                    raw = next(self._iterator)
                except StopIteration:
                    return
                self._taken += 1
                self.category = "train-step"
                self._take_step(raw)
        except TrainingCanceled:
            if checkpoint_on_cancel and self.step > self._kept_step:
                self._checkpoint()
            raise

    def _check_cancel(self) -> None:
        if self._ctx.is_canceled() or self._reporter.is_canceled():
            raise TrainingCanceled(f"training canceled after step {self.step}", step=self.step)

    def _take_step(self, raw: Any) -> None:
        batch = self._trainer.prepare_batch(raw, self._state, self._ctx)
        result = as_step_result(self._trainer.train_step(batch, self._state, self._ctx))
        self.step += 1
        if (stepped := getattr(self._reporter, "stepped", None)) is not None:
            stepped(step=self.step, max_steps=self._job.max_steps)
        control = result.control
        self._losses = {name: _alone(result.metrics[name]) for name in _LOSSES if name in result.metrics}
        self._stops = control.stop
        if not control.skip_cadence_emit:
            self._emit(result)
        if control.backoff_seconds > 0:
            self._wait(control.backoff_seconds)

    def _emit(self, result: StepResult) -> None:
        job = self._job
        if _is_due(self.step, job.metric_every):
            self._check_loss()
            self._tell_metrics(metrics_of(result, self._state, self._ctx))
        if _is_due(self.step, job.checkpoint_every):
            self._checkpoint()
        if _is_due(self.step, job.sample_every):
            self._sample()

    def _tell_metrics(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._reporter.metric(name=name, value=value, step=self.step)
        rule = self._job.early_stop
        if rule is not None and rule.metric in metrics and self._best.look(rule, metrics[rule.metric]):
            self._stops = True
        if self._uploader is not None and metrics:
            with self._uploading():
                self._uploader.upload_metrics(metrics=metrics, step=self.step)

    def _check_loss(self) -> None:
        """Raise `NonFiniteLossError` for the last step's loss; only what is told or kept is worth waiting for it."""
        for name, value in () if self._job.allow_non_finite_loss else self._losses.items():
            if not isfinite(loss := _number(name, value)):
                raise NonFiniteLossError(f"`{name}` of step {self.step} is {loss}")

    def _checkpoint(self) -> None:
        self._check_loss()
        with undisturbed():
            path = self._writer.write_checkpoint(
                step=self.step, state_payload=self._payload(), trainer=self._trainer, state=self._state, ctx=self._ctx
            )
        self._kept_step = self.step
        self._reporter.checkpoint(path=str(path), step=self.step)
        if self._uploader is not None:
            with self._uploading():
                self._uploader.upload_checkpoint(local_path=str(path), step=self.step)

    def _sample(self) -> None:
        with undisturbed():
            paths = self._writer.write_samples(step=self.step, state=self._state, ctx=self._ctx)
        for path in paths or ():
            self._reporter.sample(path=str(path), step=self.step)
            if self._uploader is not None:
                with self._uploading():
                    self._uploader.upload_sample(local_path=str(path), step=self.step)

    def _payload(self) -> StatePayload:
        batches = self._batches
        runtime = {
            "step": self.step,
            "kept": self._keeper.keep(),
            "best": {"value": self._best.value, "looks_since": self._best.looks_since},
            "stopped": self._job.request_id if self._stops else "",
            "taken": self._taken,
            "batches": batches.state_dict() if hasattr(batches, "state_dict") else None,
            "random": random_state(),
            "random_at_start": self._random_at_start,
        }
        return StatePayload(self._trainer.state_dict(self._state), runtime)

    def _wait(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            self._check_cancel()
            time.sleep(min(left, _LOOK_S))

    @contextmanager
    def _uploading(self) -> Iterator[None]:
        before, self.category = self.category, "upload"
        with undisturbed():
            yield
        self.category = before

    # --- its end ---

    def finish(self) -> int:
        """Have what the training was for kept."""
        self.category = "train-step"
        self._check_loss()
        with undisturbed():
            final = self._writer.finalize(
                state_payload=self._payload(), trainer=self._trainer, state=self._state, ctx=self._ctx
            )
        if final is not None and self._uploader is not None:
            with self._uploading():
                self._uploader.upload_checkpoint(local_path=str(final), step=self.step)
        self._reporter.completed(step=self.step, final_checkpoint=None if final is None else str(final))
        return self.step


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


# --- what a step returned ---------------------------------------------------------------------------------------------


def as_step_result(returned: Any) -> StepResult:
    """Return what a step came to, whatever shape it has: a `StepResult`, what looks like one, or a mapping.

    A mapping has `metrics`, or is the metrics. Raises `TypeError` for anything else.
    """
    if isinstance(returned, StepResult):
        return returned
    if returned is None:
        return StepResult()
    if isinstance(returned, Mapping):
        inner = returned if "metrics" in returned else {"metrics": returned}
        return _step_result(inner.get("metrics"), inner.get("debug"), inner.get("control"))
    if hasattr(returned, "metrics"):
        return _step_result(returned.metrics, getattr(returned, "debug", None), getattr(returned, "control", None))
    raise TypeError(f"`train_step` returns a `StepResult` or a mapping of metrics, not {type(returned).__name__}")


def _step_result(metrics: Any, debug: Any, control: Any) -> StepResult:
    if isinstance(control, Mapping):
        control = StepControlHints(**control)
    elif control is not None and not isinstance(control, StepControlHints):
        control = StepControlHints(
            bool(getattr(control, "skip_cadence_emit", False)),
            float(getattr(control, "backoff_seconds", 0.0) or 0.0),
            stop=bool(getattr(control, "stop", False)),
        )
    return StepResult(_named("metrics", metrics), _named("debug", debug), control or StepControlHints())


def _named(what: str, found: Any) -> dict[str, Any]:
    if isinstance(found, Mapping):
        return dict(found)
    if found is None:
        return {}
    raise TypeError(f"`{what}` of what `train_step` returns maps names to numbers, not {type(found).__name__}")


def metrics_of(result: StepResult, state: Any, ctx: StepContext) -> dict[str, float]:
    """Return a step's numbers under the names that go out; the learning rate comes from where it is known.

    Raises `TypeError` naming a metric that is no number.
    """
    found: dict[str, float] = {}
    for name, value in result.metrics.items():
        found[METRIC_NAMES.get(name, name)] = _number(name, value)
    if RATE not in found and (rate := _rate(result, state, ctx)) is not None:
        found[RATE] = rate
    return found


def _alone(value: Any) -> Any:
    return value.detach() if hasattr(value, "detach") else value


def _number(name: str, value: Any) -> float:
    try:
        return to_float_scalar(value)
    except TypeError as error:
        raise TypeError(f"metric `{name}`: {error}") from None


def _rate(result: StepResult, state: Any, ctx: StepContext) -> float | None:
    for name in _RATES:
        if name in result.debug:
            return to_float_scalar(result.debug[name])
    for name in _RATES[1:]:
        if (rate := _member(state, name)) is not None:
            return to_float_scalar(rate)
    for optimizer in (ctx.optimizer, _member(state, "optimizer")):
        groups = getattr(optimizer, "param_groups", None)
        if groups and "lr" in groups[0]:
            return to_float_scalar(groups[0]["lr"])
    return None


def _member(state: Any, name: str) -> Any:
    return state.get(name) if isinstance(state, Mapping) else getattr(state, name, None)
