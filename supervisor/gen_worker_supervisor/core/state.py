"""What the supervisor knows: devices, their children, functions, jobs.

Plain values; those made for every job are msgspec Structs, which are made three times as fast as dataclasses. Nothing
here sends, spawns, waits or looks at a clock.
"""

import heapq
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any, Literal, Protocol, TypeAlias

import msgspec

from gen_worker.models.wanted import Slot, overridden_instance
from gen_worker.tracing import Span
from gen_worker.wire.fetching import Destination
from gen_worker.wire.messages import (
    Body,
    EarlierRun,
    Encoding,
    Engine,
    ErrorDetail,
    ErrorKind,
    Event,
    InputFile,
    Lane,
    Producing,
    Resident,
)
from gen_worker.wire.survey import SurveyedFunction
from gen_worker_supervisor.core.blame import Blame
from gen_worker_supervisor.core.bodies import OutputBody, Payload
from gen_worker_supervisor.core.catalog import Catalog
from gen_worker_supervisor.core.evidence import Evidence, Hang, MemoryReading, Watch
from gen_worker_supervisor.core.ladder import Ending
from gen_worker_supervisor.core.phases import ENDED, NEXT_JOB, NEXT_PHASE, Health, JobState, Phase, step
from gen_worker_supervisor.core.queues import Queue
from gen_worker_supervisor.core.tenants import Tenants
from gen_worker_supervisor.core.verdicts import SETUP_FAILED, Verdict

FAST_RUN_S = 0.005  # a function whose median run is shorter is leased ahead, so that its child never waits for the next
LEASED_AHEAD = 16
FAULT_S = 5.0  # what a driver reports, and the end of a program by it, are told so far apart at most
NAMED_KEPT = 8  # functions with models that requests named, before those that nobody uses are forgotten
LOOKS_KEPT = 120  # of each child: two minutes
TIMERS_KEPT = 32  # before those of ended jobs and dead children are looked for
UNKNOWN_RUN_S = 1.0  # until a function has run; long enough that a second child is put to use
UNKNOWN_LOAD_S = 0.5
UNKNOWN_MODEL_LOAD_S = 5.0  # of what has models: a second copy is not loaded before it is known what that costs


_READY, _BUSY, _LOADING = Phase.READY, Phase.BUSY, Phase.LOADING  # read for every job


class Client(Protocol):
    """Who asked for a job. Each call is made on the loop and must return at once."""

    link: str

    def answer(self, job: "Job", outcome: "Outcome", body: OutputBody) -> None:
        """Take the job's one answer; an `Output` is to be released once it was passed on."""
        ...

    def item(self, job: "Job", body: OutputBody, content_type: str) -> None:
        """Take a stream item; call `Supervisor.more` once it was passed on. Only `wire` jobs have content types."""
        ...

    def event(self, job: "Job", event: Event) -> None:
        """Take a progress or log event; only called for jobs that asked."""
        ...

    def rerun(self, job: "Job") -> None:
        """Forget the items so far: the job starts again."""
        ...


@dataclass(slots=True, eq=False)
class Function:
    """One routable function: its queue and what was learnt of it."""

    surveyed: SurveyedFunction
    queue: "Queue[Job]" = field(default_factory=Queue)
    waiting: int = 0
    parked: int = 0  # jobs that wait for what they asked for, in no queue
    runs: deque[float] = field(default_factory=lambda: deque(maxlen=31))
    finished: int = 0
    median_s: float | None = None
    unavailable: str | None = None
    available_at: float = 0.0
    longest_gap_s: float = 0.0  # that a job of it took to get on, and got on
    verdict: Verdict = SETUP_FAILED
    stack: tuple[str, ...] = ()
    reserving: "Job | None" = None  # its next job, which runs alone: a child is kept free for it
    refused_at: int = -1  # the fleet's `changes` when no child had room for its next job
    key: str = ""  # names its queue: its own name, that of the instance where a request named the models, its device
    device: str = ""  # the only device for its jobs, where whoever asks chooses that
    gpus: int = 0  # that each device for its jobs has, where there are groups; 0: any that are enough
    clear: bool = False  # nothing stood against its jobs when that was last looked at, and nothing has changed since
    chosen: bool = False  # its models are those that a request named
    fast: bool = False  # whether it pays to lease its jobs ahead
    lane: Lane = field(init=False)  # its jobs run in
    own: SurveyedFunction = field(init=False)  # as its author bound it; `surveyed` may have other models

    def __post_init__(self) -> None:
        self.key = self.key or self.name
        self.own = self.surveyed
        self.lane = self.surveyed.lane

    @property
    def name(self) -> str:
        """Its routable name."""
        return self.surveyed.name

    @property
    def run_s(self) -> float:
        """How long a run takes, as far as is known."""
        return UNKNOWN_RUN_S if self.median_s is None else self.median_s

    def ran(self, seconds: float) -> None:
        """Learn from a run that ended well."""
        self.runs.append(seconds)
        self.finished += 1
        if self.finished < 8 or self.finished % 16 == 0:
            self.median_s = statistics.median(self.runs)
            self.fast = self.median_s < FAST_RUN_S


