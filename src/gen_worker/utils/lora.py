"""LoRAs for the length of one request: on a pipeline of diffusers, and off again whatever happens.

Needs torch, safetensors, diffusers and peft only when it is called. Files may be anybody's: of theirs only numbers are
used, never a configuration that could change the pipeline's own weights.
"""

import json
import math
import re
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import msgspec

from gen_worker.api.errors import ValidationError
from gen_worker.api.requirements import require
from gen_worker.api.types import Tensors

__all__ = ["Lora", "load_loras"]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_METADATA = "lora_adapter_metadata"  # what diffusers' trainers write beside the weights: JSON
_MISFITS = (LookupError, RuntimeError, TypeError, ValueError, AttributeError)  # of what diffusers and peft raise
_DOWN, _UP = ".lora_down.weight", ".lora_up.weight"
_HALVES = ((".lora_A.weight", ".lora_B.weight"), (_DOWN, _UP), (".lora.down.weight", ".lora.up.weight"))
_PAIRS = (*_HALVES, *((up, down) for down, up in _HALVES))  # of what has the one name, there is the other
_MIXED_UP = ("lora_unet_", "lora_te")
_guards: "WeakKeyDictionary[Any, threading.RLock]" = WeakKeyDictionary()
_guarding = threading.Lock()


class Lora(msgspec.Struct):
    """A payload's wish for a LoRA: its file, how strong it is, and a name where the handler needs one."""

    tensors: Tensors
    weight: float = 1.0
    adapter_name: str = ""


class _Spec(Protocol):
    @property
    def tensors(self) -> Tensors: ...


class _Layer(NamedTuple):
    """How a layer stood that had adapters already: the author's own, set up with the pipeline."""

    layer: Any
    active: list[str]
    scaling: dict[str, float]

    def restore(self, more: Sequence[str] = ()) -> None:
        """Put the layer as it stood, with `more` adapters active beside."""
        self.layer.set_adapter([*self.active, *(name for name in more if name in self.layer.scaling)])
        self.layer.scaling.update(self.scaling)


@contextmanager
def load_loras(pipeline: Any, loras: "Iterable[_Spec]", request_id: str = "") -> Iterator[list[str]]:
    """Have these LoRAs on a pipeline while the block runs; yield their adapters' names.

    Each has `tensors`, whose file is a safetensors on this machine, and may have a `weight` and an `adapter_name`:
    `Lora` is such a type for payloads. Adapters that the pipeline had before stay in force, as strong as they were, and
    are as they were after the block. One block at a time has a pipeline; others wait. Raises ValidationError for a LoRA
    that is damaged or does not fit the pipeline, and ImportError without peft.
    """
    require("lora", "peft")
    specs = list(loras)
    if not specs:
        yield []
        return
    with _guard(pipeline):
        names = _names(specs, request_id, _adapters(pipeline))
        before = _layers(pipeline)
        try:
            for name, spec in zip(names, specs, strict=True):
                _load(pipeline, name, spec)
            pipeline.set_adapters(names, [_weight(spec) for spec in specs])
            for each in before:
                each.restore(more=names)
            yield names
        finally:
            _unload(pipeline, names, before)


def _guard(pipeline: Any) -> threading.RLock:
    with _guarding:
        return _guards.setdefault(pipeline, threading.RLock())


def _adapters(pipeline: Any) -> set[str]:
    """Return the names of the adapters that a pipeline has."""
    listed = getattr(pipeline, "get_list_adapters", None)
    return set() if listed is None else {name for names in listed().values() for name in names}


def _names(specs: Sequence[Any], request_id: str, own: Collection[str] = ()) -> list[str]:
    taken = {*own, *(getattr(spec, "adapter_name", None) for spec in specs)}
    free = (name for number in count() if (name := f"lora_{number}") not in taken)
    names = []
    for spec, usual in zip(specs, free, strict=False):
        name = getattr(spec, "adapter_name", None) or usual
        if not _NAME.fullmatch(name):
            raise ValidationError(f"a LoRA's `adapter_name` has letters, digits, `_` and `-`, at most 64: {name!r}")
        if name in own:
            raise ValidationError(f"the `adapter_name` `{name}` is taken by a LoRA of the pipeline's own")
        names.append(name)
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        told = f" in request `{request_id}`" if request_id else ""
        raise ValidationError(f"two LoRAs{told} have the `adapter_name` `{double}`")
    return names


def _weight(spec: Any) -> float:
    weight = getattr(spec, "weight", None)
    value = 1.0 if weight is None else float(weight)
    if not math.isfinite(value):
        raise ValidationError(f"a LoRA's `weight` is a finite number, got {value}")
    return value


# --- on, and off again ------------------------------------------------------------------------------------------------


