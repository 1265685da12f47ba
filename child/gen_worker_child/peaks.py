"""The most memory that this process took while a job ran, as the kernel and the device's allocator counted it."""

import os
import re
import sys
from typing import Any

_HIGH_WATER = re.compile(rb"VmHWM:\s*(\d+) kB")
_RESET_HIGH_WATER = b"5"  # proc(5), /proc/pid/clear_refs


class Peaks:
    """Counts from the first of the jobs that run at once: nobody can tell their memory apart."""

    def __init__(self) -> None:
        self._running = 0

    def begin(self) -> None:
        """A measured job starts."""
        self._running += 1
        if self._running > 1:
            return
        _reset_high_water()
        cuda = _cuda()
        if cuda is not None:
            cuda.reset_peak_memory_stats()

    def end(self) -> tuple[int, int]:
        """A measured job is over; return the peaks of host and device memory in bytes, 0 where nothing measures it."""
        self._running = max(0, self._running - 1)  # an interrupt may have kept one from being counted
        cuda = _cuda()
        return _high_water(), 0 if cuda is None else int(cuda.max_memory_allocated())


def _cuda() -> Any:
    """Return torch's CUDA module where this process uses it."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def _reset_high_water() -> None:
    try:
        with open("/proc/self/clear_refs", "wb", buffering=0) as file:
            file.write(_RESET_HIGH_WATER)
    except OSError:  # a kernel without it: the peak is that of the process's whole life
        return


def _high_water() -> int:
    fd = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = _HIGH_WATER.search(os.read(fd, 8192))
    finally:
        os.close(fd)
    return int(found[1]) << 10 if found is not None else 0
