"""The most memory that a job of `gen-worker run` took, and what its function should ask for."""

import math
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from gen_worker.cli.events import Events
from gen_worker.cli.table import size

GB = 1 << 30
_CONTEXT_BYTES = GB // 2  # what CUDA itself takes in a process: 0.3 to 0.6 GB
_WORK = 1.2  # what activations take beside weights, at least: told of runs on a CPU only, as a lower limit
_MARGIN = 1.1


class Peak(NamedTuple):
    """The most that was taken from when the job's models were loaded until it ended."""

    host_bytes: int
    device_bytes: int = 0  # of a GPU, with what torch's allocator keeps for later; 0: none was used
    weights_bytes: int = 0  # of the models that were loaded, wherever they lie


class Meter:
    """Counts from when it is made."""

    def __init__(self) -> None:
        from gen_worker_child.peaks import Peaks

        self._peaks = Peaks()
        self._peaks.begin()

    def read(self, models: Mapping[str, object]) -> Peak:
        """Return the peak so far, of a job with these models."""
        host_bytes, _ = self._peaks.end()
        torch: Any = sys.modules.get("torch")
        if torch is None:
            return Peak(host_bytes)
        from gen_worker.models.placement import measure

        used = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        device_bytes = max((int(torch.cuda.max_memory_reserved(each)) for each in used), default=0)
        return Peak(host_bytes, device_bytes, measure(models))


def suggested_gb(peak: Peak) -> int | None:
    """Return the `vram_gb` that suits what was measured; None for a job without models on a CPU."""
    if peak.device_bytes:
        return math.ceil((peak.device_bytes * _MARGIN + _CONTEXT_BYTES) / GB)
    return math.ceil((peak.weights_bytes * _WORK + _CONTEXT_BYTES) / GB) if peak.weights_bytes else None


def sentence(peak: Peak) -> str:
    """Say the peak to a person."""
    host, gb = f"peak memory: {size(peak.host_bytes)} of the host", suggested_gb(peak)
    if peak.device_bytes:
        return f"{host}, {size(peak.device_bytes)} of the GPU: `Resources(vram_gb={gb})` leaves a margin"
    if gb is not None:
        weights = f"its models take {size(peak.weights_bytes)}"
        return f"{host}; {weights}, so `Resources(vram_gb={gb})` at least: a run on a GPU tells what it needs"
    return host


def show(events: Events, function: str, request_id: str, peak: Peak) -> None:
    """Tell the peak as the last event of a job: to a program as `request.memory`, to a person as a line."""
    if events.form != "json":
        events.show(function, request_id, "log", {"message": sentence(peak)}, time.time())
        return
    told = {name: value for name, value in peak._asdict().items() if value}
    gb = suggested_gb(peak)
    events.show(function, request_id, "memory", told | ({"vram_gb": gb} if gb is not None else {}), time.time())
