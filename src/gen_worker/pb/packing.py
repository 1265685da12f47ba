"""Turn values into messages and back, by tables made from the fields of both, which have the same names.

Nothing is lost either way; of what a peer sends, unknown fields are ignored and unknown numbers of an enum become
`UNSPECIFIED`.
"""

import typing
from collections.abc import Callable, Mapping
from enum import IntEnum
from types import ModuleType
from typing import Any

import msgspec

OTHER_NAMES = {"body": "data"}  # fields of values that a proto calls something else

Pack = Callable[[Any], Any]
"""From a value to what the constructor of a message takes for it."""

Unpack = Callable[[Any], Any]
"""From what a message has in a field to the value."""


class Envelope:
    """One kind of envelope: what travels in it, by the names under which it does."""

    def __init__(self, envelope: Any, messages: ModuleType, values: ModuleType) -> None:
        """Take an envelope's class, the module of generated code that has it, and that of the values."""
        kinds = {field.name: getattr(values, field.message_type.name) for field in envelope.DESCRIPTOR.fields}
        self._envelope = envelope
        self._packers = {kind: (name, _struct_packer(kind, messages)) for name, kind in kinds.items()}
        self._unpackers = {name: _struct_unpacker(kind, messages) for name, kind in kinds.items()}

    def encode(self, frame: msgspec.Struct) -> bytes:
        """Return the bytes of an envelope with this in it."""
        name, pack = self._packers[type(frame)]
        content = pack(frame)
        try:
            message = self._envelope(**{name: content})
        except UnicodeEncodeError:  # a lone surrogate, as from the text of an author's exception
            message = self._envelope(**{name: _as_utf8(content)})
        packet: bytes = message.SerializeToString()
        return packet

    def decode(self, packet: bytes) -> Any:
        """Return what is in an envelope, None where that is nothing known; raise `DecodeError` for no envelope."""
        message = self._envelope.FromString(packet)
        name = message.WhichOneof("msg")
        return None if name is None else self._unpackers[name](getattr(message, name))


def _as_utf8(content: Any) -> Any:
    """Return the content with what UTF-8 cannot carry escaped."""
    match content:
        case str():
            return content.encode("utf-8", "backslashreplace").decode()
        case dict():
            return {_as_utf8(name): _as_utf8(value) for name, value in content.items()}
        case list() | tuple():
            return [_as_utf8(value) for value in content]
        case _:
            return content


# --- the tables -------------------------------------------------------------------------------------------------------


def _packer(kind: Any, messages: ModuleType) -> Pack | None:
    """Return how values of a type are packed, None where they are taken as they are."""
    kind, _ = _without_none(kind)
    if _is_struct(kind):
        return _struct_packer(kind, messages)
    if typing.get_origin(kind) is tuple:
        return _list_packer(_packer(typing.get_args(kind)[0], messages))
    if typing.get_origin(kind) is Mapping:
        return _map_converter(_packer(typing.get_args(kind)[1], messages))
    return None


def _hints(kind: type[msgspec.Struct], messages: ModuleType) -> dict[str, Any]:
    """Return the types of a value's fields; a copy of the proto that somebody else keeps may lack `traceparent`."""
    known = getattr(messages, kind.__name__).DESCRIPTOR.fields_by_name
    hints = typing.get_type_hints(kind)
    return {name: hint for name, hint in hints.items() if name != "traceparent" or name in known}


def _struct_packer(kind: type[msgspec.Struct], messages: ModuleType) -> Pack:
    packers = {name: _packer(hint, messages) for name, hint in _hints(kind, messages).items()}
    plain = [(name, OTHER_NAMES.get(name, name)) for name, pack in packers.items() if pack is None]
    deep = [(name, pack) for name, pack in packers.items() if pack is not None]

    def pack_struct(value: msgspec.Struct) -> dict[str, Any]:
        content = {field: getattr(value, name) for name, field in plain}
        for name, pack in deep:
            inner = getattr(value, name)
            content[name] = None if inner is None else pack(inner)
        return content

    return pack_struct


def _unpacker(kind: Any, messages: ModuleType) -> Unpack | None:
    """Return how values of a type are unpacked, None where they are taken as they are."""
    kind, _ = _without_none(kind)
    if isinstance(kind, type) and issubclass(kind, IntEnum):
        known: dict[int, IntEnum] = {member.value: member for member in kind}
        unspecified = kind(0)
        return lambda number: known.get(number, unspecified)
    if _is_struct(kind):
        return _struct_unpacker(kind, messages)
    if typing.get_origin(kind) is tuple:
        return _tuple_unpacker(_unpacker(typing.get_args(kind)[0], messages))
    if typing.get_origin(kind) is Mapping:
        return _map_converter(_unpacker(typing.get_args(kind)[1], messages))
    return None


def _struct_unpacker(kind: type[msgspec.Struct], messages: ModuleType) -> Unpack:
    fields = []
    for name, hint in _hints(kind, messages).items():
        inner, may_be_absent = _without_none(hint)
        fields.append((name, OTHER_NAMES.get(name, name), _unpacker(inner, messages), may_be_absent))

    def unpack_struct(message: Any) -> msgspec.Struct:
        values: dict[str, Any] = {}
        for name, field, unpack, may_be_absent in fields:
            if may_be_absent and not message.HasField(field):
                continue
            value = getattr(message, field)
            values[name] = value if unpack is None else unpack(value)
        return kind(**values)

    return unpack_struct


def _list_packer(each: Pack | None) -> Pack | None:
    return None if each is None else lambda values: [each(value) for value in values]


def _tuple_unpacker(each: Unpack | None) -> Unpack:
    return tuple if each is None else lambda values: tuple(each(value) for value in values)


def _map_converter(each: Pack | Unpack | None) -> Pack | Unpack:
    return dict if each is None else lambda values: {key: each(value) for key, value in values.items()}


def _without_none(kind: Any) -> tuple[Any, bool]:
    """Return a type without its `| None`, and whether it had one."""
    rest = [each for each in typing.get_args(kind) if each is not type(None)]
    return (rest[0], True) if type(None) in typing.get_args(kind) else (kind, False)


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)
