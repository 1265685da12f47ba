"""`gen-worker prefetch`, as a command, against a hub on the loopback."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gen_worker.testing import LoopbackHub, Slow
from tests.terminal import terminal

GEN_WORKER = [sys.executable, "-m", "gen_worker.cli"]
CONFIG = b'{"architectures": ["BertModel"], "model_type": "bert"}'

MAIN = """
import msgspec
from gen_worker import HF, Hub, RequestContext, endpoint

class In(msgspec.Struct):
    text: str = ""

@endpoint(models={"model": HF("acme/one"), "other": HF("acme/two")})
class Both:
    def setup(self, model: str, other: str) -> None:
        raise RuntimeError("set up")

    def run(self, ctx: RequestContext, payload: In) -> In:
        return payload

@endpoint(model=HF("acme/one"))
def again(ctx: RequestContext, payload: In, model: str) -> In:
    return payload
"""


def weights(size: int) -> bytes:
    """Return safetensors of one tensor of fp16."""
    head = json.dumps({"a": {"dtype": "F16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
    return len(head).to_bytes(8, "little") + head + bytes(size)


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_repo("acme/one", {"config.json": CONFIG, "model.safetensors": weights(2 << 20)})
        hub.add_repo("acme/two", {"config.json": CONFIG, "model.safetensors": weights(1 << 20)})
        hub.add_repo("acme/gated", {"config.json": CONFIG, "model.safetensors": weights(4096)}, gated=True)
        yield hub


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return project(tmp_path / "mine", MAIN)


def project(root: Path, main: str) -> Path:
    (root / "mine").mkdir(parents=True)
    (root / "pyproject.toml").write_text('[project]\nname = "mine"\n[tool.gen_worker]\nmain = "mine.main"\n')
    (root / "mine" / "__init__.py").touch()
    (root / "mine" / "main.py").write_text(main)
    return root


def environment(root: Path, hub: LoopbackHub | None, **more: str) -> dict[str, str]:
    hubs = {} if hub is None else hub.variables()
    own = {"TENSORHUB_CACHE_DIR": str(root / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    return {**os.environ, **hubs, **own, **more}


def prefetch(*arguments: str, cwd: Path, hub: LoopbackHub | None, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*GEN_WORKER, "prefetch", *arguments],
        cwd=cwd,
        env=environment(cwd, hub, **more),
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


def told(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


# --- an endpoint's models ---------------------------------------------------------------------------------------------


def test_the_models_of_all_functions_are_fetched_once_and_nothing_is_set_up(root: Path, hub: LoopbackHub) -> None:
    done = prefetch("--json", cwd=root, hub=hub)
    assert done.returncode == 0, done.stderr
    events = told(done)
    assert events[0] == {"kind": "prefetch.plan", "count": 2}
    assert events[-1] == {"kind": "prefetch.done", "fetched": 2, "failed": 0}
    for ref in ("acme/one", "acme/two"):
        kinds = [each["kind"] for each in events if each.get("ref") == ref]
        assert [kind for kind in kinds if kind != "model_fetch.progress"] == [
            "model_fetch.started",
            "model_fetch.completed",
            "prefetch.ref.ready",
        ]
        (ready,) = [each for each in events if each["kind"] == "prefetch.ref.ready" and each["ref"] == ref]
        assert ready["provider"] == "hf"
        assert Path(ready["local"], "model.safetensors").stat().st_size > 1 << 20
    assert hub.wire_bytes("model.safetensors") < 4 << 20
    assert done.stderr == ""


def test_what_is_here_is_not_fetched_again_and_needs_no_network(root: Path, hub: LoopbackHub) -> None:
    assert prefetch(cwd=root, hub=hub).returncode == 0
    asked = len(hub.requests)
    done = prefetch("--offline", cwd=root, hub=hub)
    assert (done.returncode, done.stdout) == (0, "")
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["acme/one", "acme/two"]
    assert len(hub.requests) == asked


def test_offline_says_what_is_missing_and_how_to_have_it(root: Path, hub: LoopbackHub) -> None:
    done = prefetch("--offline", cwd=root, hub=hub)
    assert done.returncode == 3
    assert "error: `acme/one` is not on this machine" in done.stderr
    assert "hint: `gen-worker prefetch hf:acme/one`" in done.stderr
    assert "error: `acme/two` is not on this machine" in done.stderr
    assert not hub.requests


@pytest.mark.parametrize("ref", ["hf:acme/one@main", "cozy:acme/one", "civitai:4201@130072", "modelscope:acme/one"])
def test_what_offline_says_to_do_is_a_command_that_works(tmp_path: Path, ref: str) -> None:
    done = prefetch("--offline", ref, cwd=tmp_path, hub=None)
    assert done.returncode == 3
    assert f"hint: `gen-worker prefetch {ref}` " in done.stderr


def test_an_endpoint_without_models_has_nothing_to_fetch(tmp_path: Path) -> None:
    without = MAIN.replace('@endpoint(model=HF("acme/one"))', "@endpoint").replace(", model: str)", ")")
    root = project(
        tmp_path / "mine", without.partition("@endpoint(models")[0] + "@endpoint" + without.split("@endpoint")[-1]
    )
    done = prefetch(cwd=root, hub=None)
    assert (done.returncode, done.stderr) == (0, "nothing to fetch: no function of `mine.main` binds a model\n")
    assert told(prefetch("--json", cwd=root, hub=None))[-1] == {"kind": "prefetch.done", "fetched": 0, "failed": 0}


def test_a_module_that_cannot_be_imported_is_exit_1_and_a_missing_project_exit_2(tmp_path: Path) -> None:
    broken = project(tmp_path / "broken", "import no_such_thing\n")
    done = prefetch(cwd=broken, hub=None)
    assert done.returncode == 1
    assert "no_such_thing" in done.stderr
    assert prefetch(cwd=tmp_path, hub=None).returncode == 2
    assert prefetch("hf:acme/one", "--module", "mine.main", cwd=tmp_path, hub=None).returncode == 2


# --- models by their refs ---------------------------------------------------------------------------------------------


def test_a_model_is_fetched_by_its_ref_without_a_project(tmp_path: Path, hub: LoopbackHub) -> None:
    done = prefetch("hf:acme/one@main", cwd=tmp_path, hub=hub)
    assert done.returncode == 0, done.stderr
    (folder,) = re.findall(r"^acme/one@main: .* at (.+)$", done.stderr, re.MULTILINE)
    assert Path(folder, "config.json").read_bytes() == CONFIG


def test_a_snapshot_of_the_platforms_hub_is_fetched_by_its_ref(tmp_path: Path, hub: LoopbackHub) -> None:
    hub.add_snapshot("acme/tiny", {"config.json": CONFIG, "model.safetensors": weights(4096)})
    done = prefetch("cozy:acme/tiny", cwd=tmp_path, hub=hub, COZY_HUB_TOKEN=hub.token)
    assert done.returncode == 0, done.stderr


def test_without_the_hubs_address_its_models_are_exit_3_and_the_variable_is_named(tmp_path: Path) -> None:
    done = prefetch("cozy:acme/tiny", cwd=tmp_path, hub=None, COZY_HUB_URL="")
    assert done.returncode == 3
    assert "`acme/tiny`" in done.stderr
    assert "COZY_HUB_URL" in done.stderr


@pytest.mark.parametrize("ref", ["acme/one", "hf:one", "hf:", "cozy:acme/one@md5:00", "hf:acme/../one"])
def test_a_word_that_is_no_ref_is_wrong_usage(tmp_path: Path, ref: str) -> None:
    done = prefetch(ref, cwd=tmp_path, hub=None)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "hint: " in done.stderr


def test_the_address_of_a_page_comes_with_the_ref_to_write(tmp_path: Path) -> None:
    done = prefetch("https://huggingface.co/acme/x", cwd=tmp_path, hub=None)
    assert (done.returncode, done.stderr.splitlines()[1]) == (2, "hint: write `hf:acme/x`")


@pytest.mark.parametrize("arguments", [(), ("--offline",)])
def test_a_cache_that_is_a_file_is_named_with_its_setting(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "cache").touch()
    done = prefetch("hf:acme/one", *arguments, cwd=tmp_path, hub=None)
    assert (done.returncode, done.stderr) == (
        2,
        f"error: models cannot be kept in `{tmp_path}/cache`: `{tmp_path}/cache` is no folder\n"
        "hint: set `TENSORHUB_CACHE_DIR` to a folder; it is made where there is none\n",
    )


def test_a_cache_where_no_folder_can_be_is_named_with_its_setting(tmp_path: Path) -> None:
    done = prefetch("hf:acme/one", cwd=tmp_path, hub=None, TENSORHUB_CACHE_DIR="/proc/models")
    assert done.returncode == 2
    assert done.stderr.startswith("error: models cannot be kept in `/proc/models`: ")
    assert done.stderr.endswith("hint: set `TENSORHUB_CACHE_DIR` to another folder\n")


def test_one_that_cannot_be_had_does_not_keep_the_others_away(tmp_path: Path, hub: LoopbackHub) -> None:
    done = prefetch("hf:acme/gated", "hf:acme/one", "--json", cwd=tmp_path, hub=hub)
    assert done.returncode == 3
    events = told(done)
    (failed,) = [each for each in events if each["kind"] == "prefetch.ref.failed"]
    assert (failed["ref"], failed["provider"], failed["reason"]) == ("acme/gated", "hf", "gated")
    assert "HF_TOKEN" in failed["hint"]
    assert [each["ref"] for each in events if each["kind"] == "prefetch.ref.ready"] == ["acme/one"]
    assert events[-1] == {"kind": "prefetch.done", "fetched": 1, "failed": 1}


def test_the_token_is_nowhere_to_be_read(tmp_path: Path, hub: LoopbackHub) -> None:
    done = prefetch("hf:acme/gated", "hf:acme/none", "--json", cwd=tmp_path, hub=hub, HF_TOKEN=hub.token)
    assert done.returncode == 3
    assert hub.token not in done.stdout + done.stderr
    assert not hub.leaks


# --- Ctrl-C and terminals ---------------------------------------------------------------------------------------------


def test_ctrl_c_ends_a_download_at_once_and_the_next_one_goes_on_from_there(tmp_path: Path, hub: LoopbackHub) -> None:
    hub.add_repo("acme/big", {"config.json": CONFIG, "model.safetensors": weights(64 << 20)})
    hub.fail("model.safetensors", Slow(4 << 20), times=1000)
    command = [*GEN_WORKER, "prefetch", "hf:acme/big", "--json"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(tmp_path, hub), stdout=pipe, stderr=pipe, text=True
    ) as process:
        assert process.stdout is not None
        assert any(json.loads(line).get("bytes_done", 0) > 1 << 20 for line in process.stdout)
        asked = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
        took = time.monotonic() - asked
    assert process.returncode == 130
    assert "error: canceled" in errors
    assert took < 1.0  # 0.2 s, and as much again for an interpreter to end on a busy machine


def test_when_nobody_reads_the_events_nothing_more_is_fetched(tmp_path: Path, hub: LoopbackHub) -> None:
    hub.add_repo("acme/big", {"config.json": CONFIG, "model.safetensors": weights(64 << 20)})
    hub.fail("model.safetensors", Slow(4 << 20), times=1000)
    command = [*GEN_WORKER, "prefetch", "hf:acme/big", "--json"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(tmp_path, hub), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.wait(8) == 141  # as for any command of a pipe; the whole model would take 16 s
        assert process.stderr.read() == b""


def test_a_terminal_shows_a_bar_while_a_model_comes(tmp_path: Path, hub: LoopbackHub) -> None:
    hub.add_repo("acme/big", {"config.json": CONFIG, "model.safetensors": weights(8 << 20)})
    hub.fail("model.safetensors", Slow(6 << 20), times=1000)
    command = [*GEN_WORKER, "prefetch", "hf:acme/big"]
    with terminal(command, tmp_path, environment(tmp_path, hub)) as screen:
        assert "━" in screen.until("% acme/big ")
        screen.until("of 8 MiB")
        screen.until("acme/big: fetched 8 MiB in ")
        assert "acme/big: 8 MiB at " in screen.end()
        assert screen.code == 0
