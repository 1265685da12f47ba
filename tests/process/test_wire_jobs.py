"""Jobs as an orchestrator sees them: accepted, told about, and ended in exactly one result."""

import itertools
import json
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from tests.scripted.entrypoint import Driven, driven
from tests.scripted.orchestrator import CANCELED, EVENT_TYPE, FATAL, INVALID, OK, RETRYABLE

pytestmark = [pytest.mark.process, pytest.mark.needs("grpc_tools")]


@pytest.fixture(scope="module")
def shared(grpc_awake: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driven]:
    """One worker for all tests of this module: none of them costs it a child or its connection."""
    with driven(tmp_path_factory.mktemp("wired")) as made:
        yield made


def occupy(shared: Driven, gate: str) -> list[Any]:
    """Give each of the two children a job that runs until the gate is opened."""
    jobs = [shared.ask("gated", gate=gate) for _ in range(2)]
    shared.worker.until_running(*(job.request_id for job in jobs))
    return jobs


# --- the order of things ----------------------------------------------------------------------------------------------


def test_a_job_is_accepted_then_told_about_then_answered_once(shared: Driven) -> None:
    job = shared.ask("steps", times=3, text="denoise")
    assert job.output()["text"] == "denoise"
    shared.connection.settle()
    kinds = shared.orchestrator.of(job.request_id)
    assert kinds[0] == "job_accepted"
    assert kinds[-1] == "job_result"
    assert set(kinds[1:-1]) == {"job_progress"}
    assert kinds.count("job_result") == 1
    numbers = [each.message.seq for each in shared.orchestrator.told("job_progress", **job.pair)]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("spelling", ["polite_async", "polite-async"])
def test_both_spellings_of_a_function_are_one(shared: Driven, spelling: str) -> None:
    job = shared.ask(spelling)
    shared.worker.until_running(job.request_id)
    job.cancel()
    assert job.result().status == CANCELED


def test_a_function_that_no_one_has_is_invalid_and_named(shared: Driven) -> None:
    job = shared.ask("paint-me")
    result = job.result()
    assert result.status == INVALID
    assert "paint-me" in result.safe_message
    assert shared.orchestrator.of(job.request_id) == ["job_result"]


def test_a_function_that_this_worker_cannot_run_is_refused_unaccepted(shared: Driven) -> None:
    (gate,) = {each.message.function_name: each.message for each in shared.orchestrator.told("fn_unavailable")}.values()
    assert (gate.function_name, gate.reason) == ("ungranted", "missing_cuda_library")
    assert gate.axes["missing"] == "no_such_library_anywhere"
    job = shared.ask("ungranted")
    result = job.result()
    assert result.status == RETRYABLE
    assert result.safe_message.startswith("function unavailable: missing_cuda_library")
    assert shared.orchestrator.of(job.request_id) == ["job_result"]


def test_what_a_worker_offers_is_sorted_and_leaves_out_what_it_cannot_run(shared: Driven) -> None:
    states = [shared.connection.hello.state, *(each.message for each in shared.orchestrator.told("state_delta"))]
    offered = list(states[-1].available_functions)
    assert offered == sorted(offered)
    assert {"echo", "gated-async", "prepared"} <= set(offered)
    assert "ungranted" not in offered
    assert not states[-1].loading_functions


def test_its_state_is_told_only_when_it_has_changed(shared: Driven) -> None:
    for job in [shared.ask("echo") for _ in range(20)]:
        job.result()
    shared.connection.settle()
    states = [each.message.SerializeToString() for each in shared.connection.told("state_delta")]
    assert all(one != next_one for one, next_one in itertools.pairwise(states))


# --- payloads ---------------------------------------------------------------------------------------------------------


BAD_PAYLOADS = {
    "nothing": b"",
    "no type": b"\xc1",
    "cut short": b"\x82\xa4text",
    "more than one value": b"\x80\x80",
    "a list": b"\x90",
    "a number": b"\x05",
    "a wrong type": msgspec.msgpack.encode({"times": "many"}),
    "a float": msgspec.msgpack.encode({"times": 1.5}),
    "no UTF-8": b"\x81\xa4text\xa2\xff\xfe",
    "a length of 4 GiB": b"\x81\xa4text\xdb\xff\xff\xff\xff",
    "a map of 4 Gi": b"\xdf\xff\xff\xff\xff",
    "a million lists": b"\x91" * 1_000_000,
}


