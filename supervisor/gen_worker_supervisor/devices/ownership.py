"""Which devices this supervisor owns: GPUs of the host as NVML names them, CPU slots that stand for them, or groups.

Names are mapped to UUIDs here, once: an index is NVML's, which goes by the PCI bus, wherever it stands. What makes a
group is settled here, too, and does not change while the supervisor runs.
"""

import re
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from gen_worker_supervisor.core.state import Device

LIMIT_S = 60.0  # without persistence mode a driver takes seconds for each GPU
MOST_CPU_SLOTS = 256
_CPU = re.compile(r"cpu(?::(\d+))?")
_MIG = " MIG "  # in the name of an instance, between its GPU's and its profile
_NO_GPU = ("", "-1", "none", "void", "NoDevFiles")  # of either variable: CUDA's words and the container runtime's


class DeviceError(ValueError):
    """The devices asked for are not to be had; the text says which there are."""

    hint = ""
    """What to do about it, where that is not to ask for others."""


class DriverError(DeviceError):
    """The driver does not say what there is."""

    hint = "`gen-worker doctor` looks at the driver; CPU slots, as `cpu:1`, need none"


@dataclass(frozen=True, slots=True)
class Gpus:
    """The GPUs that may be used, and what is to be said of those that may not."""

    usable: list[Device]
    notices: list[str]
    hidden: dict[str, str] = field(default_factory=dict)
    """Why a GPU that is there may not be used, by its name."""


def list_gpus(limit_s: float = LIMIT_S) -> Gpus:
    """Return the GPUs of this host, none where there is no NVIDIA driver; of one in MIG mode its instances.

    A GPU that the driver has lost is left out, and that is said. Raises `DeviceError` where the driver does not say
    in time what there is: a GPU that is not measured would be taken for one that is not there.
    """
    answer: Future[Gpus] = Future()
    asking = threading.Thread(target=_answer, args=(answer,), name="gen-worker-driver", daemon=True)
    asking.start()  # a thread that hangs in a sick driver takes no signal, and can be left behind
    try:
        return answer.result(limit_s)
    except TimeoutError:
        raise DriverError(f"the NVIDIA driver has not said for {limit_s:g} s which GPUs there are") from None


def _answer(answer: "Future[Gpus]") -> None:
    try:
        answer.set_result(_listed_by_driver())
    except Exception as error:  # noqa: BLE001 - around a thread's whole life; it is whoever's that waits
        answer.set_exception(error)


def _listed_by_driver() -> Gpus:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if error.value in (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED):
            return Gpus([], [])
        raise DriverError(f"the NVIDIA driver does not say which GPUs there are: {_told(error)}") from None
    found = Gpus([], [], {})
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            _measure(pynvml, index, found)
    except pynvml.NVMLError as error:
        raise DriverError(f"the NVIDIA driver does not say which GPUs there are: {_told(error)}") from None
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
            raise DriverError(f"GPU {index} cannot be measured: {_told(error)}") from None
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
    wanted: str,
    gpus: Gpus,
    *,
    gpu_functions: bool,
    cpu_functions: bool,
    gpu_counts: Collection[int] = (),
    strict_gpus: bool = False,
) -> list[Device]:
    """Return the devices for `--devices`: `auto`, `cpu:N`, or GPU indices or UUIDs with commas between.

    `0+1` is a group, of CPU slots `cpu:0+1`. `auto` and `cpu:N` make the groups that functions with these `gpu_counts`
    need. Where GPU functions and others are served side by side, the others get a CPU child. With `strict_gpus` nothing
    but what is called `cpu` has a CPU stand for a GPU. Raises `DeviceError`.
    """
    wanted = wanted.strip()
    if wanted == "cpu" or wanted.startswith("cpu:"):
        return _slots(wanted, gpu_counts)
    chosen = partition(gpus.usable, gpu_counts) if wanted == "auto" else _listed(wanted, gpus)
    if wanted == "auto" and (not chosen or not gpu_functions):
        return [cpu(0, takes_gpu_functions=False)] if strict_gpus else _stand_ins(gpu_counts if gpu_functions else ())
    for device in chosen:
        device.takes_cpu_functions = False
    if not cpu_functions:
        return chosen
    return [*chosen, cpu(0, takes_gpu_functions=False)]


def cpu(index: int, *, takes_gpu_functions: bool = True) -> Device:
    """Return a CPU slot, which takes functions of every kind unless it must not stand for a GPU."""
    return Device(f"cpu:{index}", "cpu", takes_gpu_functions=takes_gpu_functions)


def _slots(wanted: str, gpu_counts: Collection[int]) -> list[Device]:
    """Return the CPU slots for `cpu`, `cpu:N`, or `cpu:` and their numbers with a `+` among them."""
    if "+" in wanted:
        return _numbered(wanted)
    found = _CPU.fullmatch(wanted)
    if found is None or not 1 <= int(found[1] or 1) <= MOST_CPU_SLOTS:
        given = f"not `{wanted[4:]}`" if wanted[4:] else "and `cpu:` says no number"
        raise DeviceError(f"`cpu:N` takes 1 to {MOST_CPU_SLOTS} slots, {given}")
    return partition([cpu(index) for index in range(int(found[1] or 1))], gpu_counts)


