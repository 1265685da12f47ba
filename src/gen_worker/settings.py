"""Everything that settings decide, read once at the start of a command into one frozen struct."""

import os
import re
from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import msgspec

from gen_worker.sources import SettingsError, Source, default_run_dir, find, read_sources, warnings

__all__ = ["CONTAINER", "LOCAL", "VARIABLES", "Secret", "Settings", "SettingsError", "Variable"]


class Secret(str):
    """A text that does not show itself where it is only looked at, as in the `repr` of what holds it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<secret>" if self else "''"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a person or a container can set. Whoever needs a value is handed it."""

    run_dir: Path
    """Where supervisors keep their control sockets."""

    max_queued: int = 10_000
    """Jobs that may wait; one more ends `busy`."""

    max_queued_bytes: int = 1 << 30
    """Bytes of payloads that may wait; what comes on top ends `busy`."""

    max_input_bytes: int = 64 << 20
    """The longest payload that `serve` takes; 0: what travels at all, 1 GiB."""

    max_output_bytes: int = 64 << 20
    """The longest output or item of a stream that `serve` sends; 0: what travels at all, 1 GiB."""

    max_line_bytes: int = 16 << 20
    """The longest line that `serve` reads from a client."""

    token: Secret | None = None
    """What clients over TCP must show; without it, `serve` listens on loopback only."""

    local_output_dir: Path = Path(".gen-worker-run/outputs")
    """Where `run` and `serve` keep the files that jobs save."""

    local_device: str | None = None
    """What `ctx.device` is in `run`, as `cpu`, `cuda` or `cuda:1`; unset: what there is."""

    log_format: Literal["auto", "text", "json"] = "auto"
    """How events and log lines look on stderr: `auto`, `text` or `json`."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that the log tells: `debug`, `info`, `warning` or `error`."""

    hf_token: Secret = Secret("")
    """The token for Hugging Face; the first of its names that is set counts."""

    hf_home: str = ""
    """Where Hugging Face's libraries keep their files."""

    tensorhub_public_url: str = ""
    """Where the hub is, for a trainer."""

    orchestrator_public_addr: str = ""
    """Where the orchestrator is."""

    grpc_ca_bundle: str = ""
    """A PEM file of the authorities that the orchestrator's certificate may come from."""

    worker_id: str = ""
    """What the worker calls itself."""

    worker_mode: Literal["inference", "trainer"] = "inference"
    """What the worker is for: `inference` or `trainer`."""

    endpoint_lock_path: str = "/app/.tensorhub/endpoint.lock"
    """The lock file that says what the container serves."""

    worker_jwt: Secret = Secret("")
    """What the worker shows the orchestrator."""

    trainer_job_spec_path: str = ""
    """What a trainer is to do; unset: `/app/.cozy/trainer_job.json`."""

    runpod_pod_id: str = ""
    """The name of the machine, as the orchestrator is told."""

    worker_disconnected_timeout_s: float = 600.0
    """Seconds without the orchestrator after which the worker ends; 0: never."""

    warnings: tuple[str, ...] = ()
    """One sentence for each name that looks like a setting and is none."""

    @classmethod
    def load(
        cls,
        given: Mapping[str, object] | None = None,
        *,
        env: Mapping[str, str] = os.environ,
        folder: Path = Path(),
        root: Path = Path("/"),
    ) -> "Settings":
        """Read the settings; raise `SettingsError` for a value that cannot be meant.

        `given` maps fields to values that outrank everything, None where there is none. Then come the environment,
        `.env` in `folder`, `/run/secrets`, `/etc/gen-worker/config.yaml` or else `gen-worker.yaml` in `folder`, and the
        defaults. An empty value counts as unset. `root` is where `/run` and `/etc` are.
        """
        if unknown := (given or {}).keys() - VARIABLES.keys():
            raise TypeError(f"no settings: {', '.join(sorted(unknown))}")
        sources = read_sources(given or {}, env, folder, root)
        values: dict[str, Any] = {field: value for field in VARIABLES if (value := _value(field, sources)) is not None}
        values.setdefault("run_dir", default_run_dir(env))
        return cls(**values, warnings=tuple(warnings(sources, _NAMES, VARIABLES, ELSEWHERE)))


