"""The training, as a container runs it: by `python -m gen_worker.entrypoint` in trainer mode."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gen_worker.client import Client

pytestmark = [pytest.mark.process, pytest.mark.needs("torch", "safetensors")]

HERE = Path(__file__).parents[1]
ENTRYPOINT = [sys.executable, "-m", "gen_worker.entrypoint"]
STEPS = 300
PATIENCE_S = 40.0


class Training:
    """A training in a folder of its own, which may be run several times."""

    def __init__(self, folder: Path, run_dir: Path, **changed: Any) -> None:
        self.folder = folder
        self._run_dir = run_dir
        folder.mkdir()
        spec = json.loads((HERE / "job.json").read_text())
        (folder / "job.json").write_text(json.dumps(spec | {"max_steps": STEPS} | changed))

    def start(self) -> "subprocess.Popen[bytes]":
        """Start a worker in trainer mode."""
        variables = {
            "WORKER_MODE": "trainer",
            "TRAINER_JOB_SPEC_PATH": str(self.folder / "job.json"),
            "GEN_WORKER_TRAINING_DIR": str(self.folder / "out"),
            "GEN_WORKER_RUN_DIR": str(self._run_dir),
            "GEN_WORKER_DEVICES": "cpu",
            "TENSORHUB_CACHE_DIR": str(self.folder / "cache"),
            "TMPDIR": str(self.folder),
        }
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(ENTRYPOINT, cwd=HERE, env={**os.environ, **variables}, stderr=log)

    def run(self) -> int:
        """Train to the end; return the exit code."""
        with self.start() as worker:
            return worker.wait(PATIENCE_S)

    @property
    def step(self) -> int:
        """The step of the latest checkpoint."""
        return max((int(path.stem[5:]) for path in (self.folder / "out/checkpoints").glob("step-*.json")), default=0)

    @property
    def log(self) -> str:
        """What the worker has said."""
        return (self.folder / "log").read_text()

    @property
    def weights(self) -> str:
        """What the trained weights are, to the last bit."""
        return hashlib.sha256((self.folder / "out/checkpoints/final/lora.safetensors").read_bytes()).hexdigest()

    def events(self, kind: str) -> list[dict[str, Any]]:
        """What happened, of one kind."""
        lines = (self.folder / "out/metrics/events.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def child(self, worker: "subprocess.Popen[bytes]") -> int:
        """The process that trains."""
        with Client(self._run_dir / str(worker.pid) / "control.sock") as client:
            (device,) = client.list().gpus
        assert device.pid is not None
        return device.pid

    def until(self, condition: Callable[[], bool], worker: "subprocess.Popen[bytes]") -> None:
        """Wait until something is so, while the worker runs."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert worker.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.002)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training-smoke")


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> Training:
    training = Training(place / "undisturbed", place / "run")
    assert training.run() == 0, training.log
    return training


def test_the_loss_falls_and_the_model_knows_praise_from_complaint(undisturbed: Training) -> None:
    losses = [event["value"] for event in undisturbed.events("metric") if event["name"] == "train/loss"]
    assert losses[-1] < losses[0] / 10
    samples = sorted((undisturbed.folder / "out/samples").glob(f"step-{STEPS:08d}-*.json"))
    labels = [json.loads(path.read_text())["sample"]["label"] for path in samples]
    assert labels == ["praise", "complaint"]
    (completed,) = undisturbed.events("completed")
    assert (completed["step"], Path(completed["final_checkpoint"]).name) == (STEPS, "lora.safetensors")


def test_a_training_whose_child_is_killed_ends_with_the_same_weights(undisturbed: Training, place: Path) -> None:
    training = Training(place / "killed", place / "run")
    with training.start() as worker:
        training.until(lambda: training.step >= 50, worker)
        os.kill(training.child(worker), signal.SIGKILL)
        assert worker.wait(PATIENCE_S) == 0, training.log
    assert "its child died while it ran: SIGKILL" in training.log
    assert training.weights == undisturbed.weights
    assert len(training.events("started")) == 2


def test_a_training_whose_worker_is_killed_goes_on_in_the_next_one(undisturbed: Training, place: Path) -> None:
    training = Training(place / "orphaned", place / "run", resume_from_latest=True)
    with training.start() as worker:
        training.until(lambda: training.step >= 50, worker)
        worker.kill()
    assert training.step < STEPS
    assert training.run() == 0, training.log
    assert training.weights == undisturbed.weights
    resumed = training.events("started")[-1]["resumed_from"]
    assert 50 <= resumed < STEPS
    assert training.run() == 0, training.log  # what is complete completes at once
    assert len(training.events("started")) == 2


def test_another_training_begins_with_the_weights_alone(undisturbed: Training, place: Path) -> None:
    weights = undisturbed.folder / "out/checkpoints/final/lora.safetensors"
    training = Training(
        place / "tuned", place / "run", max_steps=1, metric_every=1, resume_checkpoint_path=str(weights)
    )
    assert training.run() == 0, training.log
    (started,) = training.events("started")
    assert (started["resumed_from"], started["weights_from"]) == (0, str(weights))
    losses = [event["value"] for event in undisturbed.events("metric") if event["name"] == "train/loss"]
    assert next(event["value"] for event in training.events("metric")) < losses[0] / 5
    assert "`ctx.model_handles.model` begins with 3 tensors of" in training.log


def test_a_signal_ends_it_in_order_with_a_checkpoint(undisturbed: Training, place: Path) -> None:
    training = Training(place / "stopped", place / "run", checkpoint_every=0, max_steps=1_000_000)
    with training.start() as worker:
        training.until(lambda: (training.folder / "out/metrics/events.jsonl").exists(), worker)
        training.until(lambda: bool(training.events("metric")), worker)
        worker.terminate()
        assert worker.wait(PATIENCE_S) == 143, training.log
    (failed,) = training.events("failed")
    assert failed["step"] == training.step > 0
    assert "canceled" in failed["error"]
