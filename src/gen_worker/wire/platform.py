"""What a job may ask of its platform, as it travels from a child through the supervisor to the fetcher.

The child names what it wants, never an address and never a token: those belong to the job and stay with the supervisor.
A verb and its answer are msgpack; the supervisor passes both on unread.
"""

from typing import Any, Generic, Literal, TypeAlias, TypeVar

import msgspec

Answer = TypeVar("Answer")

CallFailure: TypeAlias = Literal["unconfigured", "auth", "transfer", "invalid", "too_large", "canceled"]
"""`unconfigured`: there is no platform for this job. `invalid`: the platform, or a provider, refuses what is asked."""

SKIPPED = "missing_worker_capability_channel"
"""Why nothing was published where there is no platform: the word that callers see."""


class Verb(msgspec.Struct, Generic[Answer], frozen=True, kw_only=True, tag=lambda name: name.lower()):
    """Base of what can be asked for; `Answer` is the type of what comes back."""


# --- repositories -----------------------------------------------------------------------------------------------------


class CommitBegun(msgspec.Struct, frozen=True):
    """A commit that waits for its files: the paths whose bytes the platform has not."""

    revision_id: str
    missing: list[str] = []


class BeginCommit(Verb[CommitBegun], frozen=True):
    """Begin a commit of `owner/name`; `document` is what the platform's `POST …/commits` takes."""

    repo: str
    document: dict[str, Any]


class Done(msgspec.Struct, frozen=True):
    """What was asked for is done; `document` is what the platform said to it."""

    document: dict[str, Any] = {}


class CommitFile(Verb[Done], frozen=True):
    """Send the bytes of one path of a commit: the first `length` of the attached descriptor.

    Fails as retryable where the fetcher has forgotten the commit: then it is to begin anew.
    """

    repo: str
    revision_id: str
    path: str
    length: int


class FinishCommit(Verb[Done], frozen=True):
    """Make a commit visible; returns once the platform says that it is."""

    repo: str
    revision_id: str


class AbortCommit(Verb[Done], frozen=True):
    """Give a commit up; one that is unknown or finished is none to give up."""

    repo: str
    revision_id: str


class Metadata(msgspec.Struct, frozen=True):
    """What is noted beside a repository."""

    exists: bool = False
    metadata: dict[str, Any] = {}


class ReadMetadata(Verb[Metadata], frozen=True):
    """Read what is noted beside `owner/name`."""

    repo: str


class WriteMetadata(Verb[Metadata], frozen=True):
    """Replace what is noted beside `owner/name`."""

    repo: str
    metadata: dict[str, Any]


# --- contents ---------------------------------------------------------------------------------------------------------


class Materialized(msgspec.Struct, frozen=True):
    """How long a content is."""

    size_bytes: int


class Materialize(Verb[Materialized], frozen=True):
    """Write the content `algorithm:hex` into the attached file, verified; the file is empty and open for writing."""

    digest: str


class KeepContent(Verb[Done], frozen=True):
    """Store the first `length` bytes of the attached descriptor, so that what is published next may name them."""

    ref: str
    length: int


class Located(msgspec.Struct, frozen=True):
    """Where a model lies. With the answer comes its lease: nobody evicts it before that descriptor is closed."""

    path: str
    ref: str
    digest: str = ""


class FetchRepo(Verb[Located], frozen=True):
    """Have the repository that a ref names on this machine, as a model is fetched; a prefix names its provider."""

    ref: str


# --- data sets --------------------------------------------------------------------------------------------------------


class FoundDataset(msgspec.Struct, frozen=True):
    """A data set as the platform lists it; None where it has none of that name."""

    dataset: dict[str, Any] | None = None


class FindDataset(Verb[FoundDataset], frozen=True):
    """Look for a data set of an owner."""

    owner: str
    name: str


class PublishedDataset(msgspec.Struct, frozen=True):
    """A data set that has a new revision."""

    dataset_id: str
    existed: bool


class PublishDataset(Verb[PublishedDataset], frozen=True):
    """Make a data set, or give one that there is another schema."""

    owner: str
    name: str
    visibility: str
    document: dict[str, Any]
    """Its `schema`, and `row_artifacts` where there are some."""


# --- posts ------------------------------------------------------------------------------------------------------------


class Posted(msgspec.Struct, frozen=True):
    """What somebody said to a post."""

    status: int
    document: dict[str, Any] = {}


class PostJson(Verb[Posted], frozen=True):
    """Post a document to one of the URLs that came with the job, with the job's token: `target` is the URL's name.

    A target that the job did not bring is `invalid`.
    """

    target: str
    document: dict[str, Any]


AnyVerb: TypeAlias = (
    BeginCommit
    | CommitFile
    | FinishCommit
    | AbortCommit
    | ReadMetadata
    | WriteMetadata
    | Materialize
    | KeepContent
    | FetchRepo
    | FindDataset
    | PublishDataset
    | PostJson
)

ANSWERS: dict[type[Verb[Any]], type[Any]] = {
    BeginCommit: CommitBegun,
    CommitFile: Done,
    FinishCommit: Done,
    AbortCommit: Done,
    ReadMetadata: Metadata,
    WriteMetadata: Metadata,
    Materialize: Materialized,
    KeepContent: Done,
    FetchRepo: Located,
    FindDataset: FoundDataset,
    PublishDataset: PublishedDataset,
    PostJson: Posted,
}
"""What answers each verb."""

_decode_verb = msgspec.msgpack.Decoder(AnyVerb).decode


def encoded(value: object) -> bytes:
    """Return a verb or an answer as it travels."""
    return msgspec.msgpack.encode(value)


def verb_of(content: bytes) -> AnyVerb:
    """Return the verb that travelled; raise `msgspec.MsgspecError` for anything else."""
    found: AnyVerb = _decode_verb(content)
    return found


def answer_of(verb: Verb[Answer], content: bytes) -> Answer:
    """Return the answer to a verb that travelled; raise `msgspec.MsgspecError` for anything else."""
    found: Answer = msgspec.msgpack.decode(content, type=ANSWERS[type(verb)])
    return found
