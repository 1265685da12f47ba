"""What a handler gives, against what its annotation says, as a child and `run` look at it."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Iterator
from typing import Any

import msgspec
import pytest

from gen_worker import Done, Error, IncrementalTokenDelta, RequestContext, ValidationError, endpoint
from gen_worker.api.errors import FatalError, classify
from gen_worker.discovery.specs import specs_of
from gen_worker_child.executor import Executor


class Order(msgspec.Struct):
    items: Any = None


class Line(msgspec.Struct, tag=True):
    text: str


class LongLine(Line):
    more: str = ""


class Number(msgspec.Struct, tag=True):
    value: int


GIVEN: list[Any] = []
"""What the handlers give, one after the other."""


@endpoint
def lines(ctx: RequestContext, payload: Order) -> Iterator[Line]:
    yield from GIVEN


@endpoint
def mixed(ctx: RequestContext, payload: Order) -> Generator[Line | Number | Done | Error, None, None]:
    yield from GIVEN


@endpoint
def listed(ctx: RequestContext, payload: Order) -> Iterable[Line]:
    return GIVEN


@endpoint
async def lines_async(ctx: RequestContext, payload: Order) -> AsyncIterator[Line]:
    for item in GIVEN:
        yield item


@endpoint
async def mixed_async(ctx: RequestContext, payload: Order) -> AsyncGenerator[Line | Number | Done | Error, None]:
    for item in GIVEN:
        yield item


@endpoint
def nothing(ctx: RequestContext, payload: Order) -> Iterator[Line]:
    return None  # type: ignore[return-value]


@endpoint
def nothing_async(ctx: RequestContext, payload: Order) -> AsyncIterator[Line]:
    return iter(())  # type: ignore[return-value]


def given_by(function: Callable[..., Any], *items: Any) -> Iterator[Any]:
    """Yield what leaves a stream; raise what it ends with."""
    GIVEN[:] = items
    (spec,) = specs_of(function)
    executor, left = Executor([spec]), list[Any]()
    try:
        executor.run(spec, RequestContext(request_id="one"), Order(), left.append)
    except Exception as error:
        yield from left
        raise error
    finally:
        executor.shutdown(lambda error: None)
    yield from left


SYNC_AND_ASYNC = pytest.mark.parametrize("function", [lines, lines_async], ids=["sync", "async"])
UNIONS = pytest.mark.parametrize("function", [mixed, mixed_async], ids=["sync", "async"])


@SYNC_AND_ASYNC
@pytest.mark.parametrize(
    ("wrong", "kind"),
    [({"text": "b"}, "dict"), ("b", "str"), (None, "NoneType"), (Number(1), "Number"), (Line, "StructMeta")],
)
def test_an_item_of_another_type_ends_its_stream_after_those_before_it(function: Any, wrong: Any, kind: str) -> None:
    stream = given_by(function, Line("a"), wrong, Line("c"))
    assert next(stream) == Line("a")
    with pytest.raises(FatalError) as raised:
        next(stream)
    assert str(raised.value) == f"`{function.__name__}` yielded a `{kind}`, its annotation says `Line`"
    assert classify(raised.value).kind == "user_exception"


@SYNC_AND_ASYNC
def test_an_item_may_be_of_a_subclass(function: Any) -> None:
    assert list(given_by(function, LongLine("a", "b"), Line("c"))) == [LongLine("a", "b"), Line("c")]


@UNIONS
def test_an_item_of_a_union_is_one_of_its_members(function: Any) -> None:
    stream = given_by(function, Number(1), Line("a"), IncrementalTokenDelta(text="b"))
    assert [next(stream), next(stream)] == [Number(1), Line("a")]
    with pytest.raises(FatalError, match=r"yielded a `IncrementalTokenDelta`, its annotation says `Line \| Number`$"):
        next(stream)


@pytest.mark.parametrize("function", [lines, mixed, lines_async, mixed_async])
def test_what_ends_a_stream_is_no_item(function: Any) -> None:
    assert list(given_by(function, Line("a"), Done(), "never looked at")) == [Line("a")]
    with pytest.raises(ValidationError, match="enough"):
        list(given_by(function, Line("a"), Error(message="enough"), "never looked at"))


def test_the_items_of_a_list_are_looked_at_too() -> None:
    stream = given_by(listed, Line("a"), 5)
    assert next(stream) == Line("a")
    with pytest.raises(FatalError, match="`listed` yielded a `int`"):
        next(stream)


@pytest.mark.parametrize(("function", "kind"), [(nothing, "NoneType"), (nothing_async, "tuple_iterator")])
def test_a_stream_that_is_none_is_told_as_such(function: Any, kind: str) -> None:
    with pytest.raises(FatalError, match=f"returned a `{kind}`, its annotation says that it streams"):
        list(given_by(function))


def test_a_generator_is_closed_when_its_item_is_refused() -> None:
    closed: list[bool] = []

    @endpoint
    def tidy(ctx: RequestContext, payload: Order) -> Iterator[Line]:
        try:
            yield "no line"  # type: ignore[misc]
        finally:
            closed.append(True)

    @endpoint
    async def tidy_async(ctx: RequestContext, payload: Order) -> AsyncIterator[Line]:
        try:
            yield "no line"  # type: ignore[misc]
        finally:
            await asyncio.sleep(0)
            closed.append(True)

    for function in (tidy, tidy_async):
        with pytest.raises(FatalError, match="yielded a `str`"):
            list(given_by(function))
    assert closed == [True, True]
