"""Real hangs are named within seconds, and ended by themselves only where nothing moves."""

import os
import re
import resource
import signal
import time

import pytest

from gen_worker.wire.status import DeviceStatus, JobStatus
from tests.served import Connection, Serve, Server, alive, text_of, until

pytestmark = pytest.mark.process

SHOWN_S = 5.0
SHORT = {"GEN_WORKER_STALL_TIMEOUT_S": "4"}  # and what does not get on for a second is named


def the_device(server: Server) -> DeviceStatus:
    return server.status().gpus[0]


def hung(server: Server, hang: str, within_s: float) -> None:
    """Wait until `ps` shows a hang of this kind."""
    until(lambda: the_device(server).hang == hang, within_s, what=f"`{hang}`")


def begun(server: Server, connection: Connection, function: str, gate: str = "") -> float:
    """Start a job; return when it began."""
    connection.send(function, "hanging", gate=gate)
    until(lambda: (job := server.job("hanging")) is not None and job.status == "running" and job.elapsed_s > 0)
    return time.monotonic()


@pytest.mark.promise(6, 7)
@pytest.mark.parametrize(
    ("function", "hang"),
    [
        ("sleep-without-the-interpreter", "native_wait"),
        ("read-a-pipe", "native_wait"),
        ("wait-for-a-lock", "python_stuck"),
        ("spin", "spin_no_progress"),
    ],
)
def test_a_job_that_does_not_get_on_is_shown_as_hung_with_its_kind(serve: Serve, function: str, hang: str) -> None:
    server = serve(module="hanging", variables=SHORT)
    with server.connect() as connection:
        begun(server, connection, function)
        hung(server, hang, SHOWN_S)
        device, job = the_device(server), server.job("hanging")
        assert job is not None
        assert (device.state, job.hang) == ("hung", hang)
        assert device.silent_s is not None
        assert device.silent_s >= 1
        assert hang in server.run("ps").stdout
        server.client.kill("hanging", now=True)
        detail = connection.frame()["error"]["detail"]
    assert detail["hang"] == hang
    assert any(function.replace("-", "_") in line for line in detail["stack"])


@pytest.mark.promise(7)
@pytest.mark.parametrize("function", ["sleep-with-the-interpreter", "match"])
def test_a_held_interpreter_is_shown_3_s_after_the_last_beat(serve: Serve, function: str) -> None:
    server = serve(module="hanging")
    with server.connect() as connection:
        began = begun(server, connection, function)
        hung(server, "gil_held", SHOWN_S)
        device = the_device(server)
        assert device.state == "hung"
        assert device.heartbeat_age_s is not None
        assert device.heartbeat_age_s < 3.5
        assert time.monotonic() - began < SHOWN_S
        server.client.kill("hanging", now=True)
        assert connection.frame()["error"]["detail"]["hang"] == "gil_held"


@pytest.mark.promise(7)
def test_a_stopped_child_is_shown_as_that_and_goes_on_when_it_is_let(serve: Serve) -> None:
    server = serve(module="hanging")
    with server.connect() as connection:
        begun(server, connection, "stop", gate="go")
        hung(server, "stopped", SHOWN_S)
        (pid,) = server.pids().values()
        server.open("go")
        os.kill(pid, signal.SIGCONT)
        assert text_of(connection.frame()) == "done"
        until(lambda: the_device(server).hang is None)
    until(lambda: [event for event in server.events() if "goes on: it was stopped for" in event])
    assert list(server.pids().values()) == [pid]


