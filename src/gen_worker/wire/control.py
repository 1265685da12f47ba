"""The control socket's frames: what `ps`, `kill`, the Python client and host programs say to a supervisor.

SEQPACKET, one msgpack array `[tag, field, ...]` per frame, at most `FRAME_LIMIT` bytes. A body up to `INLINE_LIMIT`
bytes travels in the frame; a longer one is a sealed memfd attached to it, and `Attached` says how long.
"""

from typing import Literal, TypeAlias

import msgspec

from gen_worker.wire.messages import Encoding, ErrorDetail, ErrorKind, Level

CONTROL_PROTOCOL = 1


class Attached(msgspec.Struct, array_like=True, frozen=True):
    """The body is in the attached memfd, its first `length` bytes; `region` names it, 0 when it is used only once.

    A memfd sent before under the same `region` by the same side is the same memory: keep its mapping, skip the new one.
    """

    length: int
    region: int = 0


Value: TypeAlias = bytes | Attached


class _Message(msgspec.Struct, array_like=True, tag=lambda name: name.lower()):
    """Base of all control frames."""


# --- from a client ----------------------------------------------------------------------------------------------------


class Open(_Message):
    """The first frame of a client."""

    protocol: int
    client: str = ""  # who it is, for logs


class Submit(_Message):
    """Run a job. The same `(request_id, attempt)` again attaches this client to the job that exists."""

    request_id: str
    function: str
    body: Value
    encoding: Encoding = "msgpack"
    attempt: int = 1
    stream: bool = False  # its items are wanted as they come
    events: bool = False  # progress and log lines are wanted
    timeout_ms: int = 0  # its deadline, time in the queue included; 0: none
    tenant: str = ""  # for whom: tenants take turns
    priority: int = 0  # a higher one goes first among the waiting jobs of its function, -100 to 100
    traceparent: str = ""  # of the caller's span, as W3C Trace Context writes it; goes on to the handler and to uploads


class Cancel(_Message):
    """Ask a job to end; answered by `Canceled` when it has."""

    request_id: str


class Kill(_Message):
    """End a job whatever it does; answered by `Killed` when it has."""

    request_id: str
    now: bool = False  # it gets no time to end by itself


class List(_Message):
    """Ask for the status document."""


class Restart(_Message):
    """Replace a device's child; answered by `Restarted` when the next one is ready or cannot be had."""

    device: str  # its name, such as "cuda:0"
    now: bool = False  # do not wait for its jobs: the ladder ends them


class Quarantine(_Message):
    """Ask which payloads are charged with children's deaths; answered by `Quarantined`."""


class Pardon(_Message):
    """Forget charges: of one payload, of one function, or of all; answered by `Pardoned`."""

    function: str = ""
    digest: str = ""  # as `Quarantined` names it, or what it begins with


class Watch(_Message):
    """Have the status document sent, as `Seen`, every so many milliseconds; one subscription each connection.

    When a child begins to hang the next one comes at once, and the others at their interval from there. None is sent
    while anything that was sent before is unread: who is slow misses documents, and gets the latest.
    """

    every_ms: int  # at least 100; 0 ends it
    jobs: int = 200  # waiting jobs that are shown of each queue


class Read(_Message):
    """Ask for lines of the log after one that was read; answered by `Lines`, at once or when there is a line."""

    after: int = 0  # its `seq`; 0: from the oldest that is remembered, -n: from the n-th last
    wait_ms: int = 0  # how long there may be none before that is the answer
    events: bool = False  # only what the supervisor tells, not what children print
    device: str = ""  # only what is of it
    request_id: str = ""  # only what is of it
    level: Level = "debug"  # and above
    limit: int = 500  # lines of one answer


class Drain(_Message):
    """Give a device, or with none each, no more jobs until it is undone; answered by `Drained` when none runs there."""

    device: str = ""
    undo: bool = False


class Stack(_Message):
    """Ask where each thread of a device's child is, whatever it does; answered by `Stacked`."""

    device: str


class Model(_Message):
    """Do something with a model on a device; answered by `Modeled` when it is done or has failed.

    With no device a load goes where most room is, all else to each that may hold it. What is pinned is let go of for no
    other and unloaded by nobody, as long as the supervisor lives.
    """

    operation: Literal["load", "unload", "pin", "unpin"]
    ref: str
    device: str = ""


class Ack(_Message):
    """The result was received; the supervisor may forget it."""

    request_id: str
    attempt: int = 1


class More(_Message):
    """The client took this many stream items."""

    request_id: str
    items: int


class Release(_Message):
    """The client read the region and does not look at it again."""

    region: int


