"""Functions of the earlier API with a model of their project's, and one that each request names."""

from typing import Annotated

import msgspec

from gen_worker import (
    ActionContext,
    ModelArtifacts,
    ModelRef,
    ModelRefSource,
    RealtimeSocket,
    worker_function,
    worker_websocket,
)


class Ask(msgspec.Struct):
    model: str = ""


class Read(msgspec.Struct):
    text: str
    model: str


@worker_function()
def ours(
    ctx: ActionContext,
    payload: Ask,
    files: Annotated[ModelArtifacts, ModelRef(ModelRefSource.DEPLOYMENT, "acme/notes")],
) -> Read:
    return Read(files.path("note.txt").read_text(), files.model_id)


@worker_function()
def yours(
    ctx: ActionContext, payload: Ask, files: Annotated[ModelArtifacts, ModelRef(ModelRefSource.PAYLOAD, "model")]
) -> Read:
    return Read(files.path("note.txt").read_text(), files.model_id)


@worker_websocket()
async def reads_aloud(
    ctx: ActionContext,
    sock: RealtimeSocket,
    *,
    files: Annotated[ModelArtifacts, ModelRef(ModelRefSource.DEPLOYMENT, "acme/notes")],
) -> None:
    async for asked in sock.iter_bytes():
        said = f"{ctx.tenant_id}: {asked.decode()}? {files.path('note.txt').read_text()}"
        await sock.send_json({"said": said, "run": ctx.run_id})
        await sock.send_bytes(memoryview(b"over"))
