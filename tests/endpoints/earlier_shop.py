"""Functions of the earlier API, and one of the other, for workers that speak the earlier wire.

`SHOP_FOLDER` is where jobs and the test meet.
"""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from gen_worker import (
    ActionContext,
    Asset,
    RealtimeSocket,
    RequestContext,
    ResourceRequirements,
    endpoint,
    worker_function,
    worker_websocket,
)
from gen_worker.errors import FatalError, RetryableError

FOLDER = Path(os.environ.get("SHOP_FOLDER", "."))


class Order(msgspec.Struct):
    text: str = ""
    times: int = 0


class Source(msgspec.Struct):
    asset: Asset


class Answer(msgspec.Struct):
    text: str
    ref: str = ""


def wait_for(gate: str, ctx: ActionContext | None = None) -> None:
    (FOLDER / f"{gate}-waits").touch()
    while not (FOLDER / gate).exists() and not (ctx is not None and ctx.is_canceled()):
        time.sleep(0.002)


@worker_function()
def greet_all(ctx: ActionContext, payload: Order) -> Answer:
    ctx.progress(0.5, "half")
    ctx.log("greeting", level="warning")
    ctx.emit("shop.greeted", {"whom": payload.text})
    ctx.emit("output.completed", {"whom": payload.text})
    return Answer(f"hello {payload.text} of {ctx.tenant_id}")


@worker_function()
def count_up(ctx: ActionContext, payload: Order) -> Iterator[Answer]:
    for number in range(payload.times):
        yield Answer(f"{number}" + payload.text)


@worker_function()
def count_wrong(ctx: ActionContext, payload: Order) -> Iterator[Answer]:
    yield Answer("0")
    raise ValueError("no such number in /secret/folder/file.txt")


@worker_function(ResourceRequirements(max_concurrency=1))
def gated(ctx: ActionContext, payload: Order) -> Answer:
    wait_for(payload.text)
    return Answer(payload.text)


@worker_function()
def polite(ctx: ActionContext, payload: Order) -> Answer:
    wait_for(payload.text, ctx)
    return Answer(payload.text)


@worker_function()
def fail(ctx: ActionContext, payload: Order) -> Answer:
    match payload.text:
        case "fatal":
            raise FatalError("it is over")
        case "retryable":
            raise RetryableError("come again")
        case "other type":
            return Source(Asset("x"))  # type: ignore[return-value]
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError("secret details")


@worker_function()
def keep(ctx: ActionContext, payload: Order) -> Answer:
    ref = payload.text
    if payload.times:
        return Answer("created", ctx.save_bytes_create(ref, b"x" * payload.times).ref)
    return Answer("kept", ctx.save_bytes(ref, b"abc").ref)


@worker_function()
def measure(ctx: ActionContext, payload: Source) -> Answer:
    assert payload.asset.local_path is not None
    return Answer(Path(payload.asset.local_path).read_text(), f"{payload.asset.tenant_id} {payload.asset.sha256}")


@worker_websocket()
async def echo_back(ctx: ActionContext, sock: RealtimeSocket) -> None:
    async for message in sock.iter_bytes():
        if message == b"bye":
            await sock.close()
            return
        if message == b"boom":
            raise KeyError("boom")
        if message == b"die":
            os.kill(os.getpid(), signal.SIGKILL)
        if message == b"grow":
            message = bytes(100_001)
        await sock.send_bytes(message)


@worker_websocket()
async def slow_ear(ctx: ActionContext, sock: RealtimeSocket) -> None:
    """Take nothing until the gate opens, then say how much came."""
    (FOLDER / "ear-waits").touch()
    while not (FOLDER / "ear").exists():  # noqa: ASYNC110 - another process opens it
        await asyncio.sleep(0.002)
    heard = 0
    async for message in sock.iter_bytes():
        heard += len(message)
    await sock.send_json({"heard": heard})


@endpoint
def shout(ctx: RequestContext, payload: Order) -> Answer:
    return Answer(payload.text.upper())