ClientFrame: TypeAlias = (
    Open
    | Submit
    | Cancel
    | Kill
    | List
    | Watch
    | Read
    | Restart
    | Drain
    | Stack
    | Model
    | Quarantine
    | Pardon
    | Ack
    | More
    | Release
)


# --- from the supervisor ----------------------------------------------------------------------------------------------


class Opened(_Message):
    """The answer to `Open`."""

    protocol: int
    boot_id: str
    pid: int
    version: str
    serve: str | None = None


class Accepted(_Message):
    """The job is in the table; exactly one `Result` follows."""

    request_id: str
    attempt: int


class Item(_Message):
    """One stream item."""

    request_id: str
    body: Value


class Event(_Message):
    """Progress or a log line; `value` is a JSON object."""

    request_id: str
    event: Literal["progress", "log"]
    value: bytes


class Result(_Message):
    """The job ended well. For a stream `body` is empty and `yielded` counts its items."""

    request_id: str
    attempt: int
    body: Value
    yielded: int = 0
    run_s: float = 0.0


class Error(_Message):
    """The job ended badly, or (with `attempt` 0) a frame of the client's was refused."""

    request_id: str
    attempt: int
    kind: ErrorKind
    message: str
    retryable: bool
    detail: ErrorDetail | None = None


class Canceled(_Message):
    """The answer to `Cancel`: whether there was such a job and it ended by this."""

    request_id: str
    canceled: bool


class Killed(_Message):
    """The answer to `Kill`. `outcome`: how the job ended; "not_found" or "ambiguous" when nothing was touched."""

    request_id: str
    outcome: Literal["killed", "finished", "not_found", "ambiguous"]
    rung: int | None = None
    stack: list[str] = []
    seconds: float = 0.0
    candidates: list[str] = []


class Restarted(_Message):
    """The answer to `Restart`. `outcome`: "not_found" or "lost" when nothing was touched."""

    device: str
    outcome: Literal["restarted", "failed", "not_found", "lost"]
    pid: int | None = None  # of the new child
    seconds: float = 0.0
    message: str = ""
    candidates: list[str] = []


class Charged(msgspec.Struct, array_like=True):
    """What one payload of one function is charged with."""

    function: str
    digest: str  # hexadecimal
    deaths: int
    quarantined: bool  # it is refused; else one more death makes it so
    expires_in_s: float
    cause: str
    stack: list[str] = []
    postmortem: str = ""  # of the last of these deaths; `gen-worker postmortem` shows it


class Quarantined(_Message):
    """The answer to `Quarantine`: the latest charges, with as much of their stacks as a frame holds.

    `breakers` maps functions that are not served at all to the reason.
    """

    charges: list[Charged]
    breakers: dict[str, str] = {}
    left_out: int = 0  # charges that did not fit


class Pardoned(_Message):
    """The answer to `Pardon`: how many charges are forgotten."""

    count: int


class Listed(_Message):
    """The status document as JSON."""

    document: Value


class Seen(_Message):
    """The status document as JSON, which `Watch` asked for."""

    document: Value


class Lines(_Message):
    """The answer to `Read`: lines of the log, each a JSON object in a line, the oldest first."""

    lines: Value
    last: int  # the `seq` of the last one looked at: ask for what comes after it
    left_out: int = 0  # lines after the one that was asked for that are not remembered any more


class Drained(_Message):
    """The answer to `Drain`. `outcome`: "not_found" or "lost" when nothing was touched.

    "undrained" is also the answer to who waited while somebody undid it.
    """

    device: str
    outcome: Literal["drained", "undrained", "not_found", "lost"]
    devices: list[str] = []  # that are drained, or are not any more
    seconds: float = 0.0
    candidates: list[str] = []


class Stacked(_Message):
    """The answer to `Stack`: one entry a thread's frame, as a stack dump writes them.

    With "failed" `message` says why nobody knows, and `lines` are the states of the threads as the kernel tells them.
    """

    device: str
    outcome: Literal["shown", "failed", "not_found", "no_child"]
    pid: int | None = None
    lines: list[str] = []
    message: str = ""
    candidates: list[str] = []


class Modeled(_Message):
    """The answer to `Model`. `outcome`: "not_found" for a model that no function here has, or a device."""

    operation: Literal["load", "unload", "pin", "unpin"]
    ref: str
    outcome: Literal["done", "failed", "not_found"]
    devices: list[str] = []  # where it was done
    seconds: float = 0.0
    message: str = ""
    candidates: list[str] = []


ServerFrame: TypeAlias = (
    Opened
    | Accepted
    | Item
    | Event
    | Result
    | Error
    | Canceled
    | Killed
    | Restarted
    | Drained
    | Stacked
    | Modeled
    | Quarantined
    | Pardoned
    | Listed
    | Seen
    | Lines
)