def _layers(pipeline: Any) -> list[_Layer]:
    """Return the layers of a pipeline that have adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    parts = (part for part in getattr(pipeline, "components", {}).values() if hasattr(part, "modules"))
    layers = (each for part in parts for each in part.modules() if isinstance(each, BaseTunerLayer))
    return [_Layer(each, list(each.active_adapters), dict(each.scaling)) for each in layers]


def _load(pipeline: Any, name: str, spec: Any) -> None:
    weights = adapter_weights(spec.tensors)
    try:
        pipeline.load_lora_weights(weights, adapter_name=name)
    except _MISFITS as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        raise ValidationError(f"`{spec.tensors.ref}` does not fit this pipeline: {_reason(error)}") from error
    if not _has(pipeline, name):
        raise ValidationError(f"`{spec.tensors.ref}` does not fit this pipeline: none of its parts is in there")


def _reason(error: BaseException) -> str:
    """Return what an error says in a line: of torch's lists of all that does not fit, the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[1] if len(lines) > 1 and lines[0].endswith(":") else "".join(lines[:1])
    return said[:300] or type(error).__name__


def _has(pipeline: Any, name: str) -> bool:
    """Tell whether any part of a pipeline has an adapter; a LoRA of which no key fits is loaded without a word."""
    return not hasattr(pipeline, "get_list_adapters") or name in _adapters(pipeline)


def _unload(pipeline: Any, names: Sequence[str], before: Sequence[_Layer]) -> None:
    if not before:
        pipeline.unload_lora_weights()
        return
    there = _adapters(pipeline)
    pipeline.delete_adapters([name for name in names if name in there])
    for each in before:
        each.restore()


# --- what a file holds ------------------------------------------------------------------------------------------------


def adapter_weights(tensors: Tensors) -> dict[str, Any]:
    """Return the weights of a LoRA's file, scaled as it says; raise ValidationError for one that is damaged.

    Its alphas are multiplied in, and become the ranks: so do alphas that are missing. diffusers would take the alpha of
    most other layers for a missing one, and misses the layers of attention where alphas differ.
    """
    from safetensors import SafetensorError, safe_open

    if not tensors.exists():
        raise ValidationError(f"`{tensors.ref}` has no file on this machine")
    try:
        with safe_open(tensors, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise ValidationError(f"`{tensors.ref}` cannot be read as safetensors: {error}") from None
    if not any("lora" in name.lower() for name in weights):
        raise ValidationError(f"`{tensors.ref}` is no LoRA: none of its {len(weights)} tensors is called so")
    if wrong := _damage(weights):
        raise ValidationError(f"`{tensors.ref}` is damaged: {wrong}")
    _scale(weights, _settings(metadata, tensors.ref))
    _even_alphas(weights)
    return weights


def _damage(weights: Mapping[str, Any]) -> str | None:
    """Return what is wrong with weights by themselves; of half a pair diffusers would make up the other at random."""
    for name, weight in weights.items():
        if name.endswith(".alpha") and weight.numel() == 1 and not math.isfinite(weight):
            return f"`{name}` is {float(weight)}"
        for end, other_end in _PAIRS:
            if name.endswith(end):
                if (other := name.removesuffix(end) + other_end) not in weights:
                    return f"it has `{name}`, and no `{other}`"
                if weight.dim() < 2:
                    return f"`{name}` has the shape {tuple(weight.shape)}, which is no matrix's"
    return None


def _even_alphas(weights: dict[str, Any]) -> None:
    """Multiply alphas into the weights, in the layouts that have them there, and put the ranks in their place.

    Not where diffusers mixes alphas up: it takes the ranks by itself where there are none.
    """
    import torch

    stems = [name.removesuffix(_DOWN) for name in weights if name.endswith(_DOWN)]
    ranks = {stem: int(weights[stem + _DOWN].shape[0]) for stem in stems}
    mixed = len(set(ranks.values())) > 1
    for stem, rank in ranks.items():
        alpha = weights.pop(f"{stem}.alpha", None)
        if alpha is not None and alpha.numel() == 1 and f"{stem}{_UP}" in weights:
            weights[stem + _UP] = weights[stem + _UP] * (float(alpha) / rank)
        if not (mixed and stem.startswith(_MIXED_UP)):
            weights[f"{stem}.alpha"] = torch.tensor(float(rank))


def _settings(metadata: Mapping[str, str], ref: str) -> dict[str, Any]:
    try:
        settings = json.loads(metadata.get(_METADATA, "{}"))
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise ValidationError(f"`{ref}` has damaged metadata: `{_METADATA}`")
    return settings


def _scale(weights: dict[str, Any], settings: Mapping[str, Any]) -> None:
    """Multiply into the weights what the metadata says of their alphas, which are for each part of a pipeline."""
    for name in [name for name in weights if name.endswith(".lora_B.weight")]:
        part, _, module = name.removesuffix(".lora_B.weight").partition(".")
        alpha = _alpha(settings, part, module)
        if alpha is not None:
            rank = weights[name].shape[1]
            weights[name] = weights[name] * (alpha / (math.sqrt(rank) if settings.get(f"{part}.use_rslora") else rank))


def _alpha(settings: Mapping[str, Any], part: str, module: str) -> float | None:
    patterns = settings.get(f"{part}.alpha_pattern") or {}
    named = [patterns[key] for key in patterns if module == key or module.endswith(f".{key}")]
    alpha = named[0] if named else settings.get(f"{part}.lora_alpha")
    return float(alpha) if isinstance(alpha, int | float) and math.isfinite(alpha) else None
