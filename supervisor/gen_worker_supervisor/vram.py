"""How much of the GPUs' memory is free, asked of the driver by a thread: a sick driver may take its time to answer."""

import threading
from collections.abc import Sequence
from typing import Any

from gen_worker_supervisor.state import Device

EVERY_S = 1.0


class FreeVram:
    """Knows what was free a moment ago."""

    def __init__(self, devices: Sequence[Device]) -> None:
        """Look from now on, if there is a GPU among the devices."""
        self._indices = [device.index for device in devices if device.kind == "cuda" and device.index is not None]
        self._free = 0
        self._closing = threading.Event()
        if self._indices:
            threading.Thread(target=self._look, name="gen-worker-vram", daemon=True).start()

    def total(self) -> int:
        """Return the free bytes of all GPUs together."""
        return self._free

    def close(self) -> None:
        """Look no more."""
        self._closing.set()

    def _look(self) -> None:
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in self._indices]
        while True:
            self._free = sum(_free(pynvml, handle) for handle in handles)
            if self._closing.wait(EVERY_S):
                return


def _free(nvml: Any, handle: Any) -> int:
    try:
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).free)
    except nvml.NVMLError:  # it fell off the bus: nothing of it is free
        return 0
