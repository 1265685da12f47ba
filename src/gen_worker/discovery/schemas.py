"""JSON schemas of payloads and outputs."""

import hashlib
import types
import typing
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import msgspec
import msgspec.inspect

from gen_worker.api.clamping import Range, clamped
from gen_worker.api.payload_constraints import Clamp
from gen_worker.api.shapes import (
    Choice,
    Fixed,
    Many,
    Marks,
    Plain,
    Record,
    Table,
    fields_of,
    last_mark,
    records_of,
    shape_of,
)
from gen_worker.discovery.unions import always_sent, told_apart_by_tag

Schema: typing.TypeAlias = dict[str, Any]

_REF = "#/$defs/"
_JSON_NUMBERS = {int: "integer", float: "number"}


def members(type_: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the type itself."""
    return get_args(type_) if get_origin(type_) in (typing.Union, types.UnionType) else (type_,)


def schema_of(type_: Any) -> Schema:
    """Return the JSON schema of a Struct or a union of Structs; raise TypeError or ValueError for what cannot be sent.

    Of a union each value fits exactly one of the members' schemas.
    """
    tops, records = members(type_), records_of(type_)
    try:
        schemas, components = msgspec.json.schema_components(
            [*tops, *(record.type for record in records)], ref_template=_REF + "{name}"
        )
    except KeyError as error:  # what msgspec makes of two types that have module and name in common
        raise TypeError(f"two types have the name of {error}") from None
    for record, reference in zip(records, schemas[len(tops) :], strict=True):
        _complete(components[_name(reference)], record)
    return {**_top(schemas[: len(tops)], tops), "$defs": components}


def faulty_field(type_: Any) -> str:
    """Return the field for which `schema_of` fails, as `Input.size`; "" where no field alone is to blame."""
    for record in reversed(records_of(type_)):  # what is inside before what holds it
        defaults = dict(_defaults(record)) if isinstance(record.type, type) else {}
        for field in fields_of(record):
            try:
                msgspec.json.schema_components([field.annotation])
                msgspec.to_builtins(clamped(field.annotation, defaults.get(field.encoded)), str_keys=True)
            except (TypeError, ValueError, KeyError):
                return f"{record.cls.__name__}.{field.name}"
    return ""


def _top(schemas: tuple[Schema, ...], tops: tuple[Any, ...]) -> Schema:
    if len(tops) == 1:
        return schemas[0]
    if told_apart_by_tag(tops):
        mapping = {member.__struct_config__.tag: each["$ref"] for each, member in zip(schemas, tops, strict=True)}
        field = tops[0].__struct_config__.tag_field
        return {"oneOf": list(schemas), "discriminator": {"propertyName": field, "mapping": mapping}}
    return {"oneOf": [_exact(each, member) for each, member in zip(schemas, tops, strict=True)]}


def _exact(reference: Schema, member: type[msgspec.Struct]) -> Schema:
    """Return the schema of what is really sent of a member: all of its fields, and no others."""
    if member.__struct_config__.array_like:
        return reference
    return {**reference, "required": always_sent(member), "unevaluatedProperties": False}


def _name(reference: Schema) -> str:
    return str(reference["$ref"]).removeprefix(_REF)


def _complete(schema: Schema, record: Record) -> None:
    """Put the bounds of Clamps into the schema of a record, and give its defaults the order that they always have."""
    fields = fields_of(record)
    nodes = schema.get("properties", {})
    if "prefixItems" in schema:  # encoded as an array, after its tag if it has one
        placed = schema["prefixItems"][len(schema["prefixItems"]) - len(fields) :]
        nodes = {field.encoded: node for field, node in zip(fields, placed, strict=True)}
    annotations = {field.encoded: field.annotation for field in fields}
    for name, annotation in annotations.items():
        _bound(annotation, list(_alternatives(nodes[name])), ())
    for name, default in _defaults(record):
        if "default" in nodes[name]:
            value = clamped(annotations[name], default)
            nodes[name]["default"] = msgspec.to_builtins(value, str_keys=True, order="deterministic")


def _defaults(record: Record) -> Iterator[tuple[str, Any]]:
    told = msgspec.inspect.type_info(record.type)
    assert hasattr(told, "fields")
    for field in told.fields:
        if field.default is not msgspec.NODEFAULT:
            yield field.encode_name, field.default


def _alternatives(schema: Schema) -> Iterator[Schema]:
    """Yield the schema, or the ones of which a value may fit any."""
    if "anyOf" in schema:
        for each in schema["anyOf"]:
            yield from _alternatives(each)
    else:
        yield schema


def _bound(annotation: Any, nodes: list[Schema], around: Marks) -> None:
    """Bound the numbers of a type in the schemas that stand for it; records are bounded where they are defined."""
    shape, own = shape_of(annotation)
    marks = around + own
    match shape:
        case Plain(type=kind):
            clamp = last_mark(marks, Clamp)
            for node in nodes:
                if clamp is not None and node.get("type") == _JSON_NUMBERS.get(kind, ""):
                    _bound_number(node, *Range.of(clamp, marks, kind).ends)
        case Many(part) | Table(part):
            key = "items" if isinstance(shape, Many) else "additionalProperties"
            inner = [each for node in nodes if isinstance(node.get(key), dict) for each in _alternatives(node[key])]
            _bound(part, inner, marks)
        case Fixed(parts):
            for node in [node for node in nodes if "prefixItems" in node]:
                for part, each in zip(parts, node["prefixItems"], strict=True):
                    _bound(part, list(_alternatives(each)), marks)
        case Choice(parts):
            for part in parts:
                _bound(part, nodes, marks)
        case Record():
            pass


def _bound_number(schema: Schema, low: float, high: float) -> None:
    """Narrow the bounds of a number; a bound that excludes its end and is at least as narrow stays."""
    if low >= schema.get("minimum", low) and low > schema.get("exclusiveMinimum", -float("inf")):
        schema.pop("exclusiveMinimum", None)
        schema["minimum"] = low
    if high <= schema.get("maximum", high) and high < schema.get("exclusiveMaximum", float("inf")):
        schema.pop("exclusiveMaximum", None)
        schema["maximum"] = high


def digest(schema: Schema) -> str:
    """Return the sha256 of a schema in its one compact, key-sorted spelling."""
    return hashlib.sha256(msgspec.json.encode(schema, order="deterministic")).hexdigest()


def inlined(schema: Schema) -> Schema:
    """Return the schema with its top-level `$ref` replaced by what it refers to."""
    name = schema.get("$ref", "").removeprefix(_REF)
    if not name:
        return schema
    top = schema["$defs"][name]
    recursive = f'"{_REF}{name}"'.encode() in msgspec.json.encode(schema["$defs"])
    rest = {key: value for key, value in schema["$defs"].items() if key != name or recursive}
    return {**top, "$defs": rest} if rest else dict(top)
