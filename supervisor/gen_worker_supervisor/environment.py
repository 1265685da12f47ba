"""The environment of children: what the author's code may see of the worker's, and what it must never see."""

from collections.abc import Mapping

from gen_worker.environment import passes
from gen_worker_supervisor.state import Device

FOR_IMPORTS = {
    "OPENBLAS_NUM_THREADS": "1",  # its threads would make the zygote unfit to fork from
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # so that asking whether CUDA is there does not initialise it
    "HF_HUB_OFFLINE": "1",
}


def author_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what belongs to the worker."""
    return {name: value for name, value in environment.items() if passes(name)} | FOR_IMPORTS


def child_environment(environment: Mapping[str, str], device: Device) -> dict[str, str]:
    """Return the environment of the child of one device."""
    chosen = author_environment(environment)
    chosen["GEN_WORKER_LOCAL_DEVICE"] = device.kind
    chosen["CUDA_VISIBLE_DEVICES"] = device.uuid or "" if device.kind == "cuda" else ""
    return chosen
