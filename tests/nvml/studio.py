"""A studio's functions: they take their time and room on a GPU as such functions do, and compute nothing.

GPUs that are not there have no CUDA, so what they import as torch counts the bytes that weights and jobs would take.
"""

import ctypes
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Self

import msgspec

from gen_worker import HF, RequestContext, Resources, endpoint

GPU = Resources(gpu=True)
GIB = 1 << 30
_ALLOCATED_AHEAD = 1.06  # what an allocator holds beyond what it gave out


# --- a device's memory ------------------------------------------------------------------------------------------------


class _Device:
    type = "cuda"

    def __str__(self) -> str:
        return "cuda:0"


class Weights:
    """A tensor of so many bytes."""

    device, is_meta = _Device(), False

    def __init__(self, size: int) -> None:
        self._size = size

    def untyped_storage(self) -> SimpleNamespace:
        """The room it takes."""
        return SimpleNamespace(data_ptr=lambda: id(self), nbytes=lambda: self._size)

    def numel(self) -> int:
        """Its elements, one byte each."""
        return self._size

    def element_size(self) -> int:
        """One byte."""
        return 1

    def storage_offset(self) -> int:
        """It lies where its storage does."""
        return 0


class Module:
    """A model with weights on the device."""

    def __init__(self, size: int) -> None:
        self._weights = [Weights(size)]
        cuda.weights[id(self)] = size

    def modules(self) -> "Iterator[Module]":
        """It has no parts."""
        yield self

    def parameters(self, recurse: bool = True) -> list[Weights]:
        """Its weights."""
        return self._weights

    def buffers(self, recurse: bool = True) -> list[Weights]:
        """It has none."""
        return []

    def to(self, device: str) -> "Module":
        """Give up its room when it is to be nowhere."""
        if device == "meta":
            cuda.weights.pop(id(self), None)
        return self


class _Cuda:
    """The one device of a process."""

    def __init__(self) -> None:
        self.weights: dict[int, int] = {}
        self.working = 0

    def is_initialized(self) -> bool:
        """Whether anything was ever on it."""
        return bool(self.weights)

    def device_count(self) -> int:
        """Return how many there are."""
        return 1

    def memory_allocated(self, _device: object = None) -> int:
        """Bytes given out."""
        return sum(self.weights.values()) + self.working

    max_memory_allocated = memory_allocated

    def memory_reserved(self, _device: object = None) -> int:
        """Bytes held of the device."""
        return int(self.memory_allocated() * _ALLOCATED_AHEAD)

    def mem_get_info(self, _device: object = None) -> tuple[int, int]:
        """Bytes that are free, and all."""
        return 80 * GIB - self.memory_reserved(), 80 * GIB

    def memory_stats(self, _device: object = None) -> dict[str, int]:
        """Nothing that is held is to spare."""
        return {}

    def reset_peak_memory_stats(self, _device: object = None) -> None:
        """Peaks are what is given out."""

    def empty_cache(self) -> None:
        """Nothing is held to spare."""

    def ipc_collect(self) -> None:
        """Nothing is shared."""


cuda = _Cuda()
torch = ModuleType("torch")
vars(torch).update(cuda=cuda, nn=SimpleNamespace(Module=Module), accelerator=SimpleNamespace())


# --- the functions ----------------------------------------------------------------------------------------------------


class Order(msgspec.Struct):
    steps: int = 30
    seconds_a_step: float = 0.0
    working_gb: float = 6.0


class Picture(msgspec.Struct):
    steps: int


class Pipeline(Module):
    """A pipeline as large as its repository says, which takes as long to load."""

    @classmethod
    def from_pretrained(cls, path: str) -> Self:
        sys.modules["torch"] = torch  # not before: what a module imports is imported for all children at once
        file = Path(path) / "model.json"
        about, loaded_at = json.loads(file.read_text()), time.monotonic()
        while time.monotonic() < loaded_at + about["load_s"]:
            file.read_bytes()
            time.sleep(0.05)
        return cls(int(about["gb"] * 1e9))

    def __call__(self, ctx: RequestContext, order: Order) -> Picture:
        cuda.working = int(order.working_gb * 1e9)
        for step in range(order.steps):
            ctx.raise_if_cancelled()
            ctx.progress(step / order.steps, f"step {step}/{order.steps}")
            time.sleep(order.seconds_a_step)
        cuda.working = 0
        return Picture(order.steps)


@endpoint(model=HF("black-forest-labs/FLUX.1-dev"), resources=GPU)
def text_to_image(ctx: RequestContext, payload: Order, model: Pipeline) -> Picture:
    return model(ctx, payload)


@endpoint(model=HF("stabilityai/sdxl-base-1.0"), resources=GPU)
def image_to_image(ctx: RequestContext, payload: Order, model: Pipeline) -> Picture:
    return model(ctx, payload)


@endpoint(model=HF("Wan-AI/Wan2.1-T2V-14B"), resources=GPU)
def text_to_video(ctx: RequestContext, payload: Order, model: Pipeline) -> Picture:
    return model(ctx, payload)


@endpoint(model=HF("tencent/HunyuanVideo"), resources=GPU)
def video_to_video(ctx: RequestContext, payload: Order, model: Pipeline) -> Picture:
    return model(ctx, payload)


@endpoint(model=HF("stabilityai/sdxl-base-1.0"), resources=GPU)
def upscale(ctx: RequestContext, payload: Order, model: Pipeline) -> Picture:
    """Hang in foreign code that keeps the interpreter to itself."""
    cuda.working = int(payload.working_gb * 1e9)
    for tile in range(6):
        ctx.progress(tile / 16, f"tile {tile + 1}/16")
        time.sleep(0.3)
    ctypes.PyDLL(None).sleep(600)
    return Picture(payload.steps)


@endpoint(resources=GPU)
def segment(ctx: RequestContext, payload: Order) -> Picture:
    """Break off in foreign code."""
    os.abort()
