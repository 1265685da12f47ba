"""Functions of the earlier API, run and served by the installed command as they are."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gen_worker.testing import LoopbackHub

pytestmark = [pytest.mark.process, pytest.mark.needs("torch", "diffusers", "transformers", "PIL")]
FOLDER = Path(__file__).parents[1]


def values(answer: Any) -> list[Any]:
    """Return what a command printed, without the events of `run` around it."""
    assert answer.returncode == 0, answer.stderr
    documents = [json.loads(line) for line in answer.stdout.splitlines()]
    return [each.get("value", each) for each in documents]


def with_notes(hub: LoopbackHub) -> LoopbackHub:
    """Put two notes on the platform's hub."""
    hub.add_snapshot("acme/notes", {"note.txt": b"buy milk"}, tag="latest")
    hub.add_snapshot("acme/other", {"note.txt": b"sleep"}, tag="v2")
    return hub


def test_a_server_gives_each_function_what_its_marks_ask_for(serve: Callable[..., Any], hub: LoopbackHub) -> None:
    with serve(FOLDER, **with_notes(hub).variables()) as server:
        (picture,) = values(server.invoke("paint", "a red cat"))
        image = picture["image"]
        assert Path(image["local_path"]).read_bytes().startswith(b"\x89PNG")
        assert image["ref"].startswith("runs/")
        assert image["ref"].endswith("/outputs/output.png")

        words = values(server.invoke("spell", "one two"))
        assert [each["text"] for each in words[:2]] == ["one", "two"]

        assert values(server.invoke("read", "model=notes")) == [{"model": "cozy:acme/notes:latest", "text": "buy milk"}]
        assert values(server.invoke("read", "model=acme/other:v2")) == [{"model": "acme/other:v2", "text": "sleep"}]

        refused = server.invoke("read", "model=")
        assert (refused.returncode, "$.model" in refused.stderr) == (2, True), refused.stderr
        (device,) = json.loads(server.ps())["gpus"]
        assert device["restarts"] == 0


def test_run_gives_the_same_as_a_server(hub: LoopbackHub, tmp_path: Path) -> None:
    places = {"TENSORHUB_CACHE_DIR": str(tmp_path), "GEN_WORKER_LOCAL_OUTPUT_DIR": str(tmp_path / "outputs")}
    command: list[str | Path] = [Path(sys.executable).with_name("gen-worker"), "run", "--method", "read", "model=notes"]
    environment = {**os.environ, **with_notes(hub).variables(), **places}
    ran = subprocess.run(command, cwd=FOLDER, env=environment, capture_output=True, text=True, timeout=150, check=False)
    assert values(ran) == [{"model": "cozy:acme/notes:latest", "text": "buy milk"}]
