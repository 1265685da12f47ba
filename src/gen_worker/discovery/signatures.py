"""What a handler takes and gives, read from its annotations."""

import inspect
import re
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Sequence,
)
from dataclasses import dataclass, is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin

import msgspec

from gen_worker.api.clamping import clamping_of
from gen_worker.api.handlers import parameters
from gen_worker.api.hints import UnresolvedAnnotationError, resolve
from gen_worker.api.slots import takes_model
from gen_worker.api.streaming import Done, Error
from gen_worker.discovery.errors import DiscoveryError
from gen_worker.discovery.marks import expected_outputs, moderation
from gen_worker.discovery.schemas import faulty_field, members, schema_of
from gen_worker.discovery.unions import confused
from gen_worker.wire.messages import Shape

_AT_THE_TOP = "define or import the type at the top of the module, not under `TYPE_CHECKING`"

_STREAMS: dict[Any, Shape] = {
    Iterator: "generator",
    Iterable: "generator",
    Generator: "generator",
    AsyncIterator: "async_generator",
    AsyncIterable: "async_generator",
    AsyncGenerator: "async_generator",
}

_CONTEXTS = {"ConversionContext": "conversion", "DatasetContext": "dataset", "TrainingContext": "training"}


@dataclass(frozen=True, slots=True)
class Signature:
    """How to call a handler and what comes back."""

    shape: Shape
    payload_type: type[msgspec.Struct]
    output_type: Any  # a Struct, or of a stream the type, or the union of types, of the items that are sent


def read_signature(label: str, function: Callable[..., Any], *, method: bool, batch: bool = False) -> Signature:
    """Read a handler's types; raise DiscoveryError, with the place and the remedy, for one that cannot be served.

    Of the handler of a batch the types are those of one request.
    """
    payload_name = parameters(function, method=method)[1].name
    payload = _resolved(label, function, payload_name)
    if batch:
        payload = _of_one(payload)
        if not _is_struct(payload):
            raise DiscoveryError(
                f"{place(function)}: `{payload_name}` of `{label}` must be a list of payloads, as its endpoint has "
                f"`batch=`, it is {_told(_resolved(label, function, payload_name))}",
                f"declare `class Input(msgspec.Struct)` and write `{payload_name}: list[Input]`",
            )
    elif not _is_struct(payload):
        raise DiscoveryError(
            f"{place(function)}: the payload `{payload_name}` of `{label}` must be annotated with a `msgspec.Struct` "
            f"subclass, it is {_told(payload)}",
            _payload_hint(payload_name, payload, function),
        )
    shape, output = _read_batch_output(label, function) if batch else _read_output(label, function)
    check_types(label, function, payload, output)
    return Signature(shape, payload, output)


def _payload_hint(name: str, annotation: object, function: Callable[..., Any]) -> str:
    from gen_worker.api.context import RequestContext

    if isinstance(annotation, type) and issubclass(annotation, RequestContext):
        return "the context comes first: `(ctx: RequestContext, payload: Input)`"
    if remedy := _to_a_struct(annotation, function):
        return remedy
    if _is_of_a_library(annotation):
        return f"declare `class Input(msgspec.Struct)` and write `{name}: Input`; a field of the type `Asset` is a file"
    return f"declare `class Input(msgspec.Struct)` and write `{name}: Input`"


def _to_a_struct(annotation: Any, function: Callable[..., Any]) -> str:
    """Say how an author's own type becomes a struct; an empty text for what is no such type."""
    if get_origin(annotation) in (Union, UnionType) and all(map(_is_struct, get_args(annotation))):
        return f"put it into a field: `class Input(msgspec.Struct)` with `item: {_short(annotation)}`"
    if _is_struct(get_origin(annotation)):
        return f"give it a name: `class Named({_short(annotation)}): ...`"
    if isinstance(annotation, type) and (_has_fields(annotation) or _is_beside(annotation, function)):
        return f"make it one: `class {annotation.__name__}(msgspec.Struct)`, with the same fields"
    return ""


def _has_fields(annotation: type) -> bool:
    """Tell whether a class is of a kind that does what structs do: a dataclass, a named tuple, a model of pydantic."""
    return is_dataclass(annotation) or hasattr(annotation, "_fields") or hasattr(annotation, "model_fields")


