"""The frames between the supervisor and its fetcher.

As between supervisor and child: `[generation, seq, [tag, field, ...]]` over a SEQPACKET socketpair, at most
`FRAME_LIMIT` bytes each. This module only says what they are.
"""

from typing import TypeAlias

import msgspec

from gen_worker.models.errors import ModelErrorKind
from gen_worker.models.snapshot import Snapshot
from gen_worker.models.wanted import Wanted


class _Message(msgspec.Struct, array_like=True, tag=lambda name: name.lower()):
    """Base of all frames."""


# --- from the supervisor ----------------------------------------------------------------------------------------------


class Configure(_Message):
    """The first frame: `config` is an encoded `gen_worker.fetch.config.FetchConfig`, with the tokens."""

    config: bytes


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
    """Stop this fetch; it ends as `FetchFailed` with the kind `canceled`, unless it had ended. Parts stay for later."""

    number: int


class Keep(_Message):
    """The refs that eviction spares while room allows; replaces those before."""

    refs: list[str]


class Hold(_Message):
    """Copy the files of a snapshot into sealed memfds; ends in `Held` frames or one `HoldFailed`."""

    number: int
    snapshot: Snapshot


FetchOrder: TypeAlias = Configure | Fetch | Abort | Keep | Hold


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


class Evicted(_Message):
    """A model is no longer on disk: room was needed."""

    ref: str
    bytes: int


class Noted(_Message):
    """Something the operator should read."""

    level: str
    message: str


FetchReport: TypeAlias = Fetching | Fetched | FetchFailed | Held | HoldFailed | Evicted | Noted
