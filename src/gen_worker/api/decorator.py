"""`@endpoint`: mark a function or a class as something that can be served.

Refuses at decoration what can be seen there; what needs the types of a handler is checked by `gen_worker.discovery`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FunctionType, MappingProxyType
from typing import Any, Literal, TypeAlias, TypeVar, get_args, overload

from gen_worker.api.batch import Batch
from gen_worker.api.bindings import Binding
from gen_worker.api.handlers import (
    Handler,
    handlers_of,
    hook_of,
    injected_parameters,
    is_generator,
    not_taken,
    parameters,
    setup_parameters,
    takes_any_keyword,
    takes_context_and_payload,
)
from gen_worker.api.resources import Resources
from gen_worker.api.variants import Variant, check_variant_field, read_variants

Kind: TypeAlias = Literal["inference", "training", "dataset", "conversion"]
Runtime: TypeAlias = Literal["vllm", "llama-server"]

RECORD = "__gen_worker_endpoint__"
HANDLERS = "__gen_worker_handlers__"

Target = TypeVar("Target", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class EndpointRecord:
    """What `@endpoint` was told about its target."""

    kind: Kind
    resources: Resources
    models: Mapping[str, Binding]
    variants: Mapping[str, Variant]
    runtime: Runtime | None
    name: str
    is_function: bool
    batch: Batch | None = None


@overload
def endpoint(target: Target) -> Target: ...


@overload
def endpoint(
    target: None = None,
    *,
    kind: Kind = "inference",
    model: Binding | None = None,
    models: Mapping[str, Binding] | None = None,
    resources: Resources | None = None,
    variants: Mapping[str, Binding | tuple[Binding, Resources]] | None = None,
    runtime: Runtime | None = None,
    name: str | None = None,
    batch: Batch | None = None,
) -> Callable[[Target], Target]: ...


def endpoint(
    target: Any = None,
    *,
    kind: Any = "inference",
    model: Any = None,
    models: Any = None,
    resources: Any = None,
    variants: Any = None,
    runtime: Any = None,
    name: Any = None,
    batch: Any = None,
    **unknown: Any,
) -> Any:
    """Make a function, or every public method of a class, a routable function; the target itself stays what it is.

    A mistake raises TypeError or ValueError at once, with what to write instead.
    """
    if unknown:
        raise TypeError(f"`@endpoint` {_not_taken(next(iter(unknown)))}")
    options = _Options(kind, model, models, resources, variants, runtime, name, batch)
    options.check()
    return options.mark if target is None else options.mark(target)


@dataclass(frozen=True, slots=True)
class _Options:
    """The arguments of one `@endpoint`, not yet trusted."""

    kind: Any
    model: Any
    models: Any
    resources: Any
    variants: Any
    runtime: Any
    name: Any
    batch: Any

    def check(self) -> None:
        """Refuse what is wrong whatever the target is."""
        _check_choice("kind", self.kind, get_args(Kind))
        if self.runtime is not None:
            _check_choice("runtime", self.runtime, get_args(Runtime))
        if self.resources is not None and not isinstance(self.resources, Resources):
            raise TypeError(f"`resources=` takes a `Resources(…)`, got {self.resources!r}")
        if self.batch is not None and not isinstance(self.batch, Batch):
            raise TypeError(f"`batch=` takes a `Batch(…)`, got {self.batch!r}")
        if self.batch is not None and self.kind != "inference":
            raise ValueError(f"`batch=` is for inference: a {self.kind} endpoint runs one request at a time")
        if self.model is not None and self.models is not None:
            raise ValueError("`model=` and `models=` exclude each other: put every slot into `models=`")
        if self.model is not None:
            _check_binding("model=", self.model)
        if self.models is not None:
            _check_models(self.models)

    def mark(self, target: Any) -> Any:
        """Attach the record to the target and return it."""
        if isinstance(target, type):
            handlers = self._check_class(target)
            setattr(target, HANDLERS, handlers)
        elif isinstance(target, FunctionType):
            self._check_function(target)
        else:
            hint = f"; a name is given as `@endpoint(name={target!r})`" if isinstance(target, str) else ""
            raise TypeError(f"`@endpoint` goes on a class or a plain function, got {target!r}{hint}")
        record = EndpointRecord(
            kind=self.kind,
            resources=self.resources or Resources(),
            models=MappingProxyType(self._slots(target)),
            variants=MappingProxyType(read_variants(self.variants or {})),
            runtime=self.runtime,
            name=self.name or "",
            is_function=not isinstance(target, type),
            batch=self.batch,
        )
        setattr(target, RECORD, record)
        return target

    def _slots(self, target: Any) -> dict[str, Binding]:
        if self.model is not None:
            return {slot_of(target): self.model}
        return dict(self.models or {})

    def _check_class(self, cls: type) -> list[tuple[str, Handler]]:
        handlers = handlers_of(cls)
        if not handlers:
            raise TypeError(
                f"`{cls.__name__}` has nothing to serve: add a public method that takes (self, ctx, payload)"
            )
        for name, handler in handlers:
            self._check_handler(f"{cls.__name__}.{name}", handler, method=True)
        if self.name is not None:
            raise ValueError(f"`name=` is for functions; `{cls.__name__}` is routed by the names of its methods")
        if self.models:
            _check_setup_takes(cls, self.models)
        if self.variants is not None:
            self._check_variants(cls, handlers)
        return handlers

    def _check_variants(self, cls: type, handlers: list[tuple[str, Handler]]) -> None:
        if len(handlers) != 1:
            names = ", ".join(name for name, _ in handlers)
            raise ValueError(
                f"`variants=` needs a class with one handler, `{cls.__name__}` has {len(handlers)}: {names}"
            )
        variants = read_variants(self.variants)
        if not self.models:
            slot_of(cls)
        check_variant_field(f"{cls.__name__}.{handlers[0][0]}", handlers[0][1], variants)

    def _check_function(self, function: FunctionType) -> None:
        self._check_handler(function.__name__, function, method=False)
        for option in ("variants", "runtime"):
            if getattr(self, option) is not None:
                raise ValueError(f"`{option}=` is for classes; `{function.__name__}` is a function")

    def _check_handler(self, label: str, handler: Handler, *, method: bool) -> None:
        if not takes_context_and_payload(handler, method=method):
            hint = "; prefix it with an underscore if it is not a handler" if method else ""
            expected = "(self, ctx, payload)" if method else "(ctx, payload)"
            raise TypeError(f"`{label}` must take at least {expected}{_missing(handler, method)}{hint}")
        if self.kind != "inference" and is_generator(handler):
            raise TypeError(f"`{label}` must not be a generator: a {self.kind} endpoint returns one result")
        if self.batch is not None and is_generator(handler):
            raise TypeError(f"`{label}` must not be a generator: the handler of a batch returns one output for each")


def slot_of(target: Any) -> str:
    """Return the name of the only slot of a function or class, which is the parameter its model goes to."""
    name = target.__name__
    if not isinstance(target, type):
        found, where = injected_parameters(target, method=False), f"`{name}` after (ctx, payload)"
    elif setup := hook_of(target, "setup"):
        found, where = setup_parameters(setup), f"`{name}.setup`"
    else:
        handlers = handlers_of(target)
        found = [each for _, handler in handlers for each in injected_parameters(handler, method=True)]
        where = f"the handlers of `{name}` after (ctx, payload)"
    slots = list(dict.fromkeys(each.name for each in found))
    if len(slots) != 1:
        listed = f"{len(slots)}: {', '.join(slots)}" if slots else "none"
        raise ValueError(
            f"the parameter that takes the model must be the only one of {where}, found {listed}; "
            "name the slots with `models={'slot': …}` when there are several"
        )
    return slots[0]


def _not_taken(name: str) -> str:
    if name in Resources.__struct_fields__:
        return f"takes no `{name}=` itself; write `resources=Resources({name}=…)`"
    return not_taken(name, _Options.__slots__)


def _check_choice(option: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{option}=` takes one of {', '.join(choices)}, got {value!r}")


def _check_binding(where: str, value: object) -> None:
    if not isinstance(value, Binding):
        raise TypeError(f"`{where}` takes `HF(…)`, `Hub(…)`, `Civitai(…)` or `ModelScope(…)`, got {value!r}")


def _check_models(models: Any) -> None:
    if not isinstance(models, Mapping):
        raise TypeError(f"`models=` takes a dict of slot to binding, got {models!r}")
    for slot, binding in models.items():
        if not isinstance(slot, str) or not slot.isidentifier():
            raise ValueError(f"a slot of `models=` is the name of a parameter, got {slot!r}")
        _check_binding(f"models={{{slot!r}: …}}", binding)


def _missing(handler: Handler, method: bool) -> str:
    """Say which of the two parameters is missing, told by the name or the annotation of the one that is there."""
    named = parameters(handler, method=method)
    if any(each.kind is each.VAR_POSITIONAL for each in inspect.signature(handler).parameters.values()):
        return ", and `*` stands for nothing here: a decorator that makes a function gives it `functools.wraps`"
    if any(each.kind is each.KEYWORD_ONLY for each in named[:2]):
        return " by position, not after `*`"
    if len(named) != 1:
        return ""
    is_context = named[0].name in ("ctx", "context") or "Context" in str(named[0].annotation)
    return f": `{'payload' if is_context else 'ctx'}` is missing"


def _check_setup_takes(cls: type, models: Mapping[str, Binding]) -> None:
    setup = hook_of(cls, "setup")
    if setup is None or takes_any_keyword(setup):
        return
    taken = [each.name for each in setup_parameters(setup)]
    if missing := [slot for slot in models if slot not in taken]:
        raise ValueError(
            f"`{cls.__name__}.setup` has no parameter for {', '.join(f'`{slot}`' for slot in missing)}; "
            f"it takes: {', '.join(taken) or 'nothing'}"
        )
