"""The frames between the supervisor and its fetcher.

As between supervisor and child: `[generation, seq, [tag, field, ...]]` over a SEQPACKET socketpair, at most
`FRAME_LIMIT` bytes each. This module only says what they are.
"""

from typing import Literal, TypeAlias

import msgspec

from gen_worker.models.errors import ModelErrorKind
from gen_worker.models.snapshot import Snapshot
from gen_worker.models.wanted import Wanted
from gen_worker.secret import without
from gen_worker.wire.messages import InputAsset, InputFile, Stored
from gen_worker.wire.platform import CallFailure


class _Message(msgspec.Struct, array_like=True, tag=lambda name: name.lower()):
    """Base of all frames."""


# --- from the supervisor ----------------------------------------------------------------------------------------------


class Configure(_Message):
    """The first frame: `config` is an encoded `gen_worker.fetch.config.FetchConfig`, with the tokens."""

    config: bytes

    def __repr__(self) -> str:
        """Leave out the tokens."""
        return without(self, "config")


class Fetch(_Message):
    """Have a model on disk, from the cache or the network; ends in one `Fetched` or `FetchFailed`.

    Attached is a memfd when an orchestrator describes the snapshot: a JSON list of `SnapshotFile`, as long as it is.
    """

    number: int
    wanted: Wanted
    probe: bool = False
    """Only find out: its commit may be asked for, no file is downloaded. One that is not here fails as `absent`."""

    verify: bool = False
    """It could not be loaded: what is found is read and hashed first, and what is damaged counts as not here."""


class Abort(_Message):
    """Stop this; it ends as failed with the kind `canceled`, unless it had ended. Parts of a model stay for later."""

    number: int
    work: Literal["fetch", "upload", "input", "call"] = "fetch"


class Keep(_Message):
    """The refs that eviction spares while room allows; replaces those before."""

    refs: list[str]


class TakeStock(_Message):
    """Say what lies in the caches, in `Stock` frames."""


class Hold(_Message):
    """Copy the files of a snapshot into sealed memfds; ends in `Held` frames or one `HoldFailed`."""

    number: int
    snapshot: Snapshot


class Destination(msgspec.Struct, array_like=True, frozen=True):
    """Where the files of one job go: the platform's store, and what it asks for."""

    base_url: str
    token: str  # the job's, good for this job only; never in a log, an error or a child
    request_id: str
    attempt: int
    owner: str = ""
    job_id: str = ""
    traceparent: str = ""  # of the job's span
    file_api: bool = False  # it is one of the earlier generation, with a route for each file
    targets: dict[str, str] = {}  # URLs that came with the job, by the names under which it may post to them
    repo: str = ""  # its files go into a revision of this repository; "": to the media of its owner
    opening: dict[str, str] = {}  # what such a revision is opened with

    def __repr__(self) -> str:
        """Leave out the token, and URLs that may be signed."""
        return without(self, "token", "targets")


def with_token(destination: Destination, of: Destination, token: str) -> Destination:
    """Return where a job's files go with its fresh token, where it is the job `of`; else as it is."""
    named = [(each.base_url, each.request_id, each.attempt) for each in (destination, of)]
    return msgspec.structs.replace(destination, token=token) if named[0] == named[1] else destination


class Upload(_Message):
    """Store the first `length` bytes of the attached descriptor under `ref`; ends in `Uploaded` or `UploadFailed`.

    Attached after it is a memfd for the upload's journal: who gets the same order later goes on from there.
    """

    number: int
    destination: Destination
    ref: str
    length: int
    mime_type: str = ""
    create: bool = False  # fails as `exists` where there is a file of this name; only a `file_api` knows that


class CallPlatform(_Message):
    """Do what a job asks of its platform; ends in one `PlatformAnswered`.

    Attached are, in this order, a memfd with the encoded verb where it is longer than a frame takes, and its file.
    """

    number: int
    destination: Destination
    arguments: bytes
    attached: bool = False  # the first descriptor holds the arguments
    has_file: bool = False


class EndPlatform(_Message):
    """A job has ended: what it began at its platform and did not finish is given up."""

    destination: Destination


class RenewToken(_Message):
    """Exchange a job's token for a fresh one, which is shown from then on; ends in one `TokenRenewed`."""

    number: int
    destination: Destination
    worker_token: str  # the worker's own, by which the platform knows who asks

    def __repr__(self) -> str:
        """Leave out the token."""
        return without(self, "worker_token")


