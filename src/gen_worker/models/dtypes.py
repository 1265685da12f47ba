"""The dtypes that a model's weights can be given."""

from typing import Literal, TypeAlias

Dtype: TypeAlias = Literal["fp16", "bf16", "fp32"]

DTYPES: dict[str, Dtype] = {
    "fp16": "fp16",
    "float16": "fp16",
    "bf16": "bf16",
    "bfloat16": "bf16",
    "fp32": "fp32",
    "float32": "fp32",
}
"""How a binding may name them."""


def dtype_names() -> str:
    """Return what a binding may name, for a person who named something else."""
    return ", ".join(f"`{name}`" for name in DTYPES)
