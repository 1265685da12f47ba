"""Which models a request runs with: those of the function's bindings, or others that its payload names in `_models`.

Pure. Only a slot whose binding says `.allow_override()` can be given another model.
"""

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from gen_worker.api.bindings import HF, Binding, Civitai, Hub, ModelScope
from gen_worker.wire.messages import Encoding

KEY = "_models"

_NAME = r"[A-Za-z0-9][\w.-]*"
_REPOSITORY = rf"(?P<ref>{_NAME}/{_NAME})"
_AT_REVISION = r"(@(?P<revision>[A-Za-z0-9][\w./-]*))?"
_GRAMMARS: dict[type[Binding], tuple[str, str]] = {
    HF: (_REPOSITORY + _AT_REVISION, "`owner/name` or `owner/name@revision`"),
    Hub: (_REPOSITORY + rf"(:(?P<tag>{_NAME}))?(#(?P<flavor>{_NAME}))?", "`owner/name`, `owner/name:tag#flavor`"),
    Civitai: (r"(?P<ref>[\w-]+)", "the id of a model"),
    ModelScope: (_REPOSITORY + _AT_REVISION, "`owner/name` or `owner/name@revision`"),
}
_OF_ITS_OWN = {"revision": "", "tag": "prod", "flavor": "", "version": ""}  # what another model does not inherit


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
    grammar, like = _GRAMMARS[type(binding)]
    match = re.fullmatch(grammar, ref.strip(), re.ASCII)
    if match is None or ".." in ref:
        raise ValueError(f"`{ref[:200]}` is no ref of {binding.provider}; write {like}")
    if not any(fnmatchcase(ref.strip(), allowed) for allowed in binding.overrides):
        raise ValueError(f"`{ref.strip()}` is not allowed for `{slot}`, allowed is: {_listed(binding.overrides)}")
    own = {name: value for name, value in _OF_ITS_OWN.items() if name in binding.__struct_fields__}
    given = {name: value for name, value in match.groupdict().items() if value is not None}
    return msgspec.structs.replace(binding, **(own | given))


def _listed(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names)
