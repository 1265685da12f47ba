"""Which of the worker's environment variables the author's code may see, and which values nobody may see in a log."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from gen_worker.settings import VARIABLES, Secret, Settings

_RESERVED = ("WORKER_", "HF_", "TENSORHUB_", "ORCHESTRATOR_", "TRAINER_", "RUNPOD_", "GEN_WORKER_", "COZY_", "CIVITAI_")
COLLECTOR_KEYS = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
"""The variables in which the key for a collector of spans stands."""

_SECRETS = frozenset(
    (
        "AUTH_TOKEN",
        "FILE_API_TOKEN",
        "MODELSCOPE_API_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "HUGGINGFACE_TOKEN",
        "HUGGINGFACEHUB_API_TOKEN",
        "SCHEDULER_JWKS_URL",
        *COLLECTOR_KEYS,
    )
)
SUPERVISOR = "GEN_WORKER_SUPERVISOR"
"""Marks what a supervisor's jobs start: its value is the supervisor's boot id."""

_ALLOWED = frozenset(
    (
        "HF_HOME",
        "HF_HUB_CACHE",
        "HF_DATASETS_CACHE",
        "HF_HUB_OFFLINE",
        "HF_HUB_DISABLE_PROGRESS_BARS",
        "HF_HUB_DISABLE_TELEMETRY",
        "HF_ENABLE_PARALLEL_LOADING",
        "HF_DEACTIVATE_ASYNC_LOAD",
        "GEN_WORKER_LOCAL_DEVICE",
        "WORKER_TORCH_DEVICE",
        "WORKER_DEVICE",
        "WORKER_MODEL_ARTIFACTS_JSON",
        "WORKER_RUNTIME_LOADERS_JSON",
        "WORKER_MODEL_CACHE_DIR",
        "WORKER_MAX_VRAM_GB",
        "WORKER_VRAM_SAFETY_MARGIN_GB",
        "WORKER_MAX_CONCURRENT_DOWNLOADS",
        "COZY_HUB_URL",
        "WORKER_CUDA_VERSION",
        "WORKER_TENSORRT_VERSION",
        "WORKER_SM",
        "GEN_WORKER_GPU_COUNT",
        SUPERVISOR,
    )
)
_FOR_IMPORTS = {
    "OPENBLAS_NUM_THREADS": "1",  # its threads would make a process that imported it unfit to fork from
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # so that asking whether CUDA is there does not initialise it
    "HF_HUB_OFFLINE": "1",
}
_SECRET_ENDINGS = ("TOKEN", "KEY", "SECRET", "PASSWORD", "JWT", "CREDENTIALS")
_PR_SET_DUMPABLE = 4  # prctl(2)
_ENV_START = 47  # of the fields of `/proc/self/stat` after the name; see proc(5)
_LEAST_SECRET = 8  # characters; shorter values occur by chance in what a log says


def passes(name: str) -> bool:
    """Whether a variable of the worker's environment reaches the author's code."""
    return name in _ALLOWED or not (name in _SECRETS or name.startswith(_RESERVED))


def author_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what belongs to the worker."""
    return {name: value for name, value in environment.items() if passes(name)} | _FOR_IMPORTS


def forget_secrets() -> None:
    """Remove the worker's own secrets from this process's environment, once the settings are read.

    Also from what `/proc` shows of it: a child may look at its supervisor's, which is of the same user.
    """
    own = {name for variable in VARIABLES.values() if variable.is_secret for name in variable.names} | _SECRETS
    for name in own:
        os.environ.pop(name, None)
    if sys.platform == "linux":
        _blank(own)


def close_memory() -> None:
    """Have the kernel refuse others of the same user this process's memory, descriptors and environment; Linux only.

    A child that runs an author's code could look for tokens there. Privileged processes still can. An exec opens all of
    it again: what is started from here has to see to itself.
    """
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _blank(names: set[str]) -> None:
    """Overwrite the values of variables where the kernel put them when this process began."""
    import ctypes

    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[_ENV_START]), int(fields[_ENV_START + 1])
    if not 0 < start < end:
        return
    at = start
    for entry in ctypes.string_at(start, end - start).split(b"\0"):
        name, separator, value = entry.partition(b"=")
        if separator and os.fsdecode(name) in names:
            ctypes.memset(at + len(name) + 1, 0, len(value))
        at += len(entry) + 1


def secret_values(environment: Mapping[str, str], settings: Settings) -> tuple[str, ...]:
    """Return what must not appear in a log, the longest first: secrets of the worker and of the author's code.

    A secret of several lines is told line by line, as a log is written; its short lines give nothing away.
    """
    values: list[str] = [value for value in msgspec.structs.astuple(settings) if isinstance(value, Secret)]
    values += [value for name, value in environment.items() if name.upper().endswith(_SECRET_ENDINGS)]
    headers = [header for name in COLLECTOR_KEYS for header in environment.get(name, "").split(",")]
    values += [header.partition("=")[2] or header for header in headers]  # one that is not well formed may be told of
    secrets = {line.strip() for value in values for line in value.splitlines()}
    return tuple(sorted((each for each in secrets if len(each) >= _LEAST_SECRET), key=lambda each: (-len(each), each)))