@dataclass(slots=True, eq=False)
class Instance:
    """What was learnt of setting up one instance of an author's class."""

    load_s: float = UNKNOWN_LOAD_S
    learned: bool = False
    failures: int = 0
    engine_deaths: int = 0  # in a row, since a job on it last ended well
    refused: dict[str, float] = field(default_factory=dict)  # until when by device, after a load failed there


class Job(msgspec.Struct, eq=False):
    """One accepted request, from its admission to its one answer."""

    number: int
    client: Client
    request_id: str
    attempt: int
    named: bool  # by its client; only then can it come again
    function: Function
    payload: Payload
    encoding: Encoding
    stream: bool
    events: bool
    submitted: float
    deadline: float | None = None
    remote: bool = False  # its client may be on another machine
    state: JobState = JobState.QUEUED
    child: "Child | None" = None
    started: float | None = None
    deaths: int = 0
    losses: int = 0  # children that died with it before it was seen to start
    alone: bool = False
    waiting: bool = False  # in its function's queue
    ending: Ending | None = None
    recalled: bool = False
    again: bool = False  # it was with a child before
    progress: float | None = None
    stage: str | None = None
    reruns: bool = True  # whether it runs again here when its child dies; else its client is told, who may ask again
    destination: Destination | None = None  # where its files go; None: into a folder of this host
    inline_file_bytes: int = 0  # files up to this size go into their assets and nowhere else
    wire: bool = False  # it came over the link to an orchestrator
    inputs: list[InputFile] | None = None  # those that its payload names by URLs, once it has asked for them
    fetching: bool = False  # it waits for them, or is held, and is in no queue
    held: bool = False  # until another job with its payload has told whether that kills
    tenant: str = ""  # for whom it is: tenants take turns
    priority: int = 0  # a higher one goes first
    moved_at: float = 0.0  # when it was last seen to get on, from its start on
    unread: int = 0  # items of its stream that its reader has not taken
    saving: int = 0  # files that it waits for to be kept
    span: Span | None = None  # its place in a trace
    earlier: EarlierRun | None = None  # what the earlier wire said of it
    producing: Producing | None = None  # of a producer's job

    @property
    def instance(self) -> str:
        """What it runs on: its function's instance, which has the models that it named if it named any."""
        return self.function.surveyed.instance

    @property
    def held_up(self) -> bool:
        """Whether it may wait for somebody else: for who reads it, or for us."""
        return self.unread > 0 or self.saving > 0 or self.function.surveyed.realtime

    @property
    def ended(self) -> bool:
        """Whether it was answered."""
        return self.state in ENDED

    def move(self, state: JobState) -> None:
        """Go to another state of the table."""
        self.state = step(NEXT_JOB, self.state, state)

    @property
    def identity(self) -> tuple[str, str, int]:
        """What makes it the same job for its link."""
        return (self.client.link, self.request_id, self.attempt)


