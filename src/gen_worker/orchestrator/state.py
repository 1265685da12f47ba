"""What the control plane knows: workers, jobs, queues; and the words for what happens and what to do.

Plain values. Nothing here sends, stores, waits or looks at a clock.
"""

import heapq
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from random import Random
from typing import Literal, NamedTuple, TypeAlias

from gen_worker.orchestrator.views import EventKind, JobRequest, JobView, Status, WorkerView
from gen_worker.wire.scheduler import (
    Hello,
    InFlightJob,
    JobMetrics,
    ModelOp,
    ModelOpKind,
    ModelResidency,
    ResidencyTier,
    SchedulerFrame,
    StateDelta,
    WorkerFrame,
    WorkerPhase,
    WorkerResources,
)

UNKNOWN_RUN_S = 1.0  # until a function has run
SOONEST_AGAIN_S, LATEST_AGAIN_S = 0.1, 60.0  # when a caller that found the queue full may come again
LONGEST_RUN_S = 86400.0
AHEAD = 1  # jobs that a worker has beyond one for each device, so that it never waits for the next
MOST_AHEAD = 64
SHORT_WAIT_MS = 20  # a job that waited no longer in its worker did not wait for another one
LONG_WAIT_MS = 200
USES_KEPT = 1024  # models of which it is known when a worker last had a job for them
FUNCTIONS_KEPT = 10_000  # names that workers have had
TENANTS_KEPT = 1024  # before those that have nothing waiting are forgotten
RUN_WEIGHT = 0.2  # of the newest run in what is known of a function's runs


class Phase(StrEnum):
    """How far a job is."""

    QUEUED = "queued"
    WAITING = "waiting"  # to be tried again: until its time has come and its new attempt is on disk
    ASSIGNED = "assigned"  # it was sent; the worker has not said that it has it
    RUNNING = "running"
    ENDED = "ended"


NEXT_PHASE: dict[Phase, frozenset[Phase]] = {
    Phase.QUEUED: frozenset({Phase.ASSIGNED, Phase.ENDED}),
    Phase.WAITING: frozenset({Phase.QUEUED, Phase.ENDED}),
    Phase.ASSIGNED: frozenset({Phase.RUNNING, Phase.WAITING, Phase.ENDED}),
    Phase.RUNNING: frozenset({Phase.WAITING, Phase.ENDED}),
    Phase.ENDED: frozenset(),
}

SHOWN: dict[Phase, Status] = {
    Phase.QUEUED: "queued",
    Phase.WAITING: "queued",
    Phase.ASSIGNED: "assigned",
    Phase.RUNNING: "running",
    Phase.ENDED: "running",  # until its end is on disk nobody is told, so that nobody is told twice
}


class Limits(NamedTuple):
    """What bounds the tries; lengths in seconds."""

    max_attempts: int = 4
    grace_s: float = 5.0
    restart_grace_s: float = 35.0
    resend_s: float = 5.0
    max_sends: int = 3
    max_unheard: int = 2
    cancel_s: float = 45.0
    backoff_s: float = 0.5
    max_backoff_s: float = 30.0


class Ending(NamedTuple):
    """How a job ended."""

    status: Status
    code: int
    safe_message: str = ""
    output: bytes | None = None
    blob_ref: str | None = None
    metrics: JobMetrics | None = None


@dataclass(slots=True, eq=False)
class Job:
    """One accepted request, from its acceptance to its end being on disk."""

    request: JobRequest
    created: float
    refs: tuple[str, ...] = ()
    """The models that it runs with, as far as is known."""

    phase: Phase = Phase.QUEUED
    attempt: int = 1
    durable: int = 1
    """The attempt that is on disk. No worker sees a later one, so that none is ever given out twice."""

    failures: int = 0
    worker: "Worker | None" = None
    avoids: set[str] = field(default_factory=set)
    sends: int = 0
    unheard: int = 0
    """Times that its worker was lost before it said that it has it."""

    due: bool = True
    """Whether the time for its next try has come."""

    started: float | None = None
    finished: float | None = None
    """When its end was put down, however it came."""

    canceled: bool = False
    """Whether its caller has asked for its end."""

    ending: Ending | None = None
    progress: bytes | None = None
    seq: int = 0

    @property
    def request_id(self) -> str:
        """What names it."""
        return self.request.request_id

    @property
    def live(self) -> bool:
        """Whether something may still happen to it."""
        return self.phase is not Phase.ENDED

    def move(self, phase: Phase) -> None:
        """Go to another phase of the table."""
        if phase not in NEXT_PHASE[self.phase]:
            raise ValueError(f"a job that is {self.phase} cannot become {phase}")
        self.phase = phase

    def view(self, *, told: bool = False) -> JobView:
        """Return it for its callers, its end only when that may be told."""
        end = self.ending if told else None
        return JobView(
            request=self.request,
            status=SHOWN[self.phase] if end is None else end.status,
            code=end.code if end else 0,
            attempt=self.attempt,
            worker_id=self.worker.worker_id if self.worker else "",
            created=self.created,
            started=self.started,
            finished=self.finished if end else None,
            safe_message=end.safe_message if end else "",
            output=end.output if end else None,
            blob_ref=end.blob_ref if end else None,
            metrics=end.metrics if end else None,
            progress=self.progress,
            canceling=self.canceled and end is None,
        )


