"""The frames between the supervisor and one child.

Frames are msgpack arrays, `[generation, seq, [tag, field, ...]]`, at most `FRAME_LIMIT` bytes each, carried by
`gen_worker.wire.channel`. This module only says what they are; it never sends, receives or judges one.
"""

from typing import Any, Literal, TypeAlias

import msgspec

from gen_worker.models.wanted import Slot
from gen_worker.secret import without

FRAME_LIMIT = 64 * 1024  # SEQPACKET fails above ~208 KiB on stock kernels; 64 KiB leaves room for the ancillary data
INLINE_LIMIT = (
    48 * 1024
)  # a longer body travels in a region, so that a frame with its other fields stays under the limit
REGION_LIMIT = 1 << 30  # the longest body that travels at all
REQUEST_ID_CHARS = 256  # it travels in every frame of its job
TENANT_CHARS = 256
PRIORITY_LIMIT = 100  # and as far below 0
MOST_INPUTS = 32  # files that one payload may name by URLs
WINDOW_ITEMS = 32  # stream items of one job that may be on their way before the child waits for `More`
WINDOW_BYTES = 1 << 20
MESSAGES_AHEAD = 16  # messages of a realtime peer that may be on their way before its handler takes one

Encoding: TypeAlias = Literal["json", "msgpack"]
Shape: TypeAlias = Literal["sync", "async", "generator", "async_generator", "websocket"]
Lane: TypeAlias = Literal["device", "loop"]  # one job at a time on the device, many at once on the child's asyncio loop
Tier: TypeAlias = Literal["COLD", "DISK", "RAM", "VRAM"]
EngineState: TypeAlias = Literal["booting", "up", "gone"]
LoadFailure: TypeAlias = Literal["setup", "model", "out_of_memory", "hardware"]
Level: TypeAlias = Literal["debug", "info", "warning", "error"]


class Region(msgspec.Struct, array_like=True, frozen=True):
    """A body that lies in shared memory: the first `length` bytes of the region `index`.

    An input region is the supervisor's: its memfd rides on each frame that names it, and the child maps it for that job
    only. An output region was granted to the child: the supervisor made it, so no memfd rides on the child's frames.
    `Release(index)` from the reader lets the writer use the region again.
    """

    index: int
    length: int


Body: TypeAlias = bytes | Region


class Climbed(msgspec.Struct):
    """One rung of the ladder that was climbed for a job: its number and name, and how long after the ladder began."""

    rung: int
    name: str
    after_s: float


class ErrorDetail(msgspec.Struct, omit_defaults=True):
    """What is known of a failure beyond its sentence; goes to clients as it is."""

    cause: str | None = None
    signal: str | None = None
    exit_code: int | None = None
    stack: list[str] | None = None
    rung: int | None = None
    stderr: list[str] | None = None
    hint: str | None = None
    rungs: list[Climbed] | None = None  # what ended the job, step by step
    hang: str | None = None  # how the child hung, in one word
    retry_after_s: float | None = None  # when it is worth another try
    postmortem: str | None = None  # names what `gen-worker postmortem` shows


ErrorKind: TypeAlias = Literal[
    "usage",
    "not_found",
    "model_resolution",
    "canceled",
    "user_exception",
    "invalid",
    "child_died",
    "killed",
    "quarantined",
    "deadline",
    "out_of_memory",
    "retryable",
    "busy",
    "draining",
    "unavailable",
    "internal",
]


class _Message(msgspec.Struct, array_like=True, tag=lambda name: name.lower()):
    """Base of all frames."""


# --- from the supervisor to its child ---------------------------------------------------------------------------------


class Boot(_Message):
    """The first frame: what to import and who it is."""

    module: str  # several with `,` between them
    paths: list[str]  # go to the front of `sys.path`
    device: str  # "cpu" or "cuda": what `ctx.device` shall be
    environment: dict[str, str]
    beat_s: float = 1.0
    budget_bytes: int = 0  # what models may take of the device; 0: what is there, less the margin
    margin_bytes: int = 0  # what stays free of the device
    derived: str = ""  # the folder for snapshots in another dtype; "" where none can be written


class SlotModel(msgspec.Struct, array_like=True, frozen=True):
    """The model for one slot of an instance: where it lies, complete and verified."""

    slot: str
    ref: str
    path: str  # of the snapshot's folder or file; it may be a view of host memory
    key: str  # names the content
    dtype: str = ""  # what the binding asks for
    subfolder: str = ""  # the part of the folder that is meant
    pickle: bool = False  # whether its weights may be pickles


