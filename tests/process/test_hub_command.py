"""`python -m gen_worker.testing.hub` serves a hub to a shell, and `make_tiny` makes what it serves."""

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

HUB = [sys.executable, "-m", "gen_worker.testing.hub"]
LOOK = """
import json, os, urllib.request
with urllib.request.urlopen(os.environ["HF_ENDPOINT"] + "/api/models/acme/it") as response:
    print(json.dumps([each["rfilename"] for each in json.load(response)["siblings"]]))
raise SystemExit(7)
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*HUB, *arguments], capture_output=True, text=True, timeout=200)


def test_a_command_finds_the_hub_in_its_environment_and_its_status_is_the_status(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    done = run("--repo", f"acme/it={tmp_path}", "--", sys.executable, "-c", LOOK)
    assert (done.returncode, json.loads(done.stdout)) == (7, ["config.json"]), done.stderr


def test_without_a_command_it_says_where_it_is_and_serves_until_it_is_told_to_end(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with subprocess.Popen([*HUB, "--repo", f"acme/it={tmp_path}"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(4)]
        variables = dict(line.removeprefix("export ").strip().split("=") for line in lines)
        with urllib.request.urlopen(f"{variables['HF_ENDPOINT']}/acme/it/resolve/main/config.json") as response:
            assert response.read() == b"{}"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


def test_a_command_that_is_not_there_and_arguments_that_say_nothing_are_told() -> None:
    missing = run("--", "no-such-command")
    assert (missing.returncode, missing.stderr) == (
        127,
        "error: cannot run `no-such-command`: No such file or directory\n",
    )
    assert "`acme=docs` is not like `acme/name=FOLDER`" in run("--repo", "acme=docs").stderr
    assert "`sdxl:fp8=acme/it` is not like `sdxl=acme/tiny`" in run("--tiny", "sdxl:fp8=acme/it").stderr


def test_what_a_tiny_model_needs_and_is_not_installed_is_told() -> None:
    absent = """
import sys
sys.modules.update(dict.fromkeys(("torch", "transformers", "diffusers")))  # as if they were not installed
from gen_worker.testing.hub import main
sys.exit(main(["--tiny", "sdxl=acme/it"]))
"""
    done = subprocess.run([sys.executable, "-c", absent], capture_output=True, text=True, timeout=150)
    assert (done.returncode, done.stderr) == (
        2,
        "error: a tiny model needs `torch`, `transformers`, `diffusers`, not installed\n"
        "hint: `pip install -e '.[torch]'` in the clone of gen-worker\n",
    )


@pytest.mark.needs("torch", "diffusers", "transformers")
def test_a_tiny_model_has_the_weights_of_each_dtype_that_was_asked_for() -> None:
    done = run("--tiny", "sd15:fp32,bf16=acme/it", "--", sys.executable, "-c", LOOK)
    files = json.loads(done.stdout)
    assert {"unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.bf16.safetensors"} <= set(files)
    assert done.stderr == ""


@pytest.mark.needs("torch", "diffusers", "transformers")
def test_the_same_arguments_make_the_same_weights_and_leave_the_callers_random_numbers_alone(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
import torch
from gen_worker.testing import make_tiny
torch.manual_seed(5)
before = torch.random.get_rng_state()
for name, seed in (("one", 1), ("two", 1), ("other", 2)):
    make_tiny("flux", Path({str(tmp_path)!r}, name), seed=seed, shards=3)
assert torch.equal(before, torch.random.get_rng_state())
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=200)
    weights = {
        name: {file.name: file.read_bytes() for file in (tmp_path / name / "transformer").glob("*.safetensors")}
        for name in ("one", "two", "other")
    }
    assert len(weights["one"]) >= 3
    assert weights["one"] == weights["two"]
    assert weights["one"] != weights["other"]
