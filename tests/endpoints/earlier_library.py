"""Functions of the earlier API with a model of their project's, and one that each request names."""

from typing import Annotated

import msgspec

from gen_worker import ActionContext, ModelArtifacts, ModelRef, ModelRefSource, worker_function


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