def _is_beside(annotation: type, function: Callable[..., Any]) -> bool:
    """Tell whether a class is of the package of a handler, and so its author's."""
    return annotation.__module__.partition(".")[0] == function.__module__.partition(".")[0]


def _is_of_a_library(annotation: object) -> bool:
    return isinstance(annotation, type) and annotation.__module__ not in ("builtins", "typing", "collections")


def _short(annotation: Any) -> str:
    """Return an annotation as it is written in its module."""
    return re.sub(r"\b\w+\.", "", str(annotation))


def check_types(label: str, function: Callable[..., Any], payload: Any, output: Any) -> None:
    """Raise DiscoveryError for a payload or an output that cannot be sent, or that is marked wrongly."""
    for type_ in (payload, output):
        _check_schema(label, function, type_)
    _check_marks(label, function, payload, output)


def check_context(label: str, function: Callable[..., Any], kind: str, *, method: bool) -> None:
    """Raise DiscoveryError for a handler that wants the context of another kind than its endpoint is."""
    from gen_worker.api.context import RequestContext

    try:
        annotation = resolve(function, parameters(function, method=method)[0].name)
    except UnresolvedAnnotationError:  # it may be there for type checkers only
        return
    if not (isinstance(annotation, type) and issubclass(annotation, RequestContext)):
        return
    wanted = _CONTEXTS.get(annotation.__name__, kind)
    if wanted != kind:
        raise DiscoveryError(
            f"{place(function)}: `{label}` takes a `{annotation.__name__}`, which its endpoint's kind does not give: "
            f"{kind}",
            f'write `@endpoint(kind="{wanted}")`' + (", or `ctx: RequestContext`" if kind == "inference" else ""),
        )


def check_slots(label: str, function: Callable[..., Any], slots: Iterable[str]) -> None:
    """Raise DiscoveryError for a parameter whose annotation no model can fill, before one is fetched for it."""
    for slot in slots:
        annotation = _resolved(label, function, slot)
        if not takes_model(annotation):
            raise DiscoveryError(
                f"{place(function)}: no model goes into `{slot}` of `{label}`, which is {_told(annotation)}",
                "annotate it with `str` or `Path` for where the model lies, or with a class that has `from_pretrained`",
            )


def _read_output(label: str, function: Callable[..., Any]) -> tuple[Shape, Any]:
    annotation = _resolved(label, function, "return")
    stream = _STREAMS.get(get_origin(annotation))
    actual = actual_shape(function)
    if stream is None:
        if _is_struct(annotation) and actual in ("sync", "async"):
            return actual, annotation
        raise _wrong_return(label, function, annotation, actual)
    item = get_args(annotation)[0]
    if not all(_is_struct(member) for member in members(item)) or actual not in ("sync", stream):
        raise _wrong_return(label, function, annotation, actual)
    return stream, _sent(label, function, item)  # a plain function may return an iterator that it got from elsewhere


def _of_one(annotation: Any) -> Any:
    """Return what a list is of; None where the annotation is no list."""
    arguments = get_args(annotation)
    return arguments[0] if get_origin(annotation) in (list, Sequence) and arguments else None


def _read_batch_output(label: str, function: Callable[..., Any]) -> tuple[Shape, Any]:
    """Return the output of one request: an exception may stand in its place."""
    annotation = _resolved(label, function, "return")
    outputs = [each for each in members(_of_one(annotation)) if not _is_exception(each)]
    actual = actual_shape(function)
    if len(outputs) == 1 and _is_struct(outputs[0]) and actual in ("sync", "async"):
        return actual, outputs[0]
    raise DiscoveryError(
        f"{place(function)}: `{label}` cannot be served with its return annotation: {_told(annotation)}",
        "the handler of a batch returns a list: write `-> list[Output]`, `Output` a `msgspec.Struct` subclass, or "
        "`-> list[Output | Exception]`",
    )


def _is_exception(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Exception)