class InputAsset(msgspec.Struct, array_like=True, frozen=True):
    """An asset of a payload that lies behind a URL, and what its author's type allows of it."""

    url: str
    max_bytes: int = 0  # 0: what the worker allows
    mime_types: tuple[str, ...] = ()  # `image/*` allows every image; none: any
    max_width: int = 0
    max_height: int = 0
    max_pixels: int = 0

    def __repr__(self) -> str:
        """Leave out the URL, which may be signed."""
        return without(self, "url")


class InputFile(msgspec.Struct, array_like=True, frozen=True):
    """The file that an `InputAsset` became."""

    local_path: str
    size_bytes: int
    mime_type: str
    sha256: str = ""
    """Where a file API has told it, and it is so."""

    owner: str = ""
    """Whose it is, where it is of a file API."""


class Load(_Message):
    """Make the instance `instance`, give it its models and run its `setup()` and `warmup()`."""

    instance: str
    models: list[SlotModel] = []


class Unload(_Message):
    """Let go of an instance and of its models: `shutdown()`; answered by `Unloaded`."""

    instance: str


class Pin(_Message):
    """These instances are let go of for no other that needs their room, until the next `Pin` says which are."""

    instances: list[str]


class Producing(msgspec.Struct, array_like=True, frozen=True):
    """What the context of a producer is given beside what every context has."""

    compute: dict[str, Any] = {}  # the machine that the job was given, as far as whoever sent it says
    hf_token: str = ""
    job_id: str = ""  # names the work over all of its attempts
    destination_repo: str = ""
    source_path: str = ""  # stands for the payload's `source`
    publishes: bool = True  # else its calls of the platform are said and not made

    def __repr__(self) -> str:
        """Leave out the token."""
        return without(self, "hf_token")


class EarlierRun(msgspec.Struct, array_like=True, frozen=True):
    """What the earlier wire says of a job beside its payload, and of the models that its deployment may use."""

    tenant_id: str = ""
    user_id: str = ""
    timeout_ms: int = 0
    model_ids: tuple[str, ...] = ()  # the only ones that may be used; none: any
    model_keys: dict[str, str] = {}  # ids by what functions call them
    tables_bytes: int = 0  # of both, where they lie in a memfd that is attached last


class Submit(_Message):
    """Run this job on its function's instance; the child spends one credit of the function's lane on it.

    It is given back with `Returned` when the instance is not set up here any more.
    """

    job: int
    function: str
    request_id: str
    body: Body
    encoding: Encoding
    stream: bool = False
    time_left_s: float | None = None  # seconds to the deadline, measured when the frame was made
    events: bool = False  # someone listens to progress and logs
    remote: bool = False  # whoever asked may be on another machine, and has no say about files of this one
    instance: str = ""  # where it differs from the function's: the one with the models that it shall have
    inputs: list[InputFile] = []  # what the job's `NeedsInputs` asked for, in that order
    wire: bool = False  # for the orchestrator: items say their content type, the end says what the job took
    inline_file_bytes: int = 0  # a saved file up to this size goes into its asset and nowhere else
    models: dict[str, str] = {}  # refs by slot, of a job that models were chosen for: what its payload names was heard
    traceparent: str = ""  # of the job's own span
    producing: Producing | None = None  # of a producer's job
    earlier: EarlierRun | None = None  # of a job that came over the earlier wire


class Cancel(_Message):
    """Rung 1: ask the job to end; when it is `unheard`, nobody waits for what it may yet return."""

    job: int
    unheard: bool = False


class Interrupt(_Message):
    """Rung 2: raise in the job's thread."""

    job: int


class Recall(_Message):
    """Give this job back if it has not started; the answer is `Returned`, `Started` or the job's end."""

    job: int


class More(_Message):
    """`items` stream items were taken by the reader; the handler may go on by as many."""

    job: int
    items: int


class Message(_Message):
    """A message of the peer of a realtime job; `MESSAGES_AHEAD` at most are on their way before `Took` says of one."""

    job: int
    body: Body
    is_text: bool = False


class Hangup(_Message):
    """The peer of a realtime job is gone: no message comes any more."""

    job: int
    reason: str = ""


