"""Everything that settings decide, read once at the start of a command into one frozen struct."""

import os
import re
from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import msgspec

from gen_worker.secret import Secret as Secret
from gen_worker.sources import SettingsError, Source, default_cache_dir, default_run_dir, find, read_sources, warnings

__all__ = ["CONTAINER", "LOCAL", "MODELS", "VARIABLES", "Secret", "Settings", "SettingsError", "Variable"]

DRAIN_TIMEOUT_S = 30.0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a person or a container can set. Whoever needs a value is handed it."""

    run_dir: Path
    """Where supervisors keep their control sockets."""

    max_queued: int = 10_000
    """Jobs that may wait; one more ends `busy`."""

    max_queued_bytes: int = 1 << 30
    """Bytes of payloads that may wait; what comes on top ends `busy`."""

    max_queued_per_function: int = 0
    """Jobs of one function that may wait; one more ends `busy`; 0: `GEN_WORKER_MAX_QUEUED` counts."""

    stall_timeout_s: float = 120.0
    """Seconds without progress, processor time and input or output after which a job is ended; 0: never."""

    quarantine_s: float = 600.0
    """Seconds for which a payload that has killed two children is refused."""

    memory_reserve_bytes: int | None = None
    """Bytes of memory that stay free: below it the child that took most is ended; 0: never; unset: a share."""

    recycle_jobs: int = 0
    """Jobs after which a child is replaced; 0: any number."""

    recycle_growth_bytes: int = 0
    """Bytes that a child's memory may grow by, from its first jobs on, before it is replaced; 0: any."""

    recycle_age_s: float = 0.0
    """Seconds after which a child is replaced; 0: never."""

    postmortem_bytes: int = 64 << 20
    """Bytes that what is kept of dead children may take, the oldest goes first; 0: nothing is kept."""

    log_bytes: int = 16 << 20
    """Bytes that the files of the log may take, the oldest goes first; 0: there are none."""

    job_log_bytes: int = 16 << 20
    """Bytes that the records of jobs that ended may take, the oldest go first; 0: there are none."""

    max_input_bytes: int = 64 << 20
    """The longest payload that `serve` takes; 0: what travels at all, 1 GiB."""

    max_output_bytes: int = 64 << 20
    """The longest output or item of a stream that `serve` sends; 0: what travels at all, 1 GiB."""

    max_line_bytes: int = 16 << 20
    """The longest line that `serve` reads from a client."""

    token: Secret | None = None
    """What clients over TCP must show; without it, `serve` listens on loopback only."""

    orchestrator_token: Secret | None = None
    """What callers of `gen-worker orchestrator` must show; without it, its HTTP API listens on loopback only."""

    local_output_dir: Path = Path(".gen-worker-run/outputs")
    """Where `run` and `serve` keep the files that jobs save."""

    local_device: str | None = None
    """What `ctx.device` is in `run`, as `cpu`, `cuda` or `cuda:1`; unset: what there is."""

    http: str = ""
    """Where probes and metrics are served over HTTP, as `8082` (on 127.0.0.1) or `0.0.0.0:8082`; unset: nowhere."""

    ready_file: Path | None = None
    """A file that is there while the worker takes jobs, for probes that look for one; unset: there is none."""

    log_format: Literal["auto", "text", "json"] = "auto"
    """How events and log lines look on stderr: `auto`, `text` or `json`."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that the log tells: `debug`, `info`, `warning` or `error`."""

    debuggable: bool = False
    """Whether debuggers may look into a supervisor and its fetcher; an endpoint's code could do so, too."""

    cache_dir: Path
    """Where models are kept; unset: `/tmp/model_cache` in a container, else a folder of the user's caches."""

    lower_caches: tuple[str, ...] = ()
    """Caches that are only read, looked into before anything is fetched: folders, with `,` between them."""

    cache_bytes: int = 0
    """What the cache may hold before the least recently used is evicted; 0: as much as the disk has room for."""

    host_cache_bytes: int | None = None
    """What models may take of the host's memory, so that a new child has them at once; 0: none; unset: a share."""

    compile_cache_bytes: int = 10 << 30
    """What compilers keep on disk between children and starts, of torch, Triton and CUDA; 0: nothing."""

    offline: bool = False
    """Whether models come from this machine only."""

    max_vram_gb: float = 0.0
    """What models and jobs may take of one device's memory; 0: what is there, less the margin."""

    vram_margin_gb: float = 3.5
    """What stays free of a device's memory."""

    max_concurrent_downloads: int = 2
    """Models that are downloaded at once."""

    download_stall_timeout_s: float = 180.0
    """A model of which no byte comes for so many seconds cannot be had; 0: it is waited for."""

    download_max_seconds: float = 0.0
    """Seconds that the download of one model may take; 0: any."""

    allow_pickle: tuple[str, ...] = ()
    """Refs whose weights may be pickles, with `,` between them. A pickle can run any code where it is loaded."""

    ca_bundle: str = ""
    """A PEM file of further authorities for the certificates of the servers that models come from."""

    hf_endpoint: str = "https://huggingface.co"
    """Where Hugging Face's hub, or a mirror of it, is."""

    hf_token: Secret = Secret("")
    """The token for Hugging Face; the first of its names that is set counts."""

    hf_home: str = ""
    """Where Hugging Face's libraries keep their files; models from there are then kept in `hub` in it."""

    hf_components: tuple[str, ...] = ()
    """Folders of a pipeline to take instead of those that its `model_index.json` names, with `,` between them."""

    hf_optional_components: bool = False
    """Whether `safety_checker` and `feature_extractor` are taken, too."""

    hf_weight_precisions: tuple[str, ...] = ()
    """Which weights may be taken, the best first, of `bf16`, `fp16`, `fp8`, `fp32`; unset: `bf16,fp16`."""

    hf_allow_root_json: bool = False
    """Whether the JSON files beside `model_index.json` are taken, too."""

    hf_full_repo_download: bool = False
    """Whether whole repositories are taken."""

    hf_max_repo_bytes: int = 60_000_000_000
    """The largest selection of a repository's files that is taken; 0 or less: any."""

    civitai_endpoint: str = "https://civitai.com"
    """Where Civitai is."""

    civitai_token: Secret = Secret("")
    """The token for Civitai."""

    modelscope_endpoint: str = "https://modelscope.cn"
    """Where ModelScope is."""

    modelscope_token: Secret = Secret("")
    """The token for ModelScope."""

    cozy_hub_url: str = ""
    """Where the platform's hub is, which `Hub` bindings and `cozy:` refs are resolved by."""

    cozy_hub_token: Secret = Secret("")
    """The token for the platform's hub."""

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
    """What the worker shows the orchestrator; the first of its names that is set counts."""

    scheduler_addr: str = ""
    """Where the orchestrator is, where `ORCHESTRATOR_PUBLIC_ADDR` is not set."""

    scheduler_addrs: tuple[str, ...] = ()
    """More addresses of the orchestrator, tried in turn, with `,` between them."""

    use_tls: bool = False
    """Whether an address of the orchestrator without a scheme is spoken to over TLS."""

    jwks_url: str = ""
    """Where the keys are that the worker's own token must be signed with; the worker checks that when it starts."""

    jwt_issuer: str = ""
    """Who must have issued the worker's token, where it is checked."""

    jwt_audience: str = ""
    """Whom the worker's token must be for, where it is checked."""

    devices: str = ""
    """Which devices the worker takes, as `auto`, `cpu:2` or `0,1`; unset: every GPU."""

    user_modules: tuple[str, ...] = ()
    """The modules of an image without a manifest, with `,` between them."""

    drain_timeout_s: float = DRAIN_TIMEOUT_S
    """Seconds that running jobs have to end when the worker is told to stop; 0 means 30, too."""

    max_concurrency: int = 0
    """Jobs that the worker holds at once, waiting ones too; one more ends `busy`. 0: `GEN_WORKER_MAX_QUEUED` counts."""

    max_upload_bytes: int = 0
    """The largest file that a job may save; 0: any up to 20 GiB."""

    max_input_file_bytes: int = 200 << 20
    """The largest file that a request may name by a URL; 0: any that its type allows."""

    input_tries: int = 3
    """How often a file that a request names by a URL is tried."""

    allow_private_inputs: bool = False
    """Whether a request may name files on private and loopback addresses."""

    image_digest: str = ""
    """Which image this is, as the orchestrator is told."""

    git_commit: str = ""
    """Which commit this is, as the orchestrator is told."""

    trainer_job_spec_path: str = ""
    """What a trainer is to do; unset: `/app/.cozy/trainer_job.json`."""

    training_dir: Path = Path("/tmp/training")
    """Where a training keeps its checkpoints, samples and events."""

    runpod_pod_id: str = ""
    """The name of the machine, as the orchestrator is told."""

    deployment_id: str = ""
    """The deployment that the worker is of, as an earlier orchestrator is told."""

    runs_dir: Path = Path("/tmp/cozy")
    """Where the runs of an earlier orchestrator have the files that their payloads name, in `<run id>/inputs`."""

    input_cache_dir: Path | None = None
    """Where files that such payloads name are kept for later runs; unset: `cache` in `WORKER_RUN_DIR`."""

    input_cache_bytes: int = 4 << 30
    """How much of such files is kept, the least recently used goes first; 0: nothing."""

    file_api_url: str = ""
    """Where files of runs are read and written for which an earlier orchestrator names no place."""

    file_api_token: Secret = Secret("")
    """What is shown there, and nowhere else."""

    reconnect_delay_s: float = 5.0
    """Seconds until an earlier orchestrator is dialed again; twice as many after each attempt in a row."""

    reconnect_max_delay_s: float = 60.0
    """The most of such seconds."""

    reconnect_jitter_s: float = 1.0
    """Up to so many seconds come on top, by chance."""

    max_reconnect_attempts: int = 0
    """Attempts in a row after which the worker ends; 0: never."""

    max_output_delta_bytes: int = 65536
    """The longest item of a stream that an earlier orchestrator is sent; 0: any."""

    max_output_delta_events: int = 0
    """Items of one stream that an earlier orchestrator is sent; 0: all."""

    max_ws_frame_bytes: int = 0
    """The longest message of a realtime session; 0: any that travels at all."""

    cuda_version: str = ""
    """The version of CUDA, as an earlier orchestrator is told; unset: that of torch, of which the package tells it."""

    torch_version: str = ""
    """The version of torch, as an earlier orchestrator is told; unset: that of the package."""

    tensorrt_version: str = ""
    """The version of TensorRT, as an earlier orchestrator is told; unset: that of the package."""

    gpu_sm: str = ""
    """The compute capability of the GPUs, as an earlier orchestrator is told; unset: what their driver says."""

    fake_gpu_count: int = 0
    """GPUs that an earlier orchestrator is told of in place of those that there are, for tests; 0: those."""

    fake_gpu_memory_bytes: int = 24 << 30
    """The memory of each of these."""

    fake_gpu_name: str = "Fake GPU"
    """What these are called."""

    fake_gpu_driver: str = "0.0"
    """The version of their driver."""

    worker_disconnected_timeout_s: float = 600.0
    """Seconds without the orchestrator after which the worker ends; 0: never."""

    warnings: tuple[str, ...] = ()
    """One sentence for each name that looks like a setting and is none."""

    @property
    def orchestrators(self) -> tuple[str, ...]:
        """The addresses of the orchestrator as they are set, the one to dial first at the front; empty for none."""
        listed = self.orchestrator_public_addr or ",".join((self.scheduler_addr, *self.scheduler_addrs))
        return tuple(dict.fromkeys(each.strip() for each in listed.split(",") if each.strip()))

    @property
    def speaks_earlier(self) -> bool:
        """Whether the orchestrator is one of the earlier generation: it is named by that one's variables only."""
        return not self.orchestrator_public_addr and bool(self.orchestrators)

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
        values.setdefault("cache_dir", default_cache_dir(env, root))
        return cls(**values, warnings=tuple(warnings(sources, _NAMES, VARIABLES, ELSEWHERE)))


