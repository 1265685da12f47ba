"""Earlier functions as rows of the registry: what is read of a function that `@worker_function()` marks."""

import inspect
import sys
import typing
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

from gen_worker.api.resources import Resources
from gen_worker.discovery.errors import DiscoveryError
from gen_worker.discovery.function_spec import FunctionSpec
from gen_worker.discovery.names import slugify_name
from gen_worker.discovery.signatures import actual_shape, check_types, place
from gen_worker.earlier.calling import EarlierFunction
from gen_worker.earlier.context import ActionContext
from gen_worker.earlier.functions import RESOURCES, WEBSOCKET_MARK, ResourceRequirements
from gen_worker.earlier.injection import Injection, ModelRefSource, parse_injection
from gen_worker.earlier.project import CozyProject, project_of
from gen_worker.earlier.surroundings import VariableError
from gen_worker.earlier.values import check_surroundings, is_built

if TYPE_CHECKING:
    from gen_worker.wire.messages import Shape

_STREAMS = (Iterator, Iterable, Generator)
_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_ONLY)


class Nothing(msgspec.Struct):
    """The payload and the output of a realtime function."""


def spec_of(function: Callable[..., Any], top: str) -> FunctionSpec:
    """Return the row of the registry; raise DiscoveryError, naming the function, for one that breaks a rule."""
    read = _Read(function)
    try:
        check_surroundings(each.type for each in read.injections)
    except VariableError as error:
        raise DiscoveryError(f"`{function.__name__}` cannot be given its models: {error}") from error
    project = project_of(sys.modules[function.__module__])
    earlier = read.earlier(project)
    bindings = {} if earlier.asks else earlier.bindings(earlier.ids(None))
    name = slugify_name(function.__name__)
    if not name:
        raise DiscoveryError(f"{place(function)}: `{function.__name__}` leaves no name to route by")
    has_instance = earlier.asks or bool(bindings)
    return FunctionSpec(
        name=name,
        python_name=function.__name__,
        module=top,
        declared_module=function.__module__,
        class_name="",
        kind="inference",
        runtime=None,
        resources=Resources(gpu=_wants_gpu(project, earlier)),
        bindings=MappingProxyType(bindings),
        shape=earlier.shape,
        payload_type=read.payload_type,
        output_type=read.output_type,
        owner=None,
        function=function,
        instance=f"{function.__module__}:{function.__qualname__}" if has_instance else "",
        injected=tuple(each.param for each in earlier.injections) if has_instance else (),
        setup_slots=(),
        earlier=earlier,
    )


def _wants_gpu(project: CozyProject, earlier: EarlierFunction) -> bool:
    """Tell whether a function runs on a GPU: as its project says, else where it has models and the host has a GPU."""
    if project.wants_gpu is not None:
        return project.wants_gpu
    loads = any(is_built(each.type) for each in earlier.injections)
    return loads and any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg"))


