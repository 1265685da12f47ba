"""What a load costs in memory of the process's own: nothing where weights are mapped as they are stored."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gen_worker.testing import make_tiny

pytestmark = [pytest.mark.process, pytest.mark.needs("torch", "diffusers", "transformers", "safetensors")]

MEASURE = """
import json, sys, threading, time
from pathlib import Path
from diffusers import UNet2DConditionModel
from gen_worker_child.models.plane import Models
from gen_worker.wire.messages import SlotModel

def anonymous():
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) * 1024

folder, dtype, derived = sys.argv[1:]
models = Models(device="cpu", derived=derived)
asked = {"unet": UNet2DConditionModel}
models.load("first", [SlotModel("unet", "acme/small", str(Path(folder, "small")), "small")], asked)
models.unload("first")  # what the libraries allocate once is no cost of the next load
highest, done = anonymous(), threading.Event()
before = highest

def watch():
    global highest
    while not done.wait(0.002):
        highest = max(highest, anonymous())

watching = threading.Thread(target=watch)
watching.start()
made = models.load("it", [SlotModel("unet", "acme/large", str(Path(folder, "large")), "large", dtype)], asked)
done.set()
watching.join()
print(json.dumps({"extra": highest - before, "bytes": models.residents("it")[0].bytes}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two denoisers, one with 50 MB of weights in bf16."""
    root = tmp_path_factory.mktemp("weights")
    for name, width in (("small", 32), ("large", 128)):
        make_tiny("sdxl", root / "whole" / name, width=width)
        (root / "whole" / name / "unet").rename(root / name)
    return root


def measured(folder: Path, dtype: str, derived: Path) -> dict[str, int]:
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), dtype, str(derived)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, int] = json.loads(ran.stdout)
    return found


def test_weights_that_are_stored_as_they_are_wanted_cost_no_memory_of_the_process(folder: Path, tmp_path: Path) -> None:
    plain = measured(folder, "", tmp_path / "derived")
    assert plain["bytes"] > 40_000_000
    assert plain["extra"] < 0.25 * plain["bytes"] + 18_000_000  # the buffers that the weights are read ahead with


def test_a_cast_costs_memory_once(folder: Path, tmp_path: Path) -> None:
    cast = measured(folder, "fp32", tmp_path)
    assert cast["extra"] > cast["bytes"]
    again = measured(folder, "fp32", tmp_path)
    assert again["bytes"] == cast["bytes"]
    assert again["extra"] < 0.25 * again["bytes"] + 18_000_000


def test_a_child_without_models_loads_no_library_for_them() -> None:
    look = "import sys, gen_worker_child.models.plane; print(sorted(set(sys.argv[1:]) & sys.modules.keys()))"
    heavy = ["torch", "numpy", "diffusers", "transformers", "safetensors", "accelerate", "asyncio"]
    ran = subprocess.run([sys.executable, "-c", look, *heavy], capture_output=True, text=True, timeout=150, check=True)
    assert ran.stdout == "[]\n"