class Variable(msgspec.Struct, frozen=True):
    """How a field is set: under which names, and what its text means."""

    names: tuple[str, ...]
    """The name to use first, then others that count where it is not set."""

    parse: Callable[[str], Any]
    """Raises `ValueError` with what is allowed."""

    @property
    def is_secret(self) -> bool:
        """Whether nobody may see what it is set to."""
        return self.parse is _secret


def _value(field: str, sources: list[Source]) -> object:
    variable = VARIABLES[field]
    found = find(sources, field, variable.names)
    if found is None:
        return None
    try:
        return variable.parse(found.text)
    except ValueError as error:
        shown = "" if _is_secret(found.text, variable) else f", not `{_shown(found.text)}`"
        raise SettingsError(f"{found.place} must be {error}{shown}") from None


def _is_secret(text: str, variable: Variable) -> bool:
    """Whether a text must not be shown: a secret, or an address that may have a password in it."""
    return variable.is_secret or (variable.parse is _url and "@" in text)


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


def _drain_seconds(text: str) -> float:
    return _seconds(text) or DRAIN_TIMEOUT_S


def _count_or_0(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise ValueError("a whole number, 0 or more")
    return int(text)


def _number(text: str) -> float:
    try:
        return _seconds(text)
    except ValueError:
        raise ValueError("a number, 0 or more") from None


def _size_or_0(text: str) -> int:
    return _size(text)


def _signed(text: str) -> int:
    if not re.fullmatch("-?[0-9]{1,18}", text):
        raise ValueError("a whole number")
    return int(text)


def _flag(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "y", "t", "on"):
        return True
    if text.lower() in ("0", "false", "no", "n", "f", "off"):
        return False
    raise ValueError("`1` or `0`")


def _url(text: str) -> str:
    if not re.fullmatch(r"https?://[^\s/?#]+[^\s?#]*", text):
        raise ValueError("a URL that begins with `https://` or `http://`")
    if "@" in text.split("/")[2]:
        raise ValueError("a URL without a user and a password in it: a token has a setting of its own")
    return text.rstrip("/")


def _list(text: str) -> tuple[str, ...]:
    return tuple(stripped for each in _line(text).split(",") if (stripped := each.strip()))


def _precisions(text: str) -> tuple[str, ...]:
    found = _list(text.lower())
    if not set(found) <= {"bf16", "fp16", "fp8", "fp32"}:
        raise ValueError("some of `bf16`, `fp16`, `fp8` and `fp32`, with `,` between them")
    return found


def _folders(text: str) -> tuple[str, ...]:
    return tuple(str(_absolute_path(each)) for each in _list(text))


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
    """Return the absolute path of one that no shell may have seen: `~` is where the user is at home."""
    try:
        return _path(text).expanduser().absolute()
    except FileNotFoundError:
        raise ValueError("an absolute path, as the current folder is gone") from None
    except RuntimeError:
        raise ValueError("a path whose `~` leads to a user's home") from None


def _folder(text: str) -> str:
    return str(_absolute_path(_line(text)))


def _line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("one line of text")
    return text


def _port(text: str) -> str:
    from gen_worker.wire.address import AddressError, parse_port

    try:
        parse_port(text)
    except AddressError:
        raise ValueError("a port, as `8082` or `0.0.0.0:8082`") from None
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
    "max_queued_per_function": Variable(("GEN_WORKER_MAX_QUEUED_PER_FUNCTION",), _count_or_0),
    "stall_timeout_s": Variable(("GEN_WORKER_STALL_TIMEOUT_S",), _seconds),
    "quarantine_s": Variable(("GEN_WORKER_QUARANTINE_S",), _seconds),
    "memory_reserve_bytes": Variable(("GEN_WORKER_MEMORY_RESERVE",), _size_or_0),
    "recycle_jobs": Variable(("GEN_WORKER_RECYCLE_JOBS",), _count_or_0),
    "recycle_growth_bytes": Variable(("GEN_WORKER_RECYCLE_GROWTH",), _size_or_0),
    "recycle_age_s": Variable(("GEN_WORKER_RECYCLE_AGE_S",), _seconds),
    "postmortem_bytes": Variable(("GEN_WORKER_POSTMORTEM_BYTES",), _size_or_0),
    "log_bytes": Variable(("GEN_WORKER_LOG_BYTES",), _size_or_0),
    "job_log_bytes": Variable(("GEN_WORKER_JOB_LOG_BYTES",), _size_or_0),
    "max_input_bytes": Variable(("WORKER_MAX_INPUT_BYTES",), _body_bytes),
    "max_output_bytes": Variable(("WORKER_MAX_OUTPUT_BYTES",), _body_bytes),
    "max_line_bytes": Variable(("GEN_WORKER_MAX_LINE",), _bytes),
    "token": Variable(("GEN_WORKER_TOKEN",), _secret),
    "orchestrator_token": Variable(("GEN_WORKER_ORCHESTRATOR_TOKEN",), _secret),
    "max_input_file_bytes": Variable(("WORKER_MAX_INPUT_FILE_BYTES",), _size_or_0),
    "max_upload_bytes": Variable(("WORKER_MAX_UPLOAD_BYTES", "WORKER_MAX_OUTPUT_FILE_BYTES"), _size_or_0),
    "input_tries": Variable(("WORKER_DOWNLOAD_RETRIES",), _count),
    "allow_private_inputs": Variable(("GEN_WORKER_ALLOW_PRIVATE_INPUTS",), _flag),
    "local_output_dir": Variable(("GEN_WORKER_LOCAL_OUTPUT_DIR",), _path),
    "local_device": Variable(("GEN_WORKER_LOCAL_DEVICE",), _device),
    "http": Variable(("GEN_WORKER_HTTP",), _port),
    "ready_file": Variable(("GEN_WORKER_READY_FILE",), _absolute_path),
    "log_format": Variable(("GEN_WORKER_LOG_FORMAT",), _one_of("auto", "text", "json")),
    "log_level": Variable(("GEN_WORKER_LOG_LEVEL",), _one_of("debug", "info", "warning", "error")),
    "debuggable": Variable(("GEN_WORKER_DEBUGGABLE",), _flag),
}
"""What the commands on a person's machine go by."""