@dataclass(slots=True, eq=False)
class Child:
    """One child process of one generation."""

    device: "Device"
    generation: int
    born: float
    phase: Phase = Phase.FORKING
    pid: int | None = None
    job_thread: int = 0  # as a stack dump names it
    job_tid: int = 0  # as the kernel names it
    ready: bool = False
    credits: dict[Lane, int] = field(default_factory=dict)
    leased: dict[int, Job] = field(default_factory=dict)
    used: dict[Lane, int] = field(default_factory=lambda: {"device": 0, "loop": 0})
    in_turn: int = 0  # jobs leased for the device since it last had none
    loaded: set[str] = field(default_factory=lambda: {""})
    complete: bool = False  # it has set up all that an eager fleet asks of it
    loading: str | None = None
    loading_done: int = 0  # bytes of the models of what it sets up
    loading_total: int = 0
    models: dict[str, list[Resident]] = field(default_factory=dict)  # by instance
    used_at: dict[str, float] = field(default_factory=dict)  # when a job last ran on an instance with models
    loaded_at: float = 0.0
    set_up: dict[str, tuple[float, float]] = field(default_factory=dict)  # when an instance was, and how long it took
    crowded: bool = False  # models had to go from it, so the next one costs another
    rungs: dict[str, str] = field(default_factory=dict)  # how instances are placed, those that are not plainly
    engines: dict[str, Engine] = field(default_factory=dict)  # what the servers of instances are at, of those with one
    reserved: Job | None = None
    retiring: bool = False
    spoilt: bool = False  # an interrupt or a CUDA error may have broken anything in it
    forgone: bool = False  # it was to come into a device's place, and is not wanted there any more
    replaced: bool = False  # another one is in the place that it had
    pinned: frozenset[str] = frozenset()  # instances that it was told to let go of for no other
    going: set[str] = field(default_factory=set)  # instances that go once their jobs here have ended
    ending: Ending | None = None  # whose rung ended the process, when ours did
    killed: bool = False  # a SIGKILL was sent
    import_error: str | None = None
    hang: Hang | None = None
    looks: deque[Evidence] = field(default_factory=lambda: deque(maxlen=LOOKS_KEPT))  # the latest last
    watch: Watch = field(default_factory=Watch)
    postmortem: str = ""  # what the record of its death is called, from then on
    doom: str = ""  # what we end it for, where that is to be its death's cause: "host_oom", "hang"
    done: int = 0  # jobs that ended well in it
    settled_rss: int = 0  # what its memory was when it had done its first jobs
    rss: int = 0
    usual_rss: int = 0  # what it took when it was ready, or had set up what it has; or less, as was seen since

    def move(self, phase: Phase) -> None:
        """Go to another phase of the table."""
        if phase is not self.phase:
            self.phase = step(NEXT_PHASE, self.phase, phase)

    @property
    def serving(self) -> bool:
        """Whether it may be given work."""
        phase = self.phase
        return (phase is _READY or phase is _BUSY or phase is _LOADING) and not self.retiring

    def drop(self, instance: str) -> None:
        """Record that it does not hold an instance any more."""
        self.loaded.discard(instance)
        self.going.discard(instance)
        self.models.pop(instance, None)
        self.used_at.pop(instance, None)
        self.set_up.pop(instance, None)
        self.rungs.pop(instance, None)
        self.engines.pop(instance, None)
        self.complete = False

    def settle_phase(self) -> None:
        """Set the phase that follows from what it does."""
        phase = self.phase
        if phase is _READY or phase is _BUSY or phase is _LOADING:
            following = _LOADING if self.loading is not None else _BUSY if self.leased else _READY
            if following is not phase:
                self.phase = step(NEXT_PHASE, phase, following)


