"""What `serve` can be asked for: some functions only, eager classes, an end when idle, a log for programs."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.served import ENDPOINTS, GEN_WORKER, PATIENCE_S, Serve, Server, environment, launch, text_of, until

pytestmark = pytest.mark.process

EVERY_LINE = {"ts", "level", "source", "message", "seq"}


def module(folder: Path, source: str) -> Path:
    """Put a module `shop` into a folder of its own."""
    home = folder / "shop-home"
    home.mkdir(exist_ok=True)
    (home / "shop.py").write_text(source)
    return home


SHOP = """
import os, pathlib, sys
import msgspec
from gen_worker import RequestContext, endpoint

class Text(msgspec.Struct):
    text: str = ""

FOLDER = pathlib.Path(os.environ["FAULTY_FOLDER"])

@endpoint
class Bakery:
    def setup(self) -> None:
        (FOLDER / f"bakery-{os.getpid()}").touch()

    def bake(self, ctx: RequestContext, payload: Text) -> Text:
        return payload

    def slice_up(self, ctx: RequestContext, payload: Text) -> Text:
        return payload

@endpoint
class Kitchen:
    def setup(self) -> None:
        (FOLDER / f"kitchen-{os.getpid()}").touch()

    def cook(self, ctx: RequestContext, payload: Text) -> Text:
        return payload

@endpoint
def greet(ctx: RequestContext, payload: Text) -> Text:
    print("greeting with", os.environ.get("SHOP_PASSWORD"))
    ctx.log("careful with " + os.environ.get("SHOP_PASSWORD", ""), level="warning")
    return payload
