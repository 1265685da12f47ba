"""The states of the generators that a process has: Python's, and those of what it has imported."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def random_state() -> dict[str, Any]:
    """Return the state of every generator that a training draws from without naming one."""
    state: dict[str, Any] = {"python": random.getstate()}
    if (numpy := sys.modules.get("numpy")) is not None:
        state["numpy"] = numpy.random.get_state()
    if (torch := sys.modules.get("torch")) is not None:
        state["torch"] = torch.get_rng_state()
        if torch.cuda.is_initialized():
            state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random(state: dict[str, Any]) -> None:
    """Put generators into the state that they had; what has not been imported here is imported for that."""
    random.setstate(state["python"])
    if "numpy" in state:
        import numpy

        numpy.random.set_state(state["numpy"])
    if "torch" in state:
        import torch

        torch.set_rng_state(state["torch"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let what is drawn inside the block, as by a sample, have no part in how the training goes on."""
    before = random_state()
    try:
        yield
    finally:
        restore_random(before)
