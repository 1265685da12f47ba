"""What is to be done: `fleet.apply` and `decide` return these, the supervisor performs them.

Structs rather than dataclasses: some are made for every job.
"""

from typing import Literal, TypeAlias

import msgspec

from gen_worker.models.wanted import SnapshotFile
from gen_worker.postmortem import Held
from gen_worker.wire.fetching import Abort, Fetch
from gen_worker.wire.messages import Body, Event, InputAsset, Order, Region
from gen_worker_supervisor.core.catalog import Model
from gen_worker_supervisor.core.state import Child, Death, Job, Outcome


class Send(msgspec.Struct):
    """Send a child a frame."""

    child: Child
    message: Order


class Run(msgspec.Struct):
    """Send a child a job."""

    child: Child
    job: Job


class Answer(msgspec.Struct):
    """Give a job's client its one answer. `child` made the body, if it lies in a region."""

    job: Job
    outcome: Outcome
    child: Child | None = None


class Deliver(msgspec.Struct):
    """Give a job's client a stream item."""

    job: Job
    child: Child
    body: Body
    content_type: str = ""


class Tell(msgspec.Struct):
    """Give a job's client, and the log, an event."""

    job: Job
    child: Child
    event: Event


class Discard(msgspec.Struct):
    """Give a region back to the child that wrote it: nobody reads it."""

    child: Child
    region: Region


class Spawn(msgspec.Struct):
    """Make a child's process."""

    child: Child


class Signal(msgspec.Struct):
    """Send a child's process a signal; with `everyone`, its session and descendants too."""

    child: Child
    number: int


class LoadOver(msgspec.Struct):
    """A child has loaded what it was to load, or failed to: it is done with the files; `used` are models it holds."""

    child: Child
    used: list[Model]
    instance: str
    paths: frozenset[str] = frozenset()  # slots whose files the author reads whenever he wants


class LetGo(msgspec.Struct):
    """Nobody here uses a snapshot any more: others may evict it."""

    key: str


class OrderFetch(msgspec.Struct):
    """Send the fetcher an order."""

    order: Fetch | Abort
    described: tuple[SnapshotFile, ...] = ()  # what an orchestrator says that the model consists of


class OrderInputs(msgspec.Struct):
    """Have the files fetched that a job's payload names; `InputsCame` or `InputsRefused` follows, unless it ends."""

    job: Job
    assets: list[InputAsset]


class Note(msgspec.Struct):
    """Write a line to the log and the events."""

    level: Literal["info", "warning", "error"]
    source: str
    message: str
    lines: tuple[str, ...] = ()


class Bury(msgspec.Struct):
    """Keep what is known of a child's death."""

    child: Child
    death: Death
    jobs: list[Held]  # those that were with it, as they were then
    printed: list[tuple[str | None, str]] = []  # its last lines, each with the request that printed it
    left_out: int = 0  # of the jobs
    phase: str = ""  # the child's, when it died


class FreeMemory(msgspec.Struct):
    """Let go of models in host memory, of so many bytes at least."""

    size: int


class LookAtGpus(msgspec.Struct):
    """Ask the driver at once what is in use of the GPUs, and often until nothing settles any more."""


class TakeCode(msgspec.Struct):
    """The changed code is served from now on; or it never will be, and what was before goes on."""

    number: int  # of the change
    taken: bool


class Finish(msgspec.Struct):
    """End the supervisor with this status."""

    status: int
    message: str = ""


Action: TypeAlias = (
    Send
    | Run
    | Answer
    | Deliver
    | Tell
    | Discard
    | Spawn
    | Signal
    | LoadOver
    | LetGo
    | OrderFetch
    | OrderInputs
    | Note
    | Bury
    | FreeMemory
    | LookAtGpus
    | TakeCode
    | Finish
)
