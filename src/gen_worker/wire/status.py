"""The document of `gen-worker ps --json`: unknown values are null; within a schema number names are only added."""

from typing import Literal

import msgspec

from gen_worker.wire.messages import Tier

SCHEMA = 1


class LinkStatus(msgspec.Struct):
    """The connection to an orchestrator."""

    state: str  # `connected`, or what it is at
    addr: str | None = None  # where the orchestrator listens
    rtt_ms: float | None = None  # milliseconds that the orchestrator took to answer
    since_s: float | None = None  # that it has been so


class ModelStatus(msgspec.Struct):
    """A model that a child holds: `tier` is `VRAM` on its device, `RAM` where parts come to it as they are needed."""

    ref: str
    bytes: int | None = None  # as its child counted them
    tier: Tier | None = None
    instance: str | None = None  # what its child set up with it
    rung: str | None = None  # how it is placed, where that is not plainly
    pinned: bool = False  # an operator wants it kept: it makes room for no other


class EngineStatus(msgspec.Struct):
    """An engine server that a child has started for one of its instances."""

    instance: str
    name: str  # of the program: `vllm`
    state: str  # `booting` or `up`
    pid: int | None = None  # null until it has one
    port: int | None = None  # of the loopback


class HostModelStatus(msgspec.Struct):
    """A model that some function needs: on `DISK`, in host `RAM`, or resident in `VRAM` of some device.

    `COLD` is not here, as far as it was looked for: nobody has asked for it yet, or it could not be had.
    """

    ref: str
    state: Tier
    bytes: int | None = None  # on disk
    path: str | None = None  # where its files lie
    error: str | None = None  # why it could not be had
    pinned: list[str] = []  # the devices that let go of it for no other
    functions: list[str] = []  # that need it
    used_s: float | None = None  # since a job last ran on it, of those that a child holds
    load_s: float | None = None  # that setting up what needs it took last


class MemberStatus(msgspec.Struct):
    """One GPU of a group, or a CPU slot that stands for one."""

    index: int | None  # as NVML counts; null for a CPU slot
    uuid: str | None
    name: str  # `cuda:0`, by which commands find its group
    product: str | None = None
    vram_used: int | None = None  # by whomever, as its driver says
    vram_total: int | None = None
    vram_unattributed: int | None = None  # that a dead child had and that did not come back
    util: float | None = None  # 0 to 1
    temp: float | None = None  # degrees Celsius
    power_w: float | None = None  # watts


class DeviceStatus(msgspec.Struct):
    """One device and the child that owns it. A CPU slot counts as a device: `index` null, `name` "cpu:0".

    So does a group of GPUs, `cuda:0+1`: memory and power are those of its members together, `util` is their mean, and
    `temp` that of the hottest.
    """

    index: int | None  # of the GPU, as NVML counts, of a group's first one; null for a CPU slot
    uuid: str | None  # `GPU-…`, of a part of a GPU `MIG-…`; null for a group
    name: str  # by which commands know it: `cuda:0`, `cuda:0:1`, `cuda:0+1`, `cpu:0`
    pid: int | None  # of its child, in the namespace of the supervisor
    state: str  # as listed above
    vram_used: int | None = None  # of the GPU, by whomever, as its driver says
    vram_total: int | None = None
    vram_budget: int | None = None  # that models and jobs may take; null: what is free, less the margin
    util: float | None = None  # share of the last second in which it computed, 0 to 1; null for a part of a GPU
    temp: float | None = None  # degrees Celsius
    power_w: float | None = None  # watts
    models: list[ModelStatus] = []  # that its child holds
    job: str | None = None  # the first of those that run on it
    heartbeat_age_s: float | None = None  # of the child's last beat: grows while a job holds the GIL
    restarts: int = 0  # children after the first
    restart_in_s: float | None = None  # until the next child comes
    rss: int | None = None  # resident memory of the child's process alone, with what it shares
    health: str = "ok"  # `ok`, `dirty`, `wedged` or `retired`
    jobs: int = 0  # that its child was given and has not ended
    phase: str | None = None  # of its child
    loading: str | None = None  # the instance that its child sets up
    loading_bytes: int | None = None  # of the models of what it sets up, so far
    loading_total: int | None = None
    hang: str | None = None  # how its child hangs, or why that cannot be said
    silent_s: float | None = None  # since anything new came of what it is at
    reason: str | None = None  # why it is not well
    vram_unattributed: int | None = None  # that a dead child had and that did not come back
    jobs_done: int = 0  # that ended well in its present child
    age_s: float | None = None  # of its present child
    own_bytes: int | None = None  # of host memory that its child and all that it started have for themselves
    product: str | None = None  # what its maker calls it
    vram_ours: int | None = None  # that its child's allocator holds, by its own account; null before it holds any
    vram_other: int | None = None  # in use and not its child's: other programs, and what the driver takes for each
    drained: bool = False  # by an operator: it is given no jobs
    mig: str | None = None  # the profile, `1g.10gb`, where it is a part of a GPU
    deaths: dict[str, int] = {}  # of its children, by cause: a signal, `exit`, `host_oom`, `hang`, or why it was ended
    members: list[MemberStatus] = []  # of a group, as its child counts them
    engines: list[EngineStatus] = []  # servers that its child has started


