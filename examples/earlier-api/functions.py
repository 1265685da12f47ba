"""Functions of the earlier API: a picture, its steps as they are made, a note that each request chooses, a duet."""

import io
from collections.abc import Iterator
from typing import Annotated

import msgspec
from diffusers import StableDiffusionXLPipeline

from gen_worker import (
    ActionContext,
    Asset,
    ModelArtifacts,
    ModelRef,
    ModelRefSource,
    RealtimeSocket,
    ResourceRequirements,
    ValidationError,
    worker_function,
    worker_websocket,
)


class Prompt(msgspec.Struct):
    prompt: str
    steps: int = 2


class Picture(msgspec.Struct):
    image: Asset


class Word(msgspec.Struct):
    text: str


class Wish(msgspec.Struct):
    model: str


class Note(msgspec.Struct):
    model: str
    text: str


@worker_function(ResourceRequirements(max_concurrency=1))
def paint(
    ctx: ActionContext,
    pipeline: Annotated[StableDiffusionXLPipeline, ModelRef(ModelRefSource.DEPLOYMENT, "sdxl")],
    payload: Prompt,
) -> Picture:
    ctx.progress(0.1, "painting")
    made = pipeline(payload.prompt, width=64, height=64, num_inference_steps=payload.steps)
    buffer = io.BytesIO()
    made.images[0].save(buffer, format="PNG")
    return Picture(ctx.save_bytes("output.png", buffer.getvalue()))


@worker_function()
def spell(ctx: ActionContext, payload: Prompt) -> Iterator[Word]:
    if not payload.prompt:
        raise ValidationError("there is nothing to spell")
    for word in payload.prompt.split():
        if ctx.is_canceled():
            return
        yield Word(word)


@worker_function()
def read(
    ctx: ActionContext,
    payload: Wish,
    note: Annotated[ModelArtifacts, ModelRef(ModelRefSource.PAYLOAD, "model")],
) -> Note:
    ctx.log(f"reading {note.model_id}")
    return Note(note.model_id, note.path("note.txt").read_text())


@worker_websocket()
async def echo(ctx: ActionContext, sock: RealtimeSocket) -> None:
    async for message in sock.iter_bytes():
        await sock.send_bytes(message.upper())