@pytest.mark.promise(7)
def test_a_job_in_whose_child_nothing_moves_is_ended_by_the_ladder_twice_and_then_quarantined(serve: Serve) -> None:
    server = serve(module="hanging", devices="cpu:2", variables={"GEN_WORKER_STALL_TIMEOUT_S": "1"})
    with server.connect() as connection:
        for request in ("first", "second"):
            connection.send("wait-for-a-lock", request, gate="the same")
        answers = connection.frames(2).values()
        for error in (answer["error"] for answer in answers):
            assert (error["kind"], error["retryable"]) == ("retryable", True)
            assert (error["detail"]["cause"], error["detail"]["hang"]) == ("hang", "python_stuck")
            assert [step["name"] for step in error["detail"]["rungs"]] == [
                "cooperate",
                "interrupt",
                "dump",
                "terminate",
            ]
            assert any("wait_for_a_lock" in line for line in error["detail"]["stack"])
        told = [event for event in server.events() if re.search(r"\(rung [45], \w+, after \d+\.\d s\)", event)]
        assert len(told) == 2, "one line for each ladder's end"
        connection.send("wait-for-a-lock", "third", gate="the same")
        assert connection.frame()["error"]["kind"] == "quarantined"
        connection.send("wait-on-the-loop", "on the loop")
        connection.send("work-in-steps", "other")
        assert text_of(connection.frame()) == "done"
        assert server.job("on the loop") is not None


@pytest.mark.promise(7, 32)
def test_a_silent_child_is_watched_on_when_for_a_while_there_was_no_descriptor_to_look_at_it_with(
    serve: Serve,
) -> None:
    server = serve(module="hanging", variables=SHORT)
    limits = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    with server.connect() as connection:
        begun(server, connection, "wait-for-a-lock")
        until(lambda: (the_device(server).silent_s or 0) > 2.5, what="so much silence that it is looked at closely")
        held = {int(name) for name in os.listdir(f"/proc/{server.pid}/fd")}
        lowest = next(number for number in range(len(held) + 1) if number not in held)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (lowest, limits[1]))
        hung(server, "unmeasurable", SHOWN_S)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, limits)
        hung(server, "python_stuck", SHOWN_S)
        server.client.kill("hanging", now=True)
        assert connection.frame()["error"]["detail"]["hang"] == "python_stuck"
    assert "fault of gen-worker" not in server.log()
    assert "Traceback" not in server.log()


@pytest.mark.promise(7)
def test_a_handler_that_keeps_the_loop_from_turning_hangs_and_one_that_waits_on_it_does_not(serve: Serve) -> None:
    server = serve(module="hanging", variables=SHORT)
    with server.connect() as connection:
        connection.send("wait-on-the-loop", "waiting")
        until(lambda: (job := server.job("waiting")) is not None and job.elapsed_s > 2)
        assert the_device(server).hang is None
        server.client.cancel("waiting")
        connection.frame()
        begun(server, connection, "hold-the-loop")
        hung(server, "native_wait", SHOWN_S)
        server.client.kill("hanging", now=True)
        detail = connection.frame()["error"]["detail"]
    assert detail["hang"] == "native_wait"
    assert any("hold_the_loop" in line for line in detail["stack"])


@pytest.mark.promise(7)
@pytest.mark.parametrize("function", ["spin", "go-on-slowly"])
def test_a_job_of_which_anything_moves_is_never_ended_for_its_silence(serve: Serve, function: str) -> None:
    server = serve(module="hanging", variables={"GEN_WORKER_STALL_TIMEOUT_S": "1"})
    with server.connect() as connection:
        began = begun(server, connection, function, gate="go")
        until(lambda: time.monotonic() - began > 3, what="three times the time that a silent child has")
        assert alive(next(iter(server.pids().values())))
        server.open("go")
        assert text_of(connection.frame()) == "done"


def test_a_set_up_that_hangs_counts_as_one_that_failed(serve: Serve) -> None:
    server = serve(module="hanging", variables={"GEN_WORKER_STALL_TIMEOUT_S": "1"})
    with server.connect() as connection:
        connection.send("stuck", "waiting")
        hung(server, "native_wait", SHOWN_S)
        assert (the_device(server).loading, server_job(server).hang) == ("hanging:Stuck", None)
        error = connection.frame()["error"]
    assert error["kind"] == "unavailable"
    assert "hang" in error["message"]
    assert any("in setup" in line for line in error["detail"]["stack"])
    assert (server.folder / "tries").read_bytes() == b"..."


def server_job(server: Server) -> JobStatus:
    job = server.job("waiting")
    assert job is not None
    return job
