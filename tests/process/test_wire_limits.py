"""What a worker takes and sends at most, and what it does when its orchestrator does not listen."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scripted.entrypoint import Driven, driven
from tests.scripted.orchestrator import INVALID, OK, RETRYABLE

pytestmark = [
    pytest.mark.process,
    pytest.mark.needs("grpc_tools"),
    pytest.mark.usefixtures("grpc_awake"),
]
MIB = 1 << 20


@pytest.fixture(scope="module")
def shared(grpc_awake: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driven]:
    """One worker for all tests of this module that change none of its settings."""
    with driven(tmp_path_factory.mktemp("wired")) as made:
        yield made


def resident(pid: int) -> int:
    """Return the bytes that a process has resident."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


# --- an orchestrator that does not listen -----------------------------------------------------------------------------


@pytest.mark.promise(12)
def test_a_stream_waits_for_an_orchestrator_that_does_not_read(shared: Driven) -> None:
    shared.connection.hold()
    job = shared.ask("ticks", text="t" * 4000, times=2000)
    shared.worker.until_running(job.request_id)
    before = resident(shared.worker.pid)
    beside = shared.ask("gated", gate="beside")  # what another job does goes on
    shared.worker.until_running(beside.request_id)
    shared.worker.open("beside")
    assert resident(shared.worker.pid) - before < 8 * MIB
    shared.connection.resume()
    assert job.result().status == OK
    pieces = [each.message for each in shared.orchestrator.told("job_progress", **job.pair)]
    assert [json.loads(each.data)["number"] for each in pieces] == list(range(1, 2001))
    assert beside.result().status == OK


@pytest.mark.promise(12)
def test_no_result_is_dropped_however_long_nobody_reads(shared: Driven) -> None:
    shared.connection.hold()
    jobs = [shared.ask("echo", text="x" * 1000) for _ in range(3000)]
    shared.worker.until_running(jobs[0].request_id)
    shared.connection.resume()
    assert all(job.result().status == OK for job in jobs)
    runs = shared.worker.runs()
    assert all(runs[job.request_id] == 1 for job in jobs)


def test_long_payloads_and_outputs_travel(shared: Driven) -> None:
    """The orchestrator has no store, so that the output comes with the result."""
    job = shared.ask("echo", text="x" * (32 * MIB))
    assert len(job.output()["text"]) == 32 * MIB
    assert shared.ask("echo", text="fine").output()["text"] == "fine"


@pytest.mark.promise(36)
def test_bombs_cost_the_supervisor_nothing(shared: Driven) -> None:
    before = resident(shared.worker.pid)
    jobs = [shared.connection.run("read-depth", b"\x81\xa5inner\x91" * 200_000) for _ in range(10)]
    assert {job.result().status for job in jobs} == {INVALID}
    assert resident(shared.worker.pid) - before < 48 * MIB  # undecoded, they are 16 MiB


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.promise(35)
def test_limits_are_kept_and_named(tmp_path: Path) -> None:
    limits = {"WORKER_MAX_INPUT_BYTES": "10k", "WORKER_MAX_OUTPUT_BYTES": "20k", "WORKER_MAX_UPLOAD_BYTES": "1k"}
    with driven(tmp_path, limits, file_base_url="http://127.0.0.1:1") as made, made.worker.explained():
        refused = made.ask("echo", text="x" * 11_000)
        result = refused.result()
        assert result.status == INVALID
        assert "WORKER_MAX_INPUT_BYTES" in result.safe_message
        assert made.worker.runs()[refused.request_id] == 0
        result = made.ask("repeat", text="0123456789", times=3000).result()
        assert result.status == INVALID
        assert "WORKER_MAX_OUTPUT_BYTES" in result.safe_message
        saved = made.connection.run("save", {"text": "large.bin", "times": 2000}, capability_token="t")
        result = saved.result()
        assert result.status == INVALID
        assert "WORKER_MAX_UPLOAD_BYTES" in result.safe_message
        assert made.ask("echo", text="fine").output()["text"] == "fine"


@pytest.mark.promise(34)
@pytest.mark.parametrize(
    ("name", "taken", "text"),
    [
        ("WORKER_MAX_CONCURRENCY", 3, "worker busy"),
        (
            "GEN_WORKER_MAX_QUEUED",
            5,
            "3 jobs wait already, the limit is 3 (`GEN_WORKER_MAX_QUEUED`); try again in S s",
        ),  # two run
    ],
)
def test_a_worker_that_has_enough_to_do_says_so_at_once(tmp_path: Path, name: str, taken: int, text: str) -> None:
    with driven(tmp_path, {name: "3"}) as made, made.worker.explained():
        jobs = [made.ask("gated", gate="go") for _ in range(8)]
        refused = [made.orchestrator.expect("job_result") for _ in range(8 - taken)]
        told = {(each.status, re.sub(r"in [\d.]+ s", "in S s", each.safe_message)) for each in refused}
        assert told == {(RETRYABLE, text)}
        made.worker.open("go")
        for job in jobs:
            if job.request_id not in {each.request_id for each in refused}:
                assert job.result().status == OK
