"""The author's objects that are set up in this process, each with the models in its slots.

Knows nothing of frames: `gen-worker run` uses it in its own process, a child in its own.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gen_worker.api.handlers import handle_parameters, hook_of
from gen_worker.discovery.function_spec import FunctionSpec
from gen_worker.models.wanted import base_instance
from gen_worker.wire.messages import Resident, SlotModel
from gen_worker_child.engines import Engines

if TYPE_CHECKING:
    from gen_worker_child.loop import Aside
    from gen_worker_child.models.plane import Models

CallHook = Callable[[object, str, Mapping[str, object]], None]
"""Calls a hook of an instance with these arguments and waits for it, whatever its shape."""


@dataclass(slots=True)
class _Instance:
    made: object | None  # None for a function endpoint, which only has models
    injected: Mapping[str, object] = field(default_factory=dict)
    has_models: bool = False


class Instances:
    """What is set up here. `load` and `unload` are for one thread; `lease` and `handler` for any."""

    def __init__(
        self, specs: Sequence[FunctionSpec], call_hook: CallHook, open_models: "Callable[[], Models] | None" = None
    ) -> None:
        """Open the models of this process with the first instance that has any."""
        self._specs = specs
        self._call_hook = call_hook
        self._open_models = open_models
        self._models: Models | None = None
        self.engines = Engines()
        self._held: dict[str, _Instance] = {}
        self._handlers: dict[tuple[str, str], Callable[..., Any]] = {}

    @property
    def models(self) -> "Models":
        """The models of this process."""
        if self._models is None:
            assert self._open_models is not None, "models are loaded where nothing opens them"
            self._models = self._open_models()
        return self._models

    def load(self, instance: str, slots: Sequence[SlotModel]) -> list[Resident]:
        """Make the instance, give it its models, run `setup()` and `warmup()`; return what it holds then.

        Raises what the author's code raises, `ModelError` for a model that cannot be loaded, and `ServerBootError` for
        an engine that does not come up.
        """
        base = base_instance(instance)
        spec = next(spec for spec in self._specs if spec.instance == base)
        values = self.models.load(instance, slots, self._annotations(spec, slots)) if slots else {}
        try:
            handles = self._start_engine(instance, spec, slots)
            made = spec.owner() if spec.owner is not None else None
            if made is not None:
                own = {name: values[name] for name in spec.setup_slots if name in values}
                self._call_hook(made, "setup", own | handles)
                self._call_hook(made, "warmup", {})
            self.engines.check(instance)
        except BaseException as error:
            try:
                self.engines.check(instance, error)
            finally:
                self.engines.stop(instance)
                if slots:
                    self.models.unload(instance)
            raise
        self._held[instance] = _Instance(made, values, bool(slots))
        return self.models.residents(instance) if slots else []

    def models_of(self, instance: str) -> Mapping[str, object]:
        """Return what an instance's slots hold: objects, or paths."""
        held = self._held.get(instance)
        return held.injected if held is not None else {}

    def _start_engine(self, instance: str, spec: FunctionSpec, slots: Sequence[SlotModel]) -> dict[str, object]:
        """Start the engine of a class that has one; return what goes to the parameters of `setup()` for its handle."""
        if spec.runtime is None or spec.owner is None:
            return {}
        handle = self.engines.start(instance, spec, slots)
        setup = hook_of(spec.owner, "setup")
        return {each.name: handle for each in handle_parameters(setup)} if setup is not None else {}

    def _annotations(self, spec: FunctionSpec, slots: Sequence[SlotModel]) -> dict[str, object]:
        from gen_worker_child.models.annotations import annotations_of

        names = [slot.slot for slot in slots]
        found: dict[str, object] = {}
        if spec.owner is not None and (setup := hook_of(spec.owner, "setup")) is not None:
            found |= annotations_of(setup, [name for name in names if name in spec.setup_slots])
        for each in self._specs:
            if each.earlier is not None and each.instance == spec.instance:
                found |= each.earlier.slot_types()
            elif each.instance == spec.instance and each.injected:
                found |= annotations_of(each.function, [name for name in names if name in each.injected])
        return found

    def rung(self, instance: str) -> str:
        """Return how an instance's pipelines are placed; empty when they are plainly on the device."""
        return self.models.rung(instance) if self._has_models(instance) else ""

    def holds(self, instance: str) -> bool:
        """Whether an instance is set up here."""
        return not instance or (instance in self._held and not self.engines.lost(instance))

    def lease(self, instance: str) -> AbstractContextManager[object]:
        """Keep an instance's models on the device inside the block; raise `KeyError` when it is not set up here."""
        if not instance:
            return nullcontext()
        held = self._held[instance]
        return self.models.leased(instance) if held.has_models else nullcontext()

    def handler(self, spec: FunctionSpec, instance: str) -> Callable[..., Any]:
        """Return what to call with (ctx, payload)."""
        handler = self._handlers.get((spec.name, instance))
        if handler is None:
            handler = self._handlers[spec.name, instance] = self._bound(spec, instance)
        return handler

    def _bound(self, spec: FunctionSpec, instance: str) -> Callable[..., Any]:
        held = self._held.get(instance)
        function: Callable[..., Any] = spec.function if spec.earlier is None else spec.earlier.caller()
        if spec.owner is not None:
            assert held is not None
            function = function.__get__(held.made)
        own = {name: held.injected[name] for name in spec.injected if name in held.injected} if held else {}
        if not own:
            return function
        return lambda ctx, payload: function(ctx, payload, **own)

    def call(
        self, spec: FunctionSpec, instance: str, ctx: object, payload: object, aside: "Aside | None" = None
    ) -> Any:
        """Call the handler; where the device has no memory for it, make room and call it again.

        Returns what the handler returns: an output, a coroutine, a generator or an iterable. Of an async handler room
        is made `aside`: what must go has a `shutdown()`, which runs where its `setup()` ran, and may need the loop.
        """
        handler = self.handler(spec, instance)
        if not self._has_models(instance):
            return handler(ctx, payload)

        def call() -> Any:
            return handler(ctx, payload)

        if spec.shape == "sync":
            return self.models.retrying(instance, call)
        if spec.shape == "async" and aside is not None:
            return self.models.retrying_async(instance, call, aside)
        if inspect.isgeneratorfunction(spec.function):
            return self.models.retrying_stream(instance, call)
        if inspect.isasyncgenfunction(spec.function) and aside is not None:
            return self.models.retrying_async_stream(instance, call, aside)
        return call()  # an iterable of items that may have been made long ago

    def _has_models(self, instance: str) -> bool:
        held = self._held.get(instance)
        return held is not None and held.has_models

    def unload(self, instance: str, on_error: Callable[[Exception], None]) -> None:
        """Let go of an instance, after its `shutdown()`, and of its models; an exception there goes to `on_error`."""
        held = self._held.pop(instance, None)
        if held is None:
            return
        for key in [key for key in self._handlers if key[1] == instance]:
            del self._handlers[key]
        self.engines.release(instance)
        if held.made is not None:
            try:
                self._call_hook(held.made, "shutdown", {})
            except Exception as error:  # noqa: BLE001 - around the author's code
                on_error(error)
        self.engines.stop(instance)
        held.made, held.injected = None, {}
        if held.has_models:
            self.models.unload(instance)

    def shutdown(self, on_error: Callable[[Exception], None]) -> None:
        """Let go of every instance."""
        for instance in list(self._held):
            self.unload(instance, on_error)
