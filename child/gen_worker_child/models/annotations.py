"""The annotations of slots' parameters, as they are where an instance is set up."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from gen_worker.api.hints import UnresolvedAnnotationError, resolve
from gen_worker.models.errors import ModelError


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