class Grant(_Message):
    """The answer to `Need`: an output region of `size` bytes, its memfd attached."""

    index: int
    size: int


class Release(_Message):
    """The reader is done with the region `index` of the other side, which may write to it again."""

    index: int


class Unmap(_Message):
    """The reader is done with the region `index` that was granted to the child, which is to let go of it."""

    index: int


class Stored(msgspec.Struct, array_like=True, frozen=True):
    """A file in the store of the platform, as its store described it."""

    ref: str
    size_bytes: int
    owner: str = ""
    mime_type: str = ""
    sha256: str = ""
    blake3: str = ""
    media_id: str = ""
    blob_digest: str = ""
    blob_domain: str = ""
    blob_path: str = ""
    snapshot_digest: str = ""


class Saved(_Message):
    """The answer to `Save`: where the file is now, or why it could not be kept."""

    job: int
    token: int
    local_path: str = ""
    size_bytes: int = 0
    sha256: str = ""
    error: str = ""
    stored: Stored | None = None  # where it is when it was uploaded
    failure: Literal["", "auth", "transfer", "too_large", "exists"] = (
        ""  # of an upload; "" with an error: of the local disk
    )
    retryable: bool = False
    limit_bytes: int = 0  # what it is over, for `too_large`
    status: int = 0  # what the store answered; 0: nothing


class Called(_Message):
    """The answer to `Call`: an encoded answer of `gen_worker.wire.platform`, or why there is none.

    Attached are, in this order, a memfd with the answer where it is longer than `INLINE_LIMIT`, and what the answer
    says that comes with it.
    """

    job: int
    token: int
    value: bytes = b""
    attached: bool = False  # the first descriptor holds the answer
    error: str = ""
    failure: Literal["", "unconfigured", "auth", "transfer", "invalid", "too_large", "canceled"] = ""
    retryable: bool = False
    status: int = 0  # what the platform answered; 0: nothing


class Stack(_Message):
    """Say where each thread is; answered by `Stacked`."""


class Drain(_Message):
    """Run `shutdown()` of every instance and leave with status 0."""


Order: TypeAlias = (
    Boot
    | Load
    | Unload
    | Pin
    | Submit
    | Cancel
    | Interrupt
    | Recall
    | More
    | Message
    | Hangup
    | Grant
    | Release
    | Unmap
    | Saved
    | Called
    | Stack
    | Drain
)


# --- from the child to the supervisor ---------------------------------------------------------------------------------


class Hello(_Message):
    """The child runs; it has imported nothing of the author's yet."""

    pid: int


class Ready(_Message):
    """The author's module is imported; `credits` says how many jobs each lane takes."""

    functions: list[str]
    credits: dict[Lane, int]
    job_thread: int  # pthread id, as a stack dump prints it
    job_tid: int = 0  # what the kernel calls the same thread


class ImportFailed(_Message):
    """The author's module does not import in this child."""

    message: str
    stack: list[str]


class Resident(msgspec.Struct, array_like=True, frozen=True):
    """A model that an instance holds."""

    slot: str
    ref: str
    tier: Tier
    bytes: int  # of the device, measured
    derived: str = ""  # the snapshot that was made of it for its dtype, to load from next time


class Loaded(_Message):
    """The instance is set up; `seconds` is what that took."""

    instance: str
    seconds: float
    models: list[Resident] = []
    rung: str = ""  # how its pipelines are placed, when that is not plainly on the device: `model_offload`


class Loading(_Message):
    """How much of an instance's models has been read, at most ten times a second."""

    instance: str
    bytes_done: int
    bytes_total: int


class LoadFailed(_Message):
    """`setup()` or `warmup()` raised, or a model cannot be loaded."""

    instance: str
    message: str
    stack: list[str]
    kind: LoadFailure = "setup"
    reason: str = ""  # of `hardware`: `insufficient_vram`
    hint: str = ""
    axes: dict[str, str] = {}  # of `hardware`: what was found and what is needed
    broken: bool = False  # the child can use its device no more


class Unloaded(_Message):
    """The instance is gone from this child: it was asked to, or its device had no room, or its engine died."""

    instance: str
    reason: str = ""  # why, when nobody asked
    printed: list[str] | None = None  # by an engine that died, at its end