@pytest.mark.parametrize("what", BAD_PAYLOADS)
def test_a_payload_that_cannot_be_meant_is_invalid(shared: Driven, what: str) -> None:
    job = shared.connection.run("echo", BAD_PAYLOADS[what] or b"")
    job.accepted()
    result = job.result()
    assert result.status == INVALID, result
    assert result.safe_message
    assert "Traceback" not in result.safe_message


def test_the_decoders_own_words_say_what_is_wrong_with_a_payload(shared: Driven) -> None:
    text = shared.ask("echo", times="many").result().safe_message
    assert text.endswith("Expected `int`, got `str` - at `$.times`")


def test_a_deep_payload_is_invalid_and_costs_nothing(shared: Driven) -> None:
    body = b"\x81\xa5inner\x91" * 100_000 + b"\x80"
    assert shared.connection.run("read-depth", body).result().status == INVALID
    assert shared.ask("echo", text="fine").output()["text"] == "fine"


# --- the same job again -----------------------------------------------------------------------------------------------


@pytest.mark.promise(17)
def test_a_job_that_is_sent_again_while_it_runs_is_accepted_again_and_runs_once(shared: Driven) -> None:
    job = shared.ask("gated", gate="twice")
    job.accepted()
    shared.worker.until_running(job.request_id)
    job.again()
    job.accepted()
    shared.worker.open("twice")
    job.result()
    shared.connection.settle()
    assert shared.orchestrator.of(job.request_id) == ["job_accepted", "job_accepted", "job_result"]
    assert shared.worker.runs()[job.request_id] == 1


@pytest.mark.promise(17)
def test_a_job_that_is_sent_again_after_its_end_is_answered_the_same_and_runs_once(shared: Driven) -> None:
    job = shared.ask("echo", text="once")
    first = job.result()
    job.again()
    again = job.result()
    assert (again.status, again.inline) == (first.status, first.inline)
    assert shared.worker.runs()[job.request_id] == 1


@pytest.mark.promise(18)
def test_an_older_attempt_is_ignored(shared: Driven) -> None:
    job = shared.connection.run("gated", {"gate": "newer"}, request_id="stale", attempt=3)
    shared.worker.until_running("stale")
    shared.connection.run("echo", {}, request_id="stale", attempt=2)
    shared.connection.settle()
    shared.worker.open("newer")
    assert job.result().status == OK
    assert shared.orchestrator.of("stale", 2) == []
    assert shared.worker.runs()["stale"] == 1


@pytest.mark.promise(18)
def test_a_newer_attempt_ends_the_older_one_without_a_word(shared: Driven) -> None:
    shared.connection.run("polite", {}, request_id="fenced", attempt=1).accepted()
    shared.worker.until_running("fenced")
    job = shared.connection.run("echo", {"text": "second"}, request_id="fenced", attempt=2)
    assert job.output()["text"] == "second"
    shared.connection.settle()
    assert not {"job_result", "job_progress"} & set(shared.orchestrator.of("fenced", 1))
    assert shared.worker.runs()["fenced"] == 2


# --- cancelled, late --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["polite", "polite-async"])
def test_a_running_job_is_cancelled(shared: Driven, function: str) -> None:
    job = shared.ask(function)
    shared.worker.until_running(job.request_id)
    job.cancel()
    result = job.result()
    assert (result.status, result.safe_message) == (CANCELED, "canceled")


def test_a_job_that_has_not_begun_is_cancelled_and_never_runs(shared: Driven) -> None:
    running = occupy(shared, "before")
    job = shared.ask("gated", gate="before")
    job.accepted()
    job.cancel()
    result = job.result(2)
    assert (result.status, result.safe_message) == (CANCELED, "canceled")
    shared.worker.open("before")
    assert all(each.result().status == OK for each in running)
    assert shared.worker.runs()[job.request_id] == 0


@pytest.mark.promise(49)
def test_a_cancel_that_comes_with_its_job_is_not_lost(shared: Driven) -> None:
    jobs = [shared.ask("polite") for _ in range(20)]
    for job in jobs:
        job.cancel()
    assert {job.result().status for job in jobs} == {CANCELED}


def test_a_cancel_of_what_is_not_held_is_ignored(shared: Driven) -> None:
    job = shared.ask("echo")
    first = job.result()
    job.cancel()
    shared.connection.cancel("never heard of")
    shared.connection.settle()
    assert shared.orchestrator.results(job.request_id) == [first]
    assert not shared.orchestrator.told("job_result", request_id="never heard of")


