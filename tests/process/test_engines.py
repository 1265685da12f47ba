"""Engine servers under children: there before `setup()`, gone with whatever dies, back when they have died."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gen_worker.testing import LoopbackHub
from gen_worker.testing.engine import install_engine
from tests.served import GEN_WORKER, Serve, Server, alive, until

pytestmark = pytest.mark.process

FIRST = {"weights.txt": b"first", "config.json": b"{}"}
SECOND = {"model.gguf": b"GGUF", "config.json": b"{}"}


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_repo("acme/first", FIRST)
        hub.add_repo("acme/second", SECOND)
        yield hub


Engined = Callable[..., Server]


@pytest.fixture
def variables(hub: LoopbackHub, tmp_path: Path) -> dict[str, str]:
    own = {**hub.variables(), "TENSORHUB_CACHE_DIR": str(tmp_path / "cache"), "HF_HOME": "", "HF_TOKEN": ""}
    return {**own, "GEN_WORKER_HOST_CACHE_BYTES": "0"}


@pytest.fixture
def engined(serve: Serve, variables: dict[str, str], tmp_path: Path) -> Engined:
    """Start servers whose engines have these options."""

    def start(*options: str, **more: Any) -> Server:
        place = install_engine(tmp_path / "bin", *options)
        path = {"PATH": f"{place}:{os.environ['PATH']}"}
        return serve(module="engined", variables={**variables, **path}, **more)

    return start


def value(frame: dict[str, Any]) -> dict[str, Any]:
    assert frame["ok"], frame
    answered: dict[str, Any] = frame["events"][-1]["value"]
    return answered


def engines(folder: Path) -> list[int]:
    """Return the processes of engines that serve a model of this folder's cache, their lifelines with them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and alive(int(entry.name)):
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if b"--port" in words and any(word.startswith(os.fsencode(folder)) for word in words):
                found.append(int(entry.name))
    return found


def main_of(server: Server) -> int:
    """Return the pid of the engine itself."""
    return next(engine.pid for device in server.status().gpus for engine in device.engines if engine.pid)


def hooks(folder: Path) -> list[str]:
    notes = folder / "hooks"
    return [line.split()[0] for line in notes.read_text().splitlines()] if notes.exists() else []


# --- while all is well ------------------------------------------------------------------------------------------------


def test_a_class_has_its_engine_before_setup_and_it_ends_with_the_server(engined: Engined, tmp_path: Path) -> None:
    server = engined("--boot-s", "0.3", "--workers", "1")
    assert engines(tmp_path) == []
    answer = value(server.ask("chat", text="hello engine"))
    assert answer["text"] == "hello engine"
    assert value(server.ask("other", text="two engines"))["text"] == "two engines"
    (device,) = server.status().gpus
    assert [(each.name, each.state) for each in device.engines] == [("vllm", "up"), ("llama-server", "up")]
    command = Path(f"/proc/{device.engines[0].pid}/cmdline").read_bytes().decode().split("\0")
    assert command[command.index("serve") + 1] == answer["model"]
    assert command[-3:-1] == ["--max-model-len", "128"]
    assert "vllm" in server.run("ps").stdout
    assert "[vllm] vllm: loading" in server.log()
    server.close()
    assert engines(tmp_path) == []
    assert hooks(tmp_path) == ["setup", "shutdown"]
    assert (tmp_path / "hooks").read_text().endswith("shutdown True\n")


def test_tokens_come_as_the_engine_says_them_and_several_requests_at_once(engined: Engined) -> None:
    server = engined("--token-s", "0.2")
    value(server.ask("chat", text="warm"))
    with server.connect() as connection:
        began = time.monotonic()
        for number in range(4):
            connection.send("stream", f"r{number}", stream=True, text="a b c")
        frames: dict[str, list[str]] = {}
        ended = 0
        while ended < 4:
            frame = connection.frame()
            if "event" in frame and frame["event"] == "yield":
                frames.setdefault(frame["request_id"], []).append(frame["value"]["text"])
            else:
                ended += frame.get("event") in ("result", None) or not frame.get("ok", True)
        took_s = time.monotonic() - began
    assert frames == {f"r{number}": ["a", " b", " c"] for number in range(4)}
    assert took_s < 4 * 0.6