MODELS: Mapping[str, Variable] = {
    "cache_dir": Variable(("TENSORHUB_CACHE_DIR", "WORKER_MODEL_CACHE_DIR"), _absolute_path),
    "lower_caches": Variable(("GEN_WORKER_LOWER_CACHES",), _folders),
    "cache_bytes": Variable(("GEN_WORKER_CACHE_BYTES",), _size_or_0),
    "host_cache_bytes": Variable(("GEN_WORKER_HOST_CACHE_BYTES",), _size_or_0),
    "compile_cache_bytes": Variable(("GEN_WORKER_COMPILE_CACHE_BYTES",), _size_or_0),
    "offline": Variable(("GEN_WORKER_OFFLINE", "HF_HUB_OFFLINE"), _flag),
    "max_vram_gb": Variable(("WORKER_MAX_VRAM_GB",), _number),
    "vram_margin_gb": Variable(("WORKER_VRAM_SAFETY_MARGIN_GB",), _number),
    "max_concurrent_downloads": Variable(("WORKER_MAX_CONCURRENT_DOWNLOADS",), _count),
    "download_stall_timeout_s": Variable(("COZY_HF_DOWNLOAD_STALL_TIMEOUT_S",), _seconds),
    "download_max_seconds": Variable(("COZY_HF_DOWNLOAD_MAX_SECONDS",), _seconds),
    "allow_pickle": Variable(("GEN_WORKER_ALLOW_PICKLE",), _list),
    "ca_bundle": Variable(("GEN_WORKER_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"), _line),
    "hf_endpoint": Variable(("HF_ENDPOINT",), _url),
    "hf_token": Variable(
        ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN", "HUGGINGFACEHUB_API_TOKEN"), _secret
    ),
    "hf_home": Variable(("HF_HOME",), _folder),
    "hf_components": Variable(("COZY_HF_COMPONENTS",), _list),
    "hf_optional_components": Variable(("COZY_HF_INCLUDE_OPTIONAL_COMPONENTS",), _flag),
    "hf_weight_precisions": Variable(("COZY_HF_WEIGHT_PRECISIONS",), _precisions),
    "hf_allow_root_json": Variable(("COZY_HF_ALLOW_ROOT_JSON",), _flag),
    "hf_full_repo_download": Variable(("COZY_HF_FULL_REPO_DOWNLOAD",), _flag),
    "hf_max_repo_bytes": Variable(("COZY_HF_MAX_REPO_BYTES",), _signed),
    "civitai_endpoint": Variable(("GEN_WORKER_CIVITAI_ENDPOINT",), _url),
    "civitai_token": Variable(("CIVITAI_API_KEY", "CIVITAI_TOKEN"), _secret),
    "modelscope_endpoint": Variable(("GEN_WORKER_MODELSCOPE_ENDPOINT",), _url),
    "modelscope_token": Variable(("MODELSCOPE_API_TOKEN",), _secret),
    "cozy_hub_url": Variable(("COZY_HUB_URL",), _url),
    "cozy_hub_token": Variable(("COZY_HUB_TOKEN",), _secret),
}
"""What models are fetched, kept and placed by."""

