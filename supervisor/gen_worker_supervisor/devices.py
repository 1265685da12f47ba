"""Which devices this supervisor owns: the GPUs of the host as NVML names them, or CPU slots that stand for them.

Names are mapped to UUIDs here, once: an index is NVML's, which goes by the PCI bus, wherever it stands.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gen_worker_supervisor.state import Device

MOST_CPU_SLOTS = 256
_CPU = re.compile(r"cpu(?::(\d+))?")
_MIG = " MIG "  # in the name of an instance, between its GPU's and its profile
_NO_GPU = ("", "-1", "none", "void", "NoDevFiles")  # of either variable: CUDA's words and the container runtime's


class DeviceError(ValueError):
    """The devices asked for are not to be had; the text says which there are."""


@dataclass(frozen=True, slots=True)
class Gpus:
    """The GPUs that may be used, and what is to be said of those that may not."""

    usable: list[Device]
    notices: list[str]
    hidden: dict[str, str] = field(default_factory=dict)
    """Why a GPU that is there may not be used, by its name."""


def list_gpus() -> Gpus:
    """Return the GPUs of this host, none where there is no NVIDIA driver; of one in MIG mode its instances.

    A GPU that the driver has lost is left out, and that is said. Raises `DeviceError` where the driver does not say
    what there is: a GPU that is not measured would be taken for one that is not there.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if error.value in (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED):
            return Gpus([], [])
        raise DeviceError(f"the NVIDIA driver does not say which GPUs there are: {_told(error)}") from None
    found = Gpus([], [], {})
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            _measure(pynvml, index, found)
    except pynvml.NVMLError as error:
        raise DeviceError(f"the NVIDIA driver does not say which GPUs there are: {_told(error)}") from None
    finally:
        pynvml.nvmlShutdown()
    return found


def _told(error: Exception) -> str:
    return str(error).lower()


def _measure(nvml: Any, index: int, found: Gpus) -> None:
    name = f"cuda:{index}"
    try:
        gpu = nvml.nvmlDeviceGetHandleByIndex(index)
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(gpu)
        if not _is_divided(nvml, gpu):
            found.usable.append(_gpu(nvml, gpu, name, index, f"{major}{minor}"))
            return
        instances = [
            _gpu(nvml, handle, f"{name}:{number}", index, f"{major}{minor}") for number, handle in _instances(nvml, gpu)
        ]
    except nvml.NVMLError as error:
        if error.value not in lost_codes(nvml):
            raise DeviceError(f"GPU {index} cannot be measured: {_told(error)}") from None
        found.hidden[name] = f"the driver says: {_told(error)}"
        found.notices.append(f"GPU {index} is left out: the driver says: {_told(error)}")
        return
    found.usable.extend(instances)
    if not instances:
        found.hidden[name] = "it is in MIG mode and has no instance"
        found.notices.append(f"GPU {index} is left out: it is in MIG mode and has no instance")


def lost_codes(nvml: Any) -> tuple[int, ...]:
    """Return the errors of NVML that say that a GPU can do nothing any more until it, or the host, is reset."""
    return (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED)


def _is_divided(nvml: Any, gpu: Any) -> bool:
    """Whether a GPU is in MIG mode: then programs see its instances only."""
    try:
        return bool(nvml.nvmlDeviceGetMigMode(gpu)[0] == nvml.NVML_DEVICE_MIG_ENABLE)
    except nvml.NVMLError as error:
        if error.value in (nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND):
            return False
        raise


def _instances(nvml: Any, gpu: Any) -> Iterator[tuple[int, Any]]:
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        try:
            yield number, nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, number)
        except nvml.NVMLError as error:
            if error.value != nvml.NVML_ERROR_NOT_FOUND:  # no instance has this number
                raise


