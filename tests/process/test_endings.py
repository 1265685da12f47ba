"""However a server ends, it leaves nothing behind that holds up the next one."""

import os
import resource
import signal
import time
from pathlib import Path

import pytest

from gen_worker_supervisor.serve import ONE_SIGNAL_S
from tests.served import PATIENCE_S, Serve, Server, alive, launch, text_of, until

pytestmark = pytest.mark.process


def traces(server: Server) -> list[Path]:
    return [path for path in (server.socket, server.sidecar, server.control.parent) if path.exists()]


@pytest.mark.promise(14)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_jobs_children_and_files_in_order(serve: Serve, number: int) -> None:
    server = serve(devices="cpu:2")
    assert text_of(server.ask("tidy", text="set up")) == "set up"
    processes = server.processes()
    with server.connect() as connection:
        for function, request_id in (("poll", "one"), ("poll", "two"), ("poll", "queued"), ("poll-async", "async")):
            connection.send(function, request_id)
        server.until_running("one", "two", "async")
        server.signal(number)
        answers = connection.frames(4)
        assert connection.read() is None
    assert server.process.wait(PATIENCE_S) == 0
    assert {answer["error"]["kind"] for answer in answers.values()} == {"draining"}
    assert all(answer["error"]["retryable"] for answer in answers.values())
    assert server.runs() == {"one": 1, "two": 1, "async": 1}
    set_up = {path.name.removeprefix("set-up-") for path in server.folder.glob("set-up-*")}
    assert {path.name.removeprefix("shut-down-") for path in server.folder.glob("shut-down-*")} == set_up != set()
    assert len(processes) == 3
    assert not [pid for pid in processes if alive(pid)]
    assert traces(server) == []
    assert server.log().endswith("stopped\n")


@pytest.mark.promise(14)
def test_a_server_ends_in_order_where_nothing_can_be_written_any_more(serve: Serve) -> None:
    server = serve()
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    server.signal(signal.SIGTERM)
    assert server.process.wait(5.0) == 0
    assert traces(server) == []


SLOW = """
import pathlib, time
from gen_worker import RequestContext, endpoint
from msgspec import Struct
class In(Struct):
    pass
@endpoint
def nothing(ctx: RequestContext, payload: In) -> In:
    return payload
surveyed = pathlib.Path(__file__).with_name("surveyed")
if surveyed.exists():
    print("the child imports it", flush=True)
    time.sleep(3600)
surveyed.touch()
"""


@pytest.mark.promise(14)
def test_a_child_that_is_ended_while_it_still_imports_is_no_death(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    with launch(tmp_path, module="slow", cwd=tmp_path) as process:
        server = Server(process, tmp_path)
        try:
            until(lambda: "the child imports it" in server.log(), what="the import")
            process.terminate()
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
    assert "died" not in server.log()
    assert server.log().endswith("stopped\n")
    assert not (tmp_path / "run" / "postmortems").exists()


@pytest.mark.promise(14)
def test_requests_that_come_after_the_signal_are_refused(serve: Serve) -> None:
    server = serve()
    with server.connect() as connection:
        connection.send("poll", "running", gate="go")
        server.until_running("running")
        server.signal(signal.SIGTERM)
        until(lambda: server.status().draining)
        connection.send("echo", "late")
        assert connection.frame()["error"]["kind"] == "draining"
        server.open("go")
        assert connection.frame()["request_id"] == "running"
    assert server.process.wait(PATIENCE_S) == 0


@pytest.mark.promise(14)
@pytest.mark.parametrize("function", ["gated", "hold-the-interpreter"])
def test_a_second_signal_ends_everything_at_once(serve: Serve, function: str) -> None:
    server = serve(devices="cpu:2")
    processes = server.processes()
    with server.connect() as connection:
        connection.send(function, "deaf", gate="never")
        server.until_running("deaf")
        server.signal(signal.SIGTERM)
        until(lambda: server.status().draining)
        second = time.monotonic()
        until(lambda: time.monotonic() - second > ONE_SIGNAL_S)  # before that it would be the same wish
        server.signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE_S) == 130
    assert time.monotonic() - second < 2
    assert not [pid for pid in processes if alive(pid)]
    assert traces(server) == []


