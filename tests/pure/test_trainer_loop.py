"""The loop of a training: what is called when, what is told, and how it goes on."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from gen_worker.trainer import StepContext, StepControlHints, StepResult, TrainingCanceled, TrainingJobSpec
from gen_worker.trainer import run_training_loop as run
from gen_worker.trainer.contracts import EarlyStop, NonFiniteLossError, StatePayload


@dataclass
class Trainer:
    """A trainer that adds up what it is given, with some chance in it."""

    calls: list[str] = field(default_factory=list)
    result: Any = None
    fails_at: int = -1

    def setup(self, ctx: StepContext) -> None:
        self.calls.append("setup")

    def configure(self, ctx: StepContext) -> dict[str, Any]:
        self.calls.append("configure")
        return {"sum": 0.0, "steps": 0, "lr": 0.5}

    def prepare_batch(self, raw: int, state: dict[str, Any], ctx: StepContext) -> float:
        self.calls.append("prepare")
        return float(raw)

    def train_step(self, batch: float, state: dict[str, Any], ctx: StepContext) -> Any:
        self.calls.append("step")
        if state["steps"] == self.fails_at:
            raise RuntimeError("the step cannot be taken")
        state["steps"] += 1
        state["sum"] += batch * random.random()
        return StepResult({"loss": state["sum"]}) if self.result is None else self.result

    def state_dict(self, state: dict[str, Any]) -> dict[str, Any]:
        return {"sum": state["sum"], "steps": state["steps"]}

    def load_state_dict(self, state: dict[str, Any], payload: dict[str, Any], ctx: StepContext) -> None:
        self.calls.append("load_state_dict")
        state.update(payload)

    def load_checkpoint(self, *, state: Any, checkpoint_dir: str, payload: dict[str, Any], ctx: StepContext) -> None:
        self.calls.append(f"load_checkpoint {checkpoint_dir}")


@dataclass
class Told:
    """A reporter, an artifact writer and an uploader that only remember."""

    calls: list[str] = field(default_factory=list)
    metrics: list[tuple[str, float, int]] = field(default_factory=list)
    kept: dict[int, StatePayload] = field(default_factory=dict)
    final: StatePayload | None = None
    error: str = ""
    cancel_after: int = -1
    refuses_uploads: bool = False

    def started(self, *, run_id: str) -> None:
        self.calls.append(f"started {run_id}")

    def metric(self, *, name: str, value: float, step: int) -> None:
        self.metrics.append((name, value, step))

    def checkpoint(self, *, path: str, step: int) -> None:
        self.calls.append(f"checkpoint {step}")

    def sample(self, *, path: str, step: int) -> None:
        self.calls.append(f"sample {step}")

    def completed(self, *, step: int, final_checkpoint: str | None = None) -> None:
        self.calls.append(f"completed {step} {final_checkpoint}")

    def failed(self, *, step: int, error: str) -> None:
        self.calls.append(f"failed {step}")
        self.error = error

    def is_canceled(self) -> bool:
        return self.cancel_after >= 0 and max([0, *(step for _, _, step in self.metrics)]) >= self.cancel_after

    def write_checkpoint(self, *, step: int, state_payload: dict[str, Any], trainer: Any, state: Any, ctx: Any) -> str:
        random.random()  # what writers draw has no part in the training
        assert isinstance(state_payload, StatePayload)
        self.kept[step] = state_payload
        return f"/kept/{step}"

    def write_samples(self, *, step: int, state: Any, ctx: Any) -> list[str]:
        random.random()
        return [f"/samples/{step}"]

    def finalize(self, *, state_payload: dict[str, Any], trainer: Any, state: Any, ctx: Any) -> str | None:
        assert isinstance(state_payload, StatePayload)
        self.final = state_payload
        return "/final"

    def upload_checkpoint(self, *, local_path: str, step: int) -> None:
        if self.refuses_uploads:
            raise OSError("nobody is there")
        self.calls.append(f"uploaded {local_path}")

    def upload_sample(self, *, local_path: str, step: int) -> None:
        self.calls.append(f"uploaded {local_path}")

    def upload_metrics(self, *, metrics: Any, step: int) -> None:
        self.calls.append(f"uploaded {sorted(metrics)}")


def spec(**changed: Any) -> TrainingJobSpec:
    values: dict[str, Any] = {"request_id": "r", "max_steps": 4, "metric_every": 2, **changed}
    return TrainingJobSpec(**values)


def train(job: TrainingJobSpec, trainer: Trainer, told: Told, batches: Any = range(1, 100), **more: Any) -> int:
    ctx = more.pop("ctx", None) or StepContext(job)
    return run(
        job=job, ctx=ctx, trainer=trainer, batches=batches, reporter=told, artifact_writer=told, uploader=told, **more
    )


def test_hooks_are_called_in_the_order_that_a_trainer_counts_on() -> None:
    trainer, told = Trainer(), Told()
    assert train(spec(max_steps=2), trainer, told) == 2
    assert trainer.calls == ["setup", "configure", "prepare", "step", "prepare", "step"]
    resumed = Trainer()
    train(
        spec(max_steps=2), resumed, Told(), start_step=1, resume_state_payload={"sum": 1.0}, resume_checkpoint_path="/c"
    )
    assert resumed.calls[:4] == ["setup", "configure", "load_state_dict", "load_checkpoint /c"]


def test_each_thing_is_told_and_kept_when_it_is_due() -> None:
    told = Told()
    job = spec(max_steps=6, metric_every=2, checkpoint_every=3, sample_every=4)
    assert train(job, Trainer(), told) == 6
    assert [(name, step) for name, _, step in told.metrics] == [
        (name, step) for step in (2, 4, 6) for name in ("train/loss", "train/lr")
    ]
    assert [call for call in told.calls if not call.startswith("uploaded")] == [
        "started r",
        "checkpoint 3",
        "sample 4",
        "checkpoint 6",
        "completed 6 /final",
    ]
    assert "uploaded /kept/3" in told.calls
    assert told.calls[-2] == "uploaded /final"


def test_zero_stands_for_never() -> None:
    told = Told()
    train(spec(metric_every=0), Trainer(), told)
    assert told.calls == ["started r", "uploaded /final", "completed 4 /final"]


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"train_loss": 2}, {"train/loss": 2.0, "train/lr": 0.5}),
        ({"metrics": {"loss": 1, "learning_rate": 0.25}}, {"train/loss": 1.0, "train/lr": 0.25}),
        (StepResult({"acc": 0.75}, {"lr": 0.125}), {"acc": 0.75, "train/lr": 0.125}),
    ],
)
def test_numbers_go_out_under_the_names_that_everybody_knows(result: Any, expected: dict[str, float]) -> None:
    told = Told()
    train(spec(max_steps=2), Trainer(result=result), told)
    assert {name: value for name, value, _ in told.metrics} == expected


def test_a_step_may_ask_for_silence_and_for_the_end() -> None:
    quiet = Told()
    train(spec(checkpoint_every=1), Trainer(result=StepResult(control=StepControlHints(True))), quiet)
    assert (quiet.metrics, quiet.kept) == ([], {})
    assert train(spec(), Trainer(result=StepResult(control=StepControlHints(stop=True))), Told()) == 1


@pytest.mark.parametrize("name", ["loss", "train_loss", "train/loss"])
def test_a_loss_that_is_no_number_any_more_ends_a_training_before_it_is_kept(name: str) -> None:
    told = Told()
    with pytest.raises(NonFiniteLossError, match=f"`{name}` of step 3 is inf"):
        train(spec(metric_every=0, checkpoint_every=3), Trainer(result={name: float("inf")}), told)
    assert told.kept == {}
    assert told.error.startswith("train-step: NonFiniteLossError: ")
    told = Told()
    with pytest.raises(NonFiniteLossError, match="of step 4 is nan"):  # nor is it what the training was for
        train(spec(metric_every=0), Trainer(result={name: float("nan")}), told)
    assert told.final is None
    told = Told()
    job = spec(allow_non_finite_loss=True, checkpoint_every=3)
    assert train(job, Trainer(result={name: float("nan")}), told) == 4
    assert list(told.kept) == [3]


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (3, "`train_step` returns a `StepResult` or a mapping of metrics, not int"),
        ({"metrics": 5}, "`metrics` of what `train_step` returns maps names to numbers, not int"),
        ({"loss": "low"}, "metric `loss`: a number is wanted, not 'low'"),
    ],
)
def test_a_step_that_returns_what_is_none_is_told_what_it_returns(result: Any, said: str) -> None:
    told = Told()
    with pytest.raises(TypeError, match=said):
        train(spec(metric_every=1), Trainer(result=result), told)
    assert told.error == f"train-step: TypeError: {said}"


def test_a_training_ends_with_its_batches() -> None:
    told = Told()
    assert train(spec(max_steps=10), Trainer(), told, batches=[1, 2, 3]) == 3
    assert told.calls[-1] == "completed 3 /final"


def test_a_training_that_gets_no_better_stops() -> None:
    rule = EarlyStop(patience=3)
    told = Told()
    assert train(spec(max_steps=50, metric_every=1, early_stop=rule), Trainer(result={"loss": 1.0}), told) == 4
    assert told.calls[-1] == "completed 4 /final"


def test_a_training_that_had_stopped_before_its_process_died_takes_no_further_step() -> None:
    job = spec(max_steps=50, metric_every=1, checkpoint_every=1, early_stop=EarlyStop(patience=3))
    died, rest, other = Told(), Told(), Told()
    train(job, Trainer(result={"loss": 1.0}), died)
    again: dict[str, Any] = {"start_step": 4, "resume_state_payload": died.kept[4]}
    assert train(job, Trainer(result={"loss": 1.0}), rest, **again) == 4
    assert rest.final == died.final
    assert train(spec(request_id="other", max_steps=6), Trainer(), other, **again) == 6


def test_a_canceled_training_says_so_and_keeps_where_it_is_where_that_is_wanted() -> None:
    told = Told(cancel_after=2)
    with pytest.raises(TrainingCanceled) as canceled:
        train(spec(metric_every=1, max_steps=9), Trainer(), told, checkpoint_on_cancel=True)
    assert (canceled.value.step, list(told.kept), told.calls[-1]) == (2, [2], "failed 2")
    plain = Told(cancel_after=2)
    with pytest.raises(TrainingCanceled):
        train(spec(metric_every=1), Trainer(), plain)
    assert plain.kept == {}


def test_an_error_is_told_with_the_part_of_the_training_that_it_is_of() -> None:
    told = Told()
    with pytest.raises(RuntimeError, match="cannot be taken"):
        train(spec(), Trainer(fails_at=2), told)
    assert told.error == "train-step: RuntimeError: the step cannot be taken"

    def torn() -> Iterator[int]:
        yield 1
        raise ValueError("row 7 is torn")

    with pytest.raises(ValueError, match="torn"):
        train(spec(), Trainer(), told, batches=torn())
    assert told.error == "input: ValueError: row 7 is torn"
    with pytest.raises(OSError, match="nobody"):
        train(spec(), Trainer(), told := Told(refuses_uploads=True))
    assert told.error == "upload: OSError: nobody is there"


class Skips:
    """Batches that can be told where they are."""

    def __init__(self) -> None:
        self.passed = 0

    def skip(self, count: int) -> None:
        self.passed = count

    def __iter__(self) -> Iterator[int]:
        return iter(range(1 + self.passed, 100))


class Remembers:
    """Batches that remember where they are, and draw them by chance."""

    def __init__(self) -> None:
        self.draws = random.Random(3)

    def state_dict(self) -> dict[str, Any]:
        return {"draws": self.draws.getstate()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.draws.setstate(state["draws"])

    def __iter__(self) -> Iterator[int]:
        while True:
            yield self.draws.randint(1, 100)


@pytest.mark.parametrize("batches", [lambda: iter(range(1, 100)), Skips, Remembers])
@pytest.mark.parametrize("at", [3, 6, 9])
def test_a_training_that_goes_on_ends_as_if_it_had_never_stopped(batches: Any, at: int) -> None:
    job = spec(max_steps=9, checkpoint_every=3, sample_every=2)
    random.seed(11)
    whole = Told()
    train(job, Trainer(), whole, batches=batches())
    random.seed(999)
    rest = Told()
    assert train(job, Trainer(), rest, batches=batches(), start_step=at, resume_state_payload=whole.kept[at]) == 9
    assert rest.final == whole.final
    assert rest.final is not None
    assert whole.final is not None
    assert rest.final.runtime is not None
    assert whole.final.runtime is not None
    assert rest.final.runtime["random"]["python"] == whole.final.runtime["random"]["python"]


def test_a_payload_is_plain_for_a_writer_of_ones_own() -> None:
    told = Told()
    train(spec(checkpoint_every=4), Trainer(), told)
    assert set(told.kept[4]) == {"sum", "steps"}


@pytest.mark.parametrize("wrong", [{"request_id": " "}, {"max_steps": -1}, {"metric_every": -1}, {"sample_every": 1.5}])
def test_a_job_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        spec(**wrong)
