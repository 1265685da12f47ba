"""Functions of the earlier API, each with a model that is made of its files in another way."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec

from gen_worker import ActionContext, ModelArtifacts, ModelManager, ModelRef, ModelRefSource, worker_function
from gen_worker.injection import register_runtime_loader


class Ask(msgspec.Struct):
    model: str = ""


class Told(msgspec.Struct):
    by: str
    text: str = ""
    times: int = 0


class Made:
    """What somebody made of a model."""

    def __init__(self, by: str, text: str) -> None:
        self.by = by
        self.text = text
        self.times = 0

    def told(self) -> Told:
        self.times += 1
        return Told(self.by, self.text, self.times)


class Registered(Made):
    """Made by what is registered for its type."""


class Named(Made):
    """Made by what the environment names for its type."""


class Managed(Made):
    """Made by the manager that the environment names."""


class Pretrained(Made):
    """Loads itself."""

    @classmethod
    def from_pretrained(cls, folder: str) -> "Pretrained":
        return cls("itself", Path(folder, "note.txt").read_text())


class Hidden(Made):
    """Made by nobody."""


def registered(ctx: ActionContext, files: ModelArtifacts) -> Registered:
    return Registered("what is registered", files.path("note.txt").read_text())


async def named(ctx: ActionContext, files: ModelArtifacts) -> Named:
    return Named(f"what is named, for {ctx.run_id}", files.path("note.txt").read_text())


register_runtime_loader(Registered, registered)


class Keeper(ModelManager):
    """Has one model, once it was told to load it."""

    def __init__(self) -> None:
        self.there: dict[str, Managed] = {}

    async def load(self, model_id: str) -> bool:
        if model_id == "kept":
            self.there[model_id] = Managed("the manager", model_id)
        return model_id in self.there

    def get(self, model_id: str) -> Managed | None:
        return None

    def get_for_inference(self, model_id: str) -> Managed | None:
        return self.there.get(model_id)

    def unload(self, model_id: str) -> bool:
        return self.there.pop(model_id, None) is not None

    def stats(self) -> dict[str, Any]:
        return {"models": list(self.there)}


Notes = ModelRef(ModelRefSource.DEPLOYMENT, "acme/notes")
Asked = ModelRef(ModelRefSource.PAYLOAD, "model")


@worker_function()
def of_registered(ctx: ActionContext, payload: Ask, it: Annotated[Registered, Notes]) -> Told:
    return it.told()


@worker_function()
def of_named(ctx: ActionContext, it: Annotated[Named, Asked], payload: Ask) -> Told:
    return it.told()


@worker_function()
async def of_managed(ctx: ActionContext, payload: Ask, *, it: Annotated[Managed, Asked]) -> Told:
    return it.told()


@worker_function()
def of_pretrained(ctx: ActionContext, payload: Ask, it: Annotated[Pretrained, Notes]) -> Iterator[Told]:
    yield it.told()


@worker_function()
def of_both(
    ctx: ActionContext, one: Annotated[Registered, Notes], payload: Ask, other: Annotated[Named, Asked]
) -> Told:
    return Told(f"{one.by} and {other.by.partition(',')[0]}", one.text + other.text)


@worker_function()
def of_files(
    ctx: ActionContext,
    payload: Ask,
    files: Annotated[ModelArtifacts, ModelRef(ModelRefSource.DEPLOYMENT, "on-this-host")],
) -> Told:
    return Told(str(files.metadata["sm"]), files.path("note").read_text())


@worker_function()
def of_nobody(ctx: ActionContext, payload: Ask, it: Annotated[Hidden, Notes]) -> Told:
    return it.told()
