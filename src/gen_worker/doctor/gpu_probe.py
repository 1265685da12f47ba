"""What the NVIDIA driver says of its GPUs, as one JSON document on stdout; what it does not say is null."""

import os
import sys
from collections.abc import Callable
from typing import Any

import msgspec


class Gpu(msgspec.Struct):
    """One GPU as its driver describes it."""

    index: int
    uuid: str = ""
    name: str = ""
    total: int | None = None
    used: int | None = None
    capability: tuple[int, int] | None = None
    persistence: bool | None = None
    mig: bool | None = None
    uncorrected: int | None = None
    """ECC errors that could not be corrected, since the driver was loaded."""

    remap_pending: bool | None = None
    remap_failed: bool | None = None
    temperature: int | None = None
    error: str = ""
    """Why nothing else is known."""


class Driver(msgspec.Struct):
    """The driver and its GPUs; `error` says why there is nothing, `code` is NVML's number for that."""

    version: str = ""
    cuda: tuple[int, int] | None = None
    gpus: list[Gpu] = []
    error: str = ""
    code: int = 0
    devices: list[str] = []
    """What supervisors would take, by its name."""

    notices: list[str] = []
    """What is said of those that they would not take."""

    refusal: str = ""
    """Why no supervisor would start here with `auto`."""


def look(nvml: Any) -> Driver:
    """Ask the driver, as `pynvml` does."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return Driver(error=str(error).lower(), code=error.value)
    try:
        cuda = _asked(nvml, nvml.nvmlSystemGetCudaDriverVersion)
        return Driver(
            _text(_asked(nvml, nvml.nvmlSystemGetDriverVersion)),
            None if cuda is None else (cuda // 1000, cuda % 1000 // 10),
            [_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())],
        )
    except nvml.NVMLError as error:
        return Driver(error=str(error).lower(), code=error.value)
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: Any, index: int) -> Gpu:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        uuid, name = nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle)
    except nvml.NVMLError as error:
        return Gpu(index, error=str(error).lower())
    rows = _asked(nvml, nvml.nvmlDeviceGetRemappedRows, handle)  # corrected, uncorrected, pending, failed
    mig = _asked(nvml, nvml.nvmlDeviceGetMigMode, handle)  # now, after a reset
    persistence = _asked(nvml, nvml.nvmlDeviceGetPersistenceMode, handle)
    return Gpu(
        index,
        _text(uuid),
        _text(name),
        int(memory.total),
        int(memory.used),
        _asked(nvml, nvml.nvmlDeviceGetCudaComputeCapability, handle),
        None if persistence is None else bool(persistence),
        None if mig is None else bool(mig[0]),
        _asked(
            nvml,
            nvml.nvmlDeviceGetTotalEccErrors,
            handle,
            nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            nvml.NVML_VOLATILE_ECC,
        ),
        None if rows is None else bool(rows[2]),
        None if rows is None else bool(rows[3]),
        _asked(nvml, nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
    )


def _asked(nvml: Any, question: Callable[..., Any], *about: Any) -> Any:
    """Return the answer; None where this GPU or this driver has none."""
    try:
        return question(*about)
    except nvml.NVMLError:
        return None


def _text(value: str | bytes | None) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""


def taken(seen: Driver) -> None:
    """Note what supervisors would make of it, with what the environment hides."""
    from gen_worker_supervisor.devices.ownership import DeviceError, list_gpus, visible

    try:
        found = visible(list_gpus(), os.environ)
    except DeviceError as error:
        seen.refusal = str(error)
    else:
        seen.devices, seen.notices = [device.name for device in found.usable], found.notices


def main() -> None:
    """Print what the driver says."""
    import pynvml

    seen = look(pynvml)
    if seen.gpus:
        taken(seen)
    sys.stdout.write(msgspec.json.encode(seen).decode())


if __name__ == "__main__":
    main()
