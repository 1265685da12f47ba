"""The most memory that this process took while a job ran, as the kernel and the device's allocator counted it."""

import os
import re
import sys
from contextlib import suppress
from typing import Any

_HIGH_WATER = re.compile(rb"VmHWM:\s*(\d+) kB")
_RESET_HIGH_WATER = b"5"  # proc(5), /proc/pid/clear_refs


class Peaks:
    """Counts from the first of the jobs that run at once: nobody can tell their memory apart."""

    def __init__(self) -> None:
        self._running = 0
        self._status = _opened("status", os.O_RDONLY)  # now: a job may leave no descriptor for it
        self._reset = _opened("clear_refs", os.O_WRONLY)

    def begin(self) -> None:
        """A measured job starts."""
        self._running += 1
        if self._running > 1:
            return
        if self._reset >= 0:
            with suppress(OSError):  # a kernel that cannot: the peak is that of the process's whole life
                os.write(self._reset, _RESET_HIGH_WATER)
        cuda = _cuda()
        for gpu in range(0 if cuda is None else cuda.device_count()):
            cuda.reset_peak_memory_stats(gpu)

    def end(self) -> tuple[int, int]:
        """A measured job is over; return the peaks of host and device memory in bytes, 0 where nothing measures it."""
        self._running = max(0, self._running - 1)  # an interrupt may have kept one from being counted
        return self._high_water(), _of_all("max_memory_allocated")

    def _high_water(self) -> int:
        try:
            found = _HIGH_WATER.search(os.pread(self._status, 8192, 0))
        except OSError:  # the author's code closed what it did not open
            return 0
        return int(found[1]) << 10 if found is not None else 0


def device_use() -> tuple[int, int]:
    """Return the bytes that tensors take of the device and those that their allocator holds of it, 0 where it has none.

    Of a group these are the sums over its GPUs.

    Asked of the allocator, which may make whoever asks wait for the device.
    """
    if "torch" not in sys.modules:  # asked after every job
        return 0, 0
    return _of_all("memory_allocated"), _of_all("memory_reserved")


def _of_all(figure: str) -> int:
    """Return what torch counts of all GPUs of this process together."""
    cuda = _cuda()
    return 0 if cuda is None else sum(int(getattr(cuda, figure)(gpu)) for gpu in range(cuda.device_count()))


def _cuda() -> Any:
    """Return torch's CUDA module where this process uses it."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def _opened(name: str, flags: int) -> int:
    """Return a descriptor of a file of this process in `/proc`, -1 where it cannot be had."""
    try:
        return os.open(f"/proc/self/{name}", flags | os.O_CLOEXEC)
    except OSError:
        return -1