@dataclass(slots=True, eq=False)
class Device:
    """One GPU, one CPU slot, or a group of them, and the child that owns it."""

    name: str
    kind: Literal["cpu", "cuda"]
    index: int | None = None
    uuid: str | None = None
    vram_total: int | None = None
    product: str = ""  # what its maker calls it
    sm: str = ""  # its compute capability, "89" for 8.9
    profile: str | None = None  # "1g.10gb" where it is a part of a GPU, as MIG divides them
    budget_bytes: int = 0  # what models and jobs may take of it; 0: what there is, less the margin
    takes_gpu_functions: bool = True
    takes_cpu_functions: bool = True
    health: Health = Health.OK
    child: Child | None = None
    proven: bool = False  # a child of it was ready once
    deaths_in_row: int = 0  # since a job last ended well here
    early_deaths: int = 0  # in a row, each before the child was ready
    restarts: int = 0
    restart_at: float | None = None
    given_up: str | None = None
    coming: Child | None = None  # takes the place of `child` once it has loaded what that one holds
    leaving: list[Child] = field(default_factory=list)  # had that place before and are on their way out
    replace_at: float = 0.0  # until then its child is not replaced for its own good
    reason: str = ""  # why it is not OK
    busy: float | None = None  # the share of the last second in which it computed, as the driver says
    temperature: float | None = None
    watts: float | None = None
    vram_used: int | None = None  # bytes, of whomever, as the driver says
    usual_rss: int = 0  # what its last child took when it had set up what it has: the next one may take as much
    vram_baseline: int | None = None  # what was in use before there was a child; None: nobody measures it
    settle_by: float | None = None  # until when a dead child's memory may take to come back
    unattributed: int = 0  # bytes that a dead child had and that did not come back
    deaths: dict[str, int] = field(default_factory=dict)  # of its children, by what `deaths.counted_as` says
    resting: set[str] = field(default_factory=set)  # as `Fleet.resting`, on this device
    fault: str = ""  # what its driver reported last
    fault_at: float = -inf
    drained: bool = False  # by an operator: it is given no jobs
    members: list["Device"] = field(default_factory=list)  # of a group, as its child counts them; they have no child

    @property
    def gpus(self) -> list["Device"]:
        """The GPUs, or CPU slots that stand for them, that it consists of: itself where it is no group."""
        return self.members or [self]

    @property
    def gpu_count(self) -> int:
        """How many these are."""
        return len(self.members) or 1

    def is_called(self, name: str) -> bool:
        """Whether it has this name, or one of its members has."""
        return self.name == name or any(each.name == name for each in self.members)

    def sum_up(self) -> None:
        """Learn of a group what was measured of its members."""
        if not self.members:
            return
        self.vram_used = _sum(each.vram_used for each in self.members)
        self.vram_baseline = _sum(each.vram_baseline for each in self.members)
        self.unattributed = sum(each.unattributed for each in self.members)
        shares = [each.busy for each in self.members if each.busy is not None]
        self.busy = sum(shares) / len(shares) if shares else None
        self.temperature = max(
            (each.temperature for each in self.members if each.temperature is not None), default=None
        )
        watts = [each.watts for each in self.members if each.watts is not None]
        self.watts = sum(watts) if watts else None

    @property
    def held(self) -> bool:
        """Whether a job of a child that leaves still runs on it: never two at once."""
        return any(child.used["device"] for child in self.leaving)

    @property
    def allowed_bytes(self) -> int:
        """What models and jobs may take of it; 0: what is free, less the margin."""
        return max(1, self.budget_bytes - self.unattributed) if self.budget_bytes else 0

    def recent_fault(self, now: float) -> str:
        """Return what its driver reported just now: that is why what runs on it fails."""
        return self.fault if now - self.fault_at < FAULT_S else ""

    @property
    def lost(self) -> bool:
        """Whether it will never have another child."""
        return self.given_up is not None or self.health is Health.RETIRED

    @property
    def loss(self) -> str:
        """Why it will have none."""
        return self.given_up or f"{self.name} is retired: {self.reason}"


def _sum(values: Iterable[int | None]) -> int | None:
    """Return the sum, None where one of them is not known."""
    known = list(values)
    return None if None in known else sum(each for each in known if each is not None)


@dataclass(frozen=True, slots=True)
class Death:
    """How a child's process ended."""

    cause: str  # "SIGSEGV", "exit code 7"
    signal: str | None = None
    exit_code: int | None = None
    stack: tuple[str, ...] = ()
    printed: tuple[tuple[int, str], ...] = ()  # the last lines, each with its job's number, 0 when unknown
    unborn: bool = False  # there was no process: no memory, descriptor or pid for one
    oom_kills: int = 0  # of the kernel, in our cgroup, while it died


class Outcome(msgspec.Struct):
    """A job's one answer."""

    state: JobState
    body: Body = b""
    yielded: int = 0
    run_s: float = 0.0
    kind: ErrorKind | None = None
    message: str = ""
    retryable: bool = False
    detail: ErrorDetail | None = None
    peak_rss: int = 0  # bytes; 0: not measured
    peak_vram: int = 0
    together: int = 1  # jobs that one call ran, this among them
    raised: tuple[str, ...] = ()  # the names of the exception's class and of those above it


Timer: TypeAlias = tuple[
    Literal["deadline", "ending", "respawn", "boot", "drain", "drained", "unkillable", "settle", "recycle", "look"], Any
]


