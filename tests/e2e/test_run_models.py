"""`gen-worker run` of functions with models, as a command, against a hub on the loopback."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gen_worker.testing import LoopbackHub, Slow, make_tiny
from tests.terminal import terminal

GEN_WORKER = [sys.executable, "-m", "gen_worker.cli"]
CONFIG = b'{"architectures": ["BertModel"], "model_type": "bert"}'

MAIN = """
from pathlib import Path
import msgspec
from gen_worker import HF, Hub, RequestContext, endpoint

class In(msgspec.Struct):
    text: str = ""

class Out(msgspec.Struct):
    text: str
    models: dict[str, str] = {}

@endpoint(models={"model": HF("acme/one").allow_override("acme/*")})
class Folder:
    def setup(self, model: Path) -> None:
        self.model = model

    def read(self, ctx: RequestContext, payload: In) -> Out:
        return Out((self.model / "mark.json").read_text(), ctx.models)

@endpoint(models={"first": HF("acme/one"), "second": HF("acme/two")})
def both(ctx: RequestContext, payload: In, first: str, second: str) -> Out:
    return Out(f"{Path(first).is_dir()} {Path(second).is_dir()}")

@endpoint(model=Hub("acme/tiny"))
def hub(ctx: RequestContext, payload: In, model: str) -> Out:
    return Out("")

@endpoint(model=HF("acme/one"), runtime="llama-server")
class Engined:
    def setup(self, model: Path) -> None:
        pass

    def talk(self, ctx: RequestContext, payload: In) -> Out:
        return Out("")

@endpoint(model=HF("acme/big"))
def big(ctx: RequestContext, payload: In, model: str) -> Out:
    return Out("")
"""

PIPELINE = """
import msgspec
from diffusers import StableDiffusionXLPipeline, StableDiffusionPipeline
from gen_worker import HF, RequestContext, endpoint

class In(msgspec.Struct):
    prompt: str = ""

class Out(msgspec.Struct):
    width: int
    dtype: str

@endpoint(model=HF("acme/tiny-sdxl"))
class Paint:
    def setup(self, model: StableDiffusionXLPipeline) -> None:
        self.pipeline = model

    def paint(self, ctx: RequestContext, payload: In) -> Out:
        image = self.pipeline(payload.prompt, num_inference_steps=2, generator=ctx.generator(1)).images[0]
        return Out(image.width, str(self.pipeline.unet.dtype))

@endpoint(model=HF("acme/tiny-sdxl"))
class Mistaken:
    def setup(self, model: StableDiffusionPipeline) -> None:
        pass

    def mistake(self, ctx: RequestContext, payload: In) -> Out:
        raise AssertionError
