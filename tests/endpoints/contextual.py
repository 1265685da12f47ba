"""Functions of every shape that tell what their context and payload gave them."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from gen_worker import Asset, ImageAsset, RequestContext, endpoint, io
from gen_worker.api.payload_constraints import Clamp
from gen_worker.api.tracing import traceparent_of

FOLDER = Path(os.environ["FAULTY_FOLDER"])
POLL_S = 0.005


class Look(msgspec.Struct):
    image: ImageAsset
    gate: str = ""


class Seen(msgspec.Struct):
    path: str
    text: str


class Numbers(msgspec.Struct):
    steps: Annotated[int, Clamp(1, 50)] = 20
    scales: list[Annotated[float, Clamp(0, 1, cast="int")]] = []


class Save(msgspec.Struct):
    ref: str
    data: bytes = b""


class Time(msgspec.Struct):
    deadline: float | None
    remaining: float | None


class Trace(msgspec.Struct):
    traceparent: str


class Nothing(msgspec.Struct):
    pass


def begun(ctx: RequestContext) -> None:
    ctx.log("waiting")
    with (FOLDER / "runs").open("a") as runs:
        runs.write(f"{ctx.request_id} {os.getpid()}\n")


def seen(payload: Look) -> Seen:
    return Seen(os.fspath(payload.image), io.read_bytes(payload.image).decode())


# --- inputs -----------------------------------------------------------------------------------------------------------


@endpoint
def look(ctx: RequestContext, payload: Look) -> Seen:
    found = seen(payload)
    begun(ctx)
    while payload.gate and not (FOLDER / payload.gate).exists():
        time.sleep(POLL_S)
    return found


@endpoint
async def look_async(ctx: RequestContext, payload: Look) -> Seen:
    return seen(payload)


@endpoint
def look_twice(ctx: RequestContext, payload: Look) -> Iterator[Seen]:
    yield seen(payload)
    yield seen(payload)


@endpoint
async def look_twice_async(ctx: RequestContext, payload: Look) -> AsyncIterator[Seen]:
    yield seen(payload)
    await asyncio.sleep(0)
    yield seen(payload)


@endpoint
def give_back(ctx: RequestContext, payload: Look) -> Asset:
    assert os.path.exists(payload.image)
    return payload.image


@endpoint
def clamped(ctx: RequestContext, payload: Numbers) -> Numbers:
    return payload


# --- outputs and time -------------------------------------------------------------------------------------------------


@endpoint
def save(ctx: RequestContext, payload: Save) -> Asset:
    return ctx.save_bytes(payload.ref, payload.data)


@endpoint
def save_file(ctx: RequestContext, payload: Save) -> Asset:
    path = FOLDER / "to-be-saved"
    path.write_bytes(payload.data)
    return ctx.save_file(payload.ref, path)


@endpoint
def tell_time(ctx: RequestContext, payload: Nothing) -> Time:
    return Time(ctx.deadline, ctx.time_remaining())


@endpoint
async def tell_time_async(ctx: RequestContext, payload: Nothing) -> Time:
    return Time(ctx.deadline, ctx.time_remaining())


@endpoint
def tell_trace(ctx: RequestContext, payload: Nothing) -> Trace:
    return Trace(traceparent_of(ctx))


# --- until they are cancelled -----------------------------------------------------------------------------------------


def left(ctx: RequestContext) -> None:
    with (FOLDER / "left").open("a") as file:
        file.write(f"{ctx.cancelled}\n")


@endpoint
def wait(ctx: RequestContext, payload: Nothing) -> Nothing:
    begun(ctx)
    try:
        while True:
            ctx.raise_if_cancelled()
            time.sleep(POLL_S)
    finally:
        left(ctx)


@endpoint
async def wait_async(ctx: RequestContext, payload: Nothing) -> Nothing:
    begun(ctx)
    try:
        await asyncio.Event().wait()
    finally:
        left(ctx)
    return Nothing()


@endpoint
def tick(ctx: RequestContext, payload: Nothing) -> Iterator[Nothing]:
    begun(ctx)
    try:
        while True:
            yield Nothing()
            time.sleep(POLL_S)
    finally:
        left(ctx)


@endpoint
async def tick_async(ctx: RequestContext, payload: Nothing) -> AsyncIterator[Nothing]:
    begun(ctx)
    try:
        while True:
            yield Nothing()
            await asyncio.sleep(POLL_S)
    finally:
        left(ctx)