class Recycling(msgspec.Struct, frozen=True):
    """When a child is replaced that works well; 0: not for that."""

    jobs: int = 0
    growth_bytes: int = 0
    age_s: float = 0.0

    @property
    def by_work(self) -> bool:
        """Whether what a child does is looked at after every job."""
        return bool(self.jobs or self.growth_bytes)


@dataclass(slots=True, eq=False)
class NextCode:
    """Other code of the author's that is to take the place of what is served."""

    number: int
    functions: dict[str, SurveyedFunction]
    after: int  # later generations of children have it
    awaited: set[str] = field(default_factory=set)  # devices where a child of it boots beside the present one


@dataclass(slots=True, eq=False)
class Fleet:
    """Everything, at one moment."""

    functions: dict[str, Function]
    devices: list[Device]
    max_queued: int = 10_000
    max_queued_per_function: int = 0  # 0: any, within that
    stall_timeout_s: float = 120.0  # 0: never
    recycling: Recycling = Recycling()  # noqa: RUF009 - it is frozen
    epoch: float | None = None  # what clocks on walls say when ours is at 0; None: no record is kept of deaths
    memory_reserve: int = 0  # bytes; 0: nobody guards the memory
    memory: MemoryReading | None = None
    short_looks: int = 0  # at the memory, in a row, that found too little of it
    short_told: bool = False  # somebody was told of that, and not of its end
    max_queued_bytes: int = 1 << 30
    max_input_bytes: int = 64 << 20
    max_output_bytes: int = 64 << 20
    instances: dict[str, Instance] = field(default_factory=dict)
    catalog: Catalog = field(default_factory=Catalog)
    named: dict[str, Function] = field(default_factory=dict)  # functions with models that a request named, by key
    pinned: dict[str, Function] = field(default_factory=dict)  # functions for jobs of one device, by key
    superseded: list[Function] = field(default_factory=list)  # of these two: they have jobs, and get no more of them
    loads: dict[str, str] = field(default_factory=dict)  # instances somebody wants set up: why one cannot be, or ""
    resting: set[str] = field(default_factory=set)  # instances that an eager fleet leaves until a job needs them
    ordered: dict[tuple[str, str], str] = field(
        default_factory=dict
    )  # instances an operator wants on a device: why one cannot be, or ""
    pins: frozenset[tuple[str, str]] = frozenset()  # models by name, and devices that let go of them for no other
    going: bool = False  # some child may have instances that go once their jobs have ended
    kept: frozenset[str] = frozenset()  # refs whose functions are not forgotten
    number_of_superseded: int = 0
    replacing: bool = False  # some device may have a child that comes
    next_code: NextCode | None = None
    untidy: bool = False  # there may be functions and instances that nobody needs any more
    placed: int = 0  # changes of where models are
    jobs: dict[int, Job] = field(default_factory=dict)
    by_identity: dict[tuple[str, str, int], Job] = field(default_factory=dict)
    waiting: dict[str, Function] = field(
        default_factory=dict
    )  # functions with a queue, the one served longest ago first
    queued: int = 0
    queued_bytes: int = 0
    tenants: Tenants = field(default_factory=Tenants)
    tenants_of: dict[str, Tenants] = field(default_factory=dict)  # by function, where each has a limit of its own
    blame: Blame = field(default_factory=Blame)
    held: dict[tuple[str, bytes], deque[Job]] = field(default_factory=dict)  # jobs, by function and payload's digest
    timers: list[tuple[float, int, Timer]] = field(default_factory=list)
    armed: int = 0
    tidy_at: int = TIMERS_KEPT  # so many timers
    generation: int = 0
    number: int = 0
    changes: int = 0  # happenings that may have made room for a job
    draining: bool = False
    drained: bool = False  # some device is
    finished: bool = False
    done: int = 0
    failed: int = 0
    eager: bool = False  # children set up every instance they can hold, whether a job waits for it or not
    booting: bool = True  # nobody was told yet that this fleet is ready

    def __post_init__(self) -> None:
        self.share_out()

    def share_out(self) -> None:
        """Have each function run on the devices with the fewest GPUs that can hold it, of those that are not lost.

        So a group is kept for what needs one, but for functions that no smaller device can hold.
        """
        if not any(device.members for device in self.devices):
            return
        for function in self.variants():
            function.gpus = 0
            able = [device.gpu_count for device in self.devices if not device.lost and holds(device, function)]
            function.gpus = min(able, default=0)

    def instance(self, name: str) -> Instance:
        """Return what was learnt of an instance."""
        known = self.instances.get(name)
        if known is None:
            load_s = UNKNOWN_MODEL_LOAD_S if self.slots_of(name) else UNKNOWN_LOAD_S
            known = self.instances[name] = Instance(load_s)
        return known

    def variants(self) -> Iterator[Function]:
        """Return every function, and with them those that requests made by naming other models or a device."""
        yield from self.functions.values()
        yield from self.named.values()
        yield from self.pinned.values()

    def slots_of(self, instance: str) -> list[Slot]:
        """Return the slots of an instance."""
        return next((each.surveyed.slots for each in self.variants() if each.surveyed.instance == instance), [])

    def with_models(self, function: Function, instance: str, slots: list[Slot]) -> Function:
        """Return the function on an instance with other models: its jobs wait apart from those of the function."""
        key = f"{function.name} {instance}"
        if key not in self.named:
            self.named[key] = _variant(function, instance, slots, key)
            self.named[key].chosen = self.untidy = True
        elif self.named[key] in self.superseded:
            self.superseded.remove(self.named[key])  # what its ref stood for before, it stands for again
        return self.named[key]

    def chosen_models(self, function: Function) -> dict[str, str]:
        """Return the refs by slot of a function whose models a request named; empty for any other."""
        if not function.chosen:
            return {}
        return {slot.name: self.catalog.name_of(slot.wanted) for slot in function.surveyed.slots}

    def rebind(self, name: str, slots: list[Slot]) -> bool:
        """Have later jobs of a function run with these models; those that it has keep the ones they came for.

        Returns whether it had others.
        """
        before = self.functions[name]
        instance = overridden_instance(before.own.instance, before.own.slots, slots)
        if instance == before.surveyed.instance:
            return False
        self.functions[name] = after = _variant(before, instance, slots, name)
        after.runs, after.finished, after.median_s = before.runs, before.finished, before.median_s
        after.fast = before.fast
        self._supersede(before, self.named)
        for device in self.devices:
            pinned = self.pinned.pop(f"{name} @{device.name}", None)
            if pinned is not None:
                self._supersede(pinned, self.pinned)
            if device.child is not None:
                device.child.complete = False
        self.untidy = True
        self.placed += 1
        return True

    def supersede(self, function: Function) -> None:
        """Have a function, or a variant of one, lead its jobs to their end, and get no more of them."""
        for table in (self.functions, self.named, self.pinned):
            if table.get(function.key) is function:
                del table[function.key]
        if function not in self.superseded:
            self._supersede(function, self.pinned if function.device else self.named)

    def _supersede(self, function: Function, among: dict[str, Function]) -> None:
        """Have a function lead its jobs to their end under another key than the one that gets the next jobs."""
        key, waiting = function.key, self.waiting.pop(function.key, None)
        self.number_of_superseded += 1
        function.key = f"{key} #{self.number_of_superseded}"
        if waiting is not None:
            self.waiting[function.key] = function
        among[function.key] = function
        self.superseded.append(function)

    def on_device(self, function: Function, device: Device) -> Function:
        """Return the function for jobs that run on one device only: they wait apart from the others."""
        key = f"{function.key} @{device.name}"
        if key not in self.pinned:
            made = _variant(function, function.surveyed.instance, function.surveyed.slots, key)
            made.device, made.chosen = device.name, function.chosen
            self.pinned[key] = made
        return self.pinned[key]

    def doubt(self, name: str = "") -> None:
        """Something changed that may stand against jobs, of one function or of all: look before the next is taken."""
        for function in self.variants():
            if name in ("", function.name):
                function.clear = False

    def arm(self, at: float, timer: Timer) -> None:
        """Have `Ticked` look at something at this time."""
        self.armed += 1
        heapq.heappush(self.timers, (at, self.armed, timer))
        if len(self.timers) > self.tidy_at:
            self.timers = [armed for armed in self.timers if not self._is_idle(armed[2])]
            heapq.heapify(self.timers)
            self.tidy_at = 2 * len(self.timers) + TIMERS_KEPT

    def _is_idle(self, timer: Timer) -> bool:
        """Whether a timer is the deadline of a job that has ended, or of a child that is dead."""
        kind, subject = timer
        if kind == "deadline":
            return subject not in self.jobs
        return isinstance(subject, Child) and subject.phase in (Phase.SETTLING, Phase.BACKOFF)

    def next_due(self) -> float | None:
        """Return when `Ticked` must come."""
        return self.timers[0][0] if self.timers else None

    def children(self) -> list[Child]:
        """Return every child that has a process or is to have one: those that come and go, too."""
        found: list[Child] = []
        for device in self.devices:
            found += [each for each in (device.child, device.coming) if each is not None]
            found += device.leaving
        return found

    def serving(self) -> list[Child]:
        """Return the children that may be given work; those of drained devices only what is no job.

        One with the code that is to come, since the one before it died meanwhile, waits until that code is served.
        """
        found = [device.child for device in self.devices if device.child is not None and device.child.serving]
        if self.next_code is not None:
            return [child for child in found if child.generation <= self.next_code.after]
        return found

    def enqueue(self, job: Job, *, front: bool = False) -> None:
        """Put a job into its function's queue; to the `front` comes one that was first before."""
        function = job.function
        function.queue.push(job, front=front)
        function.waiting += 1
        self.queued += 1
        self.queued_bytes += job.payload.length
        if job.tenant:
            self._count_tenant(job, Tenants.enter)
        self.waiting.setdefault(function.key, function)

    def first(self, function: Function, now: float) -> Job:
        """Return the next job of a function that is in `waiting`; a child kept free for another is so no more."""
        job = function.queue.first(now)
        if function.reserving is not None and function.reserving is not job:
            for child in (device.child for device in self.devices if device.child is not None):
                if child.reserved is function.reserving and child.reserved.waiting:
                    self.unreserve(child)
            function.reserving = None
        return job

    def unreserve(self, child: Child) -> None:
        """Keep a child free for nobody any more: jobs for which there was no room may run there."""
        child.reserved = None
        self.changes += 1

    def dequeue(self, job: Job, *, served: float | None = None) -> None:
        """Take a job out of its function's queue, wherever it stands; `served`: when a child took it."""
        function = job.function
        if served is None:
            function.queue.drop(job)
        else:
            function.queue.serve(job, served)
        function.waiting -= 1
        self.queued -= 1
        self.queued_bytes -= job.payload.length
        if job.tenant:
            self._count_tenant(job, Tenants.leave)
        if not function.waiting:
            del self.waiting[function.key]

    def park(self, job: Job) -> None:
        """Have a job wait for what it asked for: in no function's queue, but as one of those that wait."""
        job.fetching = True
        job.function.parked += 1
        self.queued += 1
        self.queued_bytes += job.payload.length
        if job.tenant:
            self._count_tenant(job, Tenants.enter)

    def unpark(self, job: Job) -> None:
        """End such a wait."""
        job.fetching = False
        job.function.parked -= 1
        self.queued -= 1
        self.queued_bytes -= job.payload.length
        if job.tenant:
            self._count_tenant(job, Tenants.leave)

    def _count_tenant(self, job: Job, how: Callable[[Tenants, str, int], None]) -> None:
        how(self.tenants, job.tenant, job.payload.length)
        if self.max_queued_per_function:
            how(self.tenants_of.setdefault(job.function.name, Tenants()), job.tenant, job.payload.length)


