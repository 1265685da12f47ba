"""Jobs that do their worst to their own process and to what they were given: each costs itself, and nobody else."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest

from tests.served import PATIENCE_S, Serve, Server, alive, descriptors, until
from tests.witness import Witness

pytestmark = [pytest.mark.process, pytest.mark.quiet]
LAG_S = 0.05
WITNESS_P99_S = 0.1
BIG = "x" * 200_000  # lies in shared memory on its way in and out


class Case(NamedTuple):
    """What a job does, and what becomes of it."""

    how: str
    ends: str
    """How it is answered: `ok`, or the kind of its error."""

    cause: str = ""
    """What the error names."""

    children: int = 1
    """How many it may run in."""

    rung: int = 0
    """The rung at which an operator's kill ends it; 0: it ends by itself."""


HANGS = [
    Case("hold_the_interpreter", "killed", rung=4),
    Case("match_for_ever", "killed", rung=4),
    Case("sleep_in_c", "killed", rung=4),
    Case("spin", "killed", rung=4),
    Case("spin_deaf", "killed", rung=5),
    Case("stop", "killed", rung=5),
]
DEATHS = [
    Case("segfault", "child_died", "SIGSEGV", children=2),
    Case("close_everything", "child_died", "its socket is closed and it lives on", children=2),
]
FRAMES = [
    Case("half_a_frame", "child_died", "protocol", children=2),
    Case("close_the_socket", "child_died", "exit code 1", children=2),
    Case("another_generation", "ok"),
    Case("flood_with_another_generation", "child_died", "frames of another generation", children=2),
    Case("flood_the_socket", "ok"),
]
DAEMONS = [
    Case("leave_a_daemon", "child_died", "exit code 7", children=2),
    Case("leave_a_daemon_that_talks", "child_died", "exit code 7", children=2),
]
MEMORY = [
    Case("truncate_every_memory", "ok"),
    Case("scribble_over_every_memory", "ok"),
    Case("map_and_punch", "ok"),
]
STREAMS = [Case("flood", "ok"), Case("close_the_standard_streams", "ok")]
GROUPS = {
    "hangs": HANGS,
    "deaths": DEATHS,
    "frames": FRAMES,
    "memory": MEMORY,
    "streams": STREAMS,
}


@contextmanager
def unharmed(server: Server) -> Iterator[None]:
    """Whoever asks meanwhile is answered, and afterwards nothing is left and every child is there."""
    server.until_idle()
    before = plain_descriptors(server)
    with Witness(server, field="how") as witness:
        witness.until_served()
        yield
        witness.until_served()
    assert witness.wrong == []
    assert witness.p99_s() < WITNESS_P99_S
    server.until_idle()
    until(lambda: plain_descriptors(server) <= before, what="no descriptor more than before")
    lag = server.status().loop_lag_p99_s
    assert lag is not None
    assert lag < LAG_S
    assert "Traceback" not in server.log()


def plain_descriptors(server: Server) -> int:
    """Return how many descriptors it has open, without the memory that it keeps for its children's next bodies."""
    return len([each for each in descriptors(server.pid) if not each.startswith("/memfd:")])


@pytest.mark.promise(1, 2, 7, 9, 31, 33, 43, 45)
@pytest.mark.parametrize("group", GROUPS)
def test_jobs_that_do_their_worst_cost_themselves_only(serve: Serve, group: str) -> None:
    server = serve(module="hostile", devices="cpu:2", variables={"GEN_WORKER_QUARANTINE_S": "0"})
    processes = len(server.processes())
    for case in GROUPS[group]:
        with unharmed(server):
            meet(server, case)
    until(lambda: len(server.processes()) <= processes, what="no process more than before")


@pytest.mark.promise(1, 9, 13)
def test_daemons_that_hold_what_their_child_had_cost_its_job_only_and_end_with_the_supervisor(serve: Serve) -> None:
    server = serve(module="hostile", devices="cpu:2", variables={"GEN_WORKER_QUARANTINE_S": "0"})
    for case in DAEMONS:
        with unharmed(server):
            meet(server, case)
    daemons = [int(pid) for pid in (server.folder / "daemons").read_text().split()]
    assert len(daemons) == 4
    server.signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE_S) == 0
    until(lambda: not any(map(alive, daemons)), what="the end of the daemons")


@pytest.mark.promise(32)
def test_a_child_whose_job_has_taken_every_descriptor_costs_the_next_job_nothing(serve: Serve) -> None:
    server = serve(module="hostile")
    with server.connect() as connection:
        connection.send("harm", "greedy", how="take_every_descriptor")
        assert ending(connection.frame()) == "ok"
        connection.send("echo", "next", how="big", data=BIG)
        frame = connection.frame()
        assert ending(frame) == "ok", frame
    assert "this process may open no more files" in server.log()


def meet(server: Server, case: Case) -> None:
    """Run a job of this kind; it is answered once, as it should be."""
    name, rung = case.how, 0
    with server.connect() as connection:
        connection.send("harm", name, how=case.how, data=BIG)
        if case.rung:
            server.until_running(name)
            rung = server.client.kill(name, now=True).rung or 0
        frame = connection.frame()
        assert connection.is_silent()
    assert (frame["request_id"], ending(frame), rung) == (name, case.ends, case.rung), frame
    assert len(set(server.homes(name))) <= case.children
    assert case.ends == "ok" or case.cause in frame["error"]["message"], frame


def ending(frame: dict[str, Any]) -> str:
    """Return how a request was answered."""
    return "ok" if frame["ok"] else str(frame["error"]["kind"])