def _numbered(wanted: str) -> list[Device]:
    parts = [[name.strip().removeprefix("cpu:") for name in entry.split("+")] for entry in names_in(wanted)]
    for name in (names := [name for part in parts for name in part]):
        if not name:
            raise DeviceError(f"`{wanted}` lacks the number of a CPU slot beside a `+` or after `cpu:`")
        if not (name.isascii() and name.isdecimal() and int(name) < MOST_CPU_SLOTS):
            raise DeviceError(f"`{wanted}`: `{name}` is not the number of a CPU slot, 0 to {MOST_CPU_SLOTS - 1}")
        if names.count(name) > 1:
            raise DeviceError(f"`{wanted}` has CPU slot {name} twice")
    return [_together([cpu(int(name)) for name in part]) for part in parts]


def _stand_ins(gpu_counts: Collection[int]) -> list[Device]:
    """Return one device that can stand for any that functions need."""
    return [_together([cpu(index) for index in range(min(max(gpu_counts, default=1), MOST_CPU_SLOTS))])]


# --- what makes a group -----------------------------------------------------------------------------------------------


def partition(gpus: Sequence[Device], gpu_counts: Collection[int]) -> list[Device]:
    """Divide GPUs, or CPU slots, into groups and single ones: a group for each count above 1, the largest first.

    Where some function needs a single one, a smaller group is only made when one is left over: a function may run on a
    larger group than it needs. Parts of a GPU are never grouped, GPUs of one kind before others.
    """
    parts = [gpu for gpu in gpus if gpu.profile is not None]
    left = [gpu for gpu in gpus if gpu.profile is None]
    groups: list[Device] = []
    for count in sorted((count for count in set(gpu_counts) if count > 1), reverse=True):
        kept = 1 if groups and 1 in gpu_counts and not parts else 0
        if count + kept <= len(left):
            taken = _alike(left, count)
            left = [gpu for gpu in left if gpu not in taken]
            groups.append(group(taken))
    return [*groups, *(gpu for gpu in gpus if gpu in left or gpu in parts)]


def _alike(gpus: Sequence[Device], count: int) -> list[Device]:
    """Return so many GPUs, of one kind where there are enough of one."""
    kinds: dict[tuple[str, int | None], list[Device]] = {}
    for gpu in gpus:
        kinds.setdefault((gpu.product, gpu.vram_total), []).append(gpu)
    return next((each for each in kinds.values() if len(each) >= count), list(gpus))[:count]


def group(members: Sequence[Device]) -> Device:
    """Return the device that several GPUs, or CPU slots, are together."""
    first = members[0]
    numbers = "+".join(member.name.partition(":")[2] for member in members)
    made = Device(
        f"{first.kind}:{numbers}",
        first.kind,
        index=first.index,
        vram_total=sum(member.vram_total or 0 for member in members) or None,
        product=", ".join(dict.fromkeys(member.product for member in members)),
        sm=min((member.sm for member in members if member.sm), key=int, default=""),
        takes_gpu_functions=first.takes_gpu_functions,
        takes_cpu_functions=first.takes_cpu_functions,
        members=list(members),
    )
    made.sum_up()
    return made


def group_hint(devices: Sequence[Device], gpu_count: int) -> str:
    """Return what makes a group of so many GPUs or CPU slots of these devices; nothing where it is there, or cannot."""
    able = [device for device in devices if device.takes_gpu_functions]
    if gpu_count <= max((device.gpu_count for device in able), default=0):
        return ""
    if all(device.kind == "cpu" for device in able):
        return f"`--devices cpu:{gpu_count}` has {gpu_count} CPU slots stand for such a group" if able else ""
    gpus = [gpu.name.removeprefix("cuda:") for device in able for gpu in device.gpus if gpu.profile is None]
    if gpu_count > len(gpus):
        return ""
    return f"`--devices {'+'.join(gpus[:gpu_count])}` makes these GPUs a group"


def _together(members: Sequence[Device]) -> Device:
    """Return a group, of a single member that itself; raise `DeviceError` where they can be none."""
    if len(members) == 1:
        return members[0]
    for member in members:
        if member.profile is not None:
            raise DeviceError(f"`{member.name}` is a part of a GPU: a program sees one such part, so it joins no group")
    return group(members)


# --- what is named ----------------------------------------------------------------------------------------------------


def names_in(wanted: str) -> list[str]:
    """Return the names that stand with commas between."""
    return [name for part in wanted.split(",") if (name := part.strip())]


def _listed(wanted: str, gpus: Gpus) -> list[Device]:
    """Return the devices that are named with commas between, with `+` between the members of a group."""
    parts = [[name.strip() for name in entry.split("+")] for entry in names_in(wanted)]
    for part in parts:
        if not all(part):
            raise DeviceError(f"`{'+'.join(part)}` has a `+` with no GPU beside it")
    found = iter(_named(",".join(name for part in parts for name in part) or wanted, gpus))
    return [_together([next(found) for _ in part]) for part in parts]


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