@pytest.mark.promise(13)
def test_no_child_outlives_a_supervisor_that_is_killed_and_its_socket_is_taken_over(serve: Serve) -> None:
    server = serve(devices="cpu:2")
    with server.connect() as connection:
        connection.send("hold-the-interpreter", "holding")
        connection.send("gated", "waiting", gate="never")
        connection.send("gated-async", "on the loop", gate="never")
        server.until_running("holding", "waiting")
        processes = server.processes()
        assert len(processes) == 3
        killed = time.monotonic()
        os.kill(server.pid, signal.SIGKILL)
        until(lambda: not any(map(alive, processes)), killed + 0.2 - time.monotonic(), what="the end of every child")
    server.process.wait(PATIENCE_S)
    assert server.socket.exists()
    server.sidecar.unlink()
    following = serve()
    assert text_of(following.ask("echo", text="again")) == "again"


def test_a_socket_that_a_live_server_owns_is_refused_naming_its_pid(serve: Serve) -> None:
    server = serve()
    with launch(server.folder, log=server.folder / "second") as second:
        assert second.wait(PATIENCE_S) == 2
    said = (server.folder / "second").read_text()
    assert f"in use by pid {server.pid}" in said
    assert "hint: " in said
    assert "Traceback" not in said
    assert text_of(server.ask("echo", text="unharmed")) == "unharmed"
    assert server.sidecar.exists()


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "gw.sock").write_text("mine")
    with launch(tmp_path) as process:
        assert process.wait(PATIENCE_S) == 2
    assert "is not a socket" in (tmp_path / "log").read_text()
    assert (tmp_path / "gw.sock").read_text() == "mine"


def test_what_a_child_started_goes_with_it(serve: Serve) -> None:
    server = serve()
    frame = server.ask("start-helper")
    helper = int(frame["events"][-1]["value"]["text"])
    assert alive(helper)
    os.kill(frame["events"][-1]["value"]["pid"], signal.SIGKILL)
    until(lambda: not alive(helper))


@pytest.mark.promise(33)
def test_standard_error_that_nobody_reads_holds_nobody(serve: Serve, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "unread")
    reader = os.open(tmp_path / "unread", os.O_RDONLY | os.O_NONBLOCK)
    try:
        server = serve(log=tmp_path / "unread")
        for number in range(50):
            assert text_of(server.ask("chatter", text=str(number), times=200)) == str(number)
        server.signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE_S) == 0
    finally:
        os.close(reader)


# --- while it starts --------------------------------------------------------------------------------------------------

UNHURRIED = """
import os, pathlib, time
(pathlib.Path(os.environ["FAULTY_FOLDER"]) / "probe").write_text(str(os.getpid()))
while True:
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_a_server_told_to_end_while_it_looks_at_the_module_ends_and_so_does_the_look(
    tmp_path: Path, number: int, code: int
) -> None:
    (tmp_path / "unhurried.py").write_text(UNHURRIED)
    note = tmp_path / "probe"
    with launch(tmp_path, module="unhurried", cwd=tmp_path) as process:
        until(lambda: note.exists() and note.read_text(), what="the look at the module")
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == code
    until(lambda: not alive(int(note.read_text())), what="the end of the look")
    assert (tmp_path / "log").read_text() == ""
    assert not (tmp_path / "gw.sock").exists()


def test_ctrl_c_while_it_looks_at_the_module_shows_no_stack(tmp_path: Path) -> None:
    (tmp_path / "unhurried.py").write_text(UNHURRIED)
    note = tmp_path / "probe"
    with launch(tmp_path, module="unhurried", cwd=tmp_path) as process:
        until(lambda: note.exists() and note.read_text(), what="the look at the module")
        for pid in (process.pid, int(note.read_text())):  # as a terminal does
            os.kill(pid, signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
    assert (tmp_path / "log").read_text() == ""


def test_a_closed_terminal_ends_a_server_as_sigterm_does(serve: Serve) -> None:
    server = serve()
    pids = server.processes()
    server.signal(signal.SIGHUP)
    assert server.process.wait(PATIENCE_S) == 0
    assert server.log().endswith("the terminal is closed: stopping\nstopped\n")
    until(lambda: not any(map(alive, pids)), what="the end of its processes")
    assert not server.socket.exists()
    assert not server.sidecar.exists()