class Variable(msgspec.Struct, frozen=True):
    """How a field is set: under which names, and what its text means."""

    names: tuple[str, ...]
    """The name to use first, then others that count where it is not set."""

    parse: Callable[[str], Any]
    """Raises `ValueError` with what is allowed."""


def _value(field: str, sources: list[Source]) -> object:
    variable = VARIABLES[field]
    found = find(sources, field, variable.names)
    if found is None:
        return None
    try:
        return variable.parse(found.text)
    except ValueError as error:
        shown = "" if variable.parse is _secret else f", not `{_shown(found.text)}`"
        raise SettingsError(f"{found.place} must be {error}{shown}") from None


def _shown(text: str) -> str:
    """Return a text as it fits into a line that a person reads."""
    told = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
    return told if len(told) <= 80 else f"{told[:80]}…"


# --- what texts mean --------------------------------------------------------------------------------------------------


_SIZE = r"([0-9]{1,18})(?:([kKMG])(?:iB)?)?"
_UNITS = {"k": 10, "K": 10, "M": 20, "G": 30}


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise ValueError("a whole number")
    return _above_0(int(text))


def _bytes(text: str) -> int:
    return _above_0(_size(text))


def _body_bytes(text: str) -> int:
    from gen_worker.wire.messages import REGION_LIMIT

    return min(_size(text) or REGION_LIMIT, REGION_LIMIT)


def _size(text: str) -> int:
    found = re.fullmatch(_SIZE, text)
    if found is None:
        raise ValueError("a whole number of bytes, as `16777216` or `16M`")
    return int(found[1]) << _UNITS.get(found[2], 0)


def _above_0(number: int) -> int:
    if number == 0:
        raise ValueError("above 0")
    return number


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not isfinite(number) or number < 0:
        raise ValueError("a number of seconds, 0 or more")
    return number


def _device(text: str) -> str:
    kind, colon, index = text.partition(":")
    if text == "cpu" or (kind == "cuda" and ((index.isascii() and index.isdigit()) or not colon)):
        return text
    raise ValueError("`cpu`, `cuda` or `cuda:N`")


def _path(text: str) -> Path:
    if "\0" in text:
        raise ValueError("a path")
    return Path(text)


def _absolute_path(text: str) -> Path:
    try:
        return _path(text).absolute()
    except FileNotFoundError:
        raise ValueError("an absolute path, as the current folder is gone") from None


def _line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("one line of text")
    return text


def _secret(text: str) -> Secret:
    return Secret(_line(text))


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(" or ".join((", ".join(f"`{each}`" for each in choices[:-1]), f"`{choices[-1]}`")))
        return text

    return parse


# --- under which names ------------------------------------------------------------------------------------------------


LOCAL: Mapping[str, Variable] = {
    "run_dir": Variable(("GEN_WORKER_RUN_DIR",), _absolute_path),
    "max_queued": Variable(("GEN_WORKER_MAX_QUEUED",), _count),
    "max_queued_bytes": Variable(("GEN_WORKER_MAX_QUEUED_BYTES",), _bytes),
    "max_input_bytes": Variable(("WORKER_MAX_INPUT_BYTES",), _body_bytes),
    "max_output_bytes": Variable(("WORKER_MAX_OUTPUT_BYTES",), _body_bytes),
    "max_line_bytes": Variable(("GEN_WORKER_MAX_LINE",), _bytes),
    "token": Variable(("GEN_WORKER_TOKEN",), _secret),
    "local_output_dir": Variable(("GEN_WORKER_LOCAL_OUTPUT_DIR",), _path),
    "local_device": Variable(("GEN_WORKER_LOCAL_DEVICE",), _device),
    "log_format": Variable(("GEN_WORKER_LOG_FORMAT",), _one_of("auto", "text", "json")),
    "log_level": Variable(("GEN_WORKER_LOG_LEVEL",), _one_of("debug", "info", "warning", "error")),
}
"""What the commands on a person's machine go by."""

