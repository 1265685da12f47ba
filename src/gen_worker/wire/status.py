"""The document of `gen-worker ps --json`: unknown values are null; within a schema number names are only added."""

from typing import Literal

import msgspec

from gen_worker.wire.messages import Tier

SCHEMA = 1


class LinkStatus(msgspec.Struct):
    """The connection to an orchestrator."""

    state: str
    addr: str | None = None
    rtt_ms: float | None = None  # from Hello to HelloAck of this connection
    since_s: float | None = None


class ModelStatus(msgspec.Struct):
    """A model that a child holds: `tier` is `VRAM` on its device, `RAM` where parts come to it as they are needed."""

    ref: str
    bytes: int | None = None
    tier: Tier | None = None
    instance: str | None = None
    rung: str | None = None
    pinned: bool = False


class HostModelStatus(msgspec.Struct):
    """A model that some function needs: `COLD`, on `DISK`, in host `RAM`, or resident in `VRAM` of some device."""

    ref: str
    state: Tier
    bytes: int | None = None
    path: str | None = None
    error: str | None = None


class DeviceStatus(msgspec.Struct):
    """One device and the child that owns it. A CPU slot counts as a device: `index` null, `name` "cpu:0"."""

    index: int | None
    uuid: str | None
    name: str
    pid: int | None
    state: str
    vram_used: int | None = None
    vram_total: int | None = None
    vram_budget: int | None = None
    util: float | None = None
    temp: float | None = None
    power_w: float | None = None
    models: list[ModelStatus] = []
    job: str | None = None
    heartbeat_age_s: float | None = None
    restarts: int = 0
    restart_in_s: float | None = None
    rss: int | None = None
    health: str = "ok"
    jobs: int = 0
    phase: str | None = None
    loading: str | None = None
    loading_bytes: int | None = None
    loading_total: int | None = None
    hang: str | None = None
    silent_s: float | None = None
    reason: str | None = None
    vram_unattributed: int | None = None
    jobs_done: int = 0
    age_s: float | None = None
    own_bytes: int | None = None
    product: str | None = None  # what its maker calls it
    vram_ours: int | None = None  # that its child holds, by the child's own account
    vram_other: int | None = None  # that is in use and not its child's
    drained: bool = False  # by an operator: it is given no jobs
    mig: str | None = None  # the profile, where it is a part of a GPU
    deaths: dict[str, int] = {}  # of its children, by cause


class JobStatus(msgspec.Struct):
    """One job that has not ended."""

    id: str
    function: str
    status: str
    stage: str | None = None
    progress: float | None = None
    elapsed_s: float = 0.0
    deadline_s: float | None = None
    gpu: str | None = None
    link: str | None = None
    attempt: int = 1
    queued_s: float | None = None
    tenant: str | None = None
    priority: int = 0
    position: int | None = None
    starts_in_s: float | None = None
    hang: str | None = None


class DownloadStatus(msgspec.Struct):
    """One download."""

    ref: str
    bytes_done: int
    bytes_total: int | None
    bytes_per_s: float | None
    state: str
    wanted_by: list[str] = []
    retries: int = 0


class EventStatus(msgspec.Struct):
    """One line of the supervisor's recent history."""

    seq: int
    ts: float
    level: Literal["info", "warning", "error"]
    source: str
    message: str


class HistogramStatus(msgspec.Struct):
    """How long something took: `counts[i]` times no longer than `bounds[i]` seconds, the last one longer than all."""

    bounds: list[float]
    counts: list[int]
    sum_s: float


class FunctionStatus(msgspec.Struct):
    """One function: whether it is served and how fast it has been."""

    name: str
    state: Literal["available", "unavailable"]
    reason: str | None = None
    queued: int = 0
    median_run_s: float | None = None
    stall_limit_s: float | None = None
    ended: dict[str, int] = {}  # jobs by how they ended: "ok" or the kind of error
    run: "HistogramStatus | None" = None
    wait: "HistogramStatus | None" = None  # in the queue


class MemoryStatus(msgspec.Struct):
    """The host memory that this supervisor and its children may take: of the host, or of their cgroup."""

    used: int
    limit: int
    reserve: int
    source: str
    oom_kills: int | None = None

    @property
    def left(self) -> int:
        """Bytes that can still be had."""
        return max(0, self.limit - self.used)


class Status(msgspec.Struct):
    """One supervisor at one moment."""

    ts: float
    host: str
    version: str
    pid: int
    uptime_s: float
    schema: int = SCHEMA
    link: LinkStatus | None = None
    cpu_percent: float | None = None
    ram_used: int | None = None
    ram_total: int | None = None
    disk_used: int | None = None
    disk_total: int | None = None
    net_bps: float | None = None
    gpus: list[DeviceStatus] = []
    jobs: list[JobStatus] = []
    downloads: list[DownloadStatus] = []
    models: list[HostModelStatus] = []
    host_memory_used: int | None = None
    host_memory_budget: int | None = None
    vram_margin: int | None = None
    events: list[EventStatus] = []
    functions: list[FunctionStatus] = []
    draining: bool = False
    jobs_done: int = 0
    jobs_failed: int = 0
    serve: str | None = None
    loop_lag_p99_s: float | None = None
    loop_lag_max_s: float | None = None
    memory: MemoryStatus | None = None
    quarantined: int = 0
    postmortems: int = 0
    ready: bool = False  # the start is over, some child takes jobs, and not everything drains
    cpu_count: float | None = None  # cores that it may use
    downloaded_bytes: int = 0  # since it started
    jobs_left_out: int = 0  # waiting jobs that are not listed
    http: str | None = None  # where probes and metrics are served
    loads: dict[str, HistogramStatus] = {}  # of models, by where they came from: the host's "ram", or its "disk"