"""


def served(server: Server) -> list[str]:
    """Return the names in the sidecar."""
    return [each["name"] for each in json.loads(server.sidecar.read_bytes())["functions"]]


# --- some functions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "functions"),
    [
        (["--function", "bake"], ["bake", "slice-up"]),
        (["--function", "slice_up"], ["bake", "slice-up"]),
        (["--function", "greet,cook"], ["cook", "greet"]),
        (["--function", "Bakery"], ["bake", "slice-up"]),
        (["--function", "greet", "--function", "cook"], ["cook", "greet"]),
    ],
)
def test_only_the_classes_of_the_named_functions_are_served(
    serve: Serve, tmp_path: Path, asked: list[str], functions: list[str]
) -> None:
    server = serve(*asked, module="shop", cwd=module(tmp_path, SHOP))
    assert served(server) == functions
    assert f"(functions: {', '.join(functions)})" in server.log()
    assert [each.name for each in server.status().functions] == functions
    for name in functions:
        assert text_of(server.ask(name, text=name)) == name
    for name in {"bake", "cook", "greet"} - set(functions):
        assert server.ask(name)["error"]["kind"] == "not_found"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("bak", "did you mean `bake`? available: `bake`, `cook`, `greet`, `slice-up`"),
        ("xyz", "available: `bake`, `cook`, `greet`, `slice-up`"),
    ],
)
@pytest.mark.parametrize("listing", [[], ["--list-functions"]])
def test_a_function_that_is_not_there_is_refused_with_those_that_are(
    tmp_path: Path, name: str, hint: str, listing: list[str]
) -> None:
    with launch(tmp_path, "--function", name, *listing, module="shop", cwd=module(tmp_path, SHOP)) as process:
        assert process.wait(PATIENCE_S) == 2
    assert (tmp_path / "log").read_text() == f"error: no function `{name}` in `shop`\nhint: {hint}\n"


def listed(folder: Path, *arguments: str) -> str:
    """Return what `--list-functions` prints on stdout."""
    command = [*GEN_WORKER, "serve", "--module", "shop", "--list-functions", *arguments]
    home = module(folder, SHOP)
    return subprocess.run(command, cwd=home, env=environment(folder), capture_output=True, text=True, check=True).stdout


def test_the_functions_can_be_listed_without_a_boot(tmp_path: Path) -> None:
    assert listed(tmp_path) == "bake  (Bakery)\ncook  (Kitchen)\ngreet\nslice-up  (Bakery)\n"
    assert listed(tmp_path, "--function", "slice_up") == "bake  (Bakery)\nslice-up  (Bakery)\n"
    document = json.loads(listed(tmp_path, "--json"))
    assert [each["name"] for each in document["functions"]] == ["bake", "cook", "greet", "slice-up"]
    assert document["functions"][0]["class"] == "Bakery"
    assert "input_schema" in document["functions"][0]
    assert not list(tmp_path.glob("run/*"))
    assert not list(tmp_path.glob("bakery-*"))


# --- eager ------------------------------------------------------------------------------------------------------------


def test_eager_classes_are_set_up_in_every_child_before_it_is_ready(serve: Serve, tmp_path: Path) -> None:
    server = serve("--eager", module="shop", cwd=module(tmp_path, SHOP), devices="cpu:2")
    for name in ("bakery", "kitchen"):
        assert {int(path.name.rpartition("-")[2]) for path in tmp_path.glob(f"{name}-*")} == set(server.pids().values())


def test_lazily_nothing_is_set_up_before_it_is_asked_for(serve: Serve, tmp_path: Path) -> None:
    server = serve(module="shop", cwd=module(tmp_path, SHOP))
    assert not list(tmp_path.glob("bakery-*"))
    server.ask("bake")
    assert len(list(tmp_path.glob("bakery-*"))) == 1
    assert not list(tmp_path.glob("kitchen-*"))


@pytest.mark.parametrize("failure", ["raise ValueError('no flour')", "os._exit(3)"])
def test_an_eager_class_that_cannot_be_set_up_ends_the_start(tmp_path: Path, failure: str) -> None:
    home = module(tmp_path, SHOP.replace('(FOLDER / f"kitchen-{os.getpid()}").touch()', failure))
    with launch(tmp_path, "--eager", module="shop", cwd=home) as process:
        assert process.wait(PATIENCE_S) == 1
    log = (tmp_path / "log").read_text()
    assert "Kitchen" in log or "kitchen" in log or "setup" in log
    assert "\nready\n" not in log
    assert not (tmp_path / "gw.sock").exists()
    assert not (tmp_path / "gw.sock.json").exists()


def test_only_the_chosen_classes_are_set_up_eagerly(serve: Serve, tmp_path: Path) -> None:
    serve("--eager", "--function", "bake", module="shop", cwd=module(tmp_path, SHOP))
    assert len(list(tmp_path.glob("bakery-*"))) == 1
    assert not list(tmp_path.glob("kitchen-*"))


# --- idle -------------------------------------------------------------------------------------------------------------


def test_a_server_that_is_asked_for_nothing_ends_in_order_and_says_why(serve: Serve) -> None:
    server = serve("--idle-timeout", "0.5")
    assert json.loads(server.sidecar.read_bytes())["idle_timeout"] == 0.5
    assert server.process.wait(PATIENCE_S) == 0
    assert server.log().endswith("no request for 0.5 s: stopping\nstopped\n")
    assert not server.socket.exists()


def test_a_request_that_runs_or_waits_keeps_an_idle_server_up(serve: Serve) -> None:
    server = serve("--idle-timeout", "0.4")
    with server.connect() as connection:
        connection.send("gated", "running", text="done", gate="go")
        connection.send("gated", "waiting", text="done", gate="go")
        server.until_running("running")
        began = time.monotonic()
        until(lambda: time.monotonic() - began > 1.2, what="a time in which it would end")
        server.open("go")
        assert [text_of(frame) for frame in connection.frames(2).values()] == ["done", "done"]
        answered = time.monotonic()
    assert server.process.wait(PATIENCE_S) == 0
    assert time.monotonic() - answered > 0.3


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "soon"])
def test_an_idle_timeout_that_cannot_be_meant_is_refused(tmp_path: Path, value: str) -> None:
    with launch(tmp_path, f"--idle-timeout={value}") as process:
        assert process.wait(PATIENCE_S) == 2
    assert re.match(r"error: .*idle-timeout.*\nhint: ", (tmp_path / "log").read_text())


# --- the log ----------------------------------------------------------------------------------------------------------


def log_lines(server: Server) -> list[dict[str, Any]]:
    """Return the log of a server that logs JSON."""
    return [json.loads(line) for line in server.log().splitlines()]


def test_the_log_for_programs_is_one_object_a_line_with_its_job_and_its_child(serve: Serve, tmp_path: Path) -> None:
    secret = {"SHOP_PASSWORD": "open sesame"}
    server = serve("--log-format", "json", module="shop", cwd=module(tmp_path, SHOP), variables=secret)
    assert text_of(server.ask("greet", "r1", text="hello")) == "hello"
    server.signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE_S) == 0
    lines = log_lines(server)
    assert all(EVERY_LINE <= set(line) <= {*EVERY_LINE, "job", "child", "event"} for line in lines)
    own = [line["message"] for line in lines if line["source"] == "serve"]
    assert own[0].startswith("listening on ")
    assert own[1] == "ready"
    assert own[-1] == "stopped"
    jobs = [line for line in lines if line.get("job") == "r1"]
    assert sorted((line["level"], line["message"], line["child"]) for line in jobs) == [
        ("info", "greeting with [secret]", "cpu:0"),
        ("warning", "careful with [secret]", "cpu:0"),
    ]


def test_a_start_that_fails_is_told_to_programs_in_a_line_of_theirs(tmp_path: Path) -> None:
    with launch(tmp_path, "--log-format", "json", "--function", "ecko") as process:
        assert process.wait(PATIENCE_S) == 2
    line = json.loads((tmp_path / "log").read_text())
    assert (line["level"], line["source"]) == ("error", "serve")
    assert line["message"].startswith("no function `ecko` in `faulty`; did you mean `echo`? available: `chatter`, ")


def test_a_level_leaves_out_what_is_below_it(serve: Serve, tmp_path: Path) -> None:
    secret = {"SHOP_PASSWORD": "open sesame"}
    server = serve("--log-level", "warning", module="shop", cwd=module(tmp_path, SHOP), variables=secret)
    server.ask("greet", "r1")
    server.signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE_S) == 0
    assert server.log() == "[cpu:0 job=r1] warning: careful with [secret]\n"


def test_settings_say_how_to_log_too(serve: Serve) -> None:
    server = serve(variables={"GEN_WORKER_LOG_FORMAT": "json", "GEN_WORKER_LOG_LEVEL": "error"})
    server.signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE_S) == 0
    assert log_lines(server) == []


def test_colour_is_for_whoever_asks_for_it(tmp_path: Path) -> None:
    for variables, mark in (({"FORCE_COLOR": "1"}, "\x1b[31merror:\x1b[0m"), ({}, "error:")):
        with launch(tmp_path, "--function", "x", variables={**variables, "NO_COLOR": ""}) as process:
            assert process.wait(PATIENCE_S) == 2
        assert (tmp_path / "log").read_text().startswith(f"{mark} no function `x`")


# --- the folder it was started in -------------------------------------------------------------------------------------


def test_a_server_whose_folder_is_gone_serves_on_and_ends_in_order(serve: Serve, tmp_path: Path) -> None:
    home = module(tmp_path, SHOP)
    server = serve(module="shop", cwd=home)
    shutil.rmtree(home)
    assert text_of(server.ask("greet", text="hello")) == "hello"
    assert server.status().pid == server.pid
    os.kill(server.pids()["cpu:0"], signal.SIGKILL)
    until(lambda: server.devices()["cpu:0"].restarts == 1, what="the child's death being known")
    server.signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE_S) == 0
    assert "Traceback" not in server.log()


@pytest.mark.parametrize("arguments", [[], ["--socket", "gw.sock"], ["--listen", "tcp://127.0.0.1:0"]])
def test_in_a_folder_that_is_gone_nothing_starts_and_nothing_hangs(tmp_path: Path, arguments: list[str]) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    command = ["sh", "-c", 'rmdir "$PWD"; exec "$@"', "sh", *GEN_WORKER, "serve", "--module", "faulty", *arguments]
    env = {**environment(tmp_path), "PYTHONPATH": str(ENDPOINTS)}
    done = subprocess.run(command, cwd=gone, env=env, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 2
    assert re.search(r"^error: .*folder.*\nhint: ", done.stderr, re.MULTILINE), done.stderr
    assert "Traceback" not in done.stderr


# --- slips ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["zoo.py"], "`zoo.py` is no option", "a module is named as Python imports it: `--module zoo`"),
        (
            ["./farm/zoo.py"],
            "`./farm/zoo.py` is no option",
            "a module is named as Python imports it: `--module farm.zoo`",
        ),
        (["--port", "8000"], "no option `--port`", "write `--listen tcp://127.0.0.1:8000`"),
        (["--port=8001"], "no option `--port`", "write `--listen tcp://127.0.0.1:8001`"),
        (["--host", "::", "--port", "80"], "no option `--host`", "write `--listen tcp://[::]:80`"),
        (["--token", "x"], "no option `--token`", "set GEN_WORKER_TOKEN: an argument could be read by others"),
        (
            ["--listen", "127.0.0.1:8000"],
            "`127.0.0.1:8000` is not an address: it is neither",
            "over TCP it is `tcp://1",
        ),
        (["--max-line", "10"], "`--max-line` takes at least 1k, not 10", "a request is one line"),
        (["--devices", "cpu:x"], "`cpu:N` takes 1 to 256 slots, not `x`", "`--devices` takes `auto`, `cpu`, `cpu:N`"),
        (["--device", "cuda"], "no ", "`--device` takes `auto`, `cpu`, `cpu:N`"),
    ],
)
def test_what_is_meant_is_hinted_at(tmp_path: Path, arguments: list[str], error: str, hint: str) -> None:
    command = [*GEN_WORKER, "serve", *arguments, *(["--module", "shop"] if "zoo.py" not in arguments[0] else [])]
    home = module(tmp_path, SHOP)
    done = subprocess.run(command, cwd=home, env=environment(tmp_path), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    first, second = done.stderr.splitlines()
    assert first.startswith(f"error: {error}")
    assert second.startswith(f"hint: {hint}")


def test_nothing_of_ours_is_taken_from_the_current_folder(tmp_path: Path) -> None:
    home = module(tmp_path, SHOP)
    for name in ("gen_worker", "gen_worker_child", "gen_worker_supervisor"):
        (home / name).mkdir()
        (home / name / "__init__.py").write_text("raise SystemExit(7)")
    with launch(tmp_path, module="shop", cwd=home) as process:
        until(
            lambda: process.poll() is not None or "\nready\n" in (tmp_path / "log").read_text(), what="its being ready"
        )
        process.terminate()
        assert process.wait(PATIENCE_S) == 0, (tmp_path / "log").read_text()


def test_of_a_path_and_an_address_that_were_both_written_one_is_said_to_be_unused(tmp_path: Path) -> None:
    with launch(tmp_path, "--socket", str(tmp_path / "x.sock"), module="shop", cwd=module(tmp_path, SHOP)) as process:
        until(lambda: "\nready\n" in (tmp_path / "log").read_text(), what="its being ready")
        assert not (tmp_path / "x.sock").exists()
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    assert (tmp_path / "log").read_text().startswith("warning: `--socket` is not used: `--listen` says where")
