"""A connection that is cut anywhere: each accepted attempt is answered once, and nothing is lost or run twice."""

from pathlib import Path

import grpc
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.scripted.entrypoint import Worker, driven, until_ready, working
from tests.scripted.orchestrator import OK, PATIENCE_S, Asked, Connection, ScriptedOrchestrator
from tests.scripted.proxy import Proxy

pytestmark = [pytest.mark.process, pytest.mark.needs("grpc_tools")]
RESUMED_S = 40.0  # the longest back-off, and what it takes to begin


JOBS = st.lists(
    st.tuples(st.sampled_from(["echo", "gated-async", "ticks", "steps"]), st.integers(0, 3)), min_size=1, max_size=8
)


def again(orchestrator: ScriptedOrchestrator, jobs: list[Asked]) -> Connection:
    """Take the next connection as an orchestrator does: ask again for what is neither held nor answered."""
    connection = orchestrator.greet(RESUMED_S)
    held = {(each.request_id, each.attempt) for each in connection.hello.in_flight}
    for job in jobs:
        if (job.request_id, job.attempt) not in held and not orchestrator.results(job.request_id, job.attempt):
            job.again(connection)
    return connection


def until_heard(connection: Connection, count: int, jobs: list[Asked]) -> None:
    """Wait until so many messages have come, or as many as ever will."""
    orchestrator = connection.orchestrator

    def heard() -> bool:
        return len(connection.said()) >= count or all(orchestrator.results(job.request_id) for job in jobs)

    orchestrator.until(heard, PATIENCE_S, "too few messages")


def check(orchestrator: ScriptedOrchestrator, worker: Worker, jobs: list[Asked]) -> None:
    """Each attempt is answered well and, however often, the same; its progress is in order, and it ran once."""
    for job in jobs:
        job.result()
    runs = worker.runs()
    for job in jobs:
        results = orchestrator.results(job.request_id)
        assert {each.SerializeToString() for each in results} == {results[0].SerializeToString()}
        assert results[0].status == OK
        numbers = [each.message.seq for each in orchestrator.told("job_progress", **job.pair)]
        assert numbers == sorted(set(numbers))
        assert runs[job.request_id] == 1, job.request_id


@pytest.mark.promise(15)
@settings(max_examples=5, deadline=None, derandomize=True, phases=[Phase.generate])  # a failure costs 20 s
@given(asked=JOBS, cuts=st.lists(st.integers(0, 12), min_size=1, max_size=2))
def test_a_stream_that_ends_between_messages_loses_nothing(
    grpc_awake: None, tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[str, int]], cuts: list[int]
) -> None:
    """The orchestrator leaves after so many messages."""
    with driven(tmp_path_factory.mktemp("wired")) as (orchestrator, worker, connection), worker.explained():
        jobs = [
            connection.run(function, {"times": times if function != "ticks" else times + 1, "gate": "open"})
            for function, times in asked
        ]
        worker.open("open")
        for count in cuts:
            until_heard(connection, len(connection.said()) + count, jobs)
            connection.end(grpc.StatusCode.UNAVAILABLE, "restarting")
            connection = again(orchestrator, jobs)
        check(orchestrator, worker, jobs)


@pytest.mark.promise(15)
@pytest.mark.parametrize("seed", range(3))
def test_a_network_that_cuts_anywhere_loses_nothing(grpc_awake: None, tmp_path: Path, seed: int) -> None:
    with (
        ScriptedOrchestrator() as orchestrator,
        Proxy(orchestrator.address) as proxy,
        working(tmp_path, proxy.address) as worker,
        worker.explained(),
    ):
        connection = orchestrator.greet()
        until_ready(connection)
        connection.settle()
        jobs = [connection.run("echo", {"text": str(number)}) for number in range(20)]
        jobs += [connection.run("ticks", {"times": 50}) for _ in range(3)]
        held = connection.run("gated-async", {"gate": "open"})
        for count in (50 + 317 * seed, 400 + 911 * seed):
            proxy.cut_after(count)
            connection.run("echo", {"text": "x" * 8000}, request_id=f"filler-{count}")  # something has to come back
            connection.until_gone()
            connection = again(orchestrator, [*jobs, held])
        worker.open("open")
        check(orchestrator, worker, [*jobs, held])