"""


def weights(size: int) -> bytes:
    """Return safetensors of one tensor of fp16."""
    head = json.dumps({"a": {"dtype": "F16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
    return len(head).to_bytes(8, "little") + head + bytes(size)


def files(mark: str, size: int = 4096) -> dict[str, bytes]:
    return {"config.json": CONFIG, "model.safetensors": weights(size), "mark.json": json.dumps(mark).encode()}


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_repo("acme/one", files("one"))
        hub.add_repo("acme/two", files("two"))
        yield hub


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return project(tmp_path, MAIN)


def project(root: Path, main: str) -> Path:
    (root / "mine").mkdir()
    (root / "pyproject.toml").write_text('[project]\nname = "mine"\n[tool.gen_worker]\nmain = "mine.main"\n')
    (root / "mine" / "__init__.py").touch()
    (root / "mine" / "main.py").write_text(main)
    return root


def environment(root: Path, hub: LoopbackHub | None, **more: str) -> dict[str, str]:
    hubs = {} if hub is None else hub.variables()
    own = {"TENSORHUB_CACHE_DIR": str(root / "cache"), "COZY_HF_ALLOW_ROOT_JSON": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**os.environ, **hubs, **own, **more}


def run(*arguments: str, cwd: Path, hub: LoopbackHub | None, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*GEN_WORKER, "run", *arguments],
        cwd=cwd,
        env=environment(cwd, hub, **more),
        capture_output=True,
        text=True,
        timeout=200,
        stdin=subprocess.DEVNULL,
    )


def result(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    event = json.loads(done.stdout)
    assert event["event"] == "result"
    return event["value"]


def fetches(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    return [event for event in events if str(event.get("kind", "")).startswith("model_fetch.")]


# --- models on this machine -------------------------------------------------------------------------------------------


def test_a_model_is_fetched_before_setup_gets_its_folder(root: Path, hub: LoopbackHub) -> None:
    done = run("--method", "read", cwd=root, hub=hub)
    assert result(done) == {"text": '"one"', "models": {"model": "acme/one"}}
    kinds = [event["kind"] for event in fetches(done)]
    assert (kinds[0], kinds[-1]) == ("model_fetch.started", "model_fetch.completed")
    assert fetches(done)[-1]["fetched_bytes"] > 4096


def test_the_next_run_needs_no_network(root: Path, hub: LoopbackHub) -> None:
    result(run("--method", "both", cwd=root, hub=hub))
    asked = len(hub.requests)
    assert result(run("--method", "both", "--offline", cwd=root, hub=hub))["text"] == "True True"
    assert len(hub.requests) == asked


def test_a_payload_names_another_model_where_the_binding_allows_it(root: Path, hub: LoopbackHub) -> None:
    payload = '{"_models": {"model": "acme/two"}}'
    assert result(run("--method", "read", "--payload", payload, cwd=root, hub=hub)) == {
        "text": '"two"',
        "models": {"model": "acme/two"},
    }
    refused = run("--method", "read", "--payload", '{"_models": {"model": "other/one"}}', cwd=root, hub=hub)
    assert refused.returncode == 2


def test_a_payload_that_is_wrong_is_told_before_anything_is_fetched(root: Path, hub: LoopbackHub) -> None:
    assert run("--method", "read", "--payload", '{"text": 5}', cwd=root, hub=hub).returncode == 2
    assert not hub.requests


def test_an_engine_that_is_not_installed_is_told_before_anything_is_fetched(root: Path, hub: LoopbackHub) -> None:
    done = run("--method", "talk", cwd=root, hub=hub, PATH="/nowhere")
    assert (done.returncode, hub.requests) == (1, [])
    assert "error: there is no `llama-server` on the PATH" in done.stderr


def test_offline_a_missing_model_is_exit_3_and_named_with_what_to_do(root: Path, hub: LoopbackHub) -> None:
    done = run("--method", "both", "--offline", cwd=root, hub=hub)
    assert (done.returncode, done.stdout) == (3, "")
    for ref in ("acme/one", "acme/two"):
        assert f"error: `{ref}` is not on this machine" in done.stderr
    assert "hint: `gen-worker prefetch hf:acme/one`" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_hubs_address_its_models_are_exit_3_and_the_variable_is_named(root: Path) -> None:
    done = run("--method", "hub", cwd=root, hub=None, COZY_HUB_URL="")
    assert done.returncode == 3
    assert "`acme/tiny`" in done.stderr
    assert "COZY_HUB_URL" in done.stderr


def test_a_model_that_does_not_exist_is_exit_3(root: Path, hub: LoopbackHub) -> None:
    done = run("--method", "big", cwd=root, hub=hub)
    assert done.returncode == 3
    assert "error: `acme/big`" in done.stderr
    assert "hint: " in done.stderr


def test_the_authors_code_sees_no_token(root: Path, hub: LoopbackHub) -> None:
    (root / "mine" / "main.py").write_text(MAIN.replace('Out("")', 'Out(str(dict(__import__("os").environ)))'))
    hub.add_repo("acme/big", files("big"), private=True)
    done = run("--method", "big", cwd=root, hub=hub, HF_TOKEN=hub.token)
    assert done.returncode == 0, done.stderr
    assert hub.token not in done.stdout + done.stderr


def test_ctrl_c_while_a_model_comes_is_exit_130_at_once(root: Path, hub: LoopbackHub) -> None:
    hub.add_repo("acme/big", files("big", 64 << 20))
    hub.fail("model.safetensors", Slow(4 << 20), times=1000)
    command = [*GEN_WORKER, "run", "--method", "big"]
    with subprocess.Popen(
        command, cwd=root, env=environment(root, hub), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert any('"bytes_done":' in line and '"bytes_done":0,' not in line for line in process.stderr)
        asked = time.monotonic()
        process.send_signal(signal.SIGINT)
        errors = process.stderr.read()
        process.wait(10)
        took = time.monotonic() - asked
    assert process.returncode == 130
    assert "error: canceled" in errors
    assert took < 1.0  # 0.2 s, and as much again for an interpreter to end on a busy machine


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ("json", '{"kind":"model_fetch.waiting","ref":"acme/big","provider":"hf","host":"127.0.0.1"}'),
        (
            "text",
            "acme/big: waiting for `127.0.0.1`; without a network, `--offline` uses what is on this machine",
        ),
    ],
)
def test_who_does_not_answer_is_named_and_how_to_do_without(root: Path, form: str, line: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command = [*GEN_WORKER, "run", "--method", "big", "--log-format", form]
        with subprocess.Popen(
            command,
            cwd=root,
            env=environment(root, None, HF_ENDPOINT=address),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            told = process.stderr.readline()
            process.send_signal(signal.SIGINT)
            process.stderr.read()
    assert (told, process.returncode) == (f"{line}\n", 130)


def test_a_terminal_shows_a_bar_while_a_model_comes(root: Path, hub: LoopbackHub) -> None:
    hub.add_repo("acme/big", files("big", 8 << 20))
    hub.fail("model.safetensors", Slow(6 << 20), times=1000)
    with terminal([*GEN_WORKER, "run", "--method", "big"], root, environment(root, hub)) as screen:
        assert "━" in screen.until("% acme/big ")
        screen.until("acme/big: fetched 8 MiB in ")
        assert '"event":"result"' in screen.end()
        assert screen.code == 0


# --- models that are loaded -------------------------------------------------------------------------------------------


@pytest.mark.needs("torch", "diffusers", "transformers")
def test_a_pipeline_is_built_from_the_annotation_and_a_wrong_one_is_refused(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = project(tmp_path, PIPELINE)
    with LoopbackHub() as hub:
        hub.add_repo("acme/tiny-sdxl", make_tiny("sdxl", tmp_path_factory.mktemp("tiny"), dtype="bf16"))
        painted = result(run("--method", "paint", "a cat", cwd=root, hub=hub))
        assert painted == {"width": 64, "dtype": "torch.bfloat16"}
        mistaken = run("--method", "mistake", cwd=root, hub=hub)
    assert mistaken.returncode == 3
    for word in ("acme/tiny-sdxl", "StableDiffusionXLPipeline", "StableDiffusionPipeline"):
        assert word in mistaken.stderr
