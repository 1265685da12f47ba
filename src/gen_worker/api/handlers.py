"""Which functions of an endpoint are handlers, and what their parameters are for."""

import inspect
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any, TypeAlias

Handler: TypeAlias = Callable[..., Any]

HOOKS = ("setup", "warmup", "shutdown")

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def handlers_of(cls: type) -> list[tuple[str, Handler]]:
    """Return the public methods of a class, inherited ones too, in the order of their definition."""
    names = dict.fromkeys(name for base in reversed(cls.__mro__) for name in vars(base))
    public = [name for name in names if not name.startswith("_") and name not in HOOKS]
    found = [(name, inspect.getattr_static(cls, name)) for name in public]
    return [(name, value) for name, value in found if isinstance(value, FunctionType)]


def hook_of(cls: type, name: str) -> Handler | None:
    """Return the hook `setup`, `warmup` or `shutdown` of a class, if it has one."""
    hook = inspect.getattr_static(cls, name, None)
    return hook if isinstance(hook, FunctionType) else None


def parameters(function: Handler, *, method: bool) -> list[inspect.Parameter]:
    """Return the named parameters, without `self`."""
    named = [each for each in inspect.signature(function).parameters.values() if each.kind not in _VARIADIC]
    return named[1:] if method else named


def takes_context_and_payload(function: Handler, *, method: bool) -> bool:
    """Tell whether a handler can be called with (ctx, payload)."""
    named = parameters(function, method=method)
    return len([each for each in named if each.kind in _POSITIONAL]) >= 2


def injected_parameters(function: Handler, *, method: bool) -> list[inspect.Parameter]:
    """Return the parameters after (ctx, payload)."""
    return parameters(function, method=method)[2:]


def setup_parameters(setup: Handler) -> list[inspect.Parameter]:
    """Return the parameters of `setup()` that stand for models: all but the handle of an engine server."""
    return [each for each in parameters(setup, method=True) if not _is_server_handle(each.annotation)]


def handle_parameters(setup: Handler) -> list[inspect.Parameter]:
    """Return the parameters of `setup()` that take the handle of an engine server."""
    return [each for each in parameters(setup, method=True) if _is_server_handle(each.annotation)]


def takes_any_keyword(function: Handler) -> bool:
    """Tell whether the function has `**kwargs`."""
    return any(each.kind is inspect.Parameter.VAR_KEYWORD for each in inspect.signature(function).parameters.values())


def _is_server_handle(annotation: object) -> bool:
    name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return str(name).strip("'\"").rpartition(".")[2] == "ServerHandle"


def not_taken(name: str, options: Iterable[str]) -> str:
    """Say that there is no such option, and which may be meant."""
    from difflib import get_close_matches

    known = list(options)
    near = get_close_matches(name, known, n=1) or [each for each in known if each.startswith(f"{name}_")]
    return f"takes no `{name}=`; " + (f"did you mean `{near[0]}=`?" if near else f"it takes: {', '.join(known)}")


def is_generator(function: Handler) -> bool:
    """Tell whether calling the function makes a generator, sync or async."""
    plain = inspect.unwrap(function)
    return inspect.isgeneratorfunction(plain) or inspect.isasyncgenfunction(plain)
