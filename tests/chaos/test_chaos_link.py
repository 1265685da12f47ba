"""A worker under load whose network, orchestrator and children fail: each job ends once, and runs as often as asked."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.results import injected, survived
from tests.scripted.entrypoint import Worker, until_ready, working
from tests.scripted.orchestrator import OK, PATIENCE_S, RETRYABLE, Asked, Connection, Message, ScriptedOrchestrator
from tests.scripted.proxy import Proxy
from tests.served import until

pytestmark = [
    pytest.mark.process,
    pytest.mark.needs("grpc_tools"),
    pytest.mark.usefixtures("grpc_awake"),
    pytest.mark.quiet,
]

JOBS = {"echo": 12, "steps": 6, "ticks": 6, "gated-async": 6}
HELD = "gated-async"
BACK_S = 40.0  # the longest pause before a worker dials again, and what it takes to begin
STALL_S = 0.8
TOLD_S = 1.0


class Platform:
    """What drives a worker: an orchestrator, which may be started again, behind a network that fails."""

    def __init__(self, folder: Path) -> None:
        self.orchestrators = [ScriptedOrchestrator()]
        self.proxy = Proxy(self.now.address)
        self.folder = folder

    @property
    def now(self) -> ScriptedOrchestrator:
        """The orchestrator that there is."""
        return self.orchestrators[-1]

    def close(self) -> None:
        """End the network and whoever drives."""
        self.proxy.close()
        self.now.close()

    def results(self, job: Asked) -> list[Message]:
        """Return the results of one attempt, whoever heard them."""
        return [each for every in self.orchestrators for each in every.results(job.request_id, job.attempt)]

    def again(self, jobs: list[Asked]) -> Connection:
        """Take the next connection, and ask again for what is neither held nor answered."""
        connection = self.now.greet(BACK_S)
        held = {(each.request_id, each.attempt) for each in connection.hello.in_flight}
        for job in jobs:
            if (job.request_id, job.attempt) not in held and not self.results(job):
                job.again(connection)
        return connection

    def ended(self, job: Asked) -> Message:
        """Wait for the result of an attempt."""
        return until(lambda: self.results(job), PATIENCE_S, what=f"the result of {job.request_id}")[0]


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    made = Platform(tmp_path)
    yield made
    made.close()


# --- what fails -------------------------------------------------------------------------------------------------------


def reset(platform: Platform, worker: Worker, connection: Connection, jobs: list[Asked]) -> Connection:
    platform.proxy.reset()
    connection.until_gone()
    return platform.again(jobs)


def cut(platform: Platform, worker: Worker, connection: Connection, jobs: list[Asked]) -> Connection:
    platform.proxy.cut_after(500)
    jobs.append(connection.run("echo", {"text": "x" * 8000}, request_id="filler"))
    connection.until_gone()
    return platform.again(jobs)


def stall(platform: Platform, worker: Worker, connection: Connection, jobs: list[Asked]) -> Connection:
    platform.proxy.stall()
    began = time.monotonic()
    until(lambda: time.monotonic() > began + STALL_S)
    platform.proxy.resume()
    return connection


def restart(platform: Platform, worker: Worker, connection: Connection, jobs: list[Asked]) -> Connection:
    before = platform.now
    platform.proxy.reset()
    before.close()
    platform.orchestrators.append(ScriptedOrchestrator(address=before.address))
    return platform.again(jobs)


def kill(platform: Platform, worker: Worker, connection: Connection, jobs: list[Asked]) -> Connection:
    waiting = [job for job in jobs if job.function == HELD]
    victim = worker.home(waiting[0].request_id)
    began = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    assert platform.ended(waiting[0]).status == RETRYABLE
    assert time.monotonic() - began < TOLD_S
    return connection


Fault = Callable[[Platform, Worker, Connection, list[Asked]], Connection]
FAULTS: dict[str, tuple[int, Fault]] = {
    "the link is reset": (15, reset),
    "the link is cut in a message": (15, cut),
    "the link stalls, and goes on": (16, stall),
    "the orchestrator is started again": (15, restart),
    "a child is killed beside the link": (47, kill),
}


def asked(connection: Connection, name: str, gate: str) -> list[Asked]:
    """Send jobs of all kinds, some of which wait for the gate."""
    return [
        connection.run(
            function, {"times": 20, "gate": gate if function == HELD else ""}, request_id=f"{name}-{function}-{number}"
        )
        for function, count in JOBS.items()
        for number in range(count)
    ]


def last_attempt(platform: Platform, connection: Connection, job: Asked) -> Asked:
    """Ask again, as an orchestrator does, until an attempt ends otherwise than to be tried again."""
    while platform.ended(job).status == RETRYABLE:
        job = connection.run(job.function, job.payload, request_id=job.request_id, attempt=job.attempt + 1)
    return job


@pytest.mark.promise(15, 16, 21, 47)
def test_whatever_fails_around_a_worker_each_job_ends_once(platform: Platform, tmp_path: Path) -> None:
    with working(tmp_path, platform.proxy.address) as worker, worker.explained():
        connection = platform.now.greet()
        until_ready(connection)
        for number, (fault, (promise, inject)) in enumerate(FAULTS.items()):
            gate = f"gate-{number}"
            jobs = asked(connection, f"fault-{number}", gate)
            worker.until_running(*(job.request_id for job in jobs if job.function == HELD))
            row = injected(promise, fault)
            streams, began = len(platform.now.connections), time.monotonic()
            connection = inject(platform, worker, connection, jobs)
            took_s = time.monotonic() - began
            worker.open(gate)
            for job in jobs:
                last = last_attempt(platform, connection, job)
                found = platform.results(last)
                assert found[0].status == OK, found[0]
                assert {each.SerializeToString() for each in found} == {found[0].SerializeToString()}
                assert worker.runs()[job.request_id] <= last.attempt, job.request_id
            if inject in (kill, stall):
                assert len(platform.now.connections) == streams
                assert not connection.gone
            survived(row, took_s)
