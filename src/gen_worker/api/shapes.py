"""What a type is made of, one layer at a time, with the marks that `Annotated` puts on each part.

Pure. Records open when they are looked into, because a type may contain itself.
"""

import collections.abc as abc
import dataclasses
import types
import typing
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Annotated, Any, NewType, TypeAlias, TypeVar, get_args, get_origin

import msgspec

Marks: TypeAlias = tuple[object, ...]
Mark = TypeVar("Mark")

_MANY = (list, set, frozenset, abc.Sequence, abc.MutableSequence, abc.Collection, abc.Set, abc.MutableSet)
_TABLES = (dict, abc.Mapping, abc.MutableMapping)
_WRAPPERS = (typing.Required, typing.NotRequired, typing.Final)


class Plain(msgspec.Struct, frozen=True):
    """A value that has no parts."""

    type: Any


class Many(msgspec.Struct, frozen=True):
    """Any number of items of one type."""

    item: Any


class Fixed(msgspec.Struct, frozen=True):
    """A tuple with a type for each of its items."""

    items: tuple[Any, ...]


class Table(msgspec.Struct, frozen=True):
    """A dictionary."""

    value: Any


class Choice(msgspec.Struct, frozen=True):
    """A union."""

    members: tuple[Any, ...]


class Record(msgspec.Struct, frozen=True):
    """A Struct, dataclass, NamedTuple or TypedDict."""

    type: Any  # the class, or with its parameters if it is generic
    cls: type


Shape: TypeAlias = Plain | Many | Fixed | Table | Choice | Record


class Field(typing.NamedTuple):
    """A field of a record: its name in Python and on the wire, and its annotation."""

    name: str
    encoded: str
    annotation: Any


class Place(msgspec.Struct, frozen=True):
    """A part of a type: where it is, what it is, and the marks on it and on the containers around it."""

    path: str  # as in `images[].prompt`; `.*` is any value of a dictionary
    shape: Shape
    marks: Marks  # outermost first
    own: Marks  # those that stand right here


def shape_of(annotation: Any) -> tuple[Shape, Marks]:
    """Return the outermost layer of a type and the marks on it."""
    marks: Marks = ()
    while True:
        origin = get_origin(annotation)
        if origin is Annotated:
            marks = annotation.__metadata__ + marks
            annotation = annotation.__origin__
        elif origin in _WRAPPERS:
            (annotation,) = get_args(annotation)
        elif isinstance(annotation, NewType):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":  # `type Alias = …`
            annotation = annotation.__value__
        else:
            return _shape(annotation, origin or annotation, get_args(annotation)), marks


def _shape(annotation: Any, origin: Any, arguments: tuple[Any, ...]) -> Shape:
    if origin in (typing.Union, types.UnionType):
        return Choice(arguments)
    if origin is tuple:
        return Many(arguments[0] if arguments else Any) if Ellipsis in arguments or not arguments else Fixed(arguments)
    if origin in _MANY:
        return Many(arguments[0] if arguments else Any)
    if origin in _TABLES:
        return Table(arguments[1] if len(arguments) == 2 else Any)
    if isinstance(origin, type) and _is_record(origin):
        return Record(annotation, origin)
    return Plain(annotation)


def _is_record(cls: type) -> bool:
    if issubclass(cls, msgspec.Struct) or dataclasses.is_dataclass(cls) or typing.is_typeddict(cls):
        return True
    return issubclass(cls, tuple) and hasattr(cls, "_fields")


@lru_cache(maxsize=1024)
def fields_of(record: Record) -> Sequence[Field]:
    """Return the fields of a record."""
    if issubclass(record.cls, msgspec.Struct):
        fields = msgspec.structs.fields(record.type)
        return [Field(field.name, field.encode_name, field.type) for field in fields]
    hints = typing.get_type_hints(record.cls, include_extras=True)
    return [Field(name, name, hint) for name, hint in hints.items() if get_origin(hint) is not typing.ClassVar]


def parts_of(shape: Shape) -> list[tuple[str, Any]]:
    """Return the types that a shape is made of, each with the step that leads there."""
    match shape:
        case Many(item):
            return [("[]", item)]
        case Fixed(items):
            return [(f"[{number}]", item) for number, item in enumerate(items)]
        case Table(value):
            return [(".*", value)]
        case Choice(members):
            return [("", member) for member in members]
        case Record():
            return [(f".{field.encoded}", field.annotation) for field in fields_of(shape)]
        case Plain():
            return []


def places(annotation: Any, path: str = "", around: Marks = (), opened: set[Any] | None = None) -> Iterator[Place]:
    """Yield every part of a type, from the outside in.

    Of records that contain themselves, directly or by way of each other, each is opened once where the first is met.
    """
    shape, own = shape_of(annotation)
    marks = around + own
    yield Place(path.removeprefix("."), shape, marks, own)
    if isinstance(shape, Record):
        if opened and shape.type in opened:
            return
        marks, opened = (), (opened or set()) if _contains_itself(shape.type) else None
        if opened is not None:
            opened.add(shape.type)
    for step, part in parts_of(shape):
        yield from places(part, path + step, marks, opened)


@lru_cache(maxsize=1024)
def _contains_itself(type_: Any) -> bool:
    shape, _ = shape_of(type_)
    return any(record.type == type_ for record in records_of(*(part for _, part in parts_of(shape))))


def records_of(*annotations: Any) -> list[Record]:
    """Return every record that types contain, the types themselves included, each once."""
    found: dict[Any, Record] = {}
    waiting = list(annotations)
    while waiting:
        shape, _ = shape_of(waiting.pop())
        if isinstance(shape, Record):
            if shape.type in found:
                continue
            found[shape.type] = shape
        waiting += [part for _, part in parts_of(shape)]
    return list(found.values())


def marked(annotation: Any, kind: type) -> bool:
    """Tell whether a mark of this kind stands anywhere in a type."""
    outermost = [annotation, *(field.annotation for record in records_of(annotation) for field in fields_of(record))]
    return any(isinstance(mark, kind) for each in outermost for mark in _marks_within(each))


def _marks_within(annotation: Any) -> Iterator[object]:
    """Yield the marks of a type down to its records."""
    shape, own = shape_of(annotation)
    yield from own
    if not isinstance(shape, Record):
        for _, part in parts_of(shape):
            yield from _marks_within(part)


def last_mark(marks: Marks, kind: type[Mark]) -> Mark | None:
    """Return the mark of this kind that was put on last."""
    return next((mark for mark in reversed(marks) if isinstance(mark, kind)), None)
