"""What a worker says of itself to an earlier orchestrator: its functions, models and host. Pure but for the host."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from gen_worker.models.wanted import Wanted
from gen_worker.settings import Settings
from gen_worker.wire.earlier import FunctionSchema, WorkerResources
from gen_worker.wire.survey import Survey, SurveyedFunction
from gen_worker_supervisor.core.state import Device, Fleet
from gen_worker_supervisor.link.residency import held

COUNT, SIZE = (1 << 31) - 1, (1 << 63) - 1  # the most that this wire can say of anything


class Versions(NamedTuple):
    """Which libraries the host has; "" for one that it has not."""

    cuda: str = ""
    torch: str = ""
    tensorrt: str = ""
    onnxruntime: str = ""


class Host(NamedTuple):
    """What a worker's host is, and what the worker is called."""

    worker_id: str
    cpu_cores: int
    memory_bytes: int
    gpu_driver: str
    versions: Versions


def host_of(settings: Settings, worker_id: str, *, has_gpus: bool) -> Host:
    """Look at the host once: no library is imported for it."""
    driver = _driver() if has_gpus else ""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Host(worker_id, len(os.sched_getaffinity(0)), memory, driver, versions(settings))


def versions(settings: Settings) -> Versions:
    """Return the versions that are set, else those of the packages that are installed."""
    torch = settings.torch_version or _version("torch")
    cuda = settings.cuda_version or _cuda_of(torch)
    return Versions(cuda, torch, settings.tensorrt_version or _version("tensorrt"), _version("onnxruntime"))


def schemas(survey: Survey) -> tuple[FunctionSchema, ...]:
    """Return the types of the functions, by the names under which they are registered."""
    described = {each["name"]: each for each in msgspec.json.decode(survey.description)["functions"]}
    return tuple(_schema(function, described.get(function.name, {})) for function in survey.functions)


def registered_name(function: SurveyedFunction) -> str:
    """Return what orchestrators call a function: its Python name where it is one of the earlier API."""
    return function.python_name if function.earlier else function.name


def model_id(wanted: Wanted) -> str:
    """Return how the earlier generation writes a ref; one of a provider that it did not know has that one's prefix."""
    if wanted.provider != "tensorhub":
        return f"{wanted.provider}:{wanted.ref}"
    at = f"@{wanted.digest}" if wanted.digest and not wanted.tag else f":{wanted.tag or 'prod'}"
    return f"cozy:{wanted.repo}{at}{f'#{wanted.flavor}' if wanted.flavor else ''}"


def hot_names(fleet: Fleet) -> set[str]:
    """Return the names of the models that some child holds."""
    hot: set[str] = set()
    for child, instance in held(fleet):
        wanted = {slot.name: slot.wanted for slot in fleet.slots_of(instance)}
        there = (each.slot for each in child.models.get(instance, []) if each.slot in wanted)
        hot |= {fleet.catalog.name_of(wanted[slot]) for slot in there}
    return hot


def resources(
    fleet: Fleet,
    host: Host,
    settings: Settings,
    *,
    available: Sequence[str],
    schemas: tuple[FunctionSchema, ...],
    hot: tuple[str, ...],
    warm: tuple[str, ...],
    free_vram_bytes: int,
) -> WorkerResources:
    """Return everything that a registration says; sums are over the GPUs that the worker can use."""
    functions = fleet.functions.values()
    named = {function.name: registered_name(function.own) for function in functions}
    told = {
        registered_name(function.own): min(function.own.max_concurrency, COUNT)
        for function in functions
        if function.own.max_concurrency
    }
    return WorkerResources(
        worker_id=host.worker_id,
        cpu_cores=host.cpu_cores,
        memory_bytes=host.memory_bytes,
        available_functions=tuple(named[name] for name in available if name in named),
        vram_models=hot,
        disk_models=warm,
        supports_model_loading=any(function.own.slots for function in functions),
        deployment_id=settings.deployment_id,
        runpod_pod_id=settings.runpod_pod_id,
        max_concurrency=min(settings.max_concurrency, COUNT),
        function_concurrency=told,
        function_schemas=schemas,
        cuda_version=host.versions.cuda,
        torch_version=host.versions.torch,
        tensorrt_version=host.versions.tensorrt,
        onnxruntime_version=host.versions.onnxruntime,
        **_gpu_facts(fleet.devices, host, settings, free_vram_bytes),
    )


def _gpu_facts(devices: Sequence[Device], host: Host, settings: Settings, free_bytes: int) -> dict[str, Any]:
    busy = any(device.child is not None and bool(device.child.used["device"]) for device in devices)
    if settings.fake_gpu_count:
        total = min(settings.fake_gpu_count * settings.fake_gpu_memory_bytes, SIZE)
        return {
            "gpu_count": min(settings.fake_gpu_count, COUNT),
            "gpu_memory_bytes": total,
            "gpu_memory_free_bytes": total,
            "gpu_name": settings.fake_gpu_name,
            "gpu_driver": settings.fake_gpu_driver,
            "gpu_sm": settings.gpu_sm,
            "gpu_is_busy": busy,
        }
    gpus = [gpu for device in devices if device.kind == "cuda" and not device.lost for gpu in device.gpus]
    total = sum(gpu.vram_total or 0 for gpu in gpus)
    oldest = min((device.sm for device in devices if device.kind == "cuda" and device.sm), key=int, default="")
    return {
        "gpu_count": len(gpus),
        "gpu_memory_bytes": total,
        "gpu_memory_free_bytes": free_bytes if gpus else 0,
        "gpu_memory_used_bytes": max(0, total - free_bytes) if gpus else 0,
        "gpu_name": ", ".join(dict.fromkeys(gpu.product for gpu in gpus)),
        "gpu_driver": host.gpu_driver,
        "gpu_sm": settings.gpu_sm or oldest,
        "gpu_is_busy": bool(gpus) and busy,
    }


def _schema(function: SurveyedFunction, described: Mapping[str, Any]) -> FunctionSchema:
    encode = msgspec.json.encode
    injections = [
        {"param": each.param, "type": each.type, "model_ref": {"source": each.source, "key": each.key}}
        for each in function.injections
    ]
    return FunctionSchema(
        name=registered_name(function),
        input_schema_json=encode(described.get("input_schema", {})),
        output_schema_json=encode(described.get("output_schema", {})),
        injection_json=encode(injections),
        incremental_output=function.streams and not function.realtime,
    )


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _cuda_of(torch_version: str) -> str:
    """Return the version of CUDA that torch was built for, as `12.8` of `2.9.1+cu128`."""
    _, _, local = torch_version.partition("+cu")
    return f"{local[:-1]}.{local[-1]}" if local.isdigit() and len(local) >= 3 else ""


def _driver() -> str:
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            return str(pynvml.nvmlSystemGetDriverVersion())
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:  # the GPUs are watched elsewhere, where this is told
        return ""