class JobStatus(msgspec.Struct):
    """One job that has not ended."""

    id: str  # its caller's name for it
    function: str
    status: str  # `queued`, `running` or `ending`
    stage: str | None = None  # what it says that it is at, or what it waits for
    progress: float | None = None  # 0 to 1
    elapsed_s: float = 0.0  # since its start
    deadline_s: float | None = None  # that it has left
    gpu: str | None = None  # name of its device
    link: str | None = None  # over which it came
    attempt: int = 1  # of its caller, 1 for the first
    queued_s: float | None = None  # before its start, or so far
    tenant: str | None = None  # for whom it is
    priority: int = 0  # a higher one goes first
    position: int | None = None  # in the queue of its function, 1 for the next one
    starts_in_s: float | None = None  # an estimate
    hang: str | None = None  # as of its device, where it is the job that hangs


class DownloadStatus(msgspec.Struct):
    """One download."""

    ref: str
    bytes_done: int  # with what was there before
    bytes_total: int | None  # null while nobody knows
    bytes_per_s: float | None  # since it began
    state: str  # `downloading` or `queued`
    wanted_by: list[str] = []  # functions
    retries: int = 0


class EventStatus(msgspec.Struct):
    """One line of the supervisor's recent history."""

    seq: int  # grows by one with each event
    ts: float  # Unix time
    level: Literal["info", "warning", "error"]
    source: str  # a device, a function, or a part of the supervisor
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
    reason: str | None = None  # why it is not served
    queued: int = 0  # jobs that wait
    median_run_s: float | None = None  # of the latest runs that ended well
    stall_limit_s: float | None = None  # without anything new, after which a job counts as stalled
    ended: dict[str, int] = {}  # jobs by how they ended: "ok" or the kind of error
    run: "HistogramStatus | None" = None
    wait: "HistogramStatus | None" = None  # in the queue


class MemoryStatus(msgspec.Struct):
    """The host memory that this supervisor and its children may take: of the host, or of their cgroup."""

    used: int  # bytes that cannot be had back
    limit: int  # bytes
    reserve: int  # bytes below which a child is ended
    source: str  # `host`, `cgroup v1` or `cgroup v2`
    oom_kills: int | None = None  # processes that the kernel ended for lack of memory

    @property
    def left(self) -> int:
        """Bytes that can still be had."""
        return max(0, self.limit - self.used)


class Status(msgspec.Struct):
    """One supervisor at one moment."""

    ts: float  # Unix time
    host: str
    version: str  # of gen-worker
    pid: int  # of the supervisor
    uptime_s: float
    schema: int = SCHEMA  # of this document
    link: LinkStatus | None = None  # null without an orchestrator
    cpu_percent: float | None = None  # 0 to 100, of the cores that it may use
    ram_used: int | None = None  # of the host
    ram_total: int | None = None
    disk_used: int | None = None  # of the disk that models are on
    disk_total: int | None = None
    net_bps: float | None = None  # bytes received in a second, of all networks but the loopback
    gpus: list[DeviceStatus] = []  # devices: CPU slots, too
    jobs: list[JobStatus] = []  # that have not ended
    downloads: list[DownloadStatus] = []  # under way, and waiting
    models: list[HostModelStatus] = []  # that functions need
    host_memory_used: int | None = None  # by models held in host memory
    host_memory_budget: int | None = None  # that models may take of it
    vram_margin: int | None = None  # that stays free of each GPU
    events: list[EventStatus] = []  # the latest, the oldest first
    functions: list[FunctionStatus] = []
    draining: bool = False  # it takes no more jobs and ends
    jobs_done: int = 0  # that ended well
    jobs_failed: int = 0
    serve: str | None = None  # where requests come in
    loop_lag_p99_s: float | None = None  # how late its loop was in the last minute
    loop_lag_max_s: float | None = None
    memory: MemoryStatus | None = None  # null where the kernel does not tell
    quarantined: int = 0  # payloads that are refused
    postmortems: int = 0  # written since it started
    ready: bool = False  # the start is over, and some child takes jobs: it is not drained and does not hang
    cpu_count: float | None = None  # cores that it may use
    downloaded_bytes: int = 0  # since it started
    jobs_left_out: int = 0  # waiting jobs that are not listed
    http: str | None = None  # where probes and metrics are served
    loads: dict[str, HistogramStatus] = {}  # of models, by where they came from: the host's "ram", or its "disk"
