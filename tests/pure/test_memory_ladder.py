"""What happens to a job whose device runs out of memory."""

import asyncio
import errno
import gc
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Generator

import pytest

from gen_worker.api.errors import RetryableError, Verdict, classify
from gen_worker.models.out_of_memory import asked_bytes, is_host_out_of_memory, is_out_of_memory
from gen_worker.models.rungs import Rung
from gen_worker_child.models.memory_ladder import (
    DeviceFullError,
    Remembered,
    Step,
    run,
    run_async,
    run_async_stream,
    run_stream,
    standard_steps,
)


class OutOfMemoryError(RuntimeError):
    """As torch's: known by its name."""


class AcceleratorError(RuntimeError):
    """As torch's: known by its name and its code."""

    def __init__(self, code: int) -> None:
        super().__init__("CUDA error: something with out of memory in it")
        self.error_code = code


FULL = OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has 0 bytes free.")


# --- what it is -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (FULL, True),
        (type("CUDAOutOfMemoryError", (Exception,), {})(), True),
        (AcceleratorError(2), True),
        (AcceleratorError(700), False),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 18 GB)"), True),
        (RuntimeError("HIP out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:75] DefaultCPUAllocator: can't allocate memory"), False),
        (MemoryError(), False),
        (ValueError("CUDA out of memory"), False),
        (RuntimeError(), False),
        (RuntimeError(7), False),
    ],
)
def test_only_a_full_device_is_out_of_memory(error: Exception, is_one: bool) -> None:
    assert is_out_of_memory(error) is is_one


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (type("ArrayMemoryError", (MemoryError,), {})(), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:75] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 17179869184 bytes."), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (RuntimeError("out of memory"), False),
        (ValueError("DefaultCPUAllocator: can't allocate memory"), False),
        (FULL, False),
    ],
)
def test_a_host_without_memory_is_told_from_a_full_device(error: Exception, is_one: bool) -> None:
    assert is_host_out_of_memory(error) is is_one
    assert (classify(error) == Verdict("out_of_memory", "out of memory", True)) is (is_one or error is FULL)


def test_the_error_says_how_much_was_asked_for() -> None:
    assert asked_bytes(FULL) == 3 << 29
    assert asked_bytes(RuntimeError("Tried to allocate 512 bytes")) == 512
    assert asked_bytes(RuntimeError("CUDA error: out of memory")) == 0


# --- what is done -----------------------------------------------------------------------------------------------------


class Job:
    """Code that runs out of memory so many times."""

    def __init__(self, failures: int, error: Exception = FULL) -> None:
        self.failures = failures
        self.error = error
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return "done"


