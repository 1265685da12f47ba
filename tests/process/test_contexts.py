"""What a handler's context and payload give it: the same in a child and in `run`."""

import base64
import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.served import ENDPOINTS, GEN_WORKER, Serve, Server, environment, until

pytestmark = pytest.mark.process

IMAGE = {"ref": "pictures/cat.png", "inline_bytes": base64.b64encode(b"a cat").decode()}
LOOKS = ["look", "look-async", "look-twice", "look-twice-async"]
WAITS = ["wait", "wait-async", "tick", "tick-async"]


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    return folder


@pytest.fixture
def server(serve: Serve, temporary: Path) -> Server:
    return serve(module="contextual", variables={"TMPDIR": str(temporary)})


def command(folder: Path, method: str, payload: object) -> dict[str, Any]:
    """Return the arguments that start `gen-worker run` with everything it makes in `folder`."""
    own = {"GEN_WORKER_LOCAL_OUTPUT_DIR": str(folder / "outputs"), "TMPDIR": str(folder / "tmp")}
    (folder / "payload.json").write_text(json.dumps(payload))
    arguments = ["run", "--module", "contextual", "--method", method, "--payload-file", str(folder / "payload.json")]
    env = {**environment(folder), **own, "PYTHONDONTWRITEBYTECODE": "1"}
    return {"args": [*GEN_WORKER, *arguments], "cwd": ENDPOINTS, "env": env, "text": True, "stdin": subprocess.DEVNULL}


def ran(folder: Path, method: str, payload: object) -> list[Any]:
    done = subprocess.run(**command(folder, method, payload), capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line)["value"] for line in done.stdout.splitlines()]


def values(answer: dict[str, Any]) -> list[Any]:
    assert answer["ok"], answer
    return [event["value"] for event in answer["events"]]


# --- input assets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", LOOKS)
@pytest.mark.parametrize("how", ["serve", "run"])
def test_an_asset_that_came_as_bytes_is_a_file_in_every_shape_of_handler(
    request: pytest.FixtureRequest, tmp_path: Path, temporary: Path, function: str, how: str
) -> None:
    if how == "run":
        found = ran(tmp_path, function, {"image": IMAGE})
    else:
        found = values(request.getfixturevalue("server").ask(function, image=IMAGE))
    seen = [each for each in found if "text" in each]
    assert [each["text"] for each in seen] == ["a cat"] * (2 if "twice" in function else 1)
    assert all(Path(each["path"]).name == "cat.png" for each in seen)
    assert not any(Path(each["path"]).exists() for each in seen)
    assert [path for path in temporary.rglob("*") if path.is_file()] == []


def test_an_output_does_not_name_an_input_file_that_is_gone(server: Server) -> None:
    (asset,) = values(server.ask("give-back", image=IMAGE))
    assert asset == IMAGE


