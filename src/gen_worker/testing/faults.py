"""What a loopback hub can do wrong, and which of its answers are hit. Sends nothing."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TypeAlias, TypeVar


@dataclass(frozen=True)
class Status:
    """The answer is this status instead of what was asked for."""

    code: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cut:
    """The connection ends after so many bytes of the body."""

    after: int


@dataclass(frozen=True)
class NoRange:
    """A `Range` is ignored: 200 with the whole file."""


@dataclass(frozen=True)
class BadRange:
    """A `Range` is answered with another range, which begins one byte later."""


@dataclass(frozen=True)
class Corrupt:
    """The byte at this offset of the file is another one."""

    at: int = 0


@dataclass(frozen=True)
class Truncate:
    """The file is only so long, and its headers say so."""

    to: int


@dataclass(frozen=True)
class Oversize:
    """The file is so many bytes longer, and its headers say so."""

    by: int


@dataclass(frozen=True)
class Stall:
    """Nothing comes for a while after so many bytes of the body."""

    after: int
    seconds: float


@dataclass(frozen=True)
class Slow:
    """The body comes at this pace."""

    bytes_per_s: float


@dataclass(frozen=True)
class Expire:
    """A signed URL answers 403 to every request after the one that brought its bytes to so many; a new one is good."""

    after: int = 0


@dataclass(frozen=True)
class ETag:
    """The hub names the file's content by this text."""

    text: str


@dataclass(frozen=True)
class ChangingETag:
    """The file has another ETag at each answer, as if it had been replaced."""


@dataclass(frozen=True)
class Pointer:
    """The file's content is a Git LFS pointer."""


@dataclass(frozen=True)
class Name:
    """Listings show the file under this name."""

    path: str


@dataclass(frozen=True)
class NoSize:
    """Nobody says how long the file is: listings have no size, answers no `Content-Length`."""


@dataclass(frozen=True)
class NoETag:
    """A part is stored, but the answer does not name it."""


@dataclass(frozen=True)
class InProgress:
    """The store is still at it: 409 with `upload_complete_in_progress`; 202 where a revision is made visible."""


Fault: TypeAlias = (
    Status
    | Cut
    | NoRange
    | BadRange
    | Corrupt
    | Truncate
    | Oversize
    | Stall
    | Slow
    | Expire
    | ETag
    | ChangingETag
    | Pointer
    | Name
    | NoSize
    | NoETag
    | InProgress
)
Kind = TypeVar("Kind", bound=Fault)


@dataclass
class _Plan:
    glob: str
    fault: Fault
    times: int | None  # None: for good


def matches(target: str, glob: str) -> bool:
    """Whether a glob means this file of `owner/name/path`, with or without the repository before it.

    `*` matches `/`, too. A target like `api:/api/models/owner/name` is meant only by a glob that begins with `api:`.
    """
    kind, colon, rest = target.partition(":")
    if colon and kind in ("api", "resolve"):
        wanted, colon, rest_glob = glob.partition(":")
        return bool(colon) and wanted == kind and fnmatchcase(rest, rest_glob)
    return fnmatchcase(target, glob) or fnmatchcase(target.split("/", 2)[-1], glob)


class Faults:
    """The faults that are planned. Any thread may plan and take them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._plans: list[_Plan] = []

    def plan(self, glob: str, fault: Fault, times: int | None) -> None:
        """Have a fault hit the next so many answers that the glob means."""
        with self._lock:
            self._plans.append(_Plan(glob, fault, times))

    def clear(self) -> None:
        """Forget all of them."""
        with self._lock:
            self._plans.clear()

    def take(self, target: str, kind: type[Kind], when: Callable[[Kind], bool] = lambda fault: True) -> Kind | None:
        """Return the first fault of a kind for a target, and count that it has hit."""
        with self._lock:
            for plan in self._plans:
                if isinstance(plan.fault, kind) and plan.times != 0 and matches(target, plan.glob) and when(plan.fault):
                    plan.times = plan.times and plan.times - 1
                    return plan.fault
        return None
