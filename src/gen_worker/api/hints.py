"""What an annotation means, even when it is written as a string."""

import inspect
import typing
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class UnresolvedAnnotationError(ValueError):
    """An annotation written as a string means nothing where it stands."""


def resolve(function: Callable[..., Any], name: str) -> Any:
    """Return the type that annotates a parameter, or "return"; None without an annotation.

    Only this one annotation is looked at: the others may name what exists for type checkers only.
    """
    plain = inspect.unwrap(function)
    annotations = getattr(plain, "__annotations__", {})
    if name not in annotations:
        return None
    alone = SimpleNamespace(__annotations__={name: annotations[name]})
    try:
        found = typing.get_type_hints(alone, globalns=getattr(plain, "__globals__", {}))[name]
        while type(found).__name__ == "TypeAliasType":  # of Python 3.12's `type X = Y`, or of typing_extensions
            found = found.__value__
        return found
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        raise UnresolvedAnnotationError(str(error)) from error
