"""What the annotation of a slot's parameter asks for: the path of the model, or an object made of it.

Pure: looks at types, never at files.
"""

import types
import typing
from pathlib import Path
from typing import Any, Literal, NamedTuple


class Asked(NamedTuple):
    """What goes into a slot."""

    form: Literal["text", "path", "built"]
    built: Any = None
    """Of the form `built`: the class whose `from_pretrained` makes the object."""


def asked(annotation: object) -> Asked:
    """Tell what an annotation asks for; whatever cannot be built from a model is given its path as text."""
    for each in alternatives(annotation):
        if isinstance(each, type) and _is_buildable(each):
            return Asked("built", each)
        if isinstance(each, type) and issubclass(each, Path):
            return Asked("path")
    return Asked("text")


def takes_model(annotation: object) -> bool:
    """Tell whether what goes into a slot is of the type that its annotation says."""
    if asked(annotation).form != "text":
        return True
    named = [each for each in alternatives(annotation) if each is not type(None)]
    return not named or any(each in (None, Any, object, str) for each in named)


def alternatives(annotation: object) -> list[object]:
    """Return the members of a union, the annotation itself when it is none, without what only decorates them."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return alternatives(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [inner for each in typing.get_args(annotation) for inner in alternatives(each)]
    return [annotation]


def _is_buildable(cls: type) -> bool:
    try:
        return callable(getattr(cls, "from_pretrained", None))
    except ImportError:  # what transformers has in the place of a class whose library is not installed says so
        return True