def _sent(label: str, function: Callable[..., Any], item: Any) -> Any:
    """Return what a caller sees of a stream's items: `Done` and `Error` end the stream and are not sent."""
    sent = tuple(member for member in members(item) if member not in (Done, Error))
    if not sent:
        raise DiscoveryError(
            f"{place(function)}: `{label}` streams nothing: {_told(item)}",
            "write the type of its items too: `-> Iterator[Item | Done]`",
        )
    if pair := confused(sent):
        one, other = (member.__name__ for member in pair)
        raise DiscoveryError(
            f"{place(function)}: callers of `{label}` could not tell its items `{one}` and `{other}` apart",
            f"give them tags: `class {one}(msgspec.Struct, tag=True)`, and the same for `{other}`",
        )
    return Union[sent]  # noqa: UP007 - of as many as there are


def actual_shape(function: Callable[..., Any]) -> Shape:
    """Tell what calling the function makes, seen through `functools.wraps`."""
    plain = inspect.unwrap(function)
    if inspect.isasyncgenfunction(plain):
        return "async_generator"
    if inspect.isgeneratorfunction(plain):
        return "generator"
    return "async" if inspect.iscoroutinefunction(plain) else "sync"


_REMEDIES: dict[Shape, str] = {
    "sync": "write `-> Output`, a `msgspec.Struct` subclass, or `-> Iterator[Item]` for a stream",
    "async": "write `-> Output`, a `msgspec.Struct` subclass; a stream is an `async def` with `yield`",
    "generator": "a function with `yield` is a stream: write `-> Iterator[Item]`, `Item` a `msgspec.Struct` subclass",
    "websocket": "write `-> None`: what it sends goes over its socket",
    "async_generator": "an `async def` with `yield` is a stream: write `-> AsyncIterator[Item]`, "
    "`Item` a `msgspec.Struct` subclass",
}


def _wrong_return(label: str, function: Callable[..., Any], annotation: Any, actual: Shape) -> DiscoveryError:
    remedy = _to_a_struct(annotation, function) if actual in ("sync", "async") else ""
    if not remedy and actual in ("sync", "async") and (annotation is bytes or _is_of_a_library(annotation)):
        remedy = "write `-> Asset` for a file, which `ctx.save_image`, `save_file` and the like return, or a struct"
    return DiscoveryError(
        f"{place(function)}: `{label}` cannot be served with its return annotation: {_told(annotation)}",
        remedy or _REMEDIES[actual],
    )


def _check_schema(label: str, function: Callable[..., Any], type_: Any) -> None:
    try:
        schema_of(type_)
    except NameError as error:
        raise DiscoveryError(
            f"{place(function)}: an annotation in `{_told(type_)}` of `{label}` means nothing there: {error}",
            _AT_THE_TOP,
        ) from error
    except (TypeError, ValueError) as error:
        field = faulty_field(type_)
        reason = (f"the field `{field}`: " if field else "") + str(error).strip().splitlines()[-1]
        if isinstance(error, ValueError):
            raise _marked_wrongly(label, function, reason) from error
        raise DiscoveryError(
            f"{place(function)}: `{_told(type_)}` of `{label}` cannot be sent: {reason}",
            "use fields that JSON and msgpack can carry",
        ) from error


def _marked_wrongly(label: str, function: Callable[..., Any], reason: object) -> DiscoveryError:
    return DiscoveryError(f"{place(function)}: a type of `{label}` is marked wrongly: {reason}")


def _check_marks(label: str, function: Callable[..., Any], payload: Any, output: Any) -> None:
    try:
        clamping_of(payload)
        moderation(payload)
        expected_outputs(output, payload)
    except ValueError as error:
        raise _marked_wrongly(label, function, error) from error


def _resolved(label: str, function: Callable[..., Any], name: str) -> Any:
    try:
        return resolve(function, name)
    except UnresolvedAnnotationError as error:
        raise DiscoveryError(
            f"{place(function)}: the annotation of `{name}` in `{label}` means nothing there: {error}", _AT_THE_TOP
        ) from error


def place(function: Callable[..., Any]) -> str:
    """Return where a function is written, as `file:line`."""
    code = inspect.unwrap(function).__code__
    return f"{code.co_filename}:{code.co_firstlineno}"


def _is_struct(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, msgspec.Struct) and annotation is not msgspec.Struct


def _told(annotation: Any) -> str:
    if annotation is None:
        return "missing"
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
