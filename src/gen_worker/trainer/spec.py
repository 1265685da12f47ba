"""The description of a training as a file: what is trained, on what, for how long, and who is told.

It is read twice: by the process that supervises the training, which keeps the token, and by the one that trains.
"""

import json
import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import Any

import msgspec

from gen_worker.secret import without
from gen_worker.trainer.contracts import EarlyStop, TrainingJobSpec

DEFAULT_PATH = "/app/.cozy/trainer_job.json"
API_VERSION = "v1"
TARGETS = ("metrics_url", "checkpoint_url", "sample_url", "terminal_url")
_REPO_HINTS = ("destination_repo", "repo", "output_repo")
_JOB_HINTS = ("job_id", "conversion_job_id", "training_job_id")
LEAST = 'the least of one is {"trainer": "module:Symbol", "request_id": "first", "max_steps": 100, "mock_batches": [1]}'
_YES = ("", "1", "true", "yes", "y", "on", "cancel", "canceled", "cancelled")


class SpecError(ValueError):
    """A training cannot begin; `code` is for programs."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.hint = hint


class Uploads(msgspec.Struct, frozen=True):
    """Where a training's news are posted to; empty: nowhere."""

    metrics_url: str = ""
    checkpoint_url: str = ""
    sample_url: str = ""
    terminal_url: str = ""


class Inputs(msgspec.Struct, frozen=True):
    """What must be here before a training begins."""

    base_model_ref: str = ""
    dataset_parquet_refs: tuple[str, ...] = ()
    resume_checkpoint_ref: str = ""


class Dataset(msgspec.Struct, frozen=True):
    """Rows of Parquet files, `batch_size` of them a batch, in their order; each batch maps columns to lists."""

    parquet_paths: tuple[str, ...] = ()
    batch_size: int = 32
    readahead: int = 2
    columns: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.readahead < 0:
            raise ValueError("`batch_size` takes 1 or more, `readahead` 0 or more")


class _EarlyStop(msgspec.Struct, frozen=True):
    metric: str = "train/loss"
    patience: int = 5
    min_delta: float = 0.0
    mode: str = "min"


class TrainingSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a job spec may say."""

    trainer: str
    request_id: str
    max_steps: int
    metric_every: int = 10
    checkpoint_every: int = 0
    sample_every: int = 0
    keep_checkpoints: int = 0
    owner: str = ""
    release_ref: str = ""
    hyperparams: dict[str, Any] = {}
    trainer_api_version: str = API_VERSION
    capability_token: str = ""
    orchestrated: bool = False
    max_runtime_seconds: float | None = None
    cancel_file_path: str = ""
    upload_patience_seconds: float = 600.0
    base_url: str = ""
    uploads: Uploads = Uploads()
    inputs: Inputs = Inputs()
    dataset: Dataset | None = None
    mock_batches: list[Any] = []
    resume_from_latest: bool = False
    resume_checkpoint_path: str = ""
    sample_prompts: list[str | dict[str, Any]] = []
    sample_seed: int = 0
    device: str = ""
    gpu_count: int = 1
    dtype: str = "bf16"
    early_stop: _EarlyStop | None = None
    allow_non_finite_loss: bool = False
    execution_hints: dict[str, Any] = {}
    kind: str = "training"
    destination_repo: str = ""
    job_id: str = ""

    def __repr__(self) -> str:
        """Leave out the token, and URLs that may be signed."""
        return without(self, "capability_token", "uploads")

    @property
    def job(self) -> TrainingJobSpec:
        """What the loop and the plugin know of it; raise `ValueError`."""
        rule = self.early_stop
        return TrainingJobSpec(
            self.request_id,
            self.max_steps,
            self.trainer_api_version,
            self.metric_every,
            self.checkpoint_every,
            self.sample_every,
            self.owner,
            self.release_ref,
            {"max_steps": self.max_steps, **self.hyperparams},
            early_stop=None if rule is None else EarlyStop(**msgspec.structs.asdict(rule)),
            allow_non_finite_loss=self.allow_non_finite_loss,
        )

    @property
    def prompts(self) -> list[dict[str, Any]]:
        """What samples are made of; a text stands for a prompt of that name."""
        told = [{"prompt": each} if isinstance(each, str) else dict(each) for each in self.sample_prompts]
        return [{"name": f"sample-{number:02d}", **each} for number, each in enumerate(told)]

    @property
    def work_id(self) -> str:
        """What names the training at the platform, over all of its attempts; empty where nobody says it."""
        return self.job_id or _hint(self.execution_hints, _JOB_HINTS)

    @property
    def repository(self) -> str:
        """The repository that what was trained is published to; empty: none."""
        return self.destination_repo or _hint(self.execution_hints, _REPO_HINTS)

    @property
    def repository_tags(self) -> list[str]:
        """The tags that are moved to what is published."""
        told = self.execution_hints.get("destination_repo_tags", ())
        return [str(tag) for tag in told] if isinstance(told, list | tuple) else [str(told)]

    @property
    def targets(self) -> dict[str, str]:
        """The URLs that the training may post to, by their names."""
        return {name: url for name in TARGETS if (url := getattr(self.uploads, name))}

    @property
    def posted_to(self) -> dict[str, str]:
        """The URLs that are posted to: none without a token to show there."""
        return self.targets if self.capability_token else {}

    def written(self) -> bytes:
        """Return it as a file has it, without the token and the URLs, for the process that trains."""
        told = msgspec.to_builtins(self)
        told["uploads"] = dict.fromkeys(self.posted_to, "supervised:")
        told["capability_token"], told["orchestrated"] = "", False
        return json.dumps(told, indent=1).encode() + b"\n"


def _hint(hints: Mapping[str, object], names: tuple[str, ...]) -> str:
    return next((str(hints[name]) for name in names if hints.get(name)), "")


def read_spec(path: str | os.PathLike[str]) -> TrainingSpec:
    """Return what a job spec says; raise `SpecError` for what is no training.

    Names that it does not know are passed over, as other versions may have them.
    """
    place = Path(path)
    try:
        document = json.loads(place.read_bytes())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        hint = "set `TRAINER_JOB_SPEC_PATH` to the file that describes the training"
        raise SpecError("startup.missing_job_spec_path", f"no job spec at `{place}`: {reason}", hint) from None
    except (ValueError, RecursionError) as error:
        raise SpecError("startup.invalid_job_spec", f"`{place}` is no JSON: {error}", LEAST) from None
    if not isinstance(document, dict):
        raise SpecError("startup.invalid_job_spec", f"`{place}` is no JSON object", LEAST)
    return checked(document)


def misspelt(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of a job spec that mean nothing and are nearly one that does, each with that one. Pure."""
    parts = {"": TrainingSpec, "uploads": Uploads, "inputs": Inputs, "dataset": Dataset, "early_stop": _EarlyStop}
    found: dict[str, str] = {}
    for part, struct in parts.items():
        told, known = document.get(part) if part else document, struct.__struct_fields__
        for name in told if isinstance(told, Mapping) else ():
            if name not in known and (near := get_close_matches(name, known, n=1)):
                found[f"{part}.{name}" if part else name] = near[0]
    return found


