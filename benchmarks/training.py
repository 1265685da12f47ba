"""A step of a supervised training, beside the same step in a bare loop: `python -m benchmarks.training`."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.figures import Effort, Figure, Target, figure, main, skipped
from benchmarks.servers import HERE

SHOWS = "training: what the loop and a checkpoint cost"
STEPS, IDLE_STEPS = 200, 4000  # in one round
STEP, IDLE, CHECKPOINT = "a step, CPU", "a step that does nothing, CPU", "a checkpoint of 12 MB"
GEN_WORKER = [sys.executable, "-m", "gen_worker.cli"]


def measure(effort: Effort) -> list[Figure]:
    """One training; the trainer itself looks at the clock, block by block."""
    missing = [name for name in ("torch", "safetensors") if importlib.util.find_spec(name) is None]
    if missing:
        why = f"`{missing[0]}` is not installed"
        return [skipped(STEP, "µs", why), skipped(IDLE, "µs", why), skipped(CHECKPOINT, "ms", why)]
    with tempfile.TemporaryDirectory() as place:
        taken = train(Path(place), "Trainer", effort.rounds + 1, effort.times(STEPS))
        idle = train(Path(place), "Idle", effort.rounds + 1, effort.times(IDLE_STEPS))["idle"]
    # the first block warms up
    steps, bare = ([seconds * 1e6 for seconds in taken[name][1:]] for name in ("steps", "bare steps"))
    kept, saved = ([seconds * 1e3 for seconds in taken[name][1:]] for name in ("checkpoint", "bare checkpoint"))
    rounds = range(effort.rounds)
    return [
        figure(
            STEP,
            "µs",
            steps[: len(rounds)],
            floors=bare[: len(rounds)],
            floor_name="bare loop",
            target=Target("ratio", "most", 1.1),
        ),
        figure(IDLE, "µs", [seconds * 1e6 for seconds in idle[1:]], target=Target("value", "most", 50.0)),
        figure(
            CHECKPOINT,
            "ms",
            kept[: len(rounds)],
            floors=saved[: len(rounds)],
            floor_name="`torch.save`, flushed",
        ),
    ]


def train(place: Path, trainer: str, rounds: int, steps: int) -> dict[str, list[float]]:
    """Run a training of so many blocks, with a checkpoint after each; return what the trainer has measured."""
    own = {"checkpoint_every": steps} if trainer == "Trainer" else {}
    spec = {
        "trainer": f"trained:{trainer}",
        "request_id": trainer,
        "max_steps": rounds * steps + 1,
        "keep_checkpoints": 2,
        "mock_batches": [1, 2],
        "hyperparams": {"steps": steps, "place": str(place)},
        **own,
    }
    (place / "job.json").write_text(json.dumps(spec))
    command = [*GEN_WORKER, "train", str(place / "job.json"), "--device", "cpu", "--output-dir", str(place / "out")]
    variables = {"GEN_WORKER_RUN_DIR": str(place / "run"), "TENSORHUB_CACHE_DIR": str(place / "cache")}
    environment = {**os.environ, **variables}
    run = subprocess.run(
        command, cwd=HERE / "endpoint", env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if run.returncode:
        raise SystemExit(run.stderr)
    measured = json.loads((place / ("taken.json" if own else "idle.json")).read_text())
    return measured if own else {"idle": measured}


if __name__ == "__main__":
    main({SHOWS: measure})
