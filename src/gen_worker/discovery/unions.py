"""Whether JSON can tell the members of a union apart, so that a reader knows what it got.

Pure. Only what we send is looked at: a field with a default is sent, unless its Struct omits defaults.
"""

import enum
from collections.abc import Iterator
from itertools import combinations
from typing import Any, Literal, TypeAlias, get_args, get_origin

import msgspec

from gen_worker.api.shapes import Choice, Fixed, Many, Plain, Record, Table, fields_of, parts_of, shape_of

StructType: TypeAlias = type[msgspec.Struct]
Values: TypeAlias = set[tuple[str, object]]  # of JSON: ("string", "a") is that text, ("string", None) any

_JSON_TYPES: dict[Any, str] = {
    str: "string",
    int: "number",
    float: "number",
    bool: "boolean",
    type(None): "null",
    None: "null",
}


def told_apart_by_tag(members: tuple[StructType, ...]) -> bool:
    """Tell whether every member is sent as an object with a tag of its own in the same field."""
    return _have_tags(members) and not _any_array(members)


def _have_tags(members: tuple[StructType, ...]) -> bool:
    configs = [member.__struct_config__ for member in members]
    tags = {(type(config.tag), config.tag) for config in configs}
    fields = {config.tag_field for config in configs}
    return len(fields) == 1 and None not in fields and len(tags) == len(configs)


def _any_array(members: tuple[StructType, ...]) -> bool:
    return any(member.__struct_config__.array_like for member in members)


def confused(members: tuple[StructType, ...]) -> tuple[StructType, StructType] | None:
    """Return two members that a reader of the JSON could take for each other; None when there are none."""
    return next(((one, other) for one, other in combinations(members, 2) if not _differ(one, other)), None)


def _differ(one: StructType, other: StructType) -> bool:
    if one.__struct_config__.array_like != other.__struct_config__.array_like:
        return True
    if _any_array((one, other)):
        return _have_tags((one, other))
    mine, theirs = dict(_sent(one)), dict(_sent(other))
    if set(always_sent(one)) - set(theirs) or set(always_sent(other)) - set(mine):
        return True
    both = set(always_sent(one)) & set(always_sent(other))
    return any(_disjoint(mine[name], theirs[name]) for name in both)


def always_sent(type_: StructType) -> list[str]:
    """Return the fields that the JSON of every value has, its tag among them."""
    config = type_.__struct_config__
    required = {field.encode_name for field in msgspec.structs.fields(type_) if field.required}
    return [
        name
        for name, values in _sent(type_)
        if ("unset", None) not in values and (not config.omit_defaults or name in required or name == config.tag_field)
    ]


def _sent(type_: StructType) -> Iterator[tuple[str, Values]]:
    """Yield the fields that the JSON of a value may have, and what may stand in them."""
    config = type_.__struct_config__
    if config.tag_field is not None:
        yield config.tag_field, {_constant(config.tag)}
    for field in fields_of(Record(type_, type_)):
        yield field.encoded, _values(field.annotation)


def _disjoint(one: Values, other: Values) -> bool:
    if ("any", None) in one | other:
        return False
    return not any(
        kind == other_kind and (value == other_value or value is None or other_value is None)
        for kind, value in one
        for other_kind, other_value in other
    )


def _values(annotation: Any) -> Values:
    shape, _ = shape_of(annotation)
    match shape:
        case Plain(type=kind):
            return _plain_values(kind)
        case Choice():
            return {value for _, part in parts_of(shape) for value in _values(part)}
        case Many() | Fixed():
            return {("array", None)}
        case Table():
            return {("object", None)}
        case Record(cls=cls):
            array = issubclass(cls, tuple) or (issubclass(cls, msgspec.Struct) and cls.__struct_config__.array_like)
            return {("array" if array else "object", None)}


def _plain_values(kind: Any) -> Values:
    if get_origin(kind) is Literal:
        return {_constant(value) for value in get_args(kind)}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return {_constant(member.value) for member in kind}
    if kind is msgspec.UnsetType:
        return {("unset", None)}
    if kind in _JSON_TYPES:
        return {(_JSON_TYPES[kind], None)}
    return {("any", None)}


def _constant(value: object) -> tuple[str, object]:
    return (_JSON_TYPES.get(type(value), "any"), value)
