"""A training and a running control plane: what was trained is published there, and another training begins with it."""

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_cli_invoke import GEN_WORKER
from tests.e2e.test_orchestrator_platform import platform

pytestmark = pytest.mark.process

WRITER = """
from pathlib import Path

class Trainer:
    def setup(self, ctx):
        base = ctx.model_handles.get("base_model", "")
        self.begins = (Path(base) / "words.txt").read_text() if base else ""

    def configure(self, ctx):
        return {"words": self.begins}

    def prepare_batch(self, raw, state, ctx):
        return raw

    def train_step(self, batch, state, ctx):
        state["words"] += batch
        return {"loss": 1 / len(state["words"])}

    def state_dict(self, state):
        return state

    def load_state_dict(self, state, payload, ctx):
        state.update(payload)

    def save_checkpoint(self, *, state, step, output_dir, final, ctx):
        path = Path(output_dir, "words.txt")
        path.write_text(state["words"])
        Path(output_dir, "about.json").write_text('{"step": %d}' % step)
        return {"primary_path": str(path)}
"""


def train(folder: Path, url: str, request_id: str, *, code: int = 0, **spec: Any) -> Path:
    """Train; return the folder of the training's files."""
    given = {
        "trainer": "writer:Trainer",
        "request_id": request_id,
        "max_steps": 4,
        "checkpoint_every": 2,
        "mock_batches": ["so ", "much "],
        "capability_token": "any",
        "base_url": url,
        "owner": "acme",
    }
    (folder / "writer.py").write_text(WRITER)
    (folder / f"{request_id}.json").write_text(json.dumps({**given, **spec}))
    command = [*GEN_WORKER, "train", f"{request_id}.json", "--device", "cpu"]
    variables = {"COZY_HUB_URL": url, "COZY_HUB_TOKEN": "any", "TENSORHUB_CACHE_DIR": str(folder / "cache")}
    place = folder / request_id
    run = subprocess.run(
        [*command, "--output-dir", str(place)],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == code, run.stderr
    (folder / "said").write_text(run.stderr)
    return place


@pytest.mark.timeout(120)
def test_what_was_trained_is_published_and_another_training_begins_with_it(tmp_path: Path) -> None:
    (tmp_path / "plane").mkdir()
    with platform(tmp_path / "plane", variables={"TMPDIR": str(tmp_path)}) as running:
        hints = {"output_repo": "acme/written", "training_job_id": "work-1", "destination_repo_tags": ["prod"]}
        first = train(tmp_path, running.url, "first", execution_hints=hints)
        trained = (first / "checkpoints/final/words.txt").read_bytes()
        assert trained == b"so much so much "
        assert "published to `acme/written`: revision " in (tmp_path / "said").read_text()

        inputs = {"base_model_ref": "acme/written:prod"}
        second = train(tmp_path, running.url, "second", inputs=inputs, mock_batches=["depends "], max_steps=1)
        assert (second / "checkpoints/final/words.txt").read_bytes() == trained + b"depends "
        digest = hashlib.sha256(trained).hexdigest()
        there = [path for path in (tmp_path / "cache").rglob("words.txt") if path.is_file()]
        assert [hashlib.sha256(path.read_bytes()).hexdigest() for path in there] == [digest]
