"""Tell whether what a handler gives is what its annotation says, and pass on the items of its streams. Pure."""

from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from typing import Any

from gen_worker.api.context import RequestContext
from gen_worker.api.errors import FatalError, ValidationError, WrongTypeError
from gen_worker.api.streaming import Done, Error
from gen_worker.discovery.function_spec import FunctionSpec
from gen_worker.discovery.schemas import members

OnItem = Callable[[Any], Awaitable[None] | None]
"""Takes a stream item; what it returns is awaited before an async generator goes on."""


def checked(spec: FunctionSpec, output: Any) -> Any:
    """Return what a handler returned; raise `WrongTypeError` where it is not of the annotated type."""
    if isinstance(spec.output_type, type) and not isinstance(output, spec.output_type):
        raise _unlike(spec, "returned", output)
    return output


def all_checked(spec: FunctionSpec, outputs: Any, due: int) -> list[Any]:
    """Return the outputs of a batch, each one's `FatalError` in its place; raise that where they are no such list."""
    if not isinstance(outputs, list | tuple):
        raise WrongTypeError(f"`{spec.python_name}` returned a `{type(outputs).__name__}`, a batch returns a list")
    if len(outputs) != due:
        raise FatalError(f"`{spec.python_name}` returned {len(outputs)} outputs for {due} payloads")
    return [_one_checked(spec, output) for output in outputs]


def _one_checked(spec: FunctionSpec, output: Any) -> Any:
    """Return one output of a batch, or the exception in its place: what is wrong with one concerns no other."""
    if isinstance(output, Exception):
        return output
    try:
        return checked(spec, output)
    except FatalError as error:
        return error


def _unlike(spec: FunctionSpec, gave: str, value: Any) -> WrongTypeError:
    annotated = " | ".join(each.__name__ for each in members(spec.output_type))
    return WrongTypeError(f"`{spec.python_name}` {gave} a `{type(value).__name__}`, its annotation says `{annotated}`")


class Stream:
    """Passes on the items of one function's streams: what is annotated, until the handler or a cancel ends it.

    Raises `WrongTypeError` for an item of another type, once those before it have left; `ValidationError` for `Error`.
    """

    def __init__(self, spec: FunctionSpec) -> None:
        self._spec = spec
        self._annotated: tuple[type, ...] = members(spec.output_type)
        self._sent = frozenset(self._annotated)  # a look in here is all that most items cost

    def pump(self, items: Any, on_item: OnItem, ctx: RequestContext) -> None:
        """Pass on what a handler gives one after the other."""
        if not isinstance(items, Iterable):
            raise self._no_stream(items)
        try:
            for item in items:
                ctx.raise_if_cancelled("canceled")
                if type(item) not in self._sent and self._ends(item):
                    break
                on_item(item)
        finally:
            if hasattr(items, "close"):  # an Iterable handler may return a list
                items.close()

    async def pump_async(self, items: Any, on_item: OnItem, ctx: RequestContext) -> None:
        """Do the same for what comes asynchronously."""
        if not isinstance(items, AsyncIterable):
            raise self._no_stream(items)
        try:
            async for item in items:
                ctx.raise_if_cancelled("canceled")
                if type(item) not in self._sent and self._ends(item):
                    break
                waiting = on_item(item)
                if waiting is not None:
                    await waiting
        finally:
            if hasattr(items, "aclose"):
                await items.aclose()

    def _ends(self, item: Any) -> bool:
        if isinstance(item, self._annotated):
            return False
        if type(item) is Error:
            raise ValidationError(item.message)
        if type(item) is Done:
            return True
        raise _unlike(self._spec, "yielded", item)

    def _no_stream(self, made: Any) -> WrongTypeError:
        name, kind = self._spec.python_name, type(made).__name__
        return WrongTypeError(f"`{name}` returned a `{kind}`, its annotation says that it streams")