CONTAINER: Mapping[str, Variable] = {
    "tensorhub_public_url": Variable(("TENSORHUB_PUBLIC_URL",), _line),
    "orchestrator_public_addr": Variable(("ORCHESTRATOR_PUBLIC_ADDR",), _line),
    "grpc_ca_bundle": Variable(("GRPC_CA_BUNDLE",), _line),
    "worker_id": Variable(("WORKER_ID",), _line),
    "worker_mode": Variable(("WORKER_MODE",), _one_of("inference", "trainer")),
    "endpoint_lock_path": Variable(("ENDPOINT_LOCK_PATH",), _line),
    "worker_jwt": Variable(("AUTH_TOKEN", "WORKER_JWT"), _secret),
    "scheduler_addr": Variable(("SCHEDULER_ADDR",), _line),
    "scheduler_addrs": Variable(("SCHEDULER_ADDRS",), _list),
    "use_tls": Variable(("USE_TLS",), _flag),
    "jwks_url": Variable(("SCHEDULER_JWKS_URL",), _url),
    "jwt_issuer": Variable(("SCHEDULER_JWT_ISSUER",), _line),
    "jwt_audience": Variable(("SCHEDULER_JWT_AUDIENCE",), _line),
    "devices": Variable(("GEN_WORKER_DEVICES",), _line),
    "user_modules": Variable(("USER_MODULES",), _list),
    "drain_timeout_s": Variable(("WORKER_DRAIN_TIMEOUT_SECONDS",), _drain_seconds),
    "max_concurrency": Variable(("WORKER_MAX_CONCURRENCY",), _count_or_0),
    "image_digest": Variable(("WORKER_IMAGE_DIGEST",), _line),
    "git_commit": Variable(("WORKER_GIT_COMMIT",), _line),
    "trainer_job_spec_path": Variable(("TRAINER_JOB_SPEC_PATH",), _line),
    "training_dir": Variable(("GEN_WORKER_TRAINING_DIR",), _absolute_path),
    "runpod_pod_id": Variable(("RUNPOD_POD_ID",), _line),
    "deployment_id": Variable(("DEPLOYMENT_ID",), _line),
    "runs_dir": Variable(("WORKER_RUN_DIR",), _absolute_path),
    "input_cache_dir": Variable(("WORKER_CACHE_DIR",), _absolute_path),
    "input_cache_bytes": Variable(("GEN_WORKER_INPUT_CACHE_BYTES",), _size_or_0),
    "file_api_url": Variable(("FILE_API_BASE_URL", "ORCHESTRATOR_HTTP_URL"), _url),
    "file_api_token": Variable(("FILE_API_TOKEN",), _secret),
    "reconnect_delay_s": Variable(("RECONNECT_DELAY",), _seconds),
    "reconnect_max_delay_s": Variable(("RECONNECT_MAX_DELAY",), _seconds),
    "reconnect_jitter_s": Variable(("RECONNECT_JITTER_SECONDS",), _seconds),
    "max_reconnect_attempts": Variable(("MAX_RECONNECT_ATTEMPTS",), _count_or_0),
    "max_output_delta_bytes": Variable(("WORKER_MAX_OUTPUT_DELTA_BYTES",), _size_or_0),
    "max_output_delta_events": Variable(("WORKER_MAX_OUTPUT_DELTA_EVENTS",), _count_or_0),
    "max_ws_frame_bytes": Variable(("WORKER_MAX_WS_FRAME_BYTES",), _size_or_0),
    "cuda_version": Variable(("WORKER_CUDA_VERSION", "CUDA_VERSION", "NVIDIA_CUDA_VERSION"), _line),
    "torch_version": Variable(("WORKER_TORCH_VERSION",), _line),
    "tensorrt_version": Variable(("WORKER_TENSORRT_VERSION",), _line),
    "gpu_sm": Variable(("WORKER_SM",), _line),
    "fake_gpu_count": Variable(("WORKER_FAKE_GPU_COUNT",), _count_or_0),
    "fake_gpu_memory_bytes": Variable(("WORKER_FAKE_GPU_MEMORY_BYTES",), _size_or_0),
    "fake_gpu_name": Variable(("WORKER_FAKE_GPU_NAME",), _line),
    "fake_gpu_driver": Variable(("WORKER_FAKE_GPU_DRIVER",), _line),
    "worker_disconnected_timeout_s": Variable(("WORKER_DISCONNECTED_TIMEOUT_S",), _seconds),
}
"""What a worker in a container goes by."""

VARIABLES: Mapping[str, Variable] = {**LOCAL, **MODELS, **CONTAINER}
"""Every field that can be set."""

ELSEWHERE = frozenset(
    """
    GEN_WORKER_SUPERVISOR MODEL_CACHE_DIR MODEL_MANAGER_CLASS PYTORCH_CUDA_ALLOC_CONF SCHEDULER_JWKS_TTL_SECONDS
    TENANT_ID TENSORHUB_CAS_DIR USER WORKER_DEVICE WORKER_LOCAL_CACHE_GB WORKER_MODEL_ARTIFACTS_JSON
    WORKER_RUNTIME_LOADERS_JSON WORKER_TORCH_DEVICE
    """.split()  # noqa: SIM905 - a list would be a page long
)
"""Names that containers of workers, and jobs, carry and no command goes by: nothing is said about them."""

_NAMES = frozenset(name for variable in VARIABLES.values() for name in variable.names)
