"""The death of a child costs one job at most; that job is told why, and everybody else's end right."""

import os
import signal
from typing import Any

import pytest

from tests.served import Serve, alive, text_of, until

pytestmark = pytest.mark.process

CAUSES = [
    ("SIGSEGV", "SIGSEGV", {"signal": "SIGSEGV"}),
    ("SIGKILL", "SIGKILL", {"signal": "SIGKILL"}),
    ("exit", "exit code 7", {"exit_code": 7}),
]


def stack_of(frame: dict[str, Any]) -> str:
    return "\n".join(frame["error"]["detail"].get("stack") or ())


# --- a job that kills its child ---------------------------------------------------------------------------------------


@pytest.mark.promise(1)
@pytest.mark.parametrize(("how", "cause", "fields"), CAUSES, ids=[how for how, _, _ in CAUSES])
def test_a_job_that_kills_its_child_ends_alone_while_20_run_and_50_wait(
    serve: Serve, how: str, cause: str, fields: dict[str, Any]
) -> None:
    server = serve(devices="cpu:3")
    running = [f"running-{number}" for number in range(30)]  # ten in each child, so twenty in the other two
    waiting = [f"waiting-{number}" for number in range(50)]
    with server.connect() as others, server.connect() as guilty:
        for each in running:
            others.send("gated-async", each, text=each, gate="go")
        server.until_running(*running)
        guilty.send("die", "guilty", text=how, gate="now")
        server.until_running("guilty")
        for each in ("long-1", "long-2", *waiting):
            others.send("gated", each, text=each, gate="go")
        server.until_running("long-1", "long-2")
        (victim,) = set(server.homes("guilty"))
        spared = set(server.pids().values()) - {victim}
        assert len([each for each in running if server.homes(each)[0] in spared]) == 20
        server.open("now")
        until(lambda: not alive(victim))
        assert spared <= set(server.pids().values())
        server.open("go")
        frame = guilty.frame()
        answers = others.frames(82)
    assert frame["error"]["kind"] == "child_died"
    assert cause in frame["error"]["message"]
    assert frame["error"]["detail"].items() >= {"cause": cause, **fields}.items()
    if how == "SIGSEGV":
        assert "in die" in stack_of(frame)
        assert "faulty.py" in stack_of(frame)
    assert {name: text_of(answer) for name, answer in answers.items()} == {name: name for name in answers}
    assert server.runs()["guilty"] == 2
    again = server.ask("die", "again", text=how, gate="now")
    assert again["error"]["kind"] == "quarantined"
    assert cause in again["error"]["message"]
    assert server.runs()["again"] == 0
    assert text_of(server.ask("die", text="another payload")) == "another payload"


@pytest.mark.promise(1)
def test_a_job_whose_stream_has_begun_to_leave_is_not_rerun(serve: Serve) -> None:
    server = serve()
    with server.connect() as connection:
        connection.send("count-and-die", "begun", stream=True, times=3, gate="now")
        items = [connection.frame()["value"]["text"] for _ in range(3)]
        server.open("now")
        frame = connection.frame()
    assert items == ["0", "1", "2"]
    assert frame["error"]["kind"] == "retryable"
    assert frame["error"]["retryable"] is True
    assert "part of the stream" in frame["error"]["message"]
    assert server.runs()["begun"] == 1


def test_a_buffered_stream_is_rerun_because_nothing_has_left(serve: Serve) -> None:
    server = serve()
    frame = server.ask("count-and-die", "buffered", times=3)
    assert frame["error"]["kind"] == "child_died"
    assert server.runs()["buffered"] == 2


@pytest.mark.promise(2)
def test_a_function_whose_payloads_kill_child_after_child_is_refused_and_others_serve_on(serve: Serve) -> None:
    server = serve(devices="cpu:2")
    for number in range(5):
        assert server.ask("die", text="exit", times=number)["error"]["kind"] == "child_died"
        server.until_idle()
        with server.connect() as connection:  # a job that ends well in both children, so that neither has to back off
            for each in ("left", "right"):
                connection.send("gated", f"{each}-{number}", text=each, gate=f"go-{number}")
            server.until_running(f"left-{number}", f"right-{number}")
            server.open(f"go-{number}")
            assert {text_of(answer) for answer in connection.frames(2).values()} == {"left", "right"}
    refused = server.ask("die", text="a good payload")
    assert refused["error"]["kind"] == "unavailable"
    assert "different payloads" in refused["error"]["message"]
    assert text_of(server.ask("echo", text="on")) == "on"


# --- a child that is killed from outside ------------------------------------------------------------------------------


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@pytest.mark.promise(1)
def test_the_job_of_a_child_that_is_killed_from_outside_is_rerun_and_succeeds(serve: Serve) -> None:
    server = serve()
    with server.connect() as connection:
        payload = {"text": "right", "gate": "go"}
        connection.line({"function": "gated", "request_id": "innocent", "events": True, "payload": payload})
        server.until_running("innocent")
        kill(server.homes("innocent")[0])
        server.until_running("innocent", times=2)
        told = connection.frame()
        assert (told["event"], told["value"]["level"]) == ("log", "warning")
        assert "it runs once more" in told["value"]["message"]
        server.open("go")
        assert text_of(connection.frame()) == "right"
    first, second = server.homes("innocent")
    assert first != second


@pytest.mark.promise(1)
def test_an_idle_child_that_is_killed_is_replaced(serve: Serve) -> None:
    server = serve()
    killed = server.pids()["cpu:0"]
    kill(killed)
    frame = server.ask("echo", text="next")
    assert text_of(frame) == "next"
    assert frame["events"][-1]["value"]["pid"] != killed
    assert server.devices()["cpu:0"].restarts == 1
    assert any(event.startswith("cpu:0: child") and "SIGKILL" in event for event in server.events())


@pytest.mark.promise(1)
def test_jobs_that_ran_side_by_side_in_a_killed_child_are_rerun_alone(serve: Serve) -> None:
    server = serve()
    with server.connect() as connection:
        for each in ("one", "two"):
            connection.send("gated-async", each, text=each, gate=f"go-{each}")
        server.until_running("one", "two")
        kill(server.homes("one")[0])
        server.until_running("one", times=2)
        assert server.runs() == {"one": 2, "two": 1}
        server.open("go-one")
        assert text_of(connection.frame()) == "one"
        server.until_running("two", times=2)
        server.open("go-two")
        assert text_of(connection.frame()) == "two"
    assert server.ask("gated-async", text="two", gate="go-two")["ok"], "being there is no guilt"


@pytest.mark.promise(1)
def test_jobs_that_were_handed_out_but_had_not_begun_are_not_suspects(serve: Serve) -> None:
    server = serve()
    server.open("open")
    for function in ("echo", "gated"):
        for number in range(10):
            server.ask(function, text=str(number), gate="open")  # known to be fast, so that more are handed out ahead
    with server.connect() as connection:
        connection.send("gated", "busy", text="busy", gate="go")
        server.until_running("busy")
        for number in range(8):
            connection.send("echo", f"behind-{number}", text=f"behind-{number}")
        until(lambda: server.devices()["cpu:0"].jobs > 1)
        kill(server.homes("busy")[0])
        server.until_running("busy", times=2)
        server.open("go")
        answers = connection.frames(9)
    assert {name: text_of(answer) for name, answer in answers.items()} == {name: name for name in answers}
