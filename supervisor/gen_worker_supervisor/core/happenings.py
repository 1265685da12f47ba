"""What happens to a supervisor: `fleet.apply` takes these, and knows nothing else of the world.

Structs rather than dataclasses: some are made for every job.
"""

from typing import TypeAlias

import msgspec

from gen_worker.wire.fetching import Fetched, FetchFailed, Fetching
from gen_worker.wire.messages import InputFile, LoadFailed, Report
from gen_worker.wire.survey import SurveyedFunction
from gen_worker_supervisor.core.evidence import Evidence, GpuReading, MemoryReading
from gen_worker_supervisor.core.ladder import Reason
from gen_worker_supervisor.core.state import Child, Death, Device, Job


class Submitted(msgspec.Struct):
    """A link has a job; it is answered by an `Answer`, at once when it cannot be taken."""

    job: Job


class Reported(msgspec.Struct):
    """A child sent a frame."""

    child: Child
    message: Report


class Began(msgspec.Struct):
    """A child's status page names the job that its job thread is at."""

    child: Child
    number: int
    since: float


class Spawned(msgspec.Struct):
    """A child's process exists."""

    child: Child
    pid: int


class Died(msgspec.Struct):
    """A child's process has ended, or could not be made, and its socket was read to the end."""

    child: Child
    death: Death


class Misbehaved(msgspec.Struct):
    """A child broke the protocol."""

    child: Child
    message: str


class Unsent(msgspec.Struct):
    """A leased job could not be handed over: no memory or descriptor for its payload."""

    child: Child
    job: Job
    reason: str


class EndAsked(msgspec.Struct):
    """Somebody wants a job ended."""

    job: Job
    reason: Reason
    at_once: bool = False


class DrainAsked(msgspec.Struct):
    """The supervisor shall end: no new jobs, those that wait are refused, running ones end, children are drained.

    Running jobs may end by themselves for so many seconds; 0: the ladder begins at once; None: as long as it takes.
    """

    within_s: float | None = 0.0


class InputsCame(msgspec.Struct):
    """The files that a job's payload names are here, in the order it asked for them."""

    job: Job
    files: list[InputFile]


class InputsRefused(msgspec.Struct):
    """A file that a job's payload names cannot be had.

    `invalid`: its caller named what is not allowed; `unauthorized`: the token that came with it is not taken.
    """

    job: Job
    message: str
    retryable: bool = False
    invalid: bool = False
    unauthorized: bool = False


class UnloadAsked(msgspec.Struct):
    """Somebody wants these instances gone from every child, until a job or somebody else needs them.

    What a job runs on goes when that has ended.
    """

    instances: frozenset[str]
    device: str = ""  # from this one's child only


class LoadAsked(msgspec.Struct):
    """An operator wants these instances set up on a device."""

    instances: frozenset[str]
    device: str


class PinAsked(msgspec.Struct):
    """An operator wants models, by name, to stay on devices whatever comes next; with `undo` no longer."""

    names: frozenset[str]
    devices: frozenset[str]
    undo: bool = False


class FetcherReported(msgspec.Struct):
    """The fetcher says how far an order is."""

    report: Fetching | Fetched | FetchFailed


class FetcherLost(msgspec.Struct):
    """The fetcher has died; another one knows nothing of its orders."""


class Vanished(msgspec.Struct):
    """A child's load failed, and what it was loading from has left the host's memory meanwhile."""

    child: Child
    message: LoadFailed


class Watched(msgspec.Struct):
    """Children were looked at from outside."""

    looks: list[tuple[Child, Evidence]]


class MemoryRead(msgspec.Struct):
    """The memory was looked at."""

    reading: MemoryReading


class GpusRead(msgspec.Struct):
    """The GPUs were looked at."""

    readings: list[GpuReading]
    silent: list[str] = []
    """Those of which the driver does not say how they are: what it said before counts no more."""


class DeviceFault(msgspec.Struct):
    """The driver reported that a GPU is broken; `fatal`: for good."""

    device: str
    reason: str
    fatal: bool


class RestartAsked(msgspec.Struct):
    """An operator wants a device's child replaced."""

    device: Device
    at_once: bool = False


class CodeChanged(msgspec.Struct):
    """The author's code has changed, and was looked at: these are its functions now."""

    number: int  # of the change
    functions: list[SurveyedFunction]


class DeviceDrainAsked(msgspec.Struct):
    """An operator wants a device to be given no jobs; with `undo`, to be given jobs again."""

    device: Device
    undo: bool = False


class Weighed(msgspec.Struct):
    """A child takes so many bytes of memory before it does its next job, its processes with it."""

    child: Child
    rss: int


class Ticked(msgspec.Struct):
    """A time that `Fleet.next_due` named has come."""


Happening: TypeAlias = (
    Submitted
    | Reported
    | Began
    | Spawned
    | Died
    | Misbehaved
    | Unsent
    | EndAsked
    | DrainAsked
    | InputsCame
    | InputsRefused
    | UnloadAsked
    | LoadAsked
    | PinAsked
    | FetcherReported
    | FetcherLost
    | Vanished
    | Watched
    | MemoryRead
    | GpusRead
    | DeviceFault
    | RestartAsked
    | CodeChanged
    | DeviceDrainAsked
    | Weighed
    | Ticked
)
