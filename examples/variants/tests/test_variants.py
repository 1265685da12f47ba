"""The endpoint, served on a device that is too small for one of its functions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gen_worker.testing import LoopbackHub

pytestmark = [pytest.mark.process, pytest.mark.needs("torch", "diffusers", "transformers", "PIL")]
FOLDER = Path(__file__).parents[1]


def test_each_function_has_weights_of_its_own_and_what_is_too_large_is_not_served(
    serve: Callable[..., Any], hub: LoopbackHub
) -> None:
    with serve(FOLDER, options=["--vram-budget", "8"], **hub.variables()) as server:
        functions = {function["name"]: function for function in json.loads(server.ps())["functions"]}
        assert functions["paint"]["state"] == "available"
        assert functions["paint-large"]["state"] == "unavailable"
        assert "insufficient_vram" in functions["paint-large"]["reason"]
        refused = server.invoke("paint-large", "a red cat")
        assert refused.returncode == 1
        assert "insufficient_vram" in refused.stderr
        assert hub.requests == []

        assert dtype_of(server.invoke("paint", "a red cat")) == "bfloat16"
        assert {precision(request.target) for request in hub.requests} - {""} == {"bf16"}
        assert dtype_of(server.invoke("paint-exactly", "a red cat")) == "float32"


def dtype_of(answer: Any) -> str:
    """Return what an answer says of the weights."""
    assert answer.returncode == 0, answer.stderr
    return str(json.loads(answer.stdout)["dtype"])


def precision(path: str) -> str:
    """Return what a file of weights has in its name; empty for another file."""
    if not path.endswith(".safetensors"):
        return ""
    return "bf16" if path.endswith(".bf16.safetensors") else "fp32"