# --- when something dies ----------------------------------------------------------------------------------------------


@pytest.mark.quiet
@pytest.mark.promise(13)
@pytest.mark.parametrize("victim", ["engine", "child", "supervisor", "lifeline"])
def test_no_process_of_an_engine_outlives_a_kill_by_a_second(engined: Engined, tmp_path: Path, victim: str) -> None:
    server = engined("--workers", "1", "--strays", "1")
    value(server.ask("chat", text="up"))
    before = engines(tmp_path)
    assert len(before) == 4
    engine = main_of(server)
    lifeline = int(Path(f"/proc/{engine}/stat").read_text().rpartition(")")[2].split()[1])
    pids = {"engine": engine, "child": server.pids()["cpu:0"], "supervisor": server.pid, "lifeline": lifeline}
    os.kill(pids[victim], signal.SIGKILL)
    until(lambda: not any(map(alive, before)), 1.0, what="the end of every process of the engine")


@pytest.mark.quiet
def test_an_engine_whose_lifeline_is_stopped_ends_soon_after_its_child(engined: Engined, tmp_path: Path) -> None:
    server = engined("--workers", "1", "--strays", "1")
    value(server.ask("chat", text="up"))
    before = engines(tmp_path)
    lifeline = int(Path(f"/proc/{main_of(server)}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(lifeline, signal.SIGSTOP)
    os.kill(server.pids()["cpu:0"], signal.SIGKILL)
    until(lambda: not any(map(alive, before)), 2.0, what="the end of every process of the engine")


def test_a_job_whose_engine_dies_is_retryable_and_the_next_one_has_another_engine(
    engined: Engined, tmp_path: Path
) -> None:
    server = engined("--die-after", "2", "--token-s", "0.01")
    assert value(server.ask("chat", text="one"))["text"] == "one"
    failed = server.ask("chat", text="two words and more")["error"]
    assert failed["kind"] == "retryable"
    assert failed["retryable"]
    assert failed["message"] == "its engine `vllm` died: SIGKILL"
    assert failed["detail"]["cause"] == "engine_died"
    assert failed["detail"]["signal"] == "SIGKILL"
    assert "engine: a fatal error, as it was asked for" in failed["detail"]["stderr"]
    assert value(server.ask("chat", text="three"))["text"] == "three"
    assert hooks(tmp_path) == ["setup", "shutdown", "setup"]
    assert server.pids()
    assert server.devices()["cpu:0"].restarts == 0
    with server.connect() as connection:
        connection.send("stream", "s", stream=True, text="a b c d")
        frames = [connection.frame(), connection.frame()]
    assert frames[0]["value"]["text"] == "a"
    assert frames[-1]["error"]["detail"]["cause"] == "engine_died"


def test_an_idle_engine_that_dies_is_back_without_a_request(engined: Engined) -> None:
    server = engined()
    value(server.ask("chat", text="up"))
    first = main_of(server)
    os.kill(first, signal.SIGTERM)
    until(lambda: any(e.state == "up" and e.pid != first for d in server.status().gpus for e in d.engines))
    assert any("is set up anew: its engine `vllm` died: exit status 0" in event for event in server.events())
    assert value(server.ask("chat", text="again"))["text"] == "again"


def has_another(server: Server, engine: int) -> bool:
    return any(each.pid not in (0, engine) for device in server.status().gpus for each in device.engines)


def test_an_engine_that_dies_in_a_busy_child_is_back_each_time_after_the_shutdown_of_what_had_it(
    engined: Engined, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ENGINED_IS_BUSY", "yes")
    server = engined()
    for number in range(8):
        assert value(server.ask("chat", text=f"time {number}"))["text"] == f"time {number}"
        engine = main_of(server)
        os.kill(engine, signal.SIGKILL)
        until(partial(has_another, server, engine), what="another engine")
    assert value(server.ask("chat", text="last"))["text"] == "last"
    assert hooks(tmp_path) == [*["setup", "shutdown"] * 8, "setup"]


def test_an_engine_that_its_shutdown_ends_has_not_died(engined: Engined, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINED_ENDS_IT", "yes")
    server = engined()
    assert value(server.ask("chat", text="up"))["text"] == "up"
    assert server.run("restart", "cpu:0").returncode == 0
    assert value(server.ask("chat", text="again"))["text"] == "again"
    server.close()
    assert "died" not in server.log()


def test_an_engine_that_dies_with_every_job_makes_its_function_unavailable_for_a_while(engined: Engined) -> None:
    server = engined("--die-after", "1")
    kinds = [server.ask("chat", f"r{number}", text=f"words {number}")["error"]["kind"] for number in range(4)]
    assert kinds == ["retryable", "retryable", "retryable", "unavailable"]
    (chat, *_) = [each for each in server.status().functions if each.name == "chat"]
    assert "for the 3rd time without a job that ended well in between" in (chat.reason or "")


# --- when it does not come up -----------------------------------------------------------------------------------------


def test_an_engine_that_ends_at_its_start_is_told_with_its_last_lines(engined: Engined, tmp_path: Path) -> None:
    server = engined("--crash-at-boot")
    failed = server.ask("chat", text="up")["error"]
    assert failed["kind"] == "unavailable"
    assert "`vllm` ended before it was up: exit status 1" in failed["message"]
    assert "RuntimeError: engine core initialization failed" in failed["detail"]["stack"]
    assert engines(tmp_path) == []


def test_a_machine_without_the_engine_is_told_so_before_a_model_is_fetched(
    serve: Serve, variables: dict[str, str]
) -> None:
    server = serve(module="engined", variables=variables)
    (chat, *_) = [each for each in server.status().functions if each.name == "chat"]
    assert chat.reason == "missing_cuda_library: not installed here: `vllm`"
    failed = server.ask("chat", text="up")["error"]
    assert (failed["kind"], "not installed here: `vllm`" in failed["message"]) == ("unavailable", True)
    assert not any("downloading" in line or "on disk" in line for line in server.events())


def test_a_server_that_ends_waits_for_no_engine_that_boots(engined: Engined, tmp_path: Path) -> None:
    server = engined("--boot-s", "60", "--deaf", "--workers", "1")
    with server.connect() as connection:
        connection.send("chat", "waits", text="up")
        until(lambda: [each.state for device in server.status().gpus for each in device.engines] == ["booting"])
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert connection.frame()["error"]["kind"] in ("draining", "unavailable")
    server.process.wait(10)
    assert time.monotonic() - began < 4
    assert engines(tmp_path) == []


def test_a_server_ends_in_time_although_its_engine_is_deaf(engined: Engined, tmp_path: Path) -> None:
    server = engined("--deaf", "--workers", "1")
    value(server.ask("chat", text="up"))
    began = time.monotonic()
    server.close()
    assert time.monotonic() - began < 6
    assert engines(tmp_path) == []


# --- `gen-worker run` -------------------------------------------------------------------------------------------------


def test_run_starts_and_ends_the_engine_in_its_own_process(tmp_path: Path, variables: dict[str, str]) -> None:
    import subprocess

    from tests.served import ENDPOINTS

    place = install_engine(tmp_path / "bin")
    path = {"PATH": f"{place}:{os.environ['PATH']}"}
    command = [*GEN_WORKER, "run", "--module", "engined", "--method", "chat", "--device", "cpu", "text=hello there"]
    environment = {**os.environ, **variables, **path}
    done = subprocess.run(command, cwd=ENDPOINTS, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert '"text":"hello there"' in done.stdout
    assert "[vllm] vllm: loading" in done.stderr
    assert engines(tmp_path) == []