def checked(document: Mapping[str, Any]) -> TrainingSpec:
    """Return the training that a document describes; raise `SpecError`."""
    if not str(document.get("trainer") or "").strip():
        hint = 'write `"trainer": "module:Symbol"` into the job spec'
        raise SpecError("startup.missing_trainer_import", "the job spec names no `trainer`", hint)
    _check_timeout(document.get("max_runtime_seconds"))
    plain = {key: value for key, value in document.items() if value is not None}
    try:
        spec = msgspec.convert(plain, TrainingSpec, strict=False)
        _check(spec)
    except (ValueError, TypeError) as error:
        raise SpecError("startup.invalid_job_spec", _in_words(error), LEAST) from None
    if spec.orchestrated and not spec.capability_token:
        text = "`capability_token` is missing, which a training that is `orchestrated` needs"
        hint = "the platform that starts the training gives it one; without a platform leave `orchestrated` out"
        raise SpecError("startup.missing_capability_token", text, hint)
    return spec


def _in_words(error: Exception) -> str:
    """Return what is wrong with a job spec as a person says it."""
    text, _, place = str(error).partition(" - at `$")
    place = place.rstrip("`").lstrip(".")
    if lacking := _LACKS.fullmatch(text):
        return f"the job spec has no `{f'{place}.' if place else ''}{lacking[1]}`"
    if other := _OTHER.fullmatch(text):
        wanted, got = ("/".join(_TYPES.get(each, each) for each in kind.split(" | ")) for kind in other.groups())
        return f"`{place}` takes {wanted.replace('/', ' or ')}, not {got}"
    return str(error)


_LACKS = re.compile("Object missing required field `(.+)`")
_OTHER = re.compile("Expected `(.+)`, got `(.+)`")
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "nothing",
}


def _check_timeout(value: object) -> None:
    if value is None:
        return
    try:
        seconds = float(str(value)) if not isinstance(value, bool) else -1.0
    except ValueError:
        seconds = -1.0
    if not (isfinite(seconds) and seconds > 0):
        text = f"`max_runtime_seconds` takes a number of seconds above 0, not {value!r}"
        raise SpecError("startup.invalid_timeout", text, "leave it out for a training that may take any time")


def _check(spec: TrainingSpec) -> None:
    if spec.trainer_api_version != API_VERSION:
        raise ValueError(f"`trainer_api_version` must be `{API_VERSION}`, not `{spec.trainer_api_version}`")
    _ = spec.job
    if spec.keep_checkpoints < 0:
        raise ValueError(f"`keep_checkpoints` takes 0 or more, not {spec.keep_checkpoints}")
    if not spec.upload_patience_seconds >= 0:
        raise ValueError(f"`upload_patience_seconds` takes 0 or more, not {spec.upload_patience_seconds}")
    _check_seed(spec.hyperparams.get("seed", 0))
    if spec.gpu_count < 1:
        raise ValueError(f"`gpu_count` takes 1 or more, not {spec.gpu_count}")
    has_rows = bool(spec.dataset and spec.dataset.parquet_paths) or bool(spec.inputs.dataset_parquet_refs)
    if has_rows and spec.mock_batches:
        raise ValueError("`mock_batches` and a data set exclude each other")


def _check_seed(seed: Any) -> None:
    try:
        whole = not isinstance(seed, float) or seed.is_integer()
        fits = whole and -(2**63) <= int(seed) < 2**64  # as torch has it
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits:
        raise ValueError(f"`hyperparams.seed` takes a whole number of 64 bits, not {seed!r}")


def asks_to_cancel(path: str | os.PathLike[str]) -> bool:
    """Whether a cancel file is there and means it: it is empty, or says `1`, `true`, `yes`, `cancel` or the like."""
    try:
        return Path(path).read_text(errors="replace").strip().lower() in _YES
    except OSError:  # it is not there, or not for us to read
        return False