def _gpu(nvml: Any, handle: Any, name: str, index: int, sm: str) -> Device:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    product = _text(nvml.nvmlDeviceGetName(handle))
    return Device(
        name,
        "cuda",
        index=index,
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        vram_total=int(memory.total),
        vram_used=int(memory.used),
        vram_baseline=int(memory.used),
        product=product,
        sm=sm,
        profile=product.partition(_MIG)[2] or None,
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


# --- what the environment hides ---------------------------------------------------------------------------------------


def visible(gpus: Gpus, environment: Mapping[str, str]) -> Gpus:
    """Return the GPUs without those that `CUDA_VISIBLE_DEVICES` and `NVIDIA_VISIBLE_DEVICES` hide.

    Raises `DeviceError` where the first names a GPU that is not there: CUDA would see none, and say nothing.
    """
    return _by_cuda(_by_runtime(gpus, environment.get("NVIDIA_VISIBLE_DEVICES")), environment)


def _by_cuda(gpus: Gpus, environment: Mapping[str, str]) -> Gpus:
    given = environment.get("CUDA_VISIBLE_DEVICES")
    if given is None or not gpus.usable:
        return gpus
    if given.strip() in _NO_GPU:
        return _only(gpus, [], f"CUDA_VISIBLE_DEVICES={given}")
    try:
        return _only(gpus, _named(given, gpus), f"CUDA_VISIBLE_DEVICES={given}")
    except DeviceError as error:
        raise DeviceError(f"`CUDA_VISIBLE_DEVICES`: {error}") from None


def _by_runtime(gpus: Gpus, given: str | None) -> Gpus:
    """Hide what a container was not given although it sees it, as one that is privileged does.

    The container runtime has read this variable before, and the GPUs that it let in are numbered anew. So what is not
    found, or is all that there is, was its business.
    """
    if given is None or given.strip() in ("all", "", "void"):  # "void": another runtime, as CDI, has seen to them
        return gpus
    if given.strip() in _NO_GPU:
        return _only(gpus, [], f"NVIDIA_VISIBLE_DEVICES={given}")
    if len(names_in(given)) >= len(gpus.usable):
        return gpus
    try:
        return _only(gpus, _named(given, gpus), f"NVIDIA_VISIBLE_DEVICES={given}")
    except DeviceError:
        return gpus


def _only(gpus: Gpus, kept: list[Device], reason: str) -> Gpus:
    gone = [gpu for gpu in gpus.usable if gpu not in kept]
    if not gone:
        return gpus
    notice = f"{', '.join(gpu.name for gpu in gone)} not used: hidden by `{reason}`"
    return Gpus(kept, [*gpus.notices, notice], gpus.hidden | {gpu.name: f"hidden by `{reason}`" for gpu in gone})


# --- which are wanted -------------------------------------------------------------------------------------------------


def choose(
    wanted: str, gpus: Gpus, *, gpu_functions: bool, cpu_functions: bool, strict_gpus: bool = False
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
    chosen = list(gpus.usable) if wanted == "auto" else _named(wanted, gpus)
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


def names_in(wanted: str) -> list[str]:
    """Return the names that stand with commas between."""
    return [name for part in wanted.split(",") if (name := part.strip())]


def _named(wanted: str, gpus: Gpus) -> list[Device]:
    chosen: list[Device] = []
    if not names_in(wanted):
        raise DeviceError(f"`{wanted}` names no device")
    for name in names_in(wanted):
        match = [gpu for gpu in gpus.usable if _means(name, gpu)]
        if not match and (hidden := gpus.hidden.get(f"cuda:{name.removeprefix('cuda:')}")):
            raise DeviceError(f"GPU `{name}` may not be used: {hidden}")
        if not gpus.usable:
            raise DeviceError(f"no GPU `{name}`: this host has none")
        if len(match) != 1 or match[0] in chosen:
            there = ", ".join(f"{gpu.name.removeprefix('cuda:')} ({gpu.uuid})" for gpu in gpus.usable)
            raise DeviceError(f"no single GPU `{name}` on this host; there are: {there}")
        chosen += match
    return chosen


def _means(name: str, gpu: Device) -> bool:
    """Whether a name is a GPU's: its index, `cuda:N`, N:M of a MIG instance, or how its UUID begins."""
    return f"cuda:{name.removeprefix('cuda:')}" == gpu.name or (gpu.uuid or "").startswith(name)
