"""Which devices this supervisor owns: the GPUs of the host as NVML names them, or CPU slots that stand for them."""

import re
from collections.abc import Sequence
from typing import Any

from gen_worker_supervisor.state import Device

_CPU = re.compile(r"cpu(?::(\d+))?")
MOST_CPU_SLOTS = 256


class DeviceError(ValueError):
    """The devices asked for are not to be had; the text says which there are."""


def list_gpus() -> list[Device]:
    """Return the GPUs of this host, none where there is no NVIDIA driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return [_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def _gpu(nvml: Any, index: int) -> Device:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    uuid = nvml.nvmlDeviceGetUUID(handle)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    name = uuid.decode() if isinstance(uuid, bytes) else uuid
    return Device(f"cuda:{index}", "cuda", index=index, uuid=name, vram_total=int(memory.total))


def choose(wanted: str, gpus: Sequence[Device], *, gpu_functions: bool, cpu_functions: bool) -> list[Device]:
    """Return the devices for `--devices`: `auto`, `cpu:N`, or GPU indices or UUIDs with commas between.

    Where GPU functions and others are served side by side, the others get a CPU child. Raises `DeviceError`.
    """
    if found := _CPU.fullmatch(wanted.strip()):
        count = int(found[1] or 1)
        if not 1 <= count <= MOST_CPU_SLOTS:
            raise DeviceError(f"`cpu:N` takes 1 to {MOST_CPU_SLOTS} slots, not {count}")
        return [cpu(index) for index in range(count)]
    if wanted.strip().startswith("cpu:"):
        raise DeviceError(f"`cpu:N` takes 1 to {MOST_CPU_SLOTS} slots, not `{wanted.strip()[4:]}`")
    chosen = list(gpus) if wanted == "auto" else _named(wanted, gpus)
    if not chosen or (wanted == "auto" and not gpu_functions):
        return [cpu(0)]
    for device in chosen:
        device.takes_cpu_functions = False
    if not cpu_functions:
        return chosen
    extra = cpu(0)
    extra.takes_gpu_functions = False
    return [*chosen, extra]


def cpu(index: int) -> Device:
    """Return a CPU slot, which takes functions of every kind."""
    return Device(f"cpu:{index}", "cpu")


def _named(wanted: str, gpus: Sequence[Device]) -> list[Device]:
    chosen: list[Device] = []
    if not wanted.replace(",", "").strip():
        raise DeviceError(f"`{wanted}` names no device")
    for name in filter(None, (part.strip() for part in wanted.split(","))):
        index = name.removeprefix("cuda:")
        match = [gpu for gpu in gpus if index == str(gpu.index) or (gpu.uuid or "").startswith(name)]
        if not gpus:
            raise DeviceError(f"no GPU `{name}`: this host has none")
        if len(match) != 1 or match[0] in chosen:
            there = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in gpus)
            raise DeviceError(f"no single GPU `{name}` on this host; there are: {there}")
        chosen += match
    return chosen
