"""What earlier functions are given of models: files, what a loader or a manager makes of them, or a loaded object."""

import inspect
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from gen_worker.api.errors import ResourceError
from gen_worker.api.slots import asked
from gen_worker.earlier.context import ActionContext
from gen_worker.earlier.injection import LOADERS, Injection, ModelArtifacts, type_qualname
from gen_worker.earlier.surroundings import LOADERS as LOADERS_VARIABLE
from gen_worker.earlier.surroundings import MANAGER, Surroundings, named_object, surroundings

_TENSORRT = "@tensorrt"


def is_built(type_: Any) -> bool:
    """Tell whether the worker builds objects of a type from a model's files, as nothing else is said to."""
    around = surroundings()
    if type_ is ModelArtifacts or around.manager or loader_of(type_, around) is not None:
        return False
    return asked(type_).form == "built"


def loader_of(type_: Any, around: Surroundings) -> Callable[..., Any] | None:
    """Return what makes objects of a type, by the environment or else as it was registered."""
    named = around.loaders.get(type_qualname(type_)) or around.loaders.get(getattr(type_, "__qualname__", ""))
    return named_object(LOADERS_VARIABLE, named) if named else LOADERS.get(type_)


def check_surroundings(types: Iterable[Any]) -> None:
    """Raise `VariableError` where the environment names what makes objects of these types, and that is not there."""
    for type_ in types:
        around = surroundings()
        loader_of(type_, around)
        if around.manager:
            named_object(MANAGER, around.manager)


class Values:
    """Makes what one instance of a function is given, each thing once; safe in any thread."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, Any], Any] = {}
        self._lock = threading.Lock()

    def known(self, injections: Mapping[Injection, str], found: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what goes into each parameter where all of it is there; None where something is to be made."""
        values = {}
        for injection, model_id in injections.items():
            if injection.param in found and is_built(injection.type):
                values[injection.param] = found[injection.param]
            elif (model_id, injection.type) in self._made:
                values[injection.param] = self._made[model_id, injection.type]
            else:
                return None
        return values

    def make(self, ctx: ActionContext, injections: Mapping[Injection, str], found: Mapping[str, Any]) -> dict[str, Any]:
        """Return what goes into each parameter. `found` is what the worker has for it: an object, or where files lie.

        Not on an event loop: it waits for coroutines. Raises ValueError for what cannot be had, `ResourceError` for
        an engine that was built for other hardware, and what loaders raise.
        """
        with self._lock:
            return {
                injection.param: self._value(ctx, injection, model_id, found.get(injection.param))
                for injection, model_id in injections.items()
            }

    def _value(self, ctx: ActionContext, injection: Injection, model_id: str, found: Any) -> Any:
        type_, around = injection.type, surroundings()
        if found is not None and is_built(type_):
            return found
        if type_ is ModelArtifacts:
            return self._once(model_id, type_, lambda: artifacts_of(model_id, found, around))
        if (loader := loader_of(type_, around)) is not None:
            return self._once(model_id, type_, lambda: loader(ctx, artifacts_of(model_id, found, around)))
        if around.manager and (managed := _managed(around.manager, model_id)) is not None:
            if isinstance(type_, type) and not isinstance(managed, type_):
                wanted, there = type_qualname(type_), type_qualname(type(managed))
                raise ValueError(f"`{injection.param}` takes a `{wanted}`, the manager has a `{there}` of `{model_id}`")
            return managed
        if asked(type_).form == "built":
            return self._once(model_id, type_, lambda: _loaded(ctx, asked(type_).built, model_id, found))
        raise ValueError(
            f"nothing makes a `{type_qualname(type_)}` for `{injection.param}`: register a loader with "
            "`register_runtime_loader`, or annotate it with `ModelArtifacts`"
        )

    def _once(self, model_id: str, type_: Any, make: Callable[[], Any]) -> Any:
        if (model_id, type_) not in self._made:
            self._made[model_id, type_] = finished(make())
        return self._made[model_id, type_]


def artifacts_of(model_id: str, found: str | Path | None, around: Surroundings) -> ModelArtifacts:
    """Return the files of a model: those that the environment names, else those that were fetched, by their paths.

    Raises `ResourceError` for an engine that was built for other hardware.
    """
    found_files = _artifacts(model_id, found, around)
    _check_tensorrt(found_files, around)
    return found_files


def _artifacts(model_id: str, found: str | Path | None, around: Surroundings) -> ModelArtifacts:
    if (described := around.artifacts.get(model_id)) is not None:
        folder = Path(described.folder or around.folder_of(model_id))
        files = {key: path if Path(path).is_absolute() else folder / path for key, path in described.files.items()}
        return ModelArtifacts(model_id, folder, files, described.metadata)
    if found is None:
        return ModelArtifacts(model_id, around.folder_of(model_id), {})
    root = Path(found)
    if root.is_file():
        return ModelArtifacts(model_id, root.parent, {root.name: root})
    return ModelArtifacts(
        model_id, root, {str(each.relative_to(root)): each for each in root.rglob("*") if each.is_file()}
    )


def _check_tensorrt(artifacts: ModelArtifacts, around: Surroundings) -> None:
    if _TENSORRT not in artifacts.model_id:
        return
    for name in ("cuda_version", "tensorrt_version", "sm"):
        built, here = str(artifacts.metadata.get(name) or ""), around.host.get(name, "")
        if not built:
            raise ResourceError(f"`{artifacts.model_id}` does not say in its metadata for which {name} it was built")
        if built != here:
            told = f"this host has `{here}`" if here else f"this host's is not known: set `WORKER_{name.upper()}`"
            raise ResourceError(f"`{artifacts.model_id}` was built for {name} `{built}`, {told}")


@cache
def _manager(name: str) -> Any:
    return named_object(MANAGER, name)()


def _managed(name: str, model_id: str) -> Any:
    """Return a model of the author's manager, which loads it where it has it not."""
    manager = _manager(name)
    get = next(
        method
        for each in ("get_for_inference", "get_active_pipeline", "get")
        if (method := getattr(manager, each, None)) is not None
    )
    there = finished(get(model_id))
    if there is None and hasattr(manager, "load") and finished(manager.load(model_id)):
        there = finished(get(model_id))
    return there


def _loaded(ctx: ActionContext, cls: Any, model_id: str, found: str | Path | None) -> Any:
    """Return an object made of files that a manager does not have, on the device of the run."""
    place = Path(model_id) if found is None else Path(found)
    if not place.exists():
        raise ValueError(f"`{model_id}` is no ref of a model and no key of `[tool.cozy.models]`")
    made = cls.from_pretrained(str(place))
    return made.to(ctx.device) if callable(getattr(made, "to", None)) else made


def finished(value: Any) -> Any:
    """Return a value, waiting for it where it is a coroutine; where an event loop runs here, in another thread."""
    if not inspect.isawaitable(value):
        return value
    import asyncio

    async def wait() -> Any:
        return await value

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(wait())
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, wait()).result()
