"""Functions of the earlier API; no other function here has a model. Nothing heavy is imported."""

import os
from collections.abc import Iterator
from typing import Annotated

import msgspec

from gen_worker import (
    ActionContext,
    Asset,
    ModelArtifacts,
    ModelRef,
    ModelRefSource,
    RealtimeSocket,
    worker_function,
    worker_websocket,
)


class Ask(msgspec.Struct):
    text: str = ""
    model: str = ""


class Said(msgspec.Struct):
    text: str
    pid: int = 0
    file: Asset | None = None


@worker_function()
def keep(ctx: ActionContext, payload: Ask) -> Said:
    ctx.emit("kept", {"text": payload.text})
    return Said(ctx.run_id, os.getpid(), ctx.save_bytes_create("note.txt", payload.text.encode()))


@worker_function()
def keep_twice(ctx: ActionContext, payload: Ask) -> Said:
    ctx.save_bytes_create("note.txt", b"one")
    return Said("", 0, ctx.save_bytes_create("note.txt", b"two"))


@worker_function()
def letters(ctx: ActionContext, payload: Ask) -> Iterator[Said]:
    for letter in payload.text:
        yield Said(letter)


@worker_function()
async def later(ctx: ActionContext, payload: Ask) -> Said:
    return Said(payload.text)


@worker_function()
def waits(ctx: ActionContext, payload: Ask) -> Said:
    ctx.log("waiting")
    ctx.done().wait(60)
    return Said("done")


@worker_function()
def dies(ctx: ActionContext, payload: Ask) -> Said:
    os.abort()


@worker_function()
def read(
    ctx: ActionContext, files: Annotated[ModelArtifacts, ModelRef(ModelRefSource.PAYLOAD, "model")], payload: Ask
) -> Said:
    return Said(files.path("note.txt").read_text(), os.getpid())


@worker_function()
def lacks_a_type(ctx: ActionContext, payload: Ask):  # type: ignore[no-untyped-def]
    return Said("")


@worker_websocket()
async def echo(ctx: ActionContext, sock: RealtimeSocket) -> None:
    async for message in sock.iter_bytes():
        await sock.send_bytes(message)
