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
    """Return the GPUs of this host, none where there is no NVIDIA driver.

    Raises `DeviceError` where there is one and it does not say what it has: a GPU that is not measured would be taken
    for one that is not there.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if error.value in (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED):
            return []
        raise DeviceError(f"the NVIDIA driver does not say which GPUs there are: {_told(error)}") from None
    try:
        return [_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        raise DeviceError(f"the NVIDIA driver does not say which GPUs there are: {_told(error)}") from None
    finally:
        pynvml.nvmlShutdown()


def _told(error: Exception) -> str:
    return str(error).lower()


def _gpu(nvml: Any, index: int) -> Device:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        return Device(
            f"cuda:{index}",
            "cuda",
            index=index,
            uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
            vram_total=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
            product=_text(nvml.nvmlDeviceGetName(handle)),
            sm=f"{major}{minor}",
        )
    except nvml.NVMLError as error:
        raise DeviceError(f"GPU {index} cannot be measured: {_told(error)}") from None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def choose(
    wanted: str, gpus: Sequence[Device], *, gpu_functions: bool, cpu_functions: bool, strict_gpus: bool = False
) -> list[Device]:
    """Return the devices for `--devices`: `auto`, `cpu:N`, or GPU indices or UUIDs with commas between.

    Where GPU functions and others are served side by side, the others get a CPU child. With `strict_gpus` nothing but
    `cpu:N` has a CPU stand for a GPU. Raises `DeviceError`.
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
        return [cpu(0, takes_gpu_functions=not strict_gpus)]
    for device in chosen:
        device.takes_cpu_functions = False
    if not cpu_functions:
        return chosen
    return [*chosen, cpu(0, takes_gpu_functions=False)]


def cpu(index: int, *, takes_gpu_functions: bool = True) -> Device:
    """Return a CPU slot, which takes functions of every kind unless it must not stand for a GPU."""
    return Device(f"cpu:{index}", "cpu", takes_gpu_functions=takes_gpu_functions)


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
