"""The environment of children: what the author's code may see of the worker's, and which GPUs it may use."""

from collections.abc import Collection, Mapping

from gen_worker.compile_caches import COMPILED, variables
from gen_worker.environment import author_environment
from gen_worker_supervisor.core.state import Device

THREADS = "OMP_NUM_THREADS"  # read when torch is imported, which a zygote does for its children


def child_environment(environment: Mapping[str, str], device: Device) -> dict[str, str]:
    """Return the environment of the child of one device."""
    chosen = author_environment(environment)
    chosen["GEN_WORKER_LOCAL_DEVICE"] = device.kind
    visible = [gpu.uuid or "" for gpu in device.gpus] if device.kind == "cuda" else []
    chosen["CUDA_VISIBLE_DEVICES"] = ",".join(visible)
    chosen["GEN_WORKER_GPU_COUNT"] = str(device.gpu_count)  # CPU slots count as the GPUs that they stand for
    chosen["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as NVML counts, in what a child says of its device
    if COMPILED in environment:
        chosen |= variables(environment[COMPILED], device.sm if device.kind == "cuda" else "", environment)
    return chosen


def threads_of_each(environment: Mapping[str, str], devices: Collection[Device], cores: int) -> dict[str, str]:
    """Return with how many threads torch computes in the child of each device, so that all have as many as cores.

    With a thread for every core in every child they wait for each other at each operation, many times as long as they
    compute. What somebody has set holds. A child beside GPUs, for functions that need none, is not counted.
    """
    children = sum(device.kind == "cuda" for device in devices) or len(devices)
    if children < 2 or THREADS in environment:
        return {}
    return {THREADS: str(max(1, cores // children))}
