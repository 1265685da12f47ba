"""Which models a request runs with: those of the function's bindings, or others that its payload names in `_models`.

Pure. Only a slot whose binding says `.allow_override()` can be given another model.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from gen_worker.api.bindings import Binding
from gen_worker.models.refs import parse_ref
from gen_worker.wire.messages import Encoding

KEY = "_models"


class OverrideError(msgspec.ValidationError):
    """The models that a payload names cannot be had: why, and where in the payload."""


class _Head(msgspec.Struct):
    models: Any = msgspec.field(name=KEY, default=msgspec.UNSET)


_decode = {"json": msgspec.json.Decoder(_Head).decode, "msgpack": msgspec.msgpack.Decoder(_Head).decode}


def takes_overrides(payload_type: type[msgspec.Struct], bindings: Mapping[str, Binding]) -> bool:
    """Tell whether `_models` of a function's payloads is ours to read: one with bindings, and no such field itself."""
    if not bindings or payload_type.__struct_config__.array_like:
        return False
    return KEY not in payload_type.__struct_encode_fields__


def named_models(body: bytes | memoryview, encoding: Encoding) -> Any:
    """Return what stands under `_models` at the top of an encoded payload; `msgspec.UNSET` when nothing does."""
    return _decode[encoding](body).models


def without_models(body: bytes | memoryview, encoding: Encoding) -> bytes:
    """Return an encoded payload without its `_models`."""
    codec: Any = msgspec.json if encoding == "json" else msgspec.msgpack
    fields = codec.decode(body, type=dict[str, msgspec.Raw])
    return bytes(codec.encode({name: value for name, value in fields.items() if name != KEY}))


def overridden(bindings: Mapping[str, Binding], named: Any) -> dict[str, Binding]:
    """Return the bindings with the named models in their slots; raise OverrideError for what is not allowed."""
    chosen = dict(bindings)
    if named is msgspec.UNSET:
        return chosen
    if not isinstance(named, dict):
        raise OverrideError(f"expected an object of slot to ref, got `{type(named).__name__}` - at `$.{KEY}`")
    for slot, ref in named.items():
        try:
            chosen[slot] = _replaced(bindings, slot, ref)
        except ValueError as problem:
            raise OverrideError(f"{problem} - at `$.{KEY}.{slot}`") from None
    return chosen


def _replaced(bindings: Mapping[str, Binding], slot: str, ref: Any) -> Binding:
    if slot not in bindings:
        raise ValueError(f"no slot `{slot}`, there is: {_listed(bindings)}")
    binding = bindings[slot]
    if not isinstance(ref, str):
        raise ValueError(f"expected a ref as text, got `{type(ref).__name__}`")
    if not binding.overrides:
        raise ValueError(f"`{slot}` takes no other model than `{binding.wire_ref}`")
    named = _fields(binding, ref.strip())
    if not any(fnmatchcase(ref.strip(), allowed) for allowed in binding.overrides):
        raise ValueError(f"`{ref.strip()}` is not allowed for `{slot}`, allowed is: {_listed(binding.overrides)}")
    return msgspec.structs.replace(binding, **named)


def _fields(binding: Binding, ref: str) -> dict[str, str]:
    """Return the fields of a binding that a ref decides: another model inherits no revision, tag, flavor or version."""
    wanted = parse_ref(ref, binding.provider, tag="prod")
    kind = type(binding).__name__
    if wanted.provider != binding.provider:
        raise ValueError(f"`{ref}` is on {wanted.provider}, `{kind}` takes models of {binding.provider}")
    fields = {name: getattr(wanted, name) for name in ("revision", "tag", "digest", "flavor", "version")}
    for name, value in fields.items():
        if value and name not in binding.__struct_fields__:
            raise ValueError(f"`{ref}` has a {name}, `{kind}` takes none")
    own = {name: value for name, value in fields.items() if name in binding.__struct_fields__}
    return {"ref": wanted.repo, **own}


def _listed(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names)