class _Read:
    """What the annotations of one function say."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._name = function.__name__
        self._hints = self._resolved()
        self.injections: list[Injection] = []
        self.payload = ""
        self.payload_type: type[msgspec.Struct] = Nothing
        self.output_type: Any = Nothing
        parameters = list(inspect.signature(function).parameters.values())
        self._check_context(parameters)
        self._is_websocket = WEBSOCKET_MARK in vars(function)
        rest = parameters[1:]
        if self._is_websocket:
            if not rest or rest[0].kind not in _KINDS or self._injection(rest[0].name) is not None:
                raise self._wrong(
                    "must take a socket after its context", "write `(ctx: ActionContext, sock: RealtimeSocket)`"
                )
            self.payload, rest = rest[0].name, rest[1:]
        for parameter in rest:
            self._sort(parameter)
        self.shape = self._websocket_shape() if self._is_websocket else self._read_types()

    def earlier(self, project: CozyProject) -> EarlierFunction:
        """Return what is called."""
        requirements = vars(self._function).get(RESOURCES)
        limit = requirements.max_concurrency if isinstance(requirements, ResourceRequirements) else None
        return EarlierFunction(
            self._function, self.shape, self.payload, tuple(self.injections), dict(project.models), limit
        )

    def _resolved(self) -> dict[str, Any]:
        plain = inspect.unwrap(self._function)
        try:
            return typing.get_type_hints(plain, include_extras=True)
        except (NameError, AttributeError, SyntaxError, TypeError) as error:
            hint = "define or import the type at the top of the module, not under `TYPE_CHECKING`"
            raise self._wrong(f"has an annotation that means nothing there: {error}", hint) from error

    def _check_context(self, parameters: list[inspect.Parameter]) -> None:
        first = parameters[0] if parameters else None
        annotation = self._hints.get(first.name) if first is not None else None
        if annotation is not ActionContext:
            told = (
                "takes no parameter" if first is None else f"takes `{first.name}` first, which is {_told(annotation)}"
            )
            raise self._wrong(f"{told}: it must be an `ActionContext`", "write `ctx: ActionContext`")

    def _sort(self, parameter: inspect.Parameter) -> None:
        name = parameter.name
        annotation = self._hints.get(name)
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY or parameter.kind not in _KINDS:
            raise self._wrong(f"cannot be given `{parameter}` by name", "take each parameter by a name of its own")
        if annotation is None:
            raise self._wrong(f"has no annotation for `{name}`", "annotate every parameter")
        injection = self._injection(name)
        if injection is not None:
            if self._is_websocket and injection.model_ref.source is ModelRefSource.PAYLOAD:
                raise self._wrong(f"has no payload that names the model of `{name}`", "use `ModelRefSource.DEPLOYMENT`")
            self.injections.append(injection)
        elif self._is_websocket or not _is_struct(annotation):
            hint = "a payload is a `msgspec.Struct`, a model is `Annotated[T, ModelRef(source, key)]`"
            raise self._wrong(f"takes `{name}`, which is {_told(annotation)}", hint)
        elif self.payload:
            raise self._wrong(f"takes two payloads: `{self.payload}` and `{name}`", "make them one `msgspec.Struct`")
        else:
            self.payload, self.payload_type = name, annotation

    def _injection(self, name: str) -> Injection | None:
        try:
            return parse_injection(name, self._hints.get(name))
        except ValueError as error:
            raise self._wrong(f"is marked wrongly: {error}", "") from error

    def _read_types(self) -> "Shape":
        if not self.payload:
            raise self._wrong("takes no payload", "declare `class Input(msgspec.Struct)` and take one")
        if "return" not in self._hints:
            raise self._wrong(
                "has no return annotation", "write `-> Output`, a `msgspec.Struct`, or `-> Iterator[Item]`"
            )
        annotation, actual = self._hints["return"], actual_shape(self._function)
        origin = typing.get_origin(annotation)
        streams = origin in _STREAMS
        self.output_type = typing.get_args(annotation)[0] if streams else annotation
        fitting = ("sync", "generator", "async_generator") if streams else ("sync", "async")
        if not _is_struct(self.output_type) or actual not in fitting:
            hint = "write `-> Output`, a `msgspec.Struct`, or `-> Iterator[Item]` for a stream"
            raise self._wrong(f"cannot be served with its return annotation: {_told(annotation)}", hint)
        check_types(self._name, self._function, self.payload_type, self.output_type)
        return "generator" if streams and actual == "sync" else actual

    def _websocket_shape(self) -> "Shape":
        if actual_shape(self._function) != "async":
            raise self._wrong(
                "must be an `async def` without `yield`", "a realtime function reads and writes its socket"
            )
        return "websocket"

    def _wrong(self, what: str, hint: str) -> DiscoveryError:
        return DiscoveryError(f"{place(self._function)}: `{self._name}` {what}", hint)


def _is_struct(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, msgspec.Struct) and annotation is not msgspec.Struct


def _told(annotation: Any) -> str:
    if annotation is None:
        return "not annotated"
    return f"`{annotation.__name__}`" if isinstance(annotation, type) else f"`{annotation}`"
