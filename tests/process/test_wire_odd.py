"""What an orchestrator or a job does oddly costs one job at most: the worker, its devices and its children serve on."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gen_worker.testing import LoopbackStore, Stall
from tests.scripted.entrypoint import Driven, driven, token
from tests.scripted.orchestrator import CANCELED, FATAL, INVALID, OK, RETRYABLE, Asked
from tests.served import alive

pytestmark = [
    pytest.mark.process,
    pytest.mark.needs("grpc_tools"),
    pytest.mark.usefixtures("grpc_awake"),
]
DEVICES = (0, 1)
ONE_WISH_S = 0.25  # two signals that come at once are one wish
AT_ONCE_S = 5.0  # not the 30 s for which the store says nothing
LONG = {"text": "0123456789", "times": 7000}  # an output that is stored


@pytest.fixture(scope="module")
def shared(grpc_awake: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driven]:
    """One worker with two devices, whose fetcher has been used, for the tests that cost it no process."""
    with LoopbackStore() as store, driven(tmp_path_factory.mktemp("wired"), file_base_url=store.url) as made:
        with made.worker.explained():
            assert storing(made, store).result().status == OK
        yield made


@pytest.fixture
def made(shared: Driven) -> Driven:
    """The shared worker on its latest connection."""
    return shared._replace(connection=shared.orchestrator.connections[-1])


def on_device(made: Driven, index: int, function: str, request_id: str = "", **payload: Any) -> Asked:
    """Send a job for the device of this number."""
    compute = {"accelerator": "cuda", "gpu_index": index, "gpu_count": 1}
    return made.connection.run(function, payload, request_id=request_id, compute=compute)


def pid_of(made: Driven, index: int) -> int:
    """Return in which process the device of this number runs a plain function."""
    return int(on_device(made, index, "echo").output(AT_ONCE_S)["pid"])


# --- how a job is named -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [257, 70_000, 1_000_000])
def test_a_request_id_that_is_too_long_is_invalid_and_costs_no_device(made: Driven, length: int) -> None:
    job = made.ask("echo", "z" * length)
    result = job.result(AT_ONCE_S)
    assert result.status == INVALID
    assert f"{length} characters, the limit is 256" in result.safe_message
    assert made.orchestrator.of(job.request_id) == ["job_result"]
    assert len({pid_of(made, index) for index in DEVICES}) == len(DEVICES)


def test_payloads_of_any_length_fit_beside_a_long_request_id(made: Driven) -> None:
    jobs = [
        on_device(made, length % 2, "repeat", f"{'ü' * 120}{length}", text="x" * length)
        for length in range(48_001, 66_000, 601)
    ]
    for job in jobs:
        assert job.result(AT_ONCE_S).status == OK
    assert len({pid_of(made, index) for index in DEVICES}) == len(DEVICES)


@pytest.mark.parametrize("request_id", ["../../escape", "a/../../../escape", "a\\..\\escape"])
def test_a_request_id_that_leads_out_of_the_results_is_invalid(
    made: Driven, store: LoopbackStore, request_id: str
) -> None:
    job = storing(made, store, request_id=request_id)
    result = job.result(AT_ONCE_S)
    assert result.status == INVALID
    assert result.safe_message
    assert made.orchestrator.of(request_id) == ["job_result"]
    assert not store.seen("*")


# --- where a job runs -------------------------------------------------------------------------------------------------


def test_the_orchestrator_chooses_the_device_of_a_plain_function_too(made: Driven) -> None:
    homes = [pid_of(made, index) for index in DEVICES]
    assert len(set(homes)) == len(DEVICES)
    for index, home in enumerate(homes):
        gate = f"device {index}"
        running = on_device(made, index, "gated", gate=gate)
        made.worker.until_running(running.request_id)
        waiting = on_device(made, index, "echo")
        assert pid_of(made, 1 - index) == homes[1 - index]
        assert made.orchestrator.of(waiting.request_id) == ["job_accepted"]  # though the other device is free
        made.worker.open(gate)
        assert [job.output()["pid"] for job in (running, waiting)] == [home, home]


def test_a_plain_function_is_not_run_in_place_of_a_device_that_is_not_there(made: Driven) -> None:
    job = on_device(made, 7, "echo")
    result = job.result()
    assert (result.status, result.safe_message) == (RETRYABLE, "no GPU 7 on this worker, which has 2")
    assert made.worker.runs()[job.request_id] == 0


# --- what a job costs those beside it and after it --------------------------------------------------------------------


def test_a_job_that_uses_up_all_descriptors_is_answered_and_its_child_lives(made: Driven) -> None:
    home = pid_of(made, 0)
    try:
        assert on_device(made, 0, "hoard").output() == {"text": "Too many open files", "pid": home}
        assert on_device(made, 0, "repeat", text="x", times=3).output() == {"text": "xxx", "pid": home}
    finally:
        on_device(made, 0, "hoard", text="give back").result()
    assert alive(home)


def test_a_job_that_is_killed_at_once_costs_one_beside_it_this_attempt_and_no_second_run(tmp_path: Path) -> None:
    with driven(tmp_path, {"GEN_WORKER_DEVICES": "cpu:1"}) as made, made.worker.explained():
        killed, beside = (made.ask("gated-async", gate="never") for _ in range(2))
        made.worker.until_running(killed.request_id, beside.request_id)
        home = made.worker.home(killed.request_id)
        assert made.worker.home(beside.request_id) == home
        assert made.worker.gen_worker("kill", killed.request_id, "--now").returncode == 0
        assert killed.result().status == CANCELED
        result = beside.result(AT_ONCE_S)
        assert result.status == RETRYABLE
        assert result.safe_message.startswith("its child was ended with another job in it")
        assert made.ask("echo").output()["pid"] != home
        assert made.worker.runs()[beside.request_id] == 1
        assert made.orchestrator.of(beside.request_id) == ["job_accepted", "job_result"]


def test_a_later_attempt_runs_where_only_one_job_may_be_held(tmp_path: Path) -> None:
    with driven(tmp_path, {"WORKER_MAX_CONCURRENCY": "1"}) as made, made.worker.explained():
        made.connection.run("polite", request_id="fenced")
        made.worker.until_running("fenced")
        assert made.ask("echo").result().safe_message == "worker busy"
        job = made.connection.run("echo", {"text": "second"}, request_id="fenced", attempt=2)
        assert job.output()["text"] == "second"
        made.connection.settle()
        assert made.orchestrator.of("fenced", 1) == ["job_accepted"]
        assert made.orchestrator.of("fenced", 2) == ["job_accepted", "job_result"]


# --- a store that says nothing ----------------------------------------------------------------------------------------


@pytest.fixture
def store(made: Driven) -> Iterator[LoopbackStore]:
    """The store to which long outputs go."""
    with LoopbackStore() as store:
        made.connection.acknowledge(file_base_url=store.url)
        yield store


def storing(made: Driven, store: LoopbackStore, **fields: Any) -> Asked:
    """Send a job whose output is stored."""
    return made.connection.run("repeat", LONG, capability_token=store.token, tenant="acme", **fields)


def stalled(made: Driven, store: LoopbackStore, **fields: Any) -> Asked:
    """Send a job whose output is stored, to a store that falls silent in the middle; return once that has begun."""
    store.fail("part:*", Stall(10, 30.0), times=1)
    job = storing(made, store, **fields)
    made.worker.until(lambda: store.seen("part:*"), "an upload")
    return job


def test_a_cancel_ends_a_job_whose_output_is_being_stored(made: Driven, store: LoopbackStore) -> None:
    job = stalled(made, store)
    job.cancel()
    result = job.result(AT_ONCE_S)
    assert (result.status, result.safe_message, result.blob_ref) == (CANCELED, "canceled", "")
    made.worker.until(lambda: not store.uploads, "the end of the upload")
    assert not store.files


def test_a_deadline_ends_a_job_whose_output_is_being_stored(made: Driven, store: LoopbackStore) -> None:
    began = time.monotonic()
    job = stalled(made, store, timeout_ms=1000)
    result = job.result(AT_ONCE_S)
    assert (result.status, result.safe_message, result.blob_ref) == (FATAL, "deadline exceeded", "")
    assert time.monotonic() - began >= 1.0
    made.worker.until(lambda: not store.uploads, "the end of the upload")


def test_a_later_attempt_begins_while_the_output_of_the_one_before_is_being_stored(
    made: Driven, store: LoopbackStore
) -> None:
    first = stalled(made, store, request_id="stored-anew")
    second = storing(made, store, request_id="stored-anew", attempt=2)
    result = second.result(AT_ONCE_S)
    assert (result.status, result.blob_ref) == (OK, "results/stored-anew.msgpack")
    assert msgspec.msgpack.decode(store.files[result.blob_ref].content)["text"] == "0123456789" * 7000
    made.connection.settle()
    assert made.orchestrator.of(first.request_id, 1) == ["job_accepted"]


def test_a_device_takes_the_next_job_while_the_output_of_the_one_before_is_being_stored(
    made: Driven, store: LoopbackStore
) -> None:
    store.fail("part:*", Stall(10, 30.0), times=1)
    there = {"accelerator": "cuda", "gpu_index": 1}
    text = {"text": "0123456789" * 7000}
    stored = made.connection.run("on-device", text, capability_token=store.token, tenant="acme", compute=there)
    made.worker.until(lambda: store.seen("part:*"), "an upload")
    assert made.connection.run("on-device", {"text": "next"}, compute=there).output(AT_ONCE_S)["text"] == "next"
    assert made.orchestrator.of(stored.request_id) == ["job_accepted"]
    stored.cancel()
    assert stored.result(AT_ONCE_S).status == CANCELED


# --- the connection ---------------------------------------------------------------------------------------------------


def test_a_new_token_that_is_no_line_of_text_is_refused_and_the_old_one_is_shown(shared: Driven, made: Driven) -> None:
    shown = made.connection.metadata["authorization"]
    for odd in ("two\nlines", "two\r\nx-name: value", "nul\0", "schlüssel", "\x7f", " \n"):
        made.connection.send(token_refresh={"token": odd})
    made.connection.settle()
    again = made.redial()
    assert again.connection.metadata["authorization"] == shown
    assert "the new token is no line of text" in made.worker.log()
    fresh = token("wired-1", turn=2)
    again.connection.send(token_refresh={"token": f"{fresh}\n"})  # as a file ends that it was read from
    again.connection.settle()
    assert again.redial().connection.metadata["authorization"] == f"Bearer {fresh}"


def test_a_second_signal_ends_it_at_once_while_the_link_closes(tmp_path: Path) -> None:
    with driven(tmp_path) as made, made.worker.explained():
        made.connection.lingers = True
        made.worker.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        made.worker.until(lambda: made.connection.half_closed, "the end of what it says")
        made.worker.until(lambda: time.monotonic() - began > ONE_WISH_S, "the end of the first wish")
        made.worker.process.send_signal(signal.SIGTERM)
        assert made.worker.wait() == 1
        assert time.monotonic() - began < 2
