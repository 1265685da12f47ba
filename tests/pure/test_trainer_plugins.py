"""Trainers are found by name, and job specs say what is wrong with them."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gen_worker.trainer import load_trainer_plugin
from gen_worker.trainer.spec import SpecError, asks_to_cancel, checked, misspelt, read_spec
from gen_worker.wire.messages import ErrorDetail
from gen_worker_supervisor.core.outcomes import failure
from gen_worker_supervisor.core.phases import JobState
from gen_worker_supervisor.core.state import Outcome
from gen_worker_supervisor.training_rules import Again, Ended, Record, hint, judge

HOOKS = """
    def setup(self, ctx): ...
    def configure(self, ctx): ...
    def prepare_batch(self, raw, state, ctx): ...
    def train_step(self, batch, state, ctx): ...
    def state_dict(self, state): ...
    def load_state_dict(self, state, payload, ctx): ...
"""

Module = Callable[[str], str]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Module]:
    """Make a module of this source, and return its name."""
    monkeypatch.syspath_prepend(tmp_path)
    made: list[str] = []

    def make(source: str) -> str:
        name = f"trainer_module_{len(made)}"
        (tmp_path / f"{name}.py").write_text(source)
        made.append(name)
        return name

    yield make
    for name in made:
        sys.modules.pop(name, None)


def test_a_trainer_is_found_by_its_symbol_its_usual_name_or_as_the_only_one(module: Module) -> None:
    name = module(f"class Mine:{HOOKS}\nclass Trainer:{HOOKS}\nmade = Mine()")
    assert type(load_trainer_plugin(f"{name}:Mine")).__name__ == "Mine"
    assert type(load_trainer_plugin(f"{name}:made")).__name__ == "Mine"
    assert type(load_trainer_plugin(name)).__name__ == "Trainer"
    only = module(f"class Only:{HOOKS}\nclass Other: pass")
    assert type(load_trainer_plugin(only)).__name__ == "Only"
    usual = module(f"class A:{HOOKS}\nclass B:{HOOKS}\nTRAINER = B")
    assert type(load_trainer_plugin(usual)).__name__ == "B"


@pytest.mark.parametrize("path", ["", ":Trainer", "no_such_module_at_all", "json:", "json:NoSuchThing", ".relative"])
def test_a_path_that_leads_nowhere_is_a_value_error(path: str) -> None:
    with pytest.raises(ValueError, match=r"trainer|module|json"):
        load_trainer_plugin(path)


def test_what_is_no_trainer_is_a_type_error_that_names_what_is_missing(module: Module) -> None:
    name = module("def train(): ...\nclass Half:\n    def setup(self, ctx): ...")
    with pytest.raises(TypeError, match="plain callable"):
        load_trainer_plugin(f"{name}:train")
    with pytest.raises(TypeError, match="it has no `configure`, `prepare_batch`"):
        load_trainer_plugin(f"{name}:Half")
    with pytest.raises(ValueError, match="does not say which"):
        load_trainer_plugin(name)


GOOD: dict[str, Any] = {"trainer": "a:B", "request_id": "r", "max_steps": 3, "mock_batches": [1]}


def test_a_job_spec_says_everything_and_the_child_is_not_told_what_is_secret() -> None:
    uploads = {"metrics_url": "https://p.example/m?sig=1", "terminal_url": "https://p.example/t"}
    spec = checked(GOOD | {"capability_token": "t0ken", "uploads": uploads, "unknown": 1, "hyperparams": {"lr": 1}})
    assert spec.targets == uploads
    assert spec.job.hyperparams == {"max_steps": 3, "lr": 1}
    assert "t0ken" not in repr(spec)
    assert "sig=1" not in repr(spec)
    told = json.loads(spec.written())
    assert "t0ken" not in str(told)
    assert "p.example" not in str(told)
    assert set(checked(told).targets) == set(uploads)


def test_a_name_that_is_nearly_one_of_a_job_spec_is_told_and_others_are_those_of_other_versions() -> None:
    assert misspelt(GOOD | {"hyperparam": {}, "region": "eu", "dataset": {"batchsize": 2}, "inputs": None}) == {
        "hyperparam": "hyperparams",
        "dataset.batchsize": "batch_size",
    }
    assert misspelt(GOOD) == {}


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"trainer": " "}, "startup.missing_trainer_import"),
        ({"trainer": None}, "startup.missing_trainer_import"),
        ({"max_runtime_seconds": "soon"}, "startup.invalid_timeout"),
        ({"max_runtime_seconds": 0}, "startup.invalid_timeout"),
        ({"max_runtime_seconds": -5}, "startup.invalid_timeout"),
        ({"max_runtime_seconds": float("nan")}, "startup.invalid_timeout"),
        ({"max_runtime_seconds": True}, "startup.invalid_timeout"),
        ({"orchestrated": True}, "startup.missing_capability_token"),
        ({"max_steps": -1}, "startup.invalid_job_spec"),
        ({"request_id": ""}, "startup.invalid_job_spec"),
        ({"trainer_api_version": "v2"}, "startup.invalid_job_spec"),
        ({"dataset": {"batch_size": 0}}, "startup.invalid_job_spec"),
        ({"dataset": {"parquet_paths": ["a"]}}, "startup.invalid_job_spec"),
        ({"early_stop": {"mode": "up"}}, "startup.invalid_job_spec"),
        ({"early_stop": {"metric": ""}}, "startup.invalid_job_spec"),
        ({"gpu_count": 0}, "startup.invalid_job_spec"),
    ],
)
def test_what_is_wrong_with_a_job_spec_has_a_code(changed: dict[str, Any], code: str) -> None:
    with pytest.raises(SpecError) as wrong:
        checked(GOOD | changed)
    assert wrong.value.code == code
    assert str(wrong.value).startswith(f"{code}: ")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"max_steps": None}, "the job spec has no `max_steps`"),
        ({"max_steps": "many"}, "`max_steps` takes a whole number, not a text"),
        ({"dataset": {"parquet_paths": "x"}}, "`dataset.parquet_paths` takes a list, not a text"),
        ({"hyperparams": {"seed": "abc"}}, "`hyperparams.seed` takes a whole number of 64 bits, not 'abc'"),
        ({"hyperparams": {"seed": 1.5}}, "`hyperparams.seed` takes a whole number of 64 bits, not 1.5"),
        ({"early_stop": {"patience": 0}}, "`patience` of `early_stop` takes 1 or more, not 0"),
        ({"early_stop": {"min_delta": -1}}, "`min_delta` of `early_stop` takes 0 or more, not -1"),
        ({"sample_prompts": [5]}, "`sample_prompts[0]` takes a text or an object, not a whole number"),
    ],
)
def test_what_is_wrong_with_a_job_spec_is_said_in_words(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        checked({"trainer": "m:T", "request_id": "r", "max_steps": 3, **changed})
    assert str(caught.value) == f"startup.invalid_job_spec: {said}"
    assert caught.value.hint.startswith("the least of one is {")


def test_a_job_spec_that_is_not_there_or_no_json_has_a_code(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"startup.missing_job_spec_path: no job spec at"):
        read_spec(tmp_path / "job.json")
    for no_spec in ("{", "[1]", "[" * 100_000):
        (tmp_path / "job.json").write_text(no_spec)
        with pytest.raises(SpecError, match=r"startup.invalid_job_spec"):
            read_spec(tmp_path / "job.json")


@pytest.mark.parametrize(
    ("content", "means_it"),
    [("", True), ("1\n", True), ("TRUE", True), ("cancel", True), ("0", False), ("no", False), (None, False)],
)
def test_a_cancel_file_counts_where_it_means_it(tmp_path: Path, content: str | None, means_it: bool) -> None:
    path = tmp_path / "cancel"
    if content is not None:
        path.write_text(content)
    assert asks_to_cancel(path) is means_it


# --- what the end of an attempt means ---------------------------------------------------------------------------------

DIED = failure("child_died", "its child died while it ran: SIGKILL", retryable=True)


def test_a_training_goes_on_for_as_long_as_it_gets_on() -> None:
    record = Record()
    for latest in (10, 20, 30, 40, 50):
        verdict = judge(record, DIED, latest)
        assert isinstance(verdict, Again)
        assert (verdict.got_on, verdict.record) == (True, Record(latest, 1))
        record = verdict.record


def test_the_third_death_in_one_place_is_the_end_and_names_the_cause() -> None:
    first = judge(Record(10), DIED, 10)
    assert isinstance(first, Again)
    second = judge(first.record, failure("out_of_memory", "out of memory", retryable=True), 10)
    assert isinstance(second, Again)
    third = judge(second.record, DIED, 10)
    assert third == Ended(
        "failed",
        "train-step: it ended 3 times without a checkpoint in between, the last time: "
        "its child died while it ran: SIGKILL",
    )


def test_a_restart_by_an_operator_counts_against_no_training() -> None:
    restarted = failure("retryable", "restarted", retryable=True, detail=ErrorDetail(cause="restart"))
    verdict = judge(Record(10, 2), restarted, 10)
    assert isinstance(verdict, Again)
    assert verdict.record == Record(10, 2)


@pytest.mark.parametrize(
    ("outcome", "ended"),
    [
        (Outcome(JobState.OK), Ended("completed")),
        (failure("canceled", "canceled"), Ended("canceled", "canceled")),
        (failure("killed", "killed by an operator"), Ended("canceled", "killed by an operator")),
        (failure("deadline", "late"), Ended("failed", "train-step: deadline exceeded: `max_runtime_seconds` are over")),
        (failure("user_exception", "FatalError: input: no rows"), Ended("failed", "input: no rows")),
        (failure("user_exception", "SystemExit: 3"), Ended("failed", "train-step: SystemExit: 3")),
        (failure("invalid", "`h` is not asked"), Ended("failed", "input: `h` is not asked")),
        (failure("model_resolution", "no such model"), Ended("failed", "model-load: no such model")),
        (failure("usage", "odd"), Ended("failed", "startup: odd")),
    ],
)
def test_every_other_end_is_the_end(outcome: Outcome, ended: Ended) -> None:
    assert judge(Record(), outcome, -1) == ended


@pytest.mark.parametrize(
    ("error", "latest", "final", "said"),
    [
        (
            "train-step: RuntimeError: no",
            10,
            "",
            "once that is mended, `gen-worker train JOB --resume` goes on after step 10",
        ),
        ("train-step: RuntimeError: no", -1, "", ""),
        ("train-step: NonFiniteLossError: `loss` of step 3 is nan", 2, "", "lower the learning rate"),
        ("startup: ValueError: `m` has no `Nope`", -1, "", "`trainer` of the job spec is `module` or `module:Symbol`"),
        ("startup: ModuleNotFoundError: No module named 'torch'", -1, "", "install what provides `torch`"),
        ("model-load: ModuleNotFoundError: No module named 'peft'", 5, "", "goes on after step 5"),
        ("upload: ArtifactTransferError: nobody is there", 20, "/out/x", "what was trained is here: `/out/x`"),
        ("upload: NoRoomError: no room for `/out/x.tar`", 20, "/out/x", "with room on the disk, `gen-worker train"),
        ("auth: AuthError: refused", 20, "/out/x", "with a fresh `capability_token`"),
    ],
)
def test_who_reads_that_a_training_failed_reads_what_to_do(error: str, latest: int, final: str, said: str) -> None:
    assert said in hint(error, latest, final)
    assert bool(said) is bool(hint(error, latest, final))