def _variant(function: Function, instance: str, slots: list[Slot], key: str) -> Function:
    """Return a function with other models, or another device, of which nothing was learnt yet."""
    made = Function(msgspec.structs.replace(function.own, instance=instance, slots=slots), key=key)
    made.own, made.gpus = function.own, function.gpus
    return made


def unloaded(fleet: Fleet, child: Child) -> list[str]:
    """Return the instances that an eager child has yet to set up, those that never can be left out."""
    if child.complete:
        return []
    wanted = {
        function.surveyed.instance: None
        for function in fleet.functions.values()
        if holds(child.device, function) and (function.unavailable is None or isfinite(function.available_at))
    }
    left = [
        instance
        for instance in wanted
        if not (instance in child.loaded or _rests(fleet, child, instance) or _takes_turns(fleet, child, instance))
    ]
    child.complete = not left
    return left


def _rests(fleet: Fleet, child: Child, instance: str) -> bool:
    """Whether somebody had an instance unloaded here: then a job has to need it."""
    return instance in fleet.resting or instance in child.device.resting


def _takes_turns(fleet: Fleet, child: Child, instance: str) -> bool:
    """Whether another model would have to go for one that was set up before: then only a job is worth that."""
    known = fleet.instances.get(instance)
    return child.crowded and known is not None and known.learned and bool(fleet.slots_of(instance))


