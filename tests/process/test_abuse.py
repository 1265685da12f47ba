"""What a job does to its own process, and clients to the supervisor's limits, stays where it is."""

import os
import resource
import signal
import time
from contextlib import ExitStack

import pytest

from tests.served import Serve, descriptors, text_of, until

pytestmark = pytest.mark.process


# --- jobs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["write to every descriptor", "close every descriptor"])
def test_a_job_that_breaks_its_childs_descriptors_ends_as_one_that_killed_it(serve: Serve, how: str) -> None:
    server = serve(devices="cpu:2")
    with server.connect() as connection:
        connection.send("gated", "sibling", text="undisturbed", gate="go")
        server.until_running("sibling")
        frame = server.ask("vandalise", "vandal", text=how)
        server.open("go")
        assert text_of(connection.frame()) == "undisturbed"
    assert frame["error"]["kind"] == "child_died"
    if how.startswith("write"):
        assert frame["error"]["detail"]["cause"].startswith("protocol: ")
    assert server.runs()["sibling"] == 1
    assert server.runs()["vandal"] <= 3  # it may have spoilt the page that tells of its start: then it has one run more
    assert text_of(server.ask("echo", text="on")) == "on"
    server.until_idle()


@pytest.mark.parametrize("how", ["exit the interpreter", "interrupt", "recurse", "return another type"])
def test_an_end_that_python_can_catch_costs_no_child(serve: Serve, how: str) -> None:
    server = serve()
    pids = server.pids()
    frame = server.ask("vandalise", text=how)
    assert frame["error"]["kind"] == "user_exception"
    assert text_of(server.ask("echo", text="on")) == "on"
    assert server.pids() == pids


@pytest.mark.parametrize("how", ["close the standard streams", "close sys.stdout", "leave a thread"])
def test_a_careless_job_succeeds_and_its_child_serves_on_and_ends(serve: Serve, how: str) -> None:
    server = serve()
    pids = server.pids()
    assert text_of(server.ask("vandalise", text=how)) == how
    assert text_of(server.ask("echo", text="on")) == "on"
    assert server.pids() == pids
    began = time.monotonic()
    server.signal(signal.SIGTERM)
    assert server.process.wait(10) == 0
    assert time.monotonic() - began < 3


@pytest.mark.promise(45)
def test_kill_now_ends_a_job_in_a_child_that_was_stopped(serve: Serve) -> None:
    server = serve(devices="cpu:2")
    with server.connect() as connection:
        connection.send("poll", "stopped")
        server.until_running("stopped")
        os.kill(server.homes("stopped")[0], signal.SIGSTOP)
        began = time.monotonic()
        killed = server.client.kill("stopped", now=True)
        assert time.monotonic() - began < 3
        assert connection.frame()["error"]["kind"] == "killed"
    assert (killed.outcome, killed.rung) == ("killed", 5)
    assert text_of(server.ask("echo", text="on")) == "on"


# --- limits -----------------------------------------------------------------------------------------------------------


def test_more_jobs_than_may_wait_are_refused_as_busy(serve: Serve) -> None:
    server = serve(variables={"GEN_WORKER_MAX_QUEUED": "5"})
    with server.connect() as connection:
        connection.send("gated", "running", text="fine", gate="go")
        server.until_running("running")
        for number in range(8):
            connection.send("gated", f"queued-{number}", text="fine", gate="go")
        refused = connection.frames(3)
        assert {frame["error"]["kind"] for frame in refused.values()} == {"busy"}
        assert all(frame["error"]["retryable"] for frame in refused.values())
        server.open("go")
        assert {text_of(frame) for frame in connection.frames(6).values()} == {"fine"}


@pytest.mark.promise(32)
def test_a_supervisor_without_free_descriptors_recovers_when_there_are_some(serve: Serve) -> None:
    server = serve()
    pid = server.pids()["cpu:0"]
    server.status()
    limits = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (len(descriptors(server.pid)) + 3, limits[1]))
    with ExitStack() as stack:
        connections = [stack.enter_context(server.connect()) for _ in range(6)]  # more than it can take
        connections[0].send("echo", text="served")
        assert text_of(connections[0].frame()) == "served"
        os.kill(pid, signal.SIGKILL)  # nor can it make a child now
        until(lambda: "child not started: Too many open files" in server.log())
        connections[0].send("echo", text="late")
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, limits)
        assert text_of(connections[0].frame()) == "late"
        connections[5].send("echo", text="taken")
        assert text_of(connections[5].frame()) == "taken"
    assert "Traceback" not in server.log()
