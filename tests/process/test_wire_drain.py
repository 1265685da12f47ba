"""The end of a worker: what runs may end, nothing new begins, every result leaves."""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.scripted.entrypoint import Driven, driven, until_draining
from tests.scripted.orchestrator import OK, RETRYABLE

pytestmark = [
    pytest.mark.process,
    pytest.mark.needs("grpc_tools"),
    pytest.mark.usefixtures("grpc_awake"),
]


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Driven]:
    with driven(tmp_path) as made:
        yield made


def by_message(made: Driven) -> None:
    made.connection.send(drain={"deadline_ms": 20_000})


def by_signal(made: Driven) -> None:
    made.worker.process.send_signal(signal.SIGTERM)


@pytest.mark.promise(14)
@pytest.mark.parametrize("begin", [by_message, by_signal])
def test_what_runs_ends_and_nothing_new_begins(made: Driven, begin: Callable[[Driven], None]) -> None:
    job = made.ask("gated", gate="go", text="in time")
    made.worker.until_running(job.request_id)
    begin(made)
    until_draining(made.connection)
    late = made.ask("echo")
    result = late.result()
    assert (result.status, result.safe_message) == (RETRYABLE, "worker draining")
    assert made.orchestrator.of(late.request_id) == ["job_result"]
    made.worker.open("go")
    assert job.output()["text"] == "in time"
    assert made.worker.wait() == 0
    made.connection.until_gone()
    assert made.connection.half_closed
    assert len(made.orchestrator.connections) == 1


@pytest.mark.promise(14)
def test_what_has_not_ended_in_time_is_to_be_run_elsewhere(made: Driven) -> None:
    jobs = [made.ask("gated", gate="never") for _ in range(2)]
    made.worker.until_running(*(job.request_id for job in jobs))
    waiting = made.ask("gated", gate="never")
    waiting.accepted()
    began = time.monotonic()
    made.connection.send(drain={"deadline_ms": 300})
    for job in (*jobs, waiting):
        result = job.result()
        assert (result.status, result.safe_message) == (RETRYABLE, "worker draining")
    assert made.worker.wait() == 0
    assert time.monotonic() - began < 10
    assert made.worker.runs()[waiting.request_id] == 0
    assert made.connection.half_closed


def test_an_idle_worker_leaves_at_once(made: Driven) -> None:
    began = time.monotonic()
    made.connection.send(drain={"deadline_ms": 0})
    assert made.worker.wait() == 0
    assert time.monotonic() - began < 5
    assert not made.worker.descendants()


@pytest.mark.promise(14)
def test_a_second_signal_ends_it_within_two_seconds(made: Driven) -> None:
    job = made.ask("hang")
    made.worker.until_running(job.request_id)
    made.worker.process.send_signal(signal.SIGTERM)
    until_draining(made.connection)
    began = time.monotonic()

    def ended() -> bool:
        made.worker.process.send_signal(signal.SIGTERM)  # two that come at once are one wish
        return made.worker.process.poll() is not None

    made.worker.until(ended, "its end")
    assert time.monotonic() - began < 3


@pytest.mark.promise(14)
def test_a_result_that_nobody_hears_is_offered_again_before_it_leaves(made: Driven) -> None:
    job = made.ask("gated", gate="go", text="flushed")
    made.worker.until_running(job.request_id)
    made.worker.process.send_signal(signal.SIGTERM)
    until_draining(made.connection)
    again = made.redial()
    assert not again.connection.hello.state.available_functions
    made.worker.open("go")
    assert job.result().status == OK
    assert made.worker.wait() == 0
