"""Copy weights to a GPU at the speed of its link, from memory that is not pinned.

`Tensor.to` takes such memory tensor by tensor, through one small pinned buffer of the driver's. Here several threads
fill pinned buffers while the GPU copies from others. Pinning the weights themselves would be as fast, and costs 0.4 s
for each GB first, in every process anew.
"""

import ctypes
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple, TypeAlias

SLOT_BYTES = 8 << 20  # the link is at its full speed from about 4 MB on
LANES = 8  # a core copies 5 to 10 GB/s, the link takes about 50
WORTH_BYTES = 64 << 20  # below this the buffers cost more than they bring


_Place: TypeAlias = tuple[int, Any, Any]
"""An address, a shape and a dtype: two tensors that have all in common are one."""


class _Piece(NamedTuple):
    """Some bytes of a tensor on their way to the same place of another."""

    source: int  # an address
    target: Any  # a tensor of bytes


def upload(tensors: Iterable[Any], device: str, *, slot_bytes: int = SLOT_BYTES, lanes: int = LANES) -> int:
    """Have tensors of the CPU lie on the device and return their bytes; the objects stay the same.

    Two that lie on the same bytes still do. What is not one run of bytes, or is a tensor of a special kind, is left
    where it is. When this raises, as it does when the device has no room, everything is where it was.
    """
    import torch

    moving = [(each, _place(each)) for each in tensors if _is_plain(each)]
    targets: dict[_Place, Any] = {}
    pairs = []
    for each, place in moving:
        if place not in targets:
            targets[place] = torch.empty_like(each.data, device=device)
            pairs.append((each.data, targets[place]))
    if pairs:
        _send(pairs, torch.device(device), slot_bytes, min(lanes, os.cpu_count() or 1))
    for each, place in moving:
        each.data = targets[place]
    return sum(target.numel() * target.element_size() for _, target in pairs)


def _is_plain(tensor: Any) -> bool:
    import torch

    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter)
    return bool(plain and tensor.device.type == "cpu" and tensor.is_contiguous() and tensor.numel())


def _place(tensor: Any) -> _Place:
    return tensor.data_ptr(), tensor.shape, tensor.dtype


def _send(pairs: list[tuple[Any, Any]], device: Any, slot_bytes: int, lanes: int) -> None:
    from concurrent.futures import ThreadPoolExecutor

    loads = _loads(pairs, slot_bytes)
    lock = threading.Lock()

    def work() -> None:
        lane = _Lane(device, slot_bytes)
        while True:
            with lock:
                load = next(loads, None)
            if load is None:
                break
            lane.send(load)
        lane.finish()

    with ThreadPoolExecutor(lanes, thread_name_prefix="gen-worker-upload") as threads:
        for each in [threads.submit(work) for _ in range(lanes)]:
            each.result()


def _loads(pairs: Iterable[tuple[Any, Any]], slot_bytes: int) -> Iterator[list[_Piece]]:
    """Yield what fits into one buffer at a time: many small tensors, or a part of a large one."""
    import torch

    load: list[_Piece] = []
    room = slot_bytes
    for source, target in pairs:
        address, bytes_ = source.data_ptr(), target.view(-1).view(torch.uint8)
        at = 0
        while at < bytes_.numel():
            piece = bytes_[at : at + room]
            load.append(_Piece(address + at, piece))
            at += piece.numel()
            room -= piece.numel()
            if not room:
                yield load
                load, room = [], slot_bytes
    if load:
        yield load


class _Lane:
    """One thread's way to the device: of its two buffers one is filled while the other is copied from."""

    def __init__(self, device: Any, slot_bytes: int) -> None:
        import torch

        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if self._stream is not None:  # the memory of the targets may still be in use by what ran before
            self._stream.wait_stream(torch.cuda.current_stream(device))
        pinned = self._stream is not None
        self._slots = [torch.empty(slot_bytes, dtype=torch.uint8, pin_memory=pinned) for _ in range(2)]
        self._copied: list[Any] = [None, None]
        self._turn = 0

    def send(self, load: list[_Piece]) -> None:
        """Copy these into a buffer, as soon as one is free, and have the device fetch them from there."""
        import torch

        turn = self._turn = 1 - self._turn
        if self._copied[turn] is not None:
            self._copied[turn].synchronize()
        slot = self._slots[turn]
        at = 0
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            for source, target in load:
                length = target.numel()
                ctypes.memmove(slot.data_ptr() + at, source, length)  # without the GIL
                target.copy_(slot[at : at + length], non_blocking=True)
                at += length
            if self._stream is not None:
                self._copied[turn] = torch.cuda.Event()
                self._copied[turn].record(self._stream)

    def finish(self) -> None:
        """Wait until everything is on the device."""
        if self._stream is not None:
            self._stream.synchronize()
