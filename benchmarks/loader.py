"""The process that loads models for `benchmarks.loading`: one JSON order a line on stdin, one answer on stdout.

It has imported torch and diffusers before it says that it is ready, as a child forked from the zygote has.
"""

import contextlib
import gc
import json
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel

from gen_worker.wire.messages import SlotModel
from gen_worker_child.models.plane import Models

PAGE = 4096
BLOCK = 256 << 20
SAMPLE_S = 0.002
# 1.96 GB in 239 tensors of bf16; a brief run takes 24 MB
FULL = {"num_layers": 3, "num_single_layers": 8, "num_attention_heads": 16, "joint_attention_dim": 2048}
BRIEF = {"num_layers": 1, "num_single_layers": 2, "num_attention_heads": 4, "joint_attention_dim": 256}


def make(folder: str, brief: bool) -> dict[str, Any]:
    """Write a model's repository: a config, and one file of weights by their names and shapes alone."""
    sizes = BRIEF if brief else FULL
    with torch.device("meta"):
        model = FluxTransformer2DModel(**sizes, attention_head_dim=128, guidance_embeds=False)
    model.save_config(folder)
    end, head = 0, {}
    for name, tensor in model.state_dict().items():
        begin, end = end, end + 2 * tensor.numel()
        head[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    piece = os.urandom(1 << 20)
    path = Path(folder, "diffusion_pytorch_model.safetensors")
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for at in range(0, end, len(piece)):
            file.write(piece[: end - at])
        file.flush()
        os.fsync(file.fileno())
    return {"weights": str(path), "size": path.stat().st_size}


class Loads:
    """Loads as a child does, and lets go."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._models = self._opened(0)

    def _opened(self, budget_bytes: int) -> Models:
        return Models(device=self._device, budget_bytes=budget_bytes)

    def load(self, folder: str) -> dict[str, Any]:
        """Load a model and look at every page of it; seconds, and the memory that it took beside the files."""
        with anonymous_peak() as peak:
            begin = time.perf_counter()
            model = self._load(folder, "one")
            self._touch(model)
            seconds = time.perf_counter() - begin
        del model
        self._models.unload("one")
        gc.collect()
        return {"seconds": seconds, "anonymous": peak()}

    def _load(self, folder: str, instance: str) -> Any:
        slot = SlotModel("model", "bench/weights", folder, Path(folder).name)
        return self._models.load(instance, [slot], {"model": FluxTransformer2DModel})["model"]

    def _touch(self, model: Any) -> None:
        if self._device != "cpu":
            torch.cuda.synchronize()
            return
        for tensor in model.state_dict().values():
            tensor.view(torch.uint8).flatten().numpy()[::PAGE].copy()

    def swap(self, first: str, second: str, size: int) -> dict[str, Any]:
        """Load a model where another one must go for it; seconds of that."""
        self._models = self._opened(size + size // 2)
        self._models.on_evict = lambda instance: None
        self._touch(self._load(first, "first"))
        begin = time.perf_counter()
        self._touch(self._load(second, "second"))
        seconds = time.perf_counter() - begin
        self._models.unload("second")
        self._models = self._opened(0)
        return {"seconds": seconds}


@contextlib.contextmanager
def anonymous_peak() -> Iterator[Callable[[], int]]:
    """Watch this process's anonymous memory; what is yielded says afterwards how many bytes it grew by at most."""
    before = most = anonymous_bytes()
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(SAMPLE_S):
            most = max(most, anonymous_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: max(0, most - before)
    finally:
        done.set()
        thread.join()


def anonymous_bytes() -> int:
    """Memory of this process that no file is behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon:")).split()[1])


def touch(path: str) -> dict[str, Any]:
    """Look at one byte of each page of a file that nobody has mapped here yet; seconds."""
    with open(path, "rb") as file:
        begin = time.perf_counter()
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            mapped[::PAGE]
        return {"seconds": time.perf_counter() - begin}


def copy_to_device(*, pinned: bool) -> dict[str, Any]:
    """Bytes a second from this process's memory to the GPU's."""
    source = torch.ones(BLOCK, dtype=torch.uint8, pin_memory=pinned)
    target = torch.empty(BLOCK, dtype=torch.uint8, device="cuda")
    target.copy_(source)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(4):
        target.copy_(source, non_blocking=pinned)
    torch.cuda.synchronize()
    return {"bytes_per_s": 4 * BLOCK / (time.perf_counter() - begin)}


def main() -> None:
    """Obey until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loads = {"cpu": Loads("cpu"), device: Loads(device)}
    print(json.dumps({"device": device}), file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        match order.pop("do"):
            case "make":
                answer = make(**order)
            case "touch":
                answer = touch(**order)
            case "load":
                answer = loads[order["device"]].load(order["folder"])
            case "swap":
                answer = loads[device].swap(**order)
            case "copy":
                answer = copy_to_device(**order)
            case other:
                raise ValueError(f"no order `{other}`")
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