class FetchInput(_Message):
    """Have a file of a payload at `path`, which is not there yet; ends in `InputFetched` or `InputFailed`."""

    number: int
    asset: InputAsset
    path: str  # without the suffix, which its type decides
    max_bytes: int
    trusted_origin: str = ""  # `https://host:port` whose address may be private
    allow_private: bool = False
    limit_s: float = 600.0  # with all tries
    destination: Destination | None = None  # the `file_api` that has the file, where the asset's URL is its ref there


FetchOrder: TypeAlias = (
    Configure | Fetch | Abort | Keep | TakeStock | Hold | Upload | FetchInput | CallPlatform | EndPlatform | RenewToken
)


# --- from the fetcher -------------------------------------------------------------------------------------------------


class Fetching(_Message):
    """How far a fetch is, at most ten times a second. `bytes_total` is None while nobody knows."""

    number: int
    bytes_done: int
    bytes_total: int | None
    retries: int = 0


class Fetched(_Message):
    """The model is on disk. Attached is its lease: nobody evicts the snapshot before the descriptor is closed.

    The snapshot's files are not named where they are too many for a frame.
    """

    number: int
    snapshot: Snapshot
    fetched_bytes: int  # that came over the network for it; 0: it was there


class FetchFailed(_Message):
    """The model cannot be had."""

    number: int
    kind: ModelErrorKind
    message: str
    hint: str
    retryable: bool


class Held(_Message):
    """Some files of a snapshot, each in a sealed memfd; the descriptors are attached, in the order of `paths`."""

    number: int
    paths: list[str]
    last: bool


class HoldFailed(_Message):
    """The files could not be copied into memory; what came in `Held` frames before is void."""

    number: int
    message: str


class Stocked(msgspec.Struct, array_like=True, frozen=True):
    """A model that lies in a cache, complete."""

    wanted: Wanted  # without what narrows down its files
    size: int


class Stock(_Message):
    """Some of the models that lie in the caches, the last used first; not more than are worth knowing."""

    models: list[Stocked]
    last: bool


class Evicted(_Message):
    """A model is no longer on disk: room was needed."""

    ref: str
    bytes: int


class Noted(_Message):
    """Something the operator should read."""

    level: str
    message: str


UploadFailure: TypeAlias = Literal["auth", "transfer", "too_large", "canceled", "exists"]


class Uploading(_Message):
    """How far an upload is, at most ten times a second."""

    number: int
    bytes_done: int
    bytes_total: int


class Uploaded(_Message):
    """The file is stored and its store has verified it."""

    number: int
    stored: Stored


class UploadFailed(_Message):
    """The file could not be stored."""

    number: int
    kind: UploadFailure
    message: str
    retryable: bool
    limit_bytes: int = 0  # what it is over, for `too_large`
    status: int = 0  # what the store answered; 0: nothing


class InputFetched(_Message):
    """The file is at the path that was ordered, with a suffix by its type."""

    number: int
    file: InputFile


class InputFailed(_Message):
    """The file cannot be had, or must not be. `invalid`: the caller named what is not allowed."""

    number: int
    kind: Literal["invalid", "unauthorized", "unreachable", "canceled"]
    message: str
    retryable: bool


class PlatformAnswered(_Message):
    """What came of a call: an encoded answer, or why there is none; descriptors as those of `Called`."""

    number: int
    value: bytes = b""
    attached: bool = False
    error: str = ""
    failure: Literal["", CallFailure] = ""
    retryable: bool = False
    status: int = 0


class TokenRenewed(_Message):
    """A job's fresh token, or why there is none."""

    number: int
    token: str = ""
    error: str = ""
    retryable: bool = False
    known: bool = True  # whether the platform has heard of renewing tokens at all

    def __repr__(self) -> str:
        """Leave out the token."""
        return without(self, "token")


FetchReport: TypeAlias = (
    Fetching
    | Fetched
    | FetchFailed
    | Held
    | HoldFailed
    | Stock
    | Evicted
    | Noted
    | Uploading
    | Uploaded
    | UploadFailed
    | InputFetched
    | InputFailed
    | PlatformAnswered
    | TokenRenewed
)
