"""The endpoint, run and served by the installed command, with weights from a hub on the loopback."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gen_worker.testing import LoopbackHub

pytestmark = [pytest.mark.process, pytest.mark.needs("torch", "diffusers", "transformers", "PIL")]
FOLDER = Path(__file__).parents[1]


def painted(answer: Any) -> bytes:
    """Return the picture of an answer."""
    assert answer.returncode == 0, answer.stderr
    document = json.loads(answer.stdout.splitlines()[-1])
    asset = document.get("value", document)["image"]  # `run` prints events, `invoke` values
    assert asset["mime_type"] == "image/png"
    return Path(asset["local_path"]).read_bytes()


def test_weights_come_once_whatever_happens_to_the_child(
    serve: Callable[..., Any], hub: LoopbackHub, tiny_models: Path
) -> None:
    with serve(FOLDER, **hub.variables()) as server:
        first = painted(server.invoke("paint", "a red cat", "seed=1"))
        weights = sum(file.stat().st_size for file in (tiny_models / "sdxl").rglob("*.safetensors"))
        assert hub.wire_bytes("*.safetensors") >= weights  # their headers may have been looked at before
        assert hub.leaks == []
        hub.requests.clear()
        assert painted(server.invoke("paint", "a red cat", "seed=2")) != first

        (device,) = json.loads(server.ps())["gpus"]
        os.kill(device["pid"], signal.SIGKILL)
        assert painted(server.invoke("paint", "a red cat", "seed=1")) == first
        (device,) = json.loads(server.ps())["gpus"]
        assert [model["ref"] for model in device["models"]] == ["acme/tiny-sdxl"]
        assert device["restarts"] == 1
        assert hub.requests == []


def test_run_needs_no_network_the_second_time(hub: LoopbackHub, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        places = {"TENSORHUB_CACHE_DIR": str(tmp_path), "GEN_WORKER_LOCAL_OUTPUT_DIR": str(tmp_path / "outputs")}
        return subprocess.run(
            [Path(sys.executable).with_name("gen-worker"), "run", "--device", "cpu", *arguments, "a red cat"],
            cwd=FOLDER,
            env={**os.environ, **hub.variables(), **places},
            capture_output=True,
            text=True,
            timeout=150,
        )

    missing = run("--offline")
    assert missing.returncode == 3
    assert "acme/tiny-sdxl" in missing.stderr
    first = painted(run())
    hub.close()
    assert painted(run("--offline")) == first