class Engine(_Message):
    """What the engine server of an instance is at; told again and again while it boots: nothing else moves then."""

    instance: str
    name: str  # `vllm`
    state: EngineState
    pid: int = 0
    port: int = 0  # of the loopback


class Degraded(_Message):
    """An instance runs slower or smaller than it could, and why: `rung` is what was done."""

    instance: str
    rung: str
    message: str


class Wants(_Message):
    """A request names other models than its function's: the job is given back, to come again with those."""

    job: int
    instance: str
    slots: list[Slot]


class NeedsInputs(_Message):
    """A payload names files behind URLs: the job is given back, to come again when they are here."""

    job: int
    assets: list[InputAsset]


class Started(_Message):
    """The handler of this job is about to be called.

    Only for jobs on the child's asyncio loop: one on the job thread is named by the status page before it starts.
    """

    job: int


class Item(_Message):
    """One item of a stream, encoded as the job asked; with a content type where the job is for the orchestrator.

    Of a realtime job it is a message to its peer: text where its content type begins with `text/`.
    """

    job: int
    body: Body
    content_type: str = ""


class Took(_Message):
    """The handler of a realtime job took messages of its peer; 0: it is there, and messages may come."""

    job: int
    messages: int


class Done(_Message):
    """The job ended well; the body of a realtime job is `closed` where its handler closed the socket."""

    job: int
    body: Body
    run_s: float
    yielded: int = 0
    peak_rss: int = 0  # bytes of the child while the job ran; 0: not measured
    peak_vram: int = 0
    together: int = 1  # jobs that one call ran, this among them


class Failed(_Message):
    """The job ended with an error of the author's or the caller's making."""

    job: int
    kind: ErrorKind
    message: str
    retryable: bool
    run_s: float
    detail: ErrorDetail | None = None
    peak_rss: int = 0
    peak_vram: int = 0
    raised: tuple[str, ...] = ()  # the names of the exception's class and of those above it; none: nothing was raised
    together: int = 1


class Returned(_Message):
    """A recalled job that had not started."""

    job: int


class Event(_Message):
    """Progress or a log line of a job; `value` is a JSON object."""

    job: int
    event: Literal["progress", "log"]
    value: bytes


class Need(_Message):
    """The child wants an output region of at least `size` bytes."""

    size: int


class Save(_Message):
    """Keep a file of the job under `ref`; the bytes are inline or in the attached descriptor, from its start."""

    job: int
    token: int
    ref: str
    length: int
    inline: bytes | None = None
    create: bool = False  # only where nothing is kept under `ref`; else the answer is the failure `exists`
    repo: str = ""  # a producer's destination `owner/name`, into which the file goes where there is a platform
    opening: dict[str, str] = {}  # what a revision of it is opened with


class Call(_Message):
    """Ask the job's platform for something: an encoded verb of `gen_worker.wire.platform`; answered by `Called`.

    Attached are, in this order, a memfd with the verb where it is longer than `INLINE_LIMIT`, and the verb's file.
    """

    job: int
    token: int
    verb: str  # its name, for people
    arguments: bytes = b""
    has_file: bool = False


class Stacked(_Message):
    """Where each thread is, and each task of the asyncio loop: as a stack dump writes it."""

    lines: list[str]


class Warned(_Message):
    """Something the operator should read that belongs to no job."""

    message: str


Report: TypeAlias = (
    Hello
    | Ready
    | ImportFailed
    | Loaded
    | Loading
    | LoadFailed
    | Unloaded
    | Engine
    | Degraded
    | Wants
    | NeedsInputs
    | Started
    | Item
    | Took
    | Done
    | Failed
    | Returned
    | Event
    | Need
    | Release
    | Save
    | Call
    | Stacked
    | Warned
)


# --- between the supervisor and its zygote ----------------------------------------------------------------------------


class Fork(_Message):
    """Make a child: attached are its socket, two output pipes, crash memfd and status page, in this order."""

    generation: int
    environment: dict[str, str]
    supervisor_pid: int


class Warm(_Message):
    """The zygote has imported what it could and serves; `failed` names what it could not import."""

    imported: list[str]
    failed: list[str]


class Unfit(_Message):
    """The zygote must not be forked from: why."""

    reason: str


class Forked(_Message):
    """A child exists; its pidfd is attached."""

    generation: int
    pid: int


ZygoteOrder: TypeAlias = Fork
ZygoteReport: TypeAlias = Warm | Unfit | Forked
