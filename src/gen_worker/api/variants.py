"""Variants of an endpoint class: the same code routed under several names, each with weights of its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import msgspec

from gen_worker.api.bindings import HF, Binding, Civitai, Hub, ModelScope
from gen_worker.api.handlers import Handler, parameters
from gen_worker.api.hints import UnresolvedAnnotationError, resolve
from gen_worker.api.resources import Resources


@dataclass(frozen=True, slots=True)
class Variant:
    """The weights of one variant, and what it needs when that differs from its class."""

    binding: Binding
    resources: Resources | None


def read_variants(variants: Any) -> dict[str, Variant]:
    """Return the declared variants; raise TypeError or ValueError for what is none."""
    if not isinstance(variants, Mapping):
        raise TypeError(f"`variants=` takes a dict of name to binding, got {variants!r}")
    read: dict[str, Variant] = {}
    for name, value in variants.items():
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"the name of a variant must not be empty, got {name!r}")
        if name.strip() in read:
            raise ValueError(f"two variants are named `{name.strip()}`")
        read[name.strip()] = _read_variant(name, value)
    return read


def _read_variant(name: str, value: Any) -> Variant:
    match value:
        case HF() | Hub() | Civitai() | ModelScope():
            return Variant(value, None)
        case (HF() | Hub() | Civitai() | ModelScope() as binding, Resources() as resources):
            return Variant(binding, resources)
        case tuple() if len(value) != 2:
            raise ValueError(f"the variant `{name}` takes a binding or (binding, Resources), got {len(value)} values")
        case _:
            raise TypeError(f"the variant `{name}` takes a binding or (binding, Resources), got {value!r}")


def check_variant_field(label: str, handler: Handler, variants: Mapping[str, Variant]) -> None:
    """Refuse a payload whose field `variant` names what is not declared; a payload type not known yet passes."""
    try:
        payload = resolve(handler, parameters(handler, method=True)[1].name)
    except UnresolvedAnnotationError:  # a type defined further down; discovery looks again
        return
    if not (isinstance(payload, type) and issubclass(payload, msgspec.Struct)):
        return
    fields = {field.name: field.type for field in msgspec.structs.fields(payload)}
    if "variant" not in fields:
        return
    if get_origin(fields["variant"]) is not Literal:
        raise ValueError(f"`{payload.__name__}.variant` of `{label}` must be a `Literal[…]` of the variants' names")
    named = get_args(fields["variant"])
    if unknown := [name for name in named if name not in variants]:
        raise ValueError(
            f"`{payload.__name__}.variant` of `{label}` names {', '.join(map(repr, unknown))}; "
            f"declared are: {', '.join(variants)}"
        )