@dataclass(slots=True, eq=False)
class Op:
    """Something that a worker was asked to do with a model."""

    kind: ModelOpKind
    tries: int = 1
    unloaded: set[str] = field(default_factory=set)
    """Models that had to go, or could not, for it to have room."""

    then: str = ""
    """Of an unload: the ref that is loaded when this one has gone."""


@dataclass(slots=True, eq=False)
class Worker:
    """One worker, over as many streams as it takes; without a session it is awaited."""

    worker_id: str
    session: int | None = None
    since: float = 0.0
    losses: int = 0
    release_id: str = ""
    resources: WorkerResources = field(default_factory=WorkerResources)
    state: StateDelta = field(default_factory=StateDelta)
    models: dict[str, ModelResidency] = field(default_factory=dict)
    gated: dict[str, str] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    ops: dict[str, Op] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)
    """When a job was last given to it for a model, in the plane's turns."""

    limit: int = 1 + AHEAD
    draining: bool = False

    @property
    def lanes(self) -> int:
        """How many jobs it surely runs at once."""
        return max(self.resources.gpu_count, 1)

    @property
    def has_room(self) -> bool:
        """Whether it may be given another job now."""
        return self.session is not None and not self.draining and len(self.jobs) < self.limit

    @property
    def starting(self) -> bool:
        """Whether it may yet offer what it does not offer now."""
        return self.session is None or self.state.phase not in (WorkerPhase.READY, WorkerPhase.ERROR)

    @property
    def offered(self) -> tuple[str, ...]:
        """The functions that it can run, or soon can."""
        return tuple(
            function
            for function in (*self.state.available_functions, *self.state.loading_functions)
            if function not in self.gated
        )

    def offers(self, function: str) -> bool:
        """Whether it can run a function, or soon can."""
        return function in self.state.available_functions or function in self.state.loading_functions

    def tier(self, ref: str) -> ResidencyTier:
        """Where it has a model; unspecified: nowhere."""
        found = self.models.get(ref)
        return found.tier if found else ResidencyTier.UNSPECIFIED

    def learn(self, metrics: JobMetrics) -> None:
        """Learn from a job that ends: give more at once where jobs do not wait, though it has all it may, else less."""
        if metrics.queue_ms <= SHORT_WAIT_MS and len(self.jobs) >= self.limit:
            self.limit = min(self.limit + 1, self.lanes * MOST_AHEAD)
        elif metrics.queue_ms > LONG_WAIT_MS:
            self.limit = max(self.limit - 1, self.lanes + AHEAD)

    def use(self, refs: tuple[str, ...], turn: int) -> None:
        """Remember when models were last needed; of very many, those that were not for long are forgotten."""
        for ref in refs:
            self.used.pop(ref, None)
            self.used[ref] = turn
        if len(self.used) > USES_KEPT:
            self.used = dict(islice(self.used.items(), len(self.used) // 2, None))

    def view(self) -> WorkerView:
        """Return it for callers."""
        return WorkerView(
            worker_id=self.worker_id,
            release_id=self.release_id,
            connected=self.session is not None,
            since=self.since,
            phase=self.state.phase.name.lower(),
            available_functions=self.state.available_functions,
            loading_functions=self.state.loading_functions,
            unavailable_functions=dict(self.gated),
            resources=self.resources,
            free_vram_bytes=self.state.free_vram_bytes,
            models=tuple(self.models.values()),
            jobs=tuple(InFlightJob(request_id=job.request_id, attempt=job.attempt) for job in self.jobs.values()),
            draining=self.draining,
        )


# --- queues -----------------------------------------------------------------------------------------------------------


class QueueKey(NamedTuple):
    """What jobs have in common that go the same way: whoever is first of them stands for all."""

    priority: int
    tenant: str
    function: str
    refs: tuple[str, ...]


@dataclass(slots=True, eq=False)
class Queue:
    """Jobs of one kind in the order they came."""

    key: QueueKey
    jobs: deque[Job] = field(default_factory=deque)
    served: int = 0


# --- timers -----------------------------------------------------------------------------------------------------------


class Resend(NamedTuple):
    """A job was sent, and may not have arrived."""

    request_id: str
    attempt: int
    session: int


class GraceOver(NamedTuple):
    """A lost worker should have come back."""

    worker_id: str
    losses: int


class Due(NamedTuple):
    """A job may be tried again."""

    request_id: str
    attempt: int


class CancelOver(NamedTuple):
    """A worker that was told to cancel a job should have ended it."""

    request_id: str
    attempt: int


class Missed(NamedTuple):
    """A worker that ran these functions is gone for so long that it will hardly come back."""

    functions: tuple[str, ...]


class Gathered(NamedTuple):
    """Workers that knew this control plane's life before have had the time to come back."""


Timer: TypeAlias = Resend | GraceOver | Due | CancelOver | Missed | Gathered


# --- what happens -----------------------------------------------------------------------------------------------------


class Submitted(NamedTuple):
    """A job was accepted, and is on disk."""

    job: Job


class CancelAsked(NamedTuple):
    """A caller wants a job's end."""

    request_id: str


class GivenUp(NamedTuple):
    """A caller waits no longer for a worker that can take its job; nothing for one that a worker has."""

    request_id: str
    message: str


class Joined(NamedTuple):
    """A worker said Hello on a new stream."""

    session: int
    hello: Hello
    unix: float


class Left(NamedTuple):
    """A stream ended."""

    session: int


class Said(NamedTuple):
    """A worker said something after its Hello."""

    session: int
    frame: WorkerFrame
    unix: float


class DrainAsked(NamedTuple):
    """Somebody wants a worker to leave."""

    worker_id: str
    deadline_ms: int


class OpAsked(NamedTuple):
    """Somebody wants something done with a worker's model."""

    worker_id: str
    op: ModelOp


class Saved(NamedTuple):
    """A job's attempt is on disk."""

    request_id: str
    attempt: int


class Recorded(NamedTuple):
    """A job's end is on disk."""

    request_id: str


class Ticked(NamedTuple):
    """The time of a timer has come."""

    deaf: bool = False
    """Whether what workers have said waits to be heard."""


Happening: TypeAlias = (
    Submitted | CancelAsked | GivenUp | Joined | Left | Said | DrainAsked | OpAsked | Saved | Recorded | Ticked
)


# --- what to do -------------------------------------------------------------------------------------------------------


class Acknowledge(NamedTuple):
    """Greet a worker; `refs` are the models that its functions need."""

    session: int
    refs: tuple[str, ...]


class Send(NamedTuple):
    """Say something to a worker; what fetches a model is to be given its snapshot, where there is one."""

    session: int
    frame: SchedulerFrame


class Prefetch(NamedTuple):
    """Have a worker fetch a model that its functions need, if there is a snapshot of it."""

    session: int
    ref: str


class Run(NamedTuple):
    """Give a worker a job's present attempt."""

    session: int
    job: Job


class Close(NamedTuple):
    """End a stream."""

    session: int
    reason: Literal["worker_stream_superseded", "protocol_version_mismatch", "hello_expected"]


class Save(NamedTuple):
    """Put a job's attempt and worker on disk; with `confirm`, `Saved` is to follow."""

    job: Job
    confirm: bool = False


class Record(NamedTuple):
    """Put a job's end on disk; `Recorded` is to follow."""

    job: Job
    ending: Ending


class Tell(NamedTuple):
    """Something happened to a job that its watchers see."""

    job: Job
    kind: EventKind
    seq: int = 0
    content_type: str = ""
    body: bytes = b""


Action: TypeAlias = Acknowledge | Send | Prefetch | Run | Close | Save | Record | Tell


# --- all of it --------------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Plane:
    """Everything at one moment."""

    limits: Limits = field(default_factory=Limits)
    needs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    random: Random = field(default_factory=Random)
    jobs: dict[str, Job] = field(default_factory=dict)
    workers: dict[str, Worker] = field(default_factory=dict)
    sessions: dict[int, Worker] = field(default_factory=dict)
    queues: dict[str, dict[QueueKey, Queue]] = field(default_factory=dict)
    """Those that have jobs, by their function."""

    tenants: dict[str, int] = field(default_factory=dict)
    """When a tenant was last served, in turns; of those with waiting jobs it is always known."""

    tenants_kept: int = TENANTS_KEPT
    """With more of them, those that have nothing waiting are forgotten."""

    heard: dict[str, None] = field(default_factory=dict)
    """Functions that workers have had, the newest last."""

    runs: dict[str, float] = field(default_factory=dict)
    """How long a function's runs take."""

    gathering: bool = False
    """Whether workers may still come back from before a restart."""

    missed: Counter[str] = field(default_factory=Counter)
    """Functions that a worker ran which may still come back, each as often as there are such."""

    turn: int = 0
    held_bytes: int = 0
    """Payloads of the jobs."""

    timers: list[tuple[float, int, Timer]] = field(default_factory=list)
    armed: int = 0

    def refs(self, request: JobRequest) -> tuple[str, ...]:
        """Return the models that a request may run with, as far as is known; what it names itself comes first."""
        named = (binding.ref for binding in request.models)
        return tuple(dict.fromkeys((*named, *self.needs.get(request.function, ()))))

    def run_s(self, function: str) -> float:
        """Return how long a run takes, as far as is known."""
        return self.runs.get(function, UNKNOWN_RUN_S)

    def room_in_s(self) -> float:
        """Return after about how long one of the jobs that workers hold ends, as far as is known."""
        lanes = sum(worker.lanes for worker in self.workers.values() if worker.session is not None)
        seconds = [self.run_s(function) for function in self.queues]
        expected = sum(seconds) / (len(seconds) * lanes) if seconds and lanes else UNKNOWN_RUN_S
        return min(max(expected, SOONEST_AGAIN_S), LATEST_AGAIN_S)

    def ran(self, function: str, seconds: float) -> None:
        """Learn from a run that ended well, as far as what its worker says can be."""
        seconds = min(max(seconds, 0.0), LONGEST_RUN_S)
        before = self.runs.get(function, seconds)
        self.runs[function] = before + RUN_WEIGHT * (seconds - before)

    def heard_of(self, *functions: str) -> None:
        """Remember that a worker has functions."""
        for function in functions:
            self.heard.pop(function, None)
            self.heard[function] = None
        while len(self.heard) > FUNCTIONS_KEPT:
            del self.heard[next(iter(self.heard))]

    @property
    def waiting(self) -> int:
        """How many jobs no worker has."""
        return len(self.jobs) - sum(len(worker.jobs) for worker in self.workers.values())

    # --- queues -------------------------------------------------------------------------------------------------------

    def enqueue(self, job: Job, *, front: bool = False) -> None:
        """Let a job wait for a worker."""
        key = queue_key(job)
        queue = self.queues.setdefault(key.function, {}).setdefault(key, Queue(key))
        if front:
            queue.jobs.appendleft(job)
        else:
            queue.jobs.append(job)
        self.tenants.setdefault(key.tenant, 0)
        if len(self.tenants) > self.tenants_kept:
            waiting = {other.tenant for kind in self.queues.values() for other in kind}
            self.tenants = {tenant: turn for tenant, turn in self.tenants.items() if tenant in waiting}
            self.tenants_kept = max(TENANTS_KEPT, 2 * len(self.tenants))

    def dequeue(self, job: Job) -> None:
        """Take a job out of its queue."""
        key = queue_key(job)
        kind = self.queues[key.function]
        queue = kind[key]
        if queue.jobs[0] is job:
            queue.jobs.popleft()
        else:
            queue.jobs.remove(job)
        if not queue.jobs:
            del kind[key]
        if not kind:
            del self.queues[key.function]

    def queue(self, key: QueueKey) -> Queue | None:
        """Return the jobs of a kind that wait, None where there are none."""
        return self.queues.get(key.function, {}).get(key)

    # --- timers -------------------------------------------------------------------------------------------------------

    def arm(self, at: float, timer: Timer) -> None:
        """Have `Ticked` look at something at this time."""
        self.armed += 1
        heapq.heappush(self.timers, (at, self.armed, timer))

    def next_due(self) -> float | None:
        """Return when `Ticked` must come."""
        return self.timers[0][0] if self.timers else None

    def over(self, now: float) -> Iterator[Timer]:
        """Take out the timers whose time has come."""
        while self.timers and self.timers[0][0] <= now:
            yield heapq.heappop(self.timers)[2]


def queue_key(job: Job) -> QueueKey:
    """Return which queue a job waits in."""
    request = job.request
    return QueueKey(request.priority, request.tenant, request.function, job.refs)