def test_a_cancel_of_another_attempt_is_ignored(shared: Driven) -> None:
    job = shared.ask("gated", gate="other attempt")
    shared.worker.until_running(job.request_id)
    shared.connection.cancel(job.request_id, 7)
    shared.connection.settle()
    shared.worker.open("other attempt")
    assert job.result().status == OK


@pytest.mark.parametrize("function", ["polite", "polite-async"])
def test_a_job_that_is_late_ends_fatal(shared: Driven, function: str) -> None:
    began = time.monotonic()
    result = shared.connection.run(function, {}, timeout_ms=200).result()
    assert (result.status, result.safe_message) == (FATAL, "deadline exceeded")
    assert 0.2 <= time.monotonic() - began < 4


@pytest.mark.promise(6)
def test_time_that_a_job_waits_counts(shared: Driven) -> None:
    running = occupy(shared, "queue")
    result = shared.connection.run("gated", {"gate": "queue"}, request_id="late", timeout_ms=100).result()
    assert (result.status, result.safe_message) == (FATAL, "deadline exceeded")
    shared.worker.open("queue")
    assert all(each.result().status == OK for each in running)
    assert shared.worker.runs()["late"] == 0


# --- how jobs end -----------------------------------------------------------------------------------------------------


ENDS = {
    "validation": (INVALID, "too many steps: 900"),
    "value": (INVALID, "steps must be > 0"),
    "too_large": (INVALID, None),
    "retryable": (RETRYABLE, "try again later"),
    "canceled": (CANCELED, "enough"),
    "fatal": (FATAL, "FatalError: the weights are broken"),
    "resource": (FATAL, "ResourceError: no disk"),
    "auth": (FATAL, "AuthError: not allowed"),
    "worker": (FATAL, "WorkerError: the worker"),
    "transfer": (RETRYABLE, "store gone (provider=store, phase=upload"),
    "transfer_final": (FATAL, None),
    "oom": (RETRYABLE, "out of memory"),
    "other": (FATAL, "KeyError: 'seed'"),
    "lines": (FATAL, "RuntimeError: the first line"),
}


@pytest.mark.parametrize("name", ENDS)
def test_an_error_ends_its_job_as_its_class_says(shared: Driven, name: str) -> None:
    status, text = ENDS[name]
    result = shared.ask("fail", text=name).result()
    assert result.status == status, result
    assert "second line" not in result.safe_message
    assert result.safe_message
    if text is not None:
        assert result.safe_message.startswith(text)


def test_a_long_text_is_cut(shared: Driven) -> None:
    assert len(shared.ask("fail", text="long").result().safe_message) == 1024


def test_secrets_are_blanked_within_the_text(shared: Driven) -> None:
    text = shared.ask("fail", text="secret").result().safe_message
    assert "abc123secret" not in text
    assert "topsecret" not in text
    assert text.startswith("RuntimeError: GET https://store/x")
    assert text.endswith("refused")


# --- outputs and items ------------------------------------------------------------------------------------------------


def test_a_small_output_comes_with_its_result(shared: Driven) -> None:
    assert shared.ask("repeat", text="x", times=60_000).output()["text"] == "x" * 60_000


@pytest.mark.parametrize("end", ["", "done"])
def test_items_say_what_they_are(shared: Driven, end: str) -> None:
    job = shared.ask("stream", text=end)
    result = job.result()
    assert result.status == OK
    assert result.WhichOneof("output") is None
    chunks = [each.message for each in shared.orchestrator.told("job_progress", **job.pair)]
    assert [(each.seq, each.content_type) for each in chunks] == [
        (1, "text/plain"),
        (2, "application/x-batch-item+msgpack"),
        (3, "application/json"),
    ]
    token, batch, piece = (each.data for each in chunks)
    assert token.decode() == "grüße"
    assert json.loads(piece) == {"text": "piece", "number": 3}
    item = msgspec.msgpack.decode(batch)
    assert (item["index"], item["total"], item["item_id"], item["chunk"]) == (1, 2, "second", b"\x00\xff")
    assert (item["content_type"], item["finished"], item["error"]) == ("image/png", False, "")


