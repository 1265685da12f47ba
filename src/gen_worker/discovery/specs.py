"""The routable functions of a module: everything that running one needs to know."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import Any

from gen_worker.api.bindings import Binding
from gen_worker.api.decorator import HANDLERS, RECORD, EndpointRecord, slot_of
from gen_worker.api.handlers import (
    HOOKS,
    hook_of,
    injected_parameters,
    is_generator,
    parameters,
    setup_parameters,
    takes_any_keyword,
)
from gen_worker.api.resources import Resources
from gen_worker.api.variants import check_variant_field
from gen_worker.discovery.errors import DiscoveryError
from gen_worker.discovery.function_spec import FunctionSpec
from gen_worker.discovery.names import slugify_name
from gen_worker.discovery.signatures import check_context, check_slots, place, read_signature
from gen_worker.discovery.walk import marked_objects
from gen_worker.earlier.functions import is_earlier


def collect(
    *modules: ModuleType, skipped: list[DiscoveryError] | None = None, passed_over: list[DiscoveryError] | None = None
) -> list[FunctionSpec]:
    """Return the functions of the modules' top packages, sorted by name; raise DiscoveryError with every problem.

    Two lists may be given for problems with which earlier functions are left out instead: `skipped` for those that
    break a rule, `passed_over` for those whose name another has, and for modules beside them that do not import.
    """
    targets: list[tuple[Any, str]] = []
    problems: list[DiscoveryError] = []
    tops = {module.__name__.partition(".")[0]: module for module in reversed(modules)}
    for top, module in tops.items():
        found, refused = marked_objects(module)
        targets += [(target, top) for target in found]
        only_earlier = bool(found) and all(is_earlier(target) for target in found)
        (passed_over if only_earlier and passed_over is not None else problems).extend(refused)
    return _specs(targets, problems, ", ".join(module.__name__ for module in modules), skipped, passed_over)


def specs_of(target: Any) -> list[FunctionSpec]:
    """Return the functions of one marked class or function, as `collect` does."""
    return _specs([(target, target.__module__.partition(".")[0])], [], target.__module__)


def _specs(
    targets: list[tuple[Any, str]],
    problems: list[DiscoveryError],
    where: str,
    skipped: list[DiscoveryError] | None = None,
    passed_over: list[DiscoveryError] | None = None,
) -> list[FunctionSpec]:
    specs: list[FunctionSpec] = []
    for target, top in targets:
        for attempt in _specs_of(target, top):
            try:
                specs.append(attempt())
            except DiscoveryError as problem:
                (skipped if skipped is not None and is_earlier(target) else problems).append(problem)
    specs = _without_later(specs, passed_over)
    problems += _duplicates(specs)
    if problems:
        raise DiscoveryError.of(where, problems)
    return sorted(specs, key=lambda spec: spec.name)


def _without_later(specs: list[FunctionSpec], passed_over: list[DiscoveryError] | None) -> list[FunctionSpec]:
    """Leave out earlier functions whose name is taken, where such things are passed over."""
    if passed_over is None:
        return specs
    kept: list[FunctionSpec] = []
    for spec in sorted(specs, key=lambda spec: spec.earlier is not None):  # stays in order but for that
        first = next((each for each in kept if each.name == spec.name), None)
        if first is None or spec.earlier is None:
            kept.append(spec)
        else:
            passed_over.append(DiscoveryError(f"{_where(spec)} is routed as {_where(first)} is", "rename one of them"))
    return kept


def _duplicates(specs: list[FunctionSpec]) -> Iterator[DiscoveryError]:
    seen: dict[str, FunctionSpec] = {}
    for spec in specs:
        first = seen.setdefault(spec.name, spec)
        if first is not spec:
            yield DiscoveryError(
                f"two functions are routed as `{spec.name}`: {_where(first)} and {_where(spec)}", "rename one of them"
            )


def _where(spec: FunctionSpec) -> str:
    owner = f"{spec.class_name}." if spec.class_name else ""
    return f"`{owner}{spec.python_name}` at {place(spec.function)}"


def _specs_of(target: Any, top: str) -> Iterator[Callable[[], FunctionSpec]]:
    """Yield one attempt per routable function of a marked object, so that each failure is told."""
    if is_earlier(target):
        from gen_worker.earlier.specs import spec_of  # 10 ms that only its projects pay

        yield lambda: spec_of(target, top)
        return
    record: EndpointRecord = vars(target)[RECORD]
    if record.is_function:
        yield lambda: _spec(target, record, top, _Route(record.name or target.__name__, target.__name__, target))
        return
    for route in _routes(target, record):
        yield lambda route=route: _spec(target, record, top, route)  # type: ignore[misc]


@dataclass(frozen=True, slots=True)
class _Route:
    """A name under which one handler is reached, with the weights and needs that go with the name."""

    name: str
    python_name: str
    function: Callable[..., Any]
    bindings: Mapping[str, Binding] | None = None  # None: those of the endpoint
    resources: Resources | None = None
    variant: str = ""


def _routes(cls: type, record: EndpointRecord) -> Iterator[_Route]:
    handlers: list[tuple[str, Callable[..., Any]]] = vars(cls)[HANDLERS]
    if record.models or not record.variants:
        for name, function in handlers:
            yield _Route(name, name, function)
    for name, variant in record.variants.items():
        slot = next(iter(record.models), None) or slot_of(cls)
        python_name, function = handlers[0]
        bindings = {**record.models, slot: variant.binding}
        yield _Route(name, python_name, function, bindings, variant.resources, name)


def _spec(target: Any, record: EndpointRecord, top: str, route: _Route) -> FunctionSpec:
    owner = None if record.is_function else target
    class_name = owner.__name__ if owner else ""
    label = f"{class_name}.{route.python_name}" if owner else route.python_name
    name = slugify_name(route.name)
    if not name:
        raise DiscoveryError(f"{place(route.function)}: `{route.name}` of `{label}` leaves no name to route by")
    if owner is not None:
        _check_class(owner)
    signature = read_signature(label, route.function, method=owner is not None, batch=record.batch is not None)
    check_context(label, route.function, record.kind, method=owner is not None)
    bindings = record.models if route.bindings is None else route.bindings
    if record.variants:
        _check_variants(label, route, record)
    return FunctionSpec(
        name=name,
        python_name=route.python_name,
        module=top,
        declared_module=target.__module__,
        class_name=class_name,
        kind=record.kind,
        runtime=record.runtime,
        resources=route.resources or record.resources,
        bindings=MappingProxyType(dict(bindings)),
        shape=signature.shape,
        payload_type=signature.payload_type,
        output_type=signature.output_type,
        owner=owner,
        function=route.function,
        instance=_instance(owner, record, bindings) if owner else _own_instance(target, bindings),
        injected=_injected(label, route.function, owner, bindings),
        setup_slots=_setup_slots(owner, bindings, record) if owner else (),
        batch=record.batch,
    )


def _check_class(cls: type) -> None:
    """Refuse a class of which no instance can be made, or whose hooks would do nothing."""
    where = place(vars(cls)[HANDLERS][0][1])
    if inspect.isabstract(cls):
        missing = ", ".join(f"`{name}`" for name in sorted(vars(cls)["__abstractmethods__"]))
        raise DiscoveryError(f"{where}: `{cls.__name__}` is abstract", f"mark a subclass that defines {missing}")
    init = hook_of(cls, "__init__")
    if init and (needed := [each.name for each in parameters(init, method=True) if each.default is each.empty]):
        raise DiscoveryError(
            f"{place(init)}: `{cls.__name__}()` is made without arguments, its `__init__` needs `{needed[0]}`",
            "give it a default, or take it in `setup()` as a model",
        )
    for name in HOOKS:
        _check_hook(cls, name, where)


def _check_hook(cls: type, name: str, where: str) -> None:
    """Refuse a hook that could not be called, or whose call would do nothing."""
    hook, label = hook_of(cls, name), f"{cls.__name__}.{name}"
    if hook is None:
        if (other := inspect.getattr_static(cls, name, None)) is not None:
            raise DiscoveryError(
                f"{where}: `{label}` is a hook and no plain method: {type(other).__name__}", f"write `def {name}(self)`"
            )
        return
    if is_generator(hook):
        raise DiscoveryError(f"{place(hook)}: `{label}` is a generator, which nothing would run", "take out `yield`")
    if not inspect.signature(hook).parameters:
        raise DiscoveryError(f"{place(hook)}: `{label}` does not take `self`", f"write `def {name}(self)`")
    needed = [each.name for each in parameters(hook, method=True) if each.default is each.empty]
    if name != "setup" and needed:
        raise DiscoveryError(
            f"{place(hook)}: `{label}` is called without arguments, it needs `{needed[0]}`",
            "keep what it needs on `self` in `setup()`",
        )


def _check_variants(label: str, route: _Route, record: EndpointRecord) -> None:
    try:
        check_variant_field(label, route.function, record.variants)
    except ValueError as error:
        raise DiscoveryError(f"{place(route.function)}: {error}") from error


def _instance(cls: type, record: EndpointRecord, bindings: Mapping[str, Binding]) -> str:
    """Name the instance by its class and, when its weights are not the class's own, by the first variant with them."""
    name = f"{cls.__module__}:{cls.__qualname__}"
    if dict(bindings) == dict(record.models):
        return name
    routes = _routes(cls, record)
    return f"{name}[{next(route.variant for route in routes if route.bindings == bindings)}]"