def holds(device: Device, function: Function) -> bool:
    """Whether a function may run on a device at all."""
    surveyed = function.surveyed
    if not takes(device, function) or (function.device and function.device != device.name) or surveyed.missing:
        return False
    if too_few(device, function) or (function.gpus and function.gpus != device.gpu_count):
        return False
    if surveyed.compute_capability is None and surveyed.vram_gb is None:  # asked for each job: the shortest way
        return True
    return not (too_old(device, function) or too_small(device, function))


def drained_away(fleet: Fleet, function: Function) -> str:
    """Return why a function is not served although it could be: an operator has drained what is left for it; or ""."""
    if not fleet.drained:
        return ""
    known = fleet.instances.get(function.surveyed.instance)
    refused = {} if known is None else known.refused
    able = [each for each in fleet.devices if holds(each, function) and not each.lost and refused.get(each.name) != inf]
    if not able or not all(device.drained for device in able):
        return ""
    drained = f"`{function.device}` is" if function.device else "every device for it is"
    return f"{drained} drained by an operator"


def takes(device: Device, function: Function) -> bool:
    """Whether a device is there for functions of this kind."""
    return device.takes_gpu_functions if function.surveyed.gpu else device.takes_cpu_functions


def too_few(device: Device, function: Function) -> bool:
    """Whether a function needs more GPUs than the device has; a CPU slot counts as the GPU that it stands for."""
    return device.gpu_count < function.surveyed.gpu_count


