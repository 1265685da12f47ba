"""What an orchestrator hears when a child dies, hangs or is killed: one result, and nothing of the others."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gen_worker_supervisor.memory.usage import tightest
from tests.scripted.entrypoint import CANARY, Driven, driven, until_ready
from tests.scripted.orchestrator import CANCELED, FATAL, OK, RETRYABLE
from tests.served import alive

pytestmark = [
    pytest.mark.process,
    pytest.mark.needs("grpc_tools"),
    pytest.mark.usefixtures("grpc_awake"),
]


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Driven]:
    with driven(tmp_path) as made:
        yield made


@pytest.mark.promise(1, 47)
@pytest.mark.parametrize(("how", "cause"), [("SIGSEGV", "SIGSEGV"), ("SIGKILL", "SIGKILL"), ("exit", "7")])
def test_a_dead_child_costs_its_job_one_answer_and_the_others_nothing(made: Driven, how: str, cause: str) -> None:
    sibling = made.ask("gated", gate="go", text="undisturbed")
    made.worker.until_running(sibling.request_id)
    job = made.ask("die", text=how, gate="now")
    made.worker.until_running(job.request_id)
    waiting = [made.ask("echo", text=str(number)) for number in range(5)]
    began = time.monotonic()
    made.worker.open("now")
    result = job.result()
    assert time.monotonic() - began < 1.5
    assert result.status == RETRYABLE
    assert cause in result.safe_message
    assert [each.output()["text"] for each in waiting] == [str(number) for number in range(5)]
    made.worker.open("go")
    assert sibling.output()["text"] == "undisturbed"
    made.connection.settle()
    assert made.orchestrator.of(job.request_id) == ["job_accepted", "job_result"]
    assert made.worker.runs()[job.request_id] == 1
    assert len(made.orchestrator.connections) == 1
    assert not made.connection.gone


@pytest.mark.promise(4)
def test_a_job_that_takes_the_last_of_the_memory_is_retryable_with_the_cause(tmp_path: Path) -> None:
    room = tightest()
    assert room is not None
    reserve = str(room.free + (2 << 30))  # who takes more than usual is over it from the start
    with driven(tmp_path, {"GEN_WORKER_MEMORY_RESERVE": reserve}) as made:
        job = made.ask("take-memory", times=200, gate="never")
        result = job.result()
        assert result.status == RETRYABLE
        assert "host_oom" in result.safe_message
        assert made.worker.runs()[job.request_id] == 1
        assert made.ask("echo", text="served").output()["text"] == "served"
        assert len(made.orchestrator.connections) == 1


@pytest.mark.promise(1)
def test_a_child_that_is_killed_from_outside_costs_its_job_one_answer(made: Driven) -> None:
    job = made.ask("gated", gate="never")
    made.worker.until_running(job.request_id)
    os.kill(made.worker.home(job.request_id), signal.SIGKILL)
    assert job.result().status == RETRYABLE
    assert made.ask("echo", text="served").output()["text"] == "served"


@pytest.mark.promise(1)
def test_a_stream_whose_child_dies_is_retryable_after_what_was_sent(made: Driven) -> None:
    job = made.ask("stream", text="die")
    result = job.result()
    assert result.status == RETRYABLE
    kinds = made.orchestrator.of(job.request_id)
    assert kinds[0] == "job_accepted"
    assert kinds[-1] == "job_result"
    assert kinds.count("job_result") == 1


@pytest.mark.promise(2)
def test_a_payload_that_kills_twice_is_never_run_a_third_time(made: Driven) -> None:
    for attempt in (1, 2):
        job = made.connection.run("die", {"text": "SIGSEGV"}, request_id="poison", attempt=attempt)
        assert job.result().status == RETRYABLE
    third = made.connection.run("die", {"text": "SIGSEGV"}, request_id="poison", attempt=3).result()
    assert third.status == FATAL
    assert made.worker.runs()["poison"] == 2
    assert made.ask("echo", text="fine").output()["text"] == "fine"


@pytest.mark.promise(6)
def test_a_job_that_hangs_past_its_deadline_costs_its_child_only(made: Driven) -> None:
    began = time.monotonic()
    job = made.connection.run("hang", {}, timeout_ms=300)
    made.worker.until_running(job.request_id)
    sibling = made.ask("echo", text="beside it")
    assert sibling.output()["text"] == "beside it"
    result = job.result()
    assert (result.status, result.safe_message) == (FATAL, "deadline exceeded")
    assert time.monotonic() - began < 8.3
    assert made.ask("echo", text="after it").output()["text"] == "after it"
    assert not made.connection.gone


@pytest.mark.promise(45)
def test_an_operator_kills_a_job_by_its_request_id(made: Driven) -> None:
    job = made.connection.run("hang", {}, request_id="stuck")
    made.worker.until_running("stuck")
    assert "stuck" in made.worker.gen_worker("ps").stdout
    told = json.loads(made.worker.gen_worker("ps", "--json").stdout)
    assert (told["link"]["state"], told["link"]["addr"]) == ("connected", f"grpc://{made.orchestrator.address}")
    killed = made.worker.gen_worker("kill", "stuck", "--now")
    assert killed.returncode == 0, killed.stderr
    result = job.result()
    assert result.status == CANCELED
    assert "killed" in result.safe_message
    assert made.orchestrator.of("stuck") == ["job_accepted", "job_result"]
    assert made.ask("echo", text="fine").output()["text"] == "fine"


def test_a_function_whose_setup_fails_is_told_and_the_others_serve(tmp_path: Path) -> None:
    with driven(tmp_path, {"WIRED_SETUP": "broken"}, ready=False) as made, made.worker.explained():
        gate = made.connection.expect("fn_unavailable", function_name="prepared")
        assert gate.reason == "setup_failed"
        assert "no weights today" in gate.detail
        job = made.ask("prepared")
        assert job.result().status == RETRYABLE
        assert made.ask("echo", text="others serve").output()["text"] == "others serve"


@pytest.mark.promise(49)
def test_a_cancel_while_the_instance_is_being_set_up_is_not_lost(tmp_path: Path) -> None:
    with driven(tmp_path, {"WIRED_SETUP": "weights"}, ready=False) as made, made.worker.explained():
        loading = made.connection.expect("state_delta", where=lambda state: "prepared" in state.loading_functions)
        assert "prepared" not in loading.available_functions
        job = made.ask("prepared")
        job.accepted()
        job.cancel()
        result = job.result()
        assert (result.status, result.safe_message) == (CANCELED, "canceled")
        made.worker.open("weights")
        until_ready(made.connection)
        assert made.ask("prepared", text="fine").output()["text"] == "fine"
        assert made.worker.runs()[job.request_id] == 0


@pytest.mark.promise(13)
def test_a_worker_that_is_killed_leaves_no_process(made: Driven) -> None:
    running = made.ask("hang")
    made.worker.until_running(running.request_id)
    pids = made.worker.descendants()
    assert len(pids) >= 3
    os.kill(made.worker.pid, signal.SIGKILL)
    made.worker.wait()
    made.worker.until(lambda: not any(alive(pid) for pid in pids), "the end of its processes", 2)
    made.connection.until_gone()


@pytest.mark.promise(39)
def test_no_secret_of_the_worker_is_where_others_can_read_it(made: Driven) -> None:
    secret = f"job-{CANARY}"
    run = made.connection.run("echo", {}, capability_token=secret, tenant="acme")
    run.result()
    made.connection.run("die", {"text": "SIGSEGV"}, capability_token=secret).result()
    made.ask("fail", text="secret").result()
    assert made.ask("echo").result().status == OK
    shown = [made.worker.gen_worker(*command).stdout for command in (("ps",), ("ps", "--json"))]
    assert CANARY not in "".join(shown)
    for pid in made.worker.descendants():
        for what in ("environ", "cmdline"):
            assert CANARY.encode() not in Path(f"/proc/{pid}/{what}").read_bytes(), (pid, what)
    assert CANARY.encode() not in Path(f"/proc/{made.worker.pid}/cmdline").read_bytes()
    made.connection.send(drain={"deadline_ms": 5000})
    assert made.worker.wait() == 0
    leaks = [
        str(path) for path in made.worker.folder.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()
    ]
    assert leaks == []
