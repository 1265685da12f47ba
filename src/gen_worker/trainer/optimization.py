"""The usual optimizer, its schedule, and numbers: what most trainers would write themselves."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

DEFAULT_LEARNING_RATE = 1e-4
DEFAULT_BETAS = (0.9, 0.999)


@dataclass
class OptimizerBundle:
    """An optimizer and its schedule; both are None where torch is not installed."""

    optimizer: Any = None
    scheduler: Any = None


def build_default_adamw_bundle(model_or_params: Any, *, hyperparams: Mapping[str, Any]) -> OptimizerBundle:
    """Return AdamW over what can be trained, and a schedule: a linear warm-up, then a cosine down to 0.

    It goes by `learning_rate` or `lr` (0.0001), `weight_decay` (0), `betas`, `warmup_steps` (0) and `max_steps`,
    without which the rate stays what it is after the warm-up. Raises `ValueError` where nothing can be trained.
    """
    if find_spec("torch") is None:
        return OptimizerBundle()
    import torch

    params = _trainable(model_or_params)
    if not params:
        raise ValueError("nothing can be trained: no parameter has `requires_grad`")
    rate = hyperparams.get("learning_rate", hyperparams.get("lr", DEFAULT_LEARNING_RATE))
    first, second = hyperparams.get("betas", DEFAULT_BETAS)
    optimizer = torch.optim.AdamW(
        params,
        lr=float(rate),
        betas=(float(first), float(second)),
        weight_decay=float(hyperparams.get("weight_decay", 0.0)),
    )
    warmup, total = int(hyperparams.get("warmup_steps", 0)), int(hyperparams.get("max_steps", 0))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, warmup=warmup, total=total))
    return OptimizerBundle(optimizer, scheduler)


def schedule(step: int, *, warmup: int, total: int) -> float:
    """Return what the learning rate is multiplied by in a step, from 0 on; `total` 0 stands for no end."""
    if step < warmup:
        return (step + 1) / warmup
    if total <= warmup:
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - warmup) / (total - warmup))))


def _trainable(model_or_params: Any) -> list[Any]:
    if hasattr(model_or_params, "parameters"):
        model_or_params = model_or_params.parameters()
    given: Iterable[Any] = model_or_params
    return [each for each in given if isinstance(each, dict) or each.requires_grad]


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, and of numpy and torch where they are installed."""
    import random

    random.seed(seed)
    if find_spec("numpy") is not None:
        import numpy

        numpy.random.seed(seed % 2**32)
    if find_spec("torch") is not None:
        import torch

        torch.manual_seed(seed)  # of every device


def to_float_scalar(value: Any) -> float:
    """Return a number as a float: Python's, numpy's, or a tensor with one element; raise `TypeError` for another."""
    if isinstance(value, int | float):
        return float(value)
    if hasattr(value, "item") and getattr(value, "size", None) is not None:
        count = value.numel() if hasattr(value, "numel") else value.size
        if count == 1:
            return float(value.item())
        raise TypeError(f"one number is wanted, this has {count}")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"a number is wanted, not {value!r}") from None
