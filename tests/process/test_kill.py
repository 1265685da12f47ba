"""`gen-worker kill` ends one request, whatever it does, and nobody else notices."""

import re
import time

import pytest

from tests.served import Serve, Server, text_of, until

pytestmark = pytest.mark.process

HANGS = {
    "hold-the-interpreter": "in hold_the_interpreter",
    "sleep-in-c": "in sleep_in_c",
    "swallow-everything": "in swallow_everything",
}
KILLED = re.compile(r"killed `(?P<request>\S+)` after (?P<seconds>[\d.]+)s by rung (?P<rung>\d), ")


@pytest.mark.promise(45)
@pytest.mark.parametrize("function", HANGS)
def test_kill_now_ends_any_hang_within_3_s_with_rung_and_stack_and_disturbs_nobody(serve: Serve, function: str) -> None:
    server = serve(devices="cpu:2")
    with server.connect() as hung, server.connect() as sibling:
        hung.send(function, "hung")
        server.until_running("hung")
        sibling.send("gated", "sibling", text="undisturbed", gate="go")
        server.until_running("sibling")
        others = {name: pid for name, pid in server.pids().items() if pid != server.homes("hung")[0]}
        began = time.monotonic()
        done = server.run("kill", "hung", "--now")
        frame = hung.frame()
        assert time.monotonic() - began < 3
        assert others.items() <= server.pids().items()
        server.open("go")
        assert text_of(sibling.frame()) == "undisturbed"
    said = KILLED.match(done.stdout)
    assert done.returncode == 0
    assert said is not None, done.stdout
    assert int(said["rung"]) in (4, 5)
    assert HANGS[function] in done.stdout
    assert "faulty.py" in done.stdout
    assert frame["error"]["kind"] == "killed"
    assert frame["error"]["detail"]["cause"] == "killed"
    assert frame["error"]["detail"]["rung"] == int(said["rung"])
    assert any(HANGS[function] in line for line in frame["error"]["detail"]["stack"])
    assert server.log().count("killed by an operator") == server.log().count(f"(rung {said['rung']}, ") == 1
    assert server.runs() == {"hung": 1, "sibling": 1}, "what is killed is not rerun"
    server.until_idle()
    assert text_of(server.ask("echo", text="on")) == "on"


@pytest.mark.promise(45)
@pytest.mark.parametrize("function", ["poll", "poll-async", "tick", "tick-async"])
def test_kill_lets_a_job_that_looks_end_by_itself_at_rung_1(serve: Serve, function: str) -> None:
    server = serve()
    pids = server.pids()
    with server.connect() as connection:
        connection.send(function, "polite")
        server.until_running("polite")
        done = server.run("kill", "polite")
        frame = connection.frame()
    said = KILLED.match(done.stdout)
    assert said is not None, done.stdout
    assert said["rung"] == "1"
    assert frame["error"]["kind"] == "killed"
    assert frame["error"]["detail"]["rung"] == 1
    assert (server.folder / "ended").read_text() == "polite"
    assert server.pids() == pids


def test_kill_of_a_request_that_waits_in_the_queue_costs_nothing(serve: Serve) -> None:
    server = serve()
    pids = server.pids()
    with server.connect() as connection:
        connection.send("gated", "running", text="running", gate="go")
        server.until_running("running")
        connection.send("gated", "queued", text="queued", gate="go")
        until(lambda: server.job("queued"))
        assert server.run("kill", "queued", "--now").returncode == 0
        assert connection.frame()["request_id"] == "queued"
        server.open("go")
        assert text_of(connection.frame()) == "running"
    assert server.pids() == pids
    assert server.runs() == {"running": 1}


def test_kill_now_of_one_job_spares_the_others_of_its_child_a_guilt(serve: Serve) -> None:
    server = serve()
    with server.connect() as connection:
        connection.send("gated-async", "neighbour", text="right", gate="go")
        connection.send("sleep-in-c", "hung")
        server.until_running("neighbour", "hung")
        assert server.client.kill("hung", now=True).outcome == "killed"
        assert connection.frame()["request_id"] == "hung"
        server.until_running("neighbour", times=2)
        server.open("go")
        assert text_of(connection.frame()) == "right"


@pytest.mark.promise(45)
def test_a_kill_that_has_to_interrupt_replaces_the_child(serve: Serve) -> None:
    server = serve()
    (before,) = server.pids().values()
    with server.connect() as connection:
        connection.send("gated", "deaf", text="deaf", gate="never")  # does not look whether it shall end
        server.until_running("deaf")
        killed = server.client.kill("deaf", timeout_s=10)
        error = connection.frame()["error"]
    assert error["kind"] == "killed"
    assert any("in gated" in line for line in error["detail"]["stack"]), "where the interrupt found it"
    assert (killed.outcome, killed.rung) == ("killed", 2)
    assert killed.seconds < 7
    until(lambda: before not in server.pids().values())
    assert text_of(server.ask("echo", text="next")) == "next"
    assert_no_death_was_reported(server)


def assert_no_death_was_reported(server: Server) -> None:
    assert not [event for event in server.events() if " died: " in event]


@pytest.mark.parametrize("command", ["kill", "cancel"])
def test_a_name_that_would_draw_on_a_terminal_is_spelt_out(serve: Serve, command: str) -> None:
    server = serve()
    with server.connect() as connection:
        connection.send("gated_async", "\x1b[31mred", gate="never")
        server.until_running("\x1b[31mred")
        done = server.run(command, "\x1b[31mred")
    assert (done.returncode, "\\x1b[31mred" in done.stdout, "\x1b" in done.stdout + done.stderr) == (0, True, False)
