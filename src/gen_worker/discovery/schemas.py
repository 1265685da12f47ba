"""JSON schemas of payloads and outputs."""

import hashlib
import types
import typing
from typing import Any, get_args, get_origin

import msgspec

Schema: typing.TypeAlias = dict[str, Any]


def members(type_: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the type itself."""
    return get_args(type_) if get_origin(type_) in (typing.Union, types.UnionType) else (type_,)


def schema_of(type_: Any) -> Schema:
    """Return the JSON schema of a Struct or a union of Structs; raise TypeError for what cannot be encoded."""
    schemas, components = msgspec.json.schema_components(members(type_), ref_template="#/$defs/{name}")
    top = schemas[0] if len(schemas) == 1 else {"oneOf": list(schemas)}
    return {**top, "$defs": components} if components else dict(top)


def digest(schema: Schema) -> str:
    """Return the sha256 of a schema in its one compact, key-sorted spelling."""
    return hashlib.sha256(msgspec.json.encode(schema, order="deterministic")).hexdigest()


def inlined(schema: Schema) -> Schema:
    """Return the schema with its top-level `$ref` replaced by what it refers to."""
    name = schema.get("$ref", "").removeprefix("#/$defs/")
    if not name:
        return schema
    top = schema["$defs"][name]
    recursive = f'"#/$defs/{name}"'.encode() in msgspec.json.encode(schema["$defs"])
    rest = {key: value for key, value in schema["$defs"].items() if key != name or recursive}
    return {**top, "$defs": rest} if rest else dict(top)
