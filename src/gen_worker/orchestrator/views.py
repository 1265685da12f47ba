"""What callers of the control plane give it and get from it. Plain values."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Literal, NamedTuple, TypeAlias

import msgspec

from gen_worker.wire.scheduler import (
    InFlightJob,
    JobMetrics,
    JobStatus,
    ModelBinding,
    ModelResidency,
    OutputMode,
    ResolvedCompute,
    WorkerResources,
)

EMPTY_PAYLOAD = b"\x80"  # msgpack's empty map

# How a job ended, as HTTP says it.
DONE, REFUSED, UNABLE, CANCELED, BROKEN, TRIED, LATE = 200, 400, 424, 499, 500, 503, 504

Status: TypeAlias = Literal["queued", "assigned", "running", "ok", "invalid", "retryable", "fatal", "canceled"]
EventKind: TypeAlias = Literal["accepted", "progress", "log", "chunk", "result"]

ENDED: frozenset[Status] = frozenset({"ok", "invalid", "retryable", "fatal", "canceled"})

OUTCOMES: dict[JobStatus, tuple[Status, int]] = {
    JobStatus.UNSPECIFIED: ("fatal", BROKEN),
    JobStatus.OK: ("ok", DONE),
    JobStatus.INVALID: ("invalid", REFUSED),
    JobStatus.RETRYABLE: ("retryable", TRIED),
    JobStatus.FATAL: ("fatal", BROKEN),
    JobStatus.CANCELED: ("canceled", CANCELED),
}


class Holding(NamedTuple):
    """An attempt that is with a worker."""

    attempt: int
    worker_id: str
    function: str


class PlaneError(Exception):
    """The control plane cannot do what it was asked."""


class InvalidRequestError(PlaneError):
    """No worker could be asked this; the text says why."""


class ConflictError(PlaneError):
    """Another request has this id already."""


class QueueFullError(PlaneError):
    """No more jobs may wait; what is asked again in `retry_after_s` may find room."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnknownWorkerError(PlaneError):
    """No connected worker has this id."""


class JobRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody wants done. Without a `request_id` it gets one, and is another job each time."""

    function: str
    payload: bytes = EMPTY_PAYLOAD
    """A msgpack map."""

    request_id: str = ""
    tenant: str = ""
    invoker_id: str = ""
    timeout_ms: int = 0
    """How long one attempt may take on a worker; 0: any time."""

    output_mode: OutputMode = OutputMode.UNSPECIFIED
    models: tuple[ModelBinding, ...] = ()
    compute: ResolvedCompute | None = None
    priority: int = 0
    """Jobs of a higher priority go first."""

    traceparent: str = ""
    """Of the caller's span, as W3C Trace Context writes it; goes to the worker with the job."""


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """A job as it is now. Times are unix times."""

    request: JobRequest
    status: Status
    code: int = 0
    """The end as an HTTP status: 200, 400, 424, 499, 500, 503 or 504; 0 until then."""

    attempt: int = 1
    worker_id: str = ""
    created: float = 0.0
    started: float | None = None
    """When a worker accepted it; of the latest attempt."""

    finished: float | None = None
    canceling: bool = False
    """Whether its end was asked for, and its worker has not ended it yet."""

    waiting_for: str = ""
    """What it waits for, in words for people; nothing while a worker has it."""

    safe_message: str = ""
    output: bytes | None = None
    """msgpack; neither this nor `blob_ref` is there for a stream, whose items are chunks."""

    blob_ref: str | None = None
    metrics: JobMetrics | None = None
    progress: bytes | None = None
    """What the function last said of how far it is: a JSON object."""

    @property
    def request_id(self) -> str:
        """The id of the request, which is the job's."""
        return self.request.request_id

    @property
    def ended(self) -> bool:
        """Whether nothing more happens to it."""
        return self.status in ENDED


class Presence(StrEnum):
    """Whether somebody has a function."""

    SERVED = "served"
    EXPECTED = "expected"  # after a start, or where one is started again, workers have some time to come
    ABSENT = "absent"  # a worker had it, and may come again
    UNKNOWN = "unknown"


class JobEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened to a job. `accepted` with a higher attempt voids the chunks before it."""

    number: int
    """Goes up from 1 within the job, with a gap where the control plane was killed, and means the same event for ever;
    `progress`, which is not kept, has that of the event before it."""

    kind: EventKind
    attempt: int
    seq: int = 0
    """Of a chunk: counts from 1 within the attempt; a number that is left out was lost on the way."""

    content_type: str = ""
    body: bytes = b""
    """Of a chunk: as the function made it; of `progress` and `log`: a JSON object."""

    job: JobView | None = None
    """Of `result`."""


class WorkerView(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as it is now; one that was lost is listed for as long as its jobs wait for it."""

    worker_id: str
    release_id: str
    connected: bool
    since: float
    phase: str
    available_functions: tuple[str, ...]
    loading_functions: tuple[str, ...]
    unavailable_functions: Mapping[str, str]
    """What it cannot run, and why."""

    resources: WorkerResources
    free_vram_bytes: int
    models: tuple[ModelResidency, ...]
    jobs: tuple[InFlightJob, ...]
    draining: bool
