"""Which dtype a model's weights get on the device, and what it costs to bring them there.

Pure. Weights of mixed dtypes are never loaded as they are: diffusers and transformers choose differently, and the first
request then fails with "mat1 and mat2 must have the same dtype".
"""

from collections.abc import Mapping
from typing import NamedTuple

from gen_worker.models.dtypes import DTYPES, Dtype, dtype_names
from gen_worker.models.errors import ModelError

_STORED: dict[str, Dtype] = {
    "F16": "fp16",
    "BF16": "bf16",
    "F32": "fp32",
    "F64": "fp32",
    "F8_E4M3": "bf16",  # eight bits are a way to store weights, not to compute with them
    "F8_E5M2": "bf16",
}
"""What the dtypes of safetensors' headers are loaded as."""

TORCH_NAMES: dict[Dtype, str] = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}

WORTH_A_COPY = 0.1  # below this share of the weights a cast at each load costs less than a copy of all on disk
WORTH_A_WORD = 0.01  # norms that were kept in fp32 are no news


class Precision(NamedTuple):
    """What all weights are loaded as, and the share of them, in bytes, that must be cast for it."""

    dtype: Dtype
    cast: float
    note: str = ""


def dtype_named(text: str, ref: str) -> Dtype:
    """Return the dtype that a binding names; raise `ModelError` for any other word."""
    found = DTYPES.get(text.strip().lower())
    if found is None:
        raise ModelError(
            "load_failed",
            f"`{ref}`: unknown dtype `{text}`",
            f"write one of {dtype_names()}",
            ref=ref,
        )
    return found


def precision(stored_bytes: Mapping[str, int], wanted: str, ref: str) -> Precision:
    """Choose what to load weights as: what is wanted, else what most of them are stored as.

    `stored_bytes` are the bytes by dtype, as safetensors' headers name them; integers do not count.
    """
    weights = {name: count for name, count in stored_bytes.items() if name in _STORED and count}
    total = sum(weights.values())
    if wanted:
        chosen = dtype_named(wanted, ref)
    elif not weights:
        chosen = "fp32"
    else:
        chosen = _STORED[max(weights, key=lambda name: weights[name])]
    other = {name: count for name, count in weights.items() if _as_is(name) != chosen}
    share = sum(other.values()) / total if total else 0.0
    note = ""
    if not wanted and share > WORTH_A_WORD:
        names = ", ".join(sorted(name.lower() for name in other))
        note = (
            f"`{ref}`: {share:.0%} of the weights are stored as {names}, the others as {chosen}: all are loaded as "
            f"{chosen}; `dtype=` in the binding says otherwise"
        )
    return Precision(chosen, share, note)


def _as_is(name: str) -> Dtype | None:
    """Return the dtype that is loaded from this one without a cast."""
    return _STORED[name] if name in ("F16", "BF16", "F32") else None
