"""Every other thing that can be killed, stopped or flooded beside jobs that are none of its business."""

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from gen_worker.testing.contents import Content
from gen_worker.testing.faults import Faults, Stall
from gen_worker.testing.origin import Answer, Origin
from tests.chaos.hosts import breaking, chaotic, steady
from tests.chaos.load import Load
from tests.chaos.results import injected, survived
from tests.chaos.traces import role
from tests.served import GEN_WORKER, Connection, Server, alive, environment, text_of, until

pytestmark = [pytest.mark.process, pytest.mark.quiet]

FLOOD_S = 0.6
STALL_S = 0.6


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with chaotic(tmp_path, GEN_WORKER_ALLOW_PRIVATE_INPUTS="1") as server:
        yield server


def only(server: Server, wanted: str) -> int:
    """Return the pid of the server's one process of a role that is no child."""
    (found,) = [pid for pid in server.processes() if role(pid) == wanted and pid not in server.pids().values()]
    return found


@pytest.mark.promise(1, 46)
def test_children_are_replaced_although_the_zygote_was_killed(server: Server) -> None:
    with steady(server) as load:
        victim = server.pids()["cpu:0"]
        with breaking(server, load, 46, "the zygote is killed, and a child"):
            os.kill(server.zygote(), signal.SIGKILL)
            os.kill(victim, signal.SIGKILL)
            until(lambda: server.pids().get("cpu:0", victim) != victim, what="another child")


# --- the fetcher ------------------------------------------------------------------------------------------------------


