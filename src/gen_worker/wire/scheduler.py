"""What a worker and its orchestrator say to each other, as values; `gen_worker.pb` turns them into bytes and back.

The worker is the client of one bidirectional gRPC stream. Field meanings are those of `worker_scheduler.proto`.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import TypeAlias

import msgspec

from gen_worker.models.wanted import SnapshotFile
from gen_worker.secret import without

PROTOCOL_VERSION = 2
MESSAGE_BYTES = 64 << 20  # the longest message either way
INLINE_RESULT_BYTES = 64 << 10  # a longer output is stored, and its ref is sent
INLINE_ASSET_BYTES = 4 << 20  # what `OutputMode.INLINE` carries of one saved file
EVENT_TYPE = "application/x-gen-worker-event+json"  # of a `JobProgress` that is progress or a log line


class ResidencyTier(IntEnum):
    """Where a model is."""

    UNSPECIFIED = 0
    DISK = 1
    RAM = 2
    VRAM = 3


class WorkerPhase(IntEnum):
    """How far the worker's start is."""

    UNSPECIFIED = 0
    BOOTING = 1
    DOWNLOADING_MODELS = 2
    LOADING_PIPELINES = 3
    WARMING = 4
    READY = 5
    ERROR = 6


class OutputMode(IntEnum):
    """Where what a job saves goes; unspecified means URL."""

    UNSPECIFIED = 0
    URL = 1
    INLINE = 2


class JobStatus(IntEnum):
    """How a job ended."""

    UNSPECIFIED = 0
    OK = 1
    INVALID = 2
    RETRYABLE = 3
    FATAL = 4
    CANCELED = 5


class ModelOpKind(IntEnum):
    """What is to be done with a model: to the disk, into VRAM, out of VRAM."""

    UNSPECIFIED = 0
    DOWNLOAD = 1
    LOAD = 2
    UNLOAD = 3


class ModelState(IntEnum):
    """What has become of a model."""

    UNSPECIFIED = 0
    DOWNLOADING = 1
    ON_DISK = 2
    IN_RAM = 3
    IN_VRAM = 4
    EVICTED = 5
    FAILED = 6


# --- parts ------------------------------------------------------------------------------------------------------------


class WorkerResources(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker's host has."""

    gpu_count: int = 0
    vram_total_bytes: int = 0
    gpu_name: str = ""
    gpu_sm: str = ""
    installed_libs: tuple[str, ...] = ()
    image_digest: str = ""
    git_commit: str = ""
    instance_id: str = ""


class ModelResidency(msgspec.Struct, frozen=True, kw_only=True):
    """One model that is here; `vram_bytes` counts only in VRAM."""

    ref: str
    tier: ResidencyTier
    vram_bytes: int = 0


class InFlightJob(msgspec.Struct, frozen=True, kw_only=True):
    """One job that runs, or has finished without its result having been shipped."""

    request_id: str
    attempt: int


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The files that a ref stands for, with presigned URLs."""

    digest: str = ""
    files: tuple[SnapshotFile, ...] = ()


class ResolvedCompute(msgspec.Struct, frozen=True, kw_only=True):
    """What the orchestrator chose for a job; `accelerator` is `cuda` or `none`."""

    accelerator: str = ""
    gpu_index: int = 0
    gpu_count: int = 0
    vram_gb: int = 0


class ModelBinding(msgspec.Struct, frozen=True, kw_only=True):
    """The model for one slot of a job."""

    slot: str
    ref: str


class JobMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """What a job took, as far as it was measured."""

    runtime_ms: int = 0
    queue_ms: int = 0
    peak_rss_bytes: int = 0
    peak_vram_bytes: int = 0
    concurrency_at_start: int = 0


# --- from the worker --------------------------------------------------------------------------------------------------


class StateDelta(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker can do now."""

    phase: WorkerPhase = WorkerPhase.UNSPECIFIED
    available_functions: tuple[str, ...] = ()
    loading_functions: tuple[str, ...] = ()
    free_vram_bytes: int = 0


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """The first message of a stream: everything as it is now."""

    worker_id: str
    release_id: str = ""
    resources: WorkerResources = WorkerResources()
    state: StateDelta = StateDelta()
    models: tuple[ModelResidency, ...] = ()
    in_flight: tuple[InFlightJob, ...] = ()
    protocol_version: int = PROTOCOL_VERSION


class JobAccepted(msgspec.Struct, frozen=True, kw_only=True):
    """The worker has the job; exactly one `JobResult` follows."""

    request_id: str
    attempt: int


class JobResult(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a job. At most one of `inline` (msgpack) and `blob_ref` is there."""

    request_id: str
    attempt: int
    status: JobStatus
    inline: bytes | None = None
    blob_ref: str | None = None
    safe_message: str = ""
    metrics: JobMetrics | None = None


class JobProgress(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a job's stream, or (of `EVENT_TYPE`) how far it is; `seq` counts from 1 in each attempt."""

    request_id: str
    attempt: int
    seq: int
    body: bytes
    content_type: str


class ModelEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What has become of a model."""

    ref: str
    state: ModelState
    vram_bytes: int = 0
    error: str = ""
    bytes_done: int = 0
    bytes_total: int = 0


class FnUnavailable(msgspec.Struct, frozen=True, kw_only=True):
    """A function that this worker cannot run, and along which axes it falls short."""

    function_name: str
    reason: str
    detail: str = ""
    axes: Mapping[str, str] = {}


WorkerFrame: TypeAlias = Hello | StateDelta | JobAccepted | JobResult | JobProgress | ModelEvent | FnUnavailable


# --- from the orchestrator --------------------------------------------------------------------------------------------


class HelloAck(msgspec.Struct, frozen=True, kw_only=True):
    """The worker is known. Comes again when `file_base_url` or `keep` change; each replaces what was before."""

    file_base_url: str = ""
    keep: tuple[str, ...] = ()
    protocol_version: int = PROTOCOL_VERSION


class RunJob(msgspec.Struct, frozen=True, kw_only=True):
    """Run this; sent again until it is accepted. `input_payload` is a msgpack map."""

    request_id: str
    attempt: int
    function_name: str
    input_payload: bytes = b""
    timeout_ms: int = 0
    tenant: str = ""
    invoker_id: str = ""
    capability_token: str = ""
    output_mode: OutputMode = OutputMode.UNSPECIFIED
    compute: ResolvedCompute | None = None
    models: tuple[ModelBinding, ...] = ()
    snapshots: Mapping[str, Snapshot] = {}
    traceparent: str = ""

    def __repr__(self) -> str:
        """Leave out the token, and what the job is about."""
        return without(self, "capability_token", "input_payload")


class CancelJob(msgspec.Struct, frozen=True, kw_only=True):
    """End this job; ignored where it is not held."""

    request_id: str
    attempt: int


class ModelOp(msgspec.Struct, frozen=True, kw_only=True):
    """Do something with a model."""

    op: ModelOpKind
    ref: str
    snapshot: Snapshot | None = None


class Drain(msgspec.Struct, frozen=True, kw_only=True):
    """Take no more jobs, end those there are, leave. `deadline_ms` counts from now; 0: no limit."""

    deadline_ms: int = 0


class TokenRefresh(msgspec.Struct, frozen=True, kw_only=True):
    """The token for later connections."""

    token: str
    expires_at_unix: int = 0

    def __repr__(self) -> str:
        """Leave out the token."""
        return without(self, "token")


SchedulerFrame: TypeAlias = HelloAck | RunJob | CancelJob | ModelOp | Drain | TokenRefresh