def too_old(device: Device, function: Function) -> bool:
    """Whether a function declares a compute capability that the GPU has not; a CPU stands for a GPU of any age."""
    declared = function.surveyed.compute_capability
    return device.kind == "cuda" and bool(device.sm) and declared is not None and int(device.sm) < round(declared * 10)


def too_small(device: Device, function: Function) -> bool:
    """Whether a function declares more memory than there is of so many GPUs of the device as it asks for.

    A CPU stands for a GPU of any size, unless somebody said what it may take.
    """
    declared = function.surveyed.vram_gb
    if declared is None:
        return False
    if device.budget_bytes:
        return capacity_bytes(device, function) < declared * (1 << 30)
    if device.kind == "cpu" or device.vram_total is None:
        return False
    asked = device.gpus[: function.surveyed.gpu_count]
    return sum(round((gpu.vram_total or 0) / (1 << 30)) for gpu in asked) < declared  # a 24 GB card reports 23.99 GiB


def capacity_bytes(device: Device, function: Function) -> int:
    """Return what there is of so many GPUs of a device as a function asks for, or what may be taken of them."""
    count = function.surveyed.gpu_count
    if device.budget_bytes:
        return device.budget_bytes * count // device.gpu_count
    return sum(gpu.vram_total or 0 for gpu in device.gpus[:count])


def unheld(fleet: Fleet, function: Function) -> str:
    """Return why no device can hold a function."""
    if function.surveyed.missing:
        named = ", ".join(f"`{name}`" for name in function.surveyed.missing)
        return f"missing_cuda_library: not installed here: {named}"
    there = [device for device in fleet.devices if takes(device, function)]
    if not there:
        return "no device of this host can hold it" if not function.surveyed.gpu else "cuda_unavailable: it needs a GPU"
    if all(too_few(device, function) for device in there):
        most = max(device.gpu_count for device in there)
        here = f"the largest group here has {most}" if most > 1 else "and no device here is a group"
        return f"insufficient_gpus: it needs {function.surveyed.gpu_count} GPUs in one group, {here}"
    there = [device for device in there if not too_few(device, function)]
    old = [int(device.sm) for device in there if too_old(device, function)]
    if len(old) == len(there):
        declared = function.surveyed.compute_capability
        return f"compute_capability_unmet: it declares {declared:g}, the newest device here has {max(old) / 10:g}"
    small = [device for device in there if too_small(device, function)]
    if not small:
        return "no device of this host can hold it"
    most_gb = max(capacity_bytes(device, function) for device in small) / (1 << 30)
    declared = function.surveyed.vram_gb
    return f"insufficient_vram: it declares {declared:g} GB, the largest device here may take {most_gb:.3g} GB"