def test_an_asset_with_a_file_is_read_where_it_is(server: Server, tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_text("my cat")
    image = {"ref": "local/cat.png", "local_path": str(tmp_path / "cat.png")}
    seen = {"path": str(tmp_path / "cat.png"), "text": "my cat"}
    assert values(server.ask("look", image=image)) == ran(tmp_path, "look", {"image": image}) == [seen]
    assert (tmp_path / "cat.png").exists()


def test_files_of_a_killed_child_are_removed_by_the_next_one_that_needs_some(server: Server, temporary: Path) -> None:
    with server.connect() as connection:
        connection.send("look", "victim", image=IMAGE, gate="go")
        server.until_running("victim")
        (killed,) = temporary.iterdir()
        os.kill(server.homes("victim")[0], signal.SIGKILL)
        server.until_running("victim", times=2)  # run again in another child
        assert not killed.exists()
        server.open("go")
        assert values(connection.frame())[0]["text"] == "a cat"
    server.signal(signal.SIGTERM)
    until(lambda: not list(temporary.iterdir()), what="the folder of a drained child being gone")


def test_files_of_a_killed_child_are_gone_without_a_next_one(server: Server, temporary: Path) -> None:
    with server.connect() as connection:
        connection.send("look", "victim", image=IMAGE, gate="go")
        for times in (1, 2):
            server.until_running("victim", times=times)
            os.kill(server.homes("victim")[-1], signal.SIGKILL)
        assert connection.frame()["error"]["kind"] == "child_died"
        until(lambda: not list(temporary.iterdir()), what="the folder of the killed child being gone")


def test_a_client_over_tcp_cannot_have_a_handler_read_a_file_of_the_servers_machine(
    serve: Serve, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("nobody's business")
    server = serve(module="contextual", listen="tcp://127.0.0.1:0")
    for function in ("look", "look-async"):
        frame = server.ask(function, image={"ref": "a", "local_path": str(secret)})
        assert frame["error"]["kind"] == "usage"
        assert "send its `inline_bytes`" in frame["error"]["message"]
        assert values(server.ask(function, image=IMAGE))[-1]["text"] == "a cat"


# --- payloads ---------------------------------------------------------------------------------------------------------


def test_clamps_hold_in_a_child_and_in_run_alike(server: Server, tmp_path: Path) -> None:
    sent: dict[str, Any] = {"steps": 9999, "scales": [0.4, 0.5, 7]}
    brought = {"steps": 50, "scales": [0, 1, 1]}
    assert values(server.ask("clamped", **sent)) == [brought]
    assert ran(tmp_path, "clamped", sent) == [brought]
    assert server.client.submit("clamped", sent).result() == brought


# --- saved files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["save", "save-file"])
@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", bytes(200_000)], ids=["empty", "small", "large"])
def test_a_saved_file_is_told_alike_by_a_child_and_by_run(
    server: Server, tmp_path: Path, function: str, data: bytes
) -> None:
    payload = {"ref": " /made/here.png ", "data": base64.b64encode(data).decode()}
    (served,), (in_run,) = values(server.ask(function, **payload)), ran(tmp_path, function, payload)
    path = tmp_path / "outputs" / "made" / "here.png"
    assert path.read_bytes() == data
    assert served == {
        "ref": "made/here.png",
        "owner": os.environ.get("USER") or "local-dev",
        "local_path": str(path),
        "mime_type": "image/png",
        "size_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    assert in_run == served


@pytest.mark.parametrize("ref", ["", "../x", "a/../../x", "https://x/y", "a\\b", "x" * 300])
def test_an_unsafe_ref_saves_nothing_anywhere(server: Server, tmp_path: Path, ref: str) -> None:
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    answer = server.ask("save", ref=ref, data="YQ==")
    assert answer["error"]["kind"] == "invalid", answer
    assert {path for path in tmp_path.rglob("*") if path.is_file()} - before <= {tmp_path / "log"}


def test_a_file_over_the_limit_is_refused_alike_by_a_child_and_by_run(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKER_MAX_UPLOAD_BYTES", "4")
    payload = {"ref": "five.bin", "data": base64.b64encode(b"five!").decode()}
    answer = serve(module="contextual", variables={"TMPDIR": str(tmp_path)}).ask("save", **payload)
    text = "`five.bin` has 5 bytes, the limit is 4: `WORKER_MAX_UPLOAD_BYTES`"
    assert (answer["error"]["kind"], answer["error"]["message"]) == ("invalid", text)
    done = subprocess.run(**command(tmp_path, "save", payload), capture_output=True, timeout=60, check=False)
    assert done.returncode == 2
    assert text in done.stderr
    assert not (tmp_path / "outputs").exists()


# --- deadlines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["tell-time", "tell-time-async"])
def test_a_handler_sees_its_deadline(server: Server, function: str) -> None:
    asked = time.time()
    with server.connect() as connection:
        request = {"function": function, "payload": {}, "timeout_ms": 60_000}
        connection.write(json.dumps(request).encode() + b"\n")
        (told,) = values(connection.frame())
    assert 0 < told["remaining"] <= 60
    assert asked + 55 < told["deadline"] < time.time() + 60.1
    assert values(server.ask(function)) == [{"deadline": None, "remaining": None}]


# --- cancellation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", WAITS)
def test_a_cancel_ends_every_shape_of_handler_in_a_child(server: Server, function: str) -> None:
    with server.connect() as connection, server.connect() as canceler:
        connection.send(function, "long", stream=function.startswith("tick"))
        server.until_running("long")
        canceler.cancel("long")
        assert canceler.frame()["canceled"] is True
        while (frame := connection.frame()).get("event") == "yield":
            pass
    assert frame["error"]["kind"] == "canceled"
    assert (server.folder / "left").read_text() == "True\n"


@pytest.fixture
def running(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator["subprocess.Popen[str]"]:
    (tmp_path / "tmp").mkdir(exist_ok=True)
    process = subprocess.Popen(
        **command(tmp_path, request.param, {}), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    with process:
        yield process
        process.kill()


@pytest.mark.parametrize("running", WAITS, indirect=True)
def test_ctrl_c_ends_every_shape_of_handler_in_run(running: "subprocess.Popen[str]", tmp_path: Path) -> None:
    assert running.stderr is not None
    while "waiting" not in running.stderr.readline():
        assert running.poll() is None
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=20)
    assert running.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert (tmp_path / "left").read_text() == "True\n"
