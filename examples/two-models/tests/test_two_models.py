"""The endpoint, served with room for one of its models at a time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gen_worker.testing import LoopbackHub

pytestmark = [pytest.mark.process, pytest.mark.needs("torch", "diffusers", "transformers", "PIL")]
FOLDER = Path(__file__).parents[1]
ONE_OF_THEM = "0.007"  # GB; they take 4.2 MB and 5.4 MB
BOTH = "0.02"


def models(server: Any) -> list[str]:
    """Return the refs of the models on the device."""
    (device,) = json.loads(server.ps())["gpus"]
    return sorted(model["ref"] for model in device["models"])


def events(server: Any) -> list[str]:
    """Return what the server tells of its recent history."""
    return [event["message"] for event in json.loads(server.ps())["events"]]


def test_models_that_do_not_fit_together_take_turns(serve: Callable[..., Any], hub: LoopbackHub) -> None:
    with serve(FOLDER, options=["--vram-budget", ONE_OF_THEM], **hub.variables()) as server:
        for function, model in (("draft", "acme/tiny-sd15"), ("final", "acme/tiny-sdxl")) * 2:
            answer = server.invoke(function, "a red cat")
            assert answer.returncode == 0, answer.stderr
            assert models(server) == [model]
        assert len([event for event in events(server) if "unloaded" in event]) >= 3
        came = len([request for request in hub.requests if request.target.endswith(".safetensors")])
        for function in ("draft", "final"):
            assert server.invoke(function, "a red cat").returncode == 0
        assert len([request for request in hub.requests if request.target.endswith(".safetensors")]) == came


def test_models_that_fit_together_both_stay(serve: Callable[..., Any], hub: LoopbackHub) -> None:
    with serve(FOLDER, options=["--vram-budget", BOTH], **hub.variables()) as server:
        for function in ("draft", "final", "draft"):
            assert server.invoke(function, "a red cat").returncode == 0
        assert models(server) == ["acme/tiny-sd15", "acme/tiny-sdxl"]