def _own_instance(function: Callable[..., Any], bindings: Mapping[str, Binding]) -> str:
    """Name what holds the models of a function endpoint."""
    return f"{function.__module__}:{function.__qualname__}" if bindings else ""


def _injected(
    label: str, function: Callable[..., Any], owner: type | None, bindings: Mapping[str, Binding]
) -> tuple[str, ...]:
    extra = injected_parameters(function, method=owner is not None)
    slots = {} if owner and hook_of(owner, "setup") else bindings
    if unfilled := [each.name for each in extra if each.name not in slots and each.default is each.empty]:
        raise DiscoveryError(
            f"{place(function)}: nothing fills `{unfilled[0]}` of `{label}`",
            f"bind a model to it with `models={{'{unfilled[0]}': …}}`"
            + (", and take it in `setup()`" if owner and hook_of(owner, "setup") else ""),
        )
    names = tuple(each.name for each in extra if each.name in slots)
    check_slots(label, function, names)
    return names


def _setup_slots(cls: type, bindings: Mapping[str, Binding], record: EndpointRecord) -> tuple[str, ...]:
    setup = hook_of(cls, "setup")
    if setup is None:
        return ()
    named = setup_parameters(setup)
    if unfilled := [each.name for each in named if each.name not in bindings and each.default is each.empty]:
        raise DiscoveryError(
            f"{place(setup)}: nothing fills `{unfilled[0]}` of `{cls.__name__}.setup`",
            f"bind a model to it with `models={{'{unfilled[0]}': …}}`, or give it a default",
        )
    names = [each.name for each in named if each.name in bindings]
    check_slots(f"{cls.__name__}.setup", setup, names)
    if takes_any_keyword(setup):
        names += [slot for slot in bindings if slot not in names]
    return tuple(names)
