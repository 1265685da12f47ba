"""Run an author's code once more, with more room, when its device has run out of memory.

Each step is taken once and told; after the last one the job ends and may be tried elsewhere. An error of another kind
passes at once: after most of CUDA's the process is of no use.
"""

import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import aclosing, closing
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

from gen_worker.api.errors import RetryableError
from gen_worker.models.out_of_memory import asked_bytes, is_out_of_memory
from gen_worker.models.placement import free_bytes, free_cache, place, possible, reset, rung_of
from gen_worker.models.rungs import EXACT, NEXT, Rung, in_words
from gen_worker.wire.messages import ErrorKind

if TYPE_CHECKING:
    from gen_worker_child.loop import Aside

T = TypeVar("T")
Report = Callable[[str, str], None]
"""Takes a step's name and what it did, as a `Degraded` frame has them."""


class DeviceFullError(RetryableError):
    """The job needs more of its device's memory than could be made free."""

    kind: ClassVar[ErrorKind] = "out_of_memory"


class Step(NamedTuple):
    """One thing that makes room."""

    name: str
    act: Callable[[int], str | None]
    """Takes the bytes that were asked for, 0 if unknown, and returns what it did; None: nothing, there is no use in
    another try."""

    repeats: bool = False
    """It is taken again as long as it does something."""


# --- the steps --------------------------------------------------------------------------------------------------------


def standard_steps(
    models: Sequence[Any],
    device: str,
    *,
    make_room: Callable[[int], Sequence[str]],
    allowed: Collection[Rung] = EXACT,
) -> Iterator[Step]:
    """Yield the steps for a job that uses these models, the cheapest first.

    `make_room` takes the bytes that are needed and returns who was let go for them, the least recently used first.
    """
    yield Step("free_cache", partial(_free, models))
    yield Step("evict", partial(_evict, make_room), repeats=True)
    for rung in Rung:
        if rung is not Rung.OFF and rung in allowed:
            yield Step(rung, partial(_degrade, models, rung, device))


def _free(models: Sequence[Any], _: int) -> str:
    for model in models:
        reset(model)
    free_cache()
    return "memory that was kept for later was given back"


def _evict(make_room: Callable[[int], Sequence[str]], asked: int) -> str | None:
    gone = make_room(asked)
    free_cache()
    return f"let go of {', '.join(f'`{each}`' for each in gone)}" if gone else None


def _degrade(models: Sequence[Any], rung: Rung, device: str, _: int) -> str | None:
    moved = [each for each in models if rung in NEXT[rung_of(each)] and rung in possible(each)]
    for model in moved:
        reset(model)
        place(model, rung, device)
    free_cache()
    names = ", ".join(f"`{name}`" for name in dict.fromkeys(type(each).__name__ for each in moved))
    return f"{names} placed as `{rung}`" if moved else None


# --- climbing them ----------------------------------------------------------------------------------------------------


class Ladder:
    """The steps that one job may take, and how far it is."""

    def __init__(self, steps: Iterable[Step], report: Report, device: str = "cpu") -> None:
        self._steps = iter(steps)
        self._again: Step | None = None
        self._report = report
        self._device = device
        self._taken: list[str] = []

    def climb(self, error: BaseException) -> None:
        """Take the next step that makes room after this error; raise `DeviceFullError` when there is none left.

        From any thread, when the calls that failed hold nothing any more.
        """
        asked = asked_bytes(error)
        while (step := self._again or next(self._steps, None)) is not None:
            done = step.act(asked)
            self._again = step if step.repeats and done is not None else None
            if done is not None:
                self._taken.append(step.name)
                self._report(step.name, f"out of memory: {done}")
                return
        raise DeviceFullError(self._verdict()) from error

    def _verdict(self) -> str:
        taken = f" after {', '.join(dict.fromkeys(self._taken))}" if self._taken else ""
        free = free_bytes(self._device)
        if free is None:
            return f"out of memory{taken}"
        import torch

        peak = torch.cuda.max_memory_allocated(self._device)
        return f"out of memory{taken}: a peak of {in_words(peak)}, and {in_words(free)} free"


def run(call: Callable[[], T], steps: Iterable[Step], report: Report, device: str = "cpu") -> T:
    """Return what the call returns, in the end; raise what it raises, `DeviceFullError` when nothing helped."""
    ladder = Ladder(steps, report, device)
    while True:
        try:
            return call()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failure = error
        _let_frames_go(failure)  # out of the handler: while it runs, the interpreter holds on to the frames that failed
        ladder.climb(failure)


async def run_async(
    call: Callable[[], Awaitable[T]], steps: Iterable[Step], report: Report, device: str = "cpu", *, aside: "Aside"
) -> T:
    """Do the same for a coroutine function; a step is taken `aside`, and the loop goes on meanwhile."""
    ladder = Ladder(steps, report, device)
    while True:
        try:
            return await call()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failure = error
        _let_frames_go(failure)  # here: from another thread it would end this coroutine, whose frame is among them
        await aside(partial(ladder.climb, failure))


def run_stream(
    make: Callable[[], Generator[T, None, None]], steps: Iterable[Step], report: Report, device: str = "cpu"
) -> Generator[T, None, None]:
    """Yield what the generator yields; it is made anew only while no item has come from it."""

    def start() -> tuple[Generator[T, None, None], list[T]]:
        items = make()
        try:
            return items, [next(items)]
        except StopIteration:
            return items, []

    items, first = run(start, steps, report, device)
    with closing(items):
        yield from first
        yield from items


async def run_async_stream(
    make: Callable[[], AsyncGenerator[T, None]],
    steps: Iterable[Step],
    report: Report,
    device: str = "cpu",
    *,
    aside: "Aside",
) -> AsyncGenerator[T, None]:
    """Do the same for an asynchronous generator."""

    async def start() -> tuple[AsyncGenerator[T, None], list[T]]:
        items = make()
        try:
            return items, [await anext(items)]
        except StopAsyncIteration:
            return items, []

    items, first = await run_async(start, steps, report, device, aside=aside)
    async with aclosing(items):
        for item in first:
            yield item
        async for item in items:
            yield item


def _let_frames_go(error: BaseException | None) -> None:
    """Drop the local variables of the calls that failed: they hold the tensors that there was too little room for."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


# --- what was learned -------------------------------------------------------------------------------------------------


class Remembered:
    """The rungs that turned out to be needed, so that the next load starts there."""

    def __init__(self) -> None:
        self._rungs: dict[tuple[str, str], Rung] = {}

    def note(self, function: str, device_kind: str, rung: Rung) -> None:
        """Remember a rung that a function needed on a kind of device; an earlier one does not replace a later one."""
        if rung in NEXT[self.rung(function, device_kind)]:
            self._rungs[function, device_kind] = rung

    def rung(self, function: str, device_kind: str) -> Rung:
        """Return the rung to begin with."""
        return self._rungs.get((function, device_kind), Rung.OFF)
