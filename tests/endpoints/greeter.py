"""A well-behaved endpoint, for those who speak the control socket's protocol by hand."""

import asyncio
from collections.abc import Iterator

import msgspec

from gen_worker import RequestContext, endpoint


class Person(msgspec.Struct):
    name: str


class Line(msgspec.Struct):
    text: str


class Start(msgspec.Struct):
    start: int


class Blob(msgspec.Struct):
    data: bytes


@endpoint
def greet(ctx: RequestContext, payload: Person) -> Line:
    ctx.progress(0.5, "greeting")
    return Line(f"hello {payload.name}")


@endpoint
def count_down(ctx: RequestContext, payload: Start) -> Iterator[Line]:
    for number in range(payload.start, 0, -1):
        yield Line(str(number))


@endpoint
def reverse(ctx: RequestContext, payload: Blob) -> Blob:
    return Blob(payload.data[::-1])


@endpoint
async def wait(ctx: RequestContext, payload: Person) -> Line:
    await asyncio.Event().wait()
    return Line("never")
