"""A class that cannot be set up and a module that cannot be imported cost their own functions, not the server."""

import os
import signal

import pytest

from tests.served import PATIENCE_S, Serve, Server, text_of, until

pytestmark = pytest.mark.process


def tries(server: Server) -> int:
    return len((server.folder / "tries").read_text())


@pytest.mark.promise(3)
def test_a_setup_that_raises_makes_its_function_unavailable_after_3_tries(serve: Serve) -> None:
    server = serve()
    pids = server.pids()
    frame = server.ask("unprepared")
    assert frame["error"]["kind"] == "unavailable"
    assert frame["error"]["retryable"] is True
    assert "LookupError: no weights today" in frame["error"]["message"]
    stack = "\n".join(frame["error"]["detail"]["stack"])
    assert "in setup" in stack
    assert "faulty.py" in stack
    assert "gen_worker_child" not in stack
    assert tries(server) == 3
    assert server.ask("unprepared")["error"]["kind"] == "unavailable"
    assert tries(server) == 3
    assert text_of(server.ask("echo", text="on")) == "on"
    assert text_of(server.ask("tidy", text="on")) == "on"
    assert server.pids() == pids
    (function,) = (each for each in server.status().functions if each.name == "unprepared")
    assert function.state == "unavailable"
    assert "no weights today" in (function.reason or "")


@pytest.mark.promise(3)
def test_a_setup_that_kills_its_child_makes_its_function_unavailable_after_3_tries(serve: Serve) -> None:
    server = serve()
    frame = server.ask("deadly")
    assert frame["error"]["kind"] == "unavailable"
    assert "setup of `faulty:Deadly` killed its child: exit code 9" in frame["error"]["message"]
    assert tries(server) == 3
    assert text_of(server.ask("echo", text="on")) == "on"
    assert server.ask("deadly")["error"]["kind"] == "unavailable"
    assert tries(server) == 3


@pytest.mark.promise(3)
def test_jobs_in_a_child_that_dies_of_a_setup_are_not_charged(serve: Serve) -> None:
    server = serve()
    with server.connect() as connection:
        connection.send("gated-async", "innocent", text="right", gate="go")
        server.until_running("innocent")
        connection.send("deadly", "deadly")
        assert connection.frame()["error"]["kind"] == "unavailable"
        server.open("go")
        assert text_of(connection.frame()) == "right"
    assert text_of(server.ask("gated-async", text="right", gate="go")) == "right"


@pytest.mark.promise(3)
@pytest.mark.parametrize(
    ("flaw", "reason"), [("import-dies", "exit code 11"), ("import-raises", "RuntimeError: no luck today")]
)
def test_a_module_that_no_child_can_import_ends_the_server_with_the_reason(
    serve: Serve, flaw: str, reason: str
) -> None:
    server = serve()
    server.open(flaw)
    os.kill(server.pids()["cpu:0"], signal.SIGKILL)
    assert server.process.wait(PATIENCE_S) == 1
    lines = server.log().splitlines()
    (last,) = (line for line in lines if "no device can serve" in line)
    assert reason in last
    assert not server.socket.exists()
    assert not server.sidecar.exists()
    assert "supervisor.py" not in server.log()


@pytest.mark.promise(3)
def test_a_device_whose_child_cannot_import_is_given_up_and_the_others_serve(serve: Serve) -> None:
    server = serve(devices="cpu:2")
    server.open("import-dies")
    os.kill(server.pids()["cpu:1"], signal.SIGKILL)
    until(lambda: server.devices()["cpu:1"].state == "failed")
    assert server.devices()["cpu:0"].state == "idle"
    assert {text_of(server.ask("echo", text=str(each))) for each in range(5)} == set("01234")


@pytest.mark.promise(3)
def test_a_child_that_can_import_again_is_taken_back(serve: Serve) -> None:
    server = serve()
    server.open("import-dies")
    os.kill(server.pids()["cpu:0"], signal.SIGKILL)
    until(lambda: any("exit code 11" in event for event in server.events()))
    (server.folder / "import-dies").unlink()
    assert text_of(server.ask("echo", text="back")) == "back"
