"""Call an earlier function as any other handler is called: with a request's context, its payload and its models."""

import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gen_worker.api.context import RequestContext
from gen_worker.api.errors import CanceledError
from gen_worker.api.overrides import OverrideError
from gen_worker.earlier.context import ActionContext
from gen_worker.earlier.injection import Injection, ModelRefSource
from gen_worker.earlier.realtime import RealtimeSocket
from gen_worker.earlier.refs import binding_of, refuse_others
from gen_worker.earlier.surroundings import surroundings
from gen_worker.earlier.values import Values, is_built

if TYPE_CHECKING:
    from gen_worker.api.bindings import Binding
    from gen_worker.wire.messages import EarlierRun, Shape


@dataclass(frozen=True, slots=True)
class EarlierFunction:
    """An earlier function: what it takes, by which names."""

    function: Callable[..., Any]
    shape: "Shape"
    payload: str
    """The parameter that takes the payload; of a realtime function the socket."""

    injections: tuple[Injection, ...]
    models: Mapping[str, str]
    """Ids by key, as `[tool.cozy.models]` has them."""

    max_concurrency: int | None = None

    @property
    def asks(self) -> bool:
        """Whether a payload says which of the models it is."""
        return any(each.model_ref.source is ModelRefSource.PAYLOAD for each in self.injections)

    def ids(self, payload: object, run: "EarlierRun | None" = None) -> dict[Injection, str]:
        """Return which model goes into each parameter.

        Raises `OverrideError` where a payload does not say, and for one that the deployment may not use.
        """
        keys = {**self.models, **(run.model_keys if run else {})}
        chosen = {each: keys.get(key := _key(each, payload), key) for each in self.injections}
        if run is not None:
            refuse_others(run.model_ids, {each.param: model_id for each, model_id in chosen.items()})
        return chosen

    def bindings(self, ids: Mapping[Injection, str]) -> "dict[str, Binding]":
        """Return where the files come from that are to be fetched, by parameter."""
        described = surroundings().artifacts
        found = {each.param: binding_of(model_id) for each, model_id in ids.items() if model_id not in described}
        return {param: binding for param, binding in found.items() if binding is not None}

    def slot_types(self) -> dict[str, object]:
        """Return what each parameter is filled with by the worker: an object, or where the files lie."""
        return {each.param: each.type if is_built(each.type) else Path for each in self.injections}

    def caller(self) -> Callable[..., Any]:
        """Return what is called with (ctx, payload) and the models by parameter; it keeps what is made of those."""
        call = _Call(self)
        return _SHAPES[self.shape](call) if not _returns_iterator(self) else call.iterator


def _key(injection: Injection, payload: object) -> str:
    """Return the key of a model: the one in its mark, or what stands in the field of the payload that it names."""
    mark = injection.model_ref
    if mark.source is ModelRefSource.DEPLOYMENT:
        return mark.key
    named = getattr(payload, mark.key, None)
    if not isinstance(named, str) or not named.strip():
        raise OverrideError(f"expected the key or the ref of a model - at `$.{mark.key}`")
    return named.strip()


def _returns_iterator(function: EarlierFunction) -> bool:
    return function.shape == "generator" and not inspect.isgeneratorfunction(inspect.unwrap(function.function))


class _Call:
    """Calls one function on one set of models."""

    def __init__(self, earlier: EarlierFunction) -> None:
        self._earlier = earlier
        self._values = Values()
        self._turns: Any = None

    def arguments(self, ctx: RequestContext, payload: Any, found: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the function is called with, by name, after its context."""
        earlier = self._earlier
        if not earlier.injections:
            return {earlier.payload: payload}
        ids = earlier.ids(payload, ctx._earlier)
        values = self._values.known(ids, found)
        if values is None:
            values = self._values.make(ActionContext.of(ctx), ids, found)
        return {earlier.payload: payload, **values}

    async def arguments_aside(self, ctx: RequestContext, payload: Any, found: Mapping[str, Any]) -> dict[str, Any]:
        """Do the same on an event loop; what takes long is done in a thread."""
        earlier = self._earlier
        if not earlier.injections or self._values.known(earlier.ids(payload, ctx._earlier), found) is not None:
            return self.arguments(ctx, payload, found)
        import asyncio

        return await asyncio.to_thread(self.arguments, ctx, payload, found)

    def turns(self) -> Any:
        """Return what lets only so many runs be at work at once as the function says."""
        import asyncio

        if self._turns is None:
            self._turns = asyncio.Semaphore(self._earlier.max_concurrency or 1 << 30)
        return self._turns

    def function(self, ctx: RequestContext, arguments: dict[str, Any]) -> Any:
        """Call it."""
        return self._earlier.function(ActionContext.of(ctx), **arguments)

    def iterator(self, ctx: RequestContext, payload: Any, **found: Any) -> Any:
        """Call a function that returns an iterator which it got from elsewhere."""
        with _ends(ctx):
            items = self.function(ctx, self.arguments(ctx, payload, found))
        return _until_end(ctx, items) if isinstance(items, Iterable) else items  # which is no answer of a stream's


def _until_end(ctx: RequestContext, items: Iterable[Any]) -> Iterator[Any]:
    with _ends(ctx):
        yield from items


def _sync(call: _Call) -> Callable[..., Any]:
    def run(ctx: RequestContext, payload: Any, **found: Any) -> Any:
        with _ends(ctx):
            return call.function(ctx, call.arguments(ctx, payload, found))

    return run


def _generator(call: _Call) -> Callable[..., Any]:
    def run(ctx: RequestContext, payload: Any, **found: Any) -> Iterator[Any]:
        with _ends(ctx):
            yield from call.function(ctx, call.arguments(ctx, payload, found))

    return run


def _async(call: _Call) -> Callable[..., Any]:
    async def run(ctx: RequestContext, payload: Any, **found: Any) -> Any:
        async with call.turns():
            with _ends(ctx):
                return await call.function(ctx, await call.arguments_aside(ctx, payload, found))

    return run


def _async_generator(call: _Call) -> Callable[..., Any]:
    async def run(ctx: RequestContext, payload: Any, **found: Any) -> AsyncIterator[Any]:
        async with call.turns():
            with _ends(ctx):
                async for item in call.function(ctx, await call.arguments_aside(ctx, payload, found)):
                    yield item

    return run


def _websocket(call: _Call) -> Callable[..., Any]:
    async def run(ctx: RequestContext, peer: Any, **found: Any) -> None:
        socket = RealtimeSocket(peer)
        async with call.turns():
            with _ends(ctx):
                await call.function(ctx, await call.arguments_aside(ctx, socket, found))

    return run


_SHAPES: "dict[Shape, Callable[[_Call], Callable[..., Any]]]" = {
    "sync": _sync,
    "generator": _generator,
    "async": _async,
    "async_generator": _async_generator,
    "websocket": _websocket,
}


@contextmanager
def _ends(ctx: RequestContext) -> Iterator[None]:
    """Have a run that was asked to end, or says so with an `InterruptedError`, end as canceled."""
    try:
        yield
    except InterruptedError as error:
        raise CanceledError(str(error) or "canceled") from error
    ctx.raise_if_cancelled("canceled")