CONTAINER: Mapping[str, Variable] = {
    "hf_token": Variable(
        ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN", "HUGGINGFACEHUB_API_TOKEN"), _secret
    ),
    "hf_home": Variable(("HF_HOME",), _line),
    "tensorhub_public_url": Variable(("TENSORHUB_PUBLIC_URL",), _line),
    "orchestrator_public_addr": Variable(("ORCHESTRATOR_PUBLIC_ADDR",), _line),
    "grpc_ca_bundle": Variable(("GRPC_CA_BUNDLE",), _line),
    "worker_id": Variable(("WORKER_ID",), _line),
    "worker_mode": Variable(("WORKER_MODE",), _one_of("inference", "trainer")),
    "endpoint_lock_path": Variable(("ENDPOINT_LOCK_PATH",), _line),
    "worker_jwt": Variable(("WORKER_JWT",), _secret),
    "trainer_job_spec_path": Variable(("TRAINER_JOB_SPEC_PATH",), _line),
    "runpod_pod_id": Variable(("RUNPOD_POD_ID",), _line),
    "worker_disconnected_timeout_s": Variable(("WORKER_DISCONNECTED_TIMEOUT_S",), _seconds),
}
"""What a worker in a container goes by."""

VARIABLES: Mapping[str, Variable] = {**LOCAL, **CONTAINER}
"""Every field that can be set."""

ELSEWHERE = frozenset(
    """
    AUTH_TOKEN CIVITAI_API_KEY CIVITAI_TOKEN COZY_HF_ALLOW_ROOT_JSON COZY_HF_COMPONENTS COZY_HF_FULL_REPO_DOWNLOAD
    COZY_HF_INCLUDE_OPTIONAL_COMPONENTS COZY_HF_WEIGHT_PRECISIONS COZY_HUB_TOKEN COZY_HUB_URL CUDA_VERSION DEPLOYMENT_ID
    FILE_API_BASE_URL FILE_API_TOKEN MAX_RECONNECT_ATTEMPTS MODEL_CACHE_DIR MODEL_MANAGER_CLASS NVIDIA_CUDA_VERSION
    ORCHESTRATOR_HTTP_URL PYTORCH_CUDA_ALLOC_CONF RECONNECT_DELAY RECONNECT_JITTER_SECONDS RECONNECT_MAX_DELAY
    SCHEDULER_ADDR SCHEDULER_ADDRS SCHEDULER_JWKS_TTL_SECONDS SCHEDULER_JWKS_URL SCHEDULER_JWT_AUDIENCE
    SCHEDULER_JWT_ISSUER TENANT_ID TENSORHUB_CACHE_DIR TENSORHUB_CAS_DIR USER USER_MODULES USE_TLS WORKER_CACHE_DIR
    WORKER_CUDA_VERSION WORKER_DEVICE WORKER_DOWNLOAD_RETRIES WORKER_DRAIN_TIMEOUT_SECONDS WORKER_FAKE_GPU_COUNT
    WORKER_FAKE_GPU_DRIVER WORKER_FAKE_GPU_MEMORY_BYTES WORKER_FAKE_GPU_NAME WORKER_GIT_COMMIT WORKER_IMAGE_DIGEST
    WORKER_LOCAL_CACHE_GB WORKER_MAX_CONCURRENCY WORKER_MAX_CONCURRENT_DOWNLOADS WORKER_MAX_INPUT_FILE_BYTES
    WORKER_MAX_OUTPUT_DELTA_BYTES WORKER_MAX_OUTPUT_DELTA_EVENTS WORKER_MAX_OUTPUT_FILE_BYTES WORKER_MAX_UPLOAD_BYTES
    WORKER_MAX_VRAM_GB WORKER_MAX_WS_FRAME_BYTES WORKER_MODEL_ARTIFACTS_JSON WORKER_MODEL_CACHE_DIR WORKER_RUN_DIR
    WORKER_RUNTIME_LOADERS_JSON WORKER_SM WORKER_TENSORRT_VERSION WORKER_TORCH_DEVICE WORKER_TORCH_VERSION
    WORKER_VRAM_SAFETY_MARGIN_GB
    """.split()  # noqa: SIM905 - a list would be a page long
)
"""Names that containers of workers carry and no command goes by: nothing is said about them."""

_NAMES = frozenset(name for variable in VARIABLES.values() for name in variable.names)
