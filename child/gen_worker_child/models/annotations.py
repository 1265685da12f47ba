"""What the annotation of a slot's parameter asks for: the path of the model, or an object made of it.

Pure: looks at types, never at files.
"""

import inspect
import types
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from gen_worker.api.hints import UnresolvedAnnotationError, resolve
from gen_worker.models.errors import ModelError


class Asked(NamedTuple):
    """What goes into a slot."""

    form: Literal["text", "path", "built"]
    built: Any = None
    """Of the form `built`: the class whose `from_pretrained` makes the object."""


def asked(annotation: object) -> Asked:
    """Tell what an annotation asks for; whatever cannot be built from a model is given its path as text."""
    for each in alternatives(annotation):
        if isinstance(each, type) and callable(getattr(each, "from_pretrained", None)):
            return Asked("built", each)
        if isinstance(each, type) and issubclass(each, Path):
            return Asked("path")
    return Asked("text")


def alternatives(annotation: object) -> list[object]:
    """Return the members of a union, the annotation itself when it is none, without what only decorates them."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return alternatives(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [inner for each in typing.get_args(annotation) for inner in alternatives(each)]
    return [annotation]


def annotations_of(function: Callable[..., Any], slots: Iterable[str]) -> dict[str, object]:
    """Return the annotation of each slot's parameter, None where it has none or `**kwargs` takes it.

    Raises `ModelError` for one that is written as a string and means nothing where it stands: to inject a path
    instead of the object it names would only fail later.
    """
    return {slot: _annotation(function, slot) for slot in slots}


def _annotation(function: Callable[..., Any], slot: str) -> object:
    try:
        return resolve(function, slot)
    except UnresolvedAnnotationError as error:
        name = getattr(inspect.unwrap(function), "__qualname__", "the function")
        raise ModelError(
            "load_failed",
            f"the annotation of `{slot}` in `{name}` means nothing there: {error}",
            "import the class at the top of the module, not under `TYPE_CHECKING`",
        ) from error
