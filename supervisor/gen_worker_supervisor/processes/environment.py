"""The environment of children: what the author's code may see of the worker's, and which GPUs it may use."""

from collections.abc import Mapping

from gen_worker.compile_caches import COMPILED, variables
from gen_worker.environment import author_environment
from gen_worker_supervisor.core.state import Device


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