@pytest.mark.parametrize(
    ("end", "status", "text"),
    [
        ("error", INVALID, "no more items today"),
        ("raise", INVALID, "a bad item"),
        ("wrong", FATAL, "yielded a `str`, its annotation says `IncrementalTokenDelta | BatchItemDelta | Piece`"),
    ],
)
def test_a_stream_that_ends_badly_says_so_after_its_items(shared: Driven, end: str, status: int, text: str) -> None:
    job = shared.ask("stream", text=end)
    result = job.result()
    assert result.status == status
    assert text in result.safe_message
    assert len(shared.orchestrator.told("job_progress", **job.pair)) == 3


def test_a_long_stream_loses_nothing_to_an_orchestrator_that_reads(shared: Driven) -> None:
    job = shared.ask("ticks", text="tick", times=3000)
    assert job.result().status == OK
    numbers = [json.loads(each.message.data)["number"] for each in shared.orchestrator.told("job_progress", **job.pair)]
    assert numbers == list(range(1, 3001))


def test_an_endless_stream_is_cancelled(shared: Driven) -> None:
    job = shared.ask("ticks")
    job.progress()
    job.cancel()
    assert job.result().status == CANCELED


def test_progress_and_logs_come_as_events_and_not_too_many(shared: Driven) -> None:
    job = shared.ask("steps", times=5000, text="denoise")
    result = job.result()
    assert result.status == OK
    events = [each.message for each in shared.orchestrator.told("job_progress", **job.pair)]
    assert {each.content_type for each in events} == {EVENT_TYPE}
    seconds = result.metrics.runtime_ms / 1000
    assert 1 <= len(events) <= 12 + 10 * seconds
    assert all(isinstance(json.loads(each.data), dict) for each in events)
    assert any(b"denoise" in each.data for each in events)


# --- what is measured -------------------------------------------------------------------------------------------------


def test_what_a_job_took_is_measured(shared: Driven) -> None:
    result = shared.ask("burn", times=64).result()
    assert 100 <= result.metrics.runtime_ms < 5000
    assert 0 <= result.metrics.queue_ms < 5000
    assert result.metrics.peak_rss_bytes > 64 << 20
    assert result.metrics.peak_vram_bytes == 0


def test_what_a_job_waited_is_measured_and_what_ran_beside_it(shared: Driven) -> None:
    running = occupy(shared, "measured")
    waiting = shared.ask("gated", gate="measured")
    waiting.accepted()
    began = time.monotonic()
    shared.connection.settle()
    waited_ms = (time.monotonic() - began) * 1000
    shared.worker.open("measured")
    metrics = waiting.result().metrics
    assert metrics.queue_ms >= int(waited_ms)
    assert metrics.concurrency_at_start == 2
    assert [each.result().metrics.concurrency_at_start for each in running] == [0, 1]


def test_a_job_that_failed_was_measured_too(shared: Driven) -> None:
    result = shared.ask("fail", text="other").result()
    assert result.metrics.peak_rss_bytes > 1 << 20


# --- where jobs run ---------------------------------------------------------------------------------------------------


def test_the_orchestrator_chooses_the_device(shared: Driven) -> None:
    homes = set()
    for index in (0, 1, 0, 1):
        job = shared.connection.run(
            "on-device", {}, compute={"accelerator": "cuda", "gpu_index": index, "gpu_count": 1}
        )
        homes.add((index, job.output()["pid"]))
    assert len(homes) == 2
    assert len({pid for _, pid in homes}) == 2


def test_a_device_that_is_not_there_is_refused_and_never_replaced_by_another(shared: Driven) -> None:
    job = shared.connection.run("on-device", {}, compute={"accelerator": "cuda", "gpu_index": 2, "gpu_count": 1})
    result = job.result()
    assert result.status in (INVALID, RETRYABLE)
    assert "2" in result.safe_message
    assert shared.worker.runs()[job.request_id] == 0


def test_1000_jobs_wait_and_each_runs_once(shared: Driven) -> None:
    running = occupy(shared, "thousand")
    jobs = [shared.ask("echo", f"queued-{number}") for number in range(1000)]
    for job in jobs:
        job.accepted()
    shared.worker.open("thousand")
    assert all(job.result().status == OK for job in (*jobs, *running))
    runs = shared.worker.runs()
    assert all(runs[job.request_id] == 1 for job in jobs)
    assert all(len(shared.orchestrator.results(job.request_id)) == 1 for job in jobs[:50])
