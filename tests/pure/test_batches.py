"""Which jobs run in one call: how a function says so, and what a child is handed."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from gen_worker import Batch, BatchContext, RequestContext, ValidationError, endpoint
from gen_worker.api.decorator import RECORD
from gen_worker.discovery import DiscoveryError
from gen_worker.discovery.documents import describe, manifest
from gen_worker.discovery.signatures import read_signature
from gen_worker.discovery.specs import specs_of
from gen_worker_child.executor import Executor
from gen_worker_supervisor.core.state import Function
from tests.pure.host import Host, function


class Item(msgspec.Struct):
    number: int


class Result(msgspec.Struct):
    doubled: int


@endpoint(batch=Batch(max_size=4, max_wait_ms=2.5))
def double(ctx: BatchContext, payloads: list[Item]) -> list[Result | Exception]:
    return [Result(each.number * 2) if each.number else ValidationError("not 0") for each in payloads]


# --- how it is declared -----------------------------------------------------------------------------------------------


def test_a_batch_is_on_the_record_of_its_endpoint() -> None:
    assert vars(double)[RECORD].batch == Batch(4, 2.5)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"max_size": 0}, ValueError, "`Batch(max_size=)` must be 1 to 512, got 0"),
        ({"max_size": 513}, ValueError, "`Batch(max_size=)` must be 1 to 512, got 513"),
        ({"max_size": 2.0}, TypeError, "`Batch(max_size=)` takes a whole number, got 2.0"),
        ({"max_wait_ms": -1}, ValueError, "`Batch(max_wait_ms=)` must be 0 to 60000, got -1"),
        ({"max_wait_ms": float("nan")}, ValueError, "`Batch(max_wait_ms=)` must be 0 to 60000, got nan"),
        ({"max_wait_ms": "5"}, TypeError, "`Batch(max_wait_ms=)` takes milliseconds, got '5'"),
    ],
)
def test_a_batch_that_cannot_be_is_refused(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as raised:
        Batch(**options)
    assert str(raised.value) == text


def test_batches_are_for_inference_that_returns() -> None:
    with pytest.raises(TypeError, match="`batch=` takes a `Batch"):
        endpoint(batch=8)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="a training endpoint runs one request at a time"):
        endpoint(kind="training", batch=Batch())
    with pytest.raises(TypeError, match="the handler of a batch returns one output for each"):

        @endpoint(batch=Batch())
        def stream(ctx: RequestContext, payloads: list[Item]) -> Iterator[Result]:
            yield Result(1)


def one_payload(ctx: RequestContext, payload: Item) -> list[Result]:
    raise NotImplementedError


def one_result(ctx: RequestContext, payloads: list[Item]) -> Result:
    raise NotImplementedError


def no_struct(ctx: RequestContext, payloads: list[int]) -> list[Result]:
    raise NotImplementedError


def only_errors(ctx: RequestContext, payloads: list[Item]) -> list[Exception]:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("handler", "text"),
    [
        (one_payload, "must be a list of payloads, as its endpoint has `batch=`, it is Item"),
        (no_struct, "must be a list of payloads, as its endpoint has `batch=`, it is list[int]"),
        (one_result, "cannot be served with its return annotation: Result"),
        (only_errors, "cannot be served with its return annotation: list[Exception]"),
    ],
)
def test_the_handler_of_a_batch_takes_and_returns_lists(handler: Any, text: str) -> None:
    with pytest.raises(DiscoveryError) as raised:
        read_signature("it", handler, method=False, batch=True)
    assert text in str(raised.value)


def test_callers_see_the_types_of_one_request_and_the_platform_the_batch() -> None:
    specs = specs_of(double)
    (described,) = describe(specs, "m")["functions"]
    (entry,) = manifest(specs)["functions"]
    assert described["input_schema"]["properties"].keys() == {"number"}
    assert described["output"] == "Result"
    assert described["batch"] == entry["batch"] == {"max_size": 4, "max_wait_ms": 2.5}


# --- how it is called -------------------------------------------------------------------------------------------------


def test_an_exception_in_the_place_of_an_output_is_raised_for_that_request() -> None:
    executor = Executor(specs_of(double))
    (spec,) = executor.specs.values()
    contexts = [RequestContext(request_id=f"r{n}") for n in range(3)]
    made = executor.run_batch(spec, contexts, [Item(1), Item(0), Item(3)])
    assert [made[0], made[2]] == [Result(2), Result(6)]
    assert isinstance(made[1], ValidationError)
    assert executor.run(spec, contexts[0], Item(4), lambda item: None) == Result(8)
    with pytest.raises(ValidationError, match="not 0"):
        executor.run(spec, contexts[0], Item(0), lambda item: None)


def test_what_is_told_of_a_batch_is_told_to_each_of_its_requests() -> None:
    told: list[dict[str, object]] = []
    ctx = BatchContext([RequestContext(request_id=f"r{n}", emitter=told.append, timeout_s=9 + n) for n in range(2)])
    ctx.progress(0.5, "half")
    ctx.log("well")
    assert [(each["request_id"], each["type"]) for each in told] == [
        ("r0", "request.progress"),
        ("r1", "request.progress"),
        ("r0", "request.log"),
        ("r1", "request.log"),
    ]
    assert 8 < (ctx.time_remaining() or 0) <= 9
    with pytest.raises(RuntimeError, match="belongs to one request of the batch"):
        ctx.save_bytes("a.txt", b"a")


def test_a_batch_is_cancelled_when_all_of_it_is() -> None:
    from gen_worker.api.context import CancelFlag

    flags = [CancelFlag(), CancelFlag()]
    ctx = BatchContext([RequestContext(request_id=f"r{n}", cancel=flag) for n, flag in enumerate(flags)])
    flags[0].set()
    assert not ctx.cancelled
    flags[1].set()
    assert ctx.cancelled


# --- what a child is handed -------------------------------------------------------------------------------------------


def leased(host: Host, name: str) -> int:
    return sum(job.function.name == name for child in host.fleet.children() for job in child.leased.values())


def many(host: Host, wanted: Function, count: int) -> None:
    for _ in range(count):
        host.submit(wanted.name)


def test_a_child_is_handed_one_batch_and_the_next() -> None:
    together = function("together", batch=4)
    host = Host(together)
    many(host, together, 20)
    assert leased(host, "together") == 8


def test_while_another_function_waits_a_child_is_handed_one_batch_at_a_time() -> None:
    together, plain = function("together", batch=4), function("plain")
    host = Host(together, plain, up=False)
    many(host, together, 20)
    host.submit("plain")
    host.boot()
    assert (leased(host, "together"), leased(host, "plain")) in ((4, 0), (0, 1))


def test_children_share_the_jobs_of_batches() -> None:
    together = function("together", batch=4)
    host = Host(together, devices=2)
    many(host, together, 6)
    assert sorted(len(child.leased) for child in host.fleet.children()) == [3, 3]