class Log:
    """What was reported."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def __call__(self, name: str, message: str) -> None:
        self.lines.append((name, message))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.lines]


def step(name: str, *outcomes: str | None, repeats: bool = False) -> Step:
    """A step that does these things, then nothing."""
    left = list(outcomes)
    return Step(name, lambda _: left.pop(0) if left else None, repeats)


def test_a_job_that_has_room_takes_no_step() -> None:
    log = Log()
    assert run(Job(0), [step("free_cache", "freed")], log) == "done"
    assert log.lines == []


@pytest.mark.promise(5)
def test_each_step_is_taken_once_in_order_and_told() -> None:
    log, job = Log(), Job(2)
    assert run(job, [step("free_cache", "freed"), step("vae_only", "in tiles"), step("more", "x")], log) == "done"
    assert job.calls == 3
    assert log.lines == [("free_cache", "out of memory: freed"), ("vae_only", "out of memory: in tiles")]


def test_a_step_that_can_do_nothing_costs_no_try() -> None:
    log, job = Log(), Job(1)
    assert run(job, [step("evict", None), step("vae_only", "in tiles")], log) == "done"
    assert log.names == ["vae_only"]
    assert job.calls == 2


def test_others_are_let_go_one_after_the_other_before_the_job_itself_is_slowed_down() -> None:
    log, job = Log(), Job(3)
    steps = [step("evict", "let go of `a`", "let go of `b`", repeats=True), step("vae_only", "in tiles")]
    assert run(job, steps, log) == "done"
    assert log.names == ["evict", "evict", "vae_only"]


@pytest.mark.promise(5)
def test_after_the_last_step_the_job_may_be_tried_elsewhere() -> None:
    log, job = Log(), Job(99)
    with pytest.raises(RetryableError) as failure:
        run(job, [step("free_cache", "freed"), step("evict", "a", "b", repeats=True)], log)
    assert job.calls == 4
    assert isinstance(failure.value, DeviceFullError)
    assert failure.value.__cause__ is FULL
    told = "out of memory after free_cache, evict"
    assert classify(failure.value) == Verdict("out_of_memory", told, True)


@pytest.mark.parametrize("error", [AcceleratorError(700), ValueError("no"), MemoryError()])
def test_an_error_of_another_kind_is_never_retried(error: Exception) -> None:
    log, job = Log(), Job(1, error)
    with pytest.raises(type(error)):
        run(job, [step("free_cache", "freed")], log)
    assert job.calls == 1
    assert log.lines == []


def test_what_the_failed_call_held_is_gone_before_room_is_made() -> None:
    class Tensor:
        pass

    held: list[weakref.ref[Tensor]] = []
    seen: list[bool] = []

    def call() -> None:
        tensor = Tensor()
        held.append(weakref.ref(tensor))
        try:
            raise ValueError("first")
        except ValueError:
            raise OutOfMemoryError from None

    def look(_: int) -> str | None:
        gc.collect()
        seen.append(held[-1]() is None)
        return None

    with pytest.raises(DeviceFullError):
        run(call, [Step("look", look)], Log())
    assert seen == [True]


def test_a_step_learns_how_much_was_asked_for() -> None:
    asked: list[int] = []

    def note(bytes_: int) -> str:
        asked.append(bytes_)
        return "noted"

    run(Job(1), [Step("note", note)], Log())
    assert asked == [3 << 29]


# --- streams and coroutines -------------------------------------------------------------------------------------------


Items = Generator[int, None, None]


def stream(failures_before: int, fail_after: int | None = None) -> tuple[Callable[[], Items], list[int]]:
    made = [0]

    def make() -> Items:
        made[0] += 1
        if made[0] <= failures_before:
            raise FULL
        for item in range(3):
            if item == fail_after:
                raise FULL
            yield item

    return make, made


def test_a_stream_begins_anew_only_while_no_item_has_come() -> None:
    make, made = stream(failures_before=1)
    assert list(run_stream(make, [step("free_cache", "freed")], Log())) == [0, 1, 2]
    assert made == [2]
    make, made = stream(failures_before=0, fail_after=1)
    items = run_stream(make, [step("free_cache", "freed")], Log())
    assert next(items) == 0
    with pytest.raises(OutOfMemoryError):
        next(items)
    assert made == [1]


def test_an_empty_stream_is_empty() -> None:
    def make() -> Items:
        yield from ()

    assert list(run_stream(make, [], Log())) == []


def test_a_stream_that_nobody_reads_on_is_closed() -> None:
    closed: list[bool] = []

    def make() -> Items:
        try:
            yield 0
            yield 1
        finally:
            closed.append(True)

    items = run_stream(make, [], Log())
    assert next(items) == 0
    items.close()
    assert closed == [True]


async def in_a_thread(call: Callable[[], None]) -> None:
    await asyncio.to_thread(call)


def test_an_asynchronous_job_climbs_the_same_ladder_while_its_loop_goes_on() -> None:
    job, log = Job(1), Log()
    threads: list[threading.Thread] = []
    went_on = threading.Event()

    async def call() -> str:
        asyncio.get_running_loop().call_soon(went_on.set)
        return job()

    def act(_: int) -> str:
        threads.append(threading.current_thread())
        assert went_on.wait(10)
        return "freed"

    assert asyncio.run(run_async(call, [Step("evict", act)], log, aside=in_a_thread)) == "done"
    assert log.names == ["evict"]
    assert threads != [threading.main_thread()]


def test_an_asynchronous_stream_begins_anew_only_while_no_item_has_come() -> None:
    tries = 0

    async def make() -> AsyncGenerator[int, None]:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise FULL
        yield 0
        yield 1
        if tries == 2:
            raise FULL

    async def collect() -> list[int]:
        items = run_async_stream(make, [step("free_cache", "freed")], Log(), aside=in_a_thread)
        seen = [await anext(items), await anext(items)]
        with pytest.raises(OutOfMemoryError):
            await anext(items)
        return seen

    assert asyncio.run(collect()) == [0, 1]
    assert tries == 2


# --- the standard steps, and what is learned --------------------------------------------------------------------------


def test_the_steps_of_a_job_without_models_free_and_evict() -> None:
    gone = [["b"], ["a", "c"], []]
    steps = list(standard_steps([], "cpu", make_room=lambda _: gone.pop(0)))
    assert [each.name for each in steps] == ["free_cache", "evict", "vae_only", "model_offload", "group_offload"]
    log = Log()
    with pytest.raises(DeviceFullError):
        run(Job(99), steps, log)
    assert log.lines == [
        ("free_cache", "out of memory: memory that was kept for later was given back"),
        ("evict", "out of memory: let go of `b`"),
        ("evict", "out of memory: let go of `a`, `c`"),
    ]


def test_the_rung_that_worked_is_remembered_per_function_and_kind_of_device() -> None:
    remembered = Remembered()
    remembered.note("paint", "H100", Rung.MODEL_OFFLOAD)
    remembered.note("paint", "H100", Rung.VAE_ONLY)
    assert remembered.rung("paint", "H100") is Rung.MODEL_OFFLOAD
    assert remembered.rung("paint", "H200") is Rung.OFF
    assert remembered.rung("draw", "H100") is Rung.OFF