class Site:
    """An origin of one text, which can be held up."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.origin = Origin("site", 0, self.faults, lambda request: Answer(200, request.path[1:], {}, Content(b"cat")))

    def url(self) -> str:
        return f"{self.origin.url}/cat.txt"


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.origin.close()


def test_a_job_that_waits_for_its_file_outlives_the_fetcher(server: Server, site: Site) -> None:
    def ask() -> Connection:
        connection.send("fetched", asset={"ref": site.url()})
        return connection

    with server.connect() as connection, steady(server) as load:
        assert text_of(ask().frame()) == "cat"
        fetcher = only(server, "gen_worker.fetch")
        with breaking(server, load, 26, "the fetcher is stopped, and goes on"):
            os.kill(fetcher, signal.SIGSTOP)
            ask()
            began = time.monotonic()
            until(lambda: time.monotonic() > began + STALL_S)
            os.kill(fetcher, signal.SIGCONT)
            assert text_of(connection.frame()) == "cat"
        site.faults.plan("*", Stall(1, 60.0), None)
        with breaking(server, load, 26, "the fetcher is killed in a download"):
            ask()
            until(lambda: len(site.origin.requests) == 3, what="the download")
            site.faults.clear()
            os.kill(fetcher, signal.SIGKILL)
            assert text_of(connection.frame()) == "cat"


# --- a child that is there and does nothing ---------------------------------------------------------------------------


@pytest.mark.promise(45, 47)
def test_a_child_that_was_stopped_goes_on_or_is_killed_with_its_job(server: Server) -> None:
    with steady(server) as load, server.connect() as connection:
        connection.send("gated", "resumed", text="resumed", gate="go")
        server.until_running("resumed")
        (home,) = server.homes("resumed")
        with breaking(server, load, 47, "a child is stopped, and goes on"):
            os.kill(home, signal.SIGSTOP)
            server.open("go")
            began = time.monotonic()
            until(lambda: time.monotonic() > began + STALL_S)
            os.kill(home, signal.SIGCONT)
            assert text_of(connection.frame()) == "resumed"
        connection.send("gated", "killed", gate="never")
        server.until_running("killed")
        (home,) = server.homes("killed")
        with breaking(server, load, 45, "a child is stopped, and its job killed"):
            os.kill(home, signal.SIGSTOP)
            assert server.client.kill("killed", now=True).outcome == "killed"
            assert connection.frame()["error"]["kind"] == "killed"


@pytest.mark.promise(45)
@pytest.mark.parametrize("function", ["hold-the-interpreter", "flood"])
def test_a_job_that_is_killed_costs_its_child_and_nobody_else_anything(server: Server, function: str) -> None:
    with (
        steady(server) as load,
        breaking(server, load, 45, f"`kill --now` of `{function}`"),
        server.connect() as connection,
    ):
        connection.send(function, "hung", gate="never")
        server.until_running("hung")
        began = time.monotonic()
        assert server.client.kill("hung", now=True).outcome == "killed"
        assert time.monotonic() - began < 3
        assert connection.frame()["error"]["kind"] == "killed"


@pytest.mark.promise(33)
def test_a_flood_on_standard_output_reaches_nobody_else(server: Server) -> None:
    with (
        steady(server) as load,
        breaking(server, load, 33, "a job floods its standard output"),
        server.connect() as connection,
    ):
        connection.send("flood", "flood", gate="dry")
        server.until_running("flood")
        began = time.monotonic()
        until(lambda: time.monotonic() > began + FLOOD_S)
        server.open("dry")
        assert int(text_of(connection.frame())) > 1 << 20


# --- clients ----------------------------------------------------------------------------------------------------------


@pytest.mark.promise(12)
def test_a_client_that_stops_reading_or_is_killed_costs_its_own_job(server: Server) -> None:
    with steady(server) as load:
        with breaking(server, load, 12, "a client stops reading its stream"), server.connect() as connection:
            connection.send("items", "unread", stream=True, text="x" * 1000, times=1_000_000)
            server.until_running("unread")
            began = time.monotonic()
            until(lambda: time.monotonic() > began + STALL_S)
        until(lambda: server.job("unread") is None, what="the end of what nobody reads")
        with breaking(server, load, 12, "a client is killed in its stream"):
            command = [*GEN_WORKER, "invoke", "items", "times=1000000", "--stream", "--socket", str(server.socket)]
            with subprocess.Popen(
                command, env=environment(server.folder), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
            ) as client:
                assert client.stdout is not None
                assert client.stdout.readline()
                client.kill()
            until(lambda: len(server.status().jobs) <= 4, what="the end of its job")
    until(lambda: server.status().jobs == [], what="the end of all jobs")


# --- the supervisor ---------------------------------------------------------------------------------------------------


@pytest.mark.promise(13)
def test_a_supervisor_that_is_killed_under_load_leaves_nothing_and_the_next_one_serves(tmp_path: Path) -> None:
    with chaotic(tmp_path) as server:
        load = Load(server)
        load.start()
        until(lambda: len(load.answers) > 100, what="the load")
        with server.connect() as connection:
            connection.send("hold-the-interpreter", "hung")
            server.until_running("hung")
            processes = server.processes()
            row = injected(13, "the supervisor is killed")
            began = time.monotonic()
            server.signal(signal.SIGKILL)
            until(lambda: not any(map(alive, processes)), 1.0, what="the end of every process")
            took_s = time.monotonic() - began
            assert connection.read() is None
        load.stop()
        assert max(Counter(each.request_id for each in load.answers).values()) == 1
    server.sidecar.unlink()
    with chaotic(tmp_path) as following:
        assert text_of(following.ask("echo", text="again")) == "again"
        survived(row, took_s)


@pytest.mark.promise(14)
def test_a_supervisor_that_is_told_to_end_under_load_answers_what_it_has_taken(tmp_path: Path) -> None:
    with chaotic(tmp_path) as server:
        load = Load(server)
        load.start()
        until(lambda: len(load.answers) > 100, what="the load")
        with server.connect() as connection:
            names = [f"{function}-{number}" for function in ("gated", "held") for number in range(8)]
            for each in names:
                connection.send(each.partition("-")[0], each, gate="never")
            until(lambda: len(server.status().jobs) >= len(names), what="the queue")
            processes = server.processes()
            row = injected(14, "the supervisor is told to end")
            began = time.monotonic()
            server.signal(signal.SIGTERM)
            answers = connection.frames(len(names))
            assert connection.read() is None
        assert server.process.wait(10) == 0
        took_s = time.monotonic() - began
        load.stop()
        assert {answer["error"]["kind"] for answer in answers.values()} == {"draining"}
        assert set(load.kinds()) <= {"ok", "draining"}
        assert max(Counter(each.request_id for each in load.answers).values()) == 1
        assert len(load.lost()) <= len(load.problems)  # what was sent into a socket that was closed already
        assert not [pid for pid in processes if alive(pid)]
        survived(row, took_s)
