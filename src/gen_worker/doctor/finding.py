"""What a check says: one finding or several, each with what was seen and, where it is not as it should be, a remedy."""

from enum import StrEnum

import msgspec


class Status(StrEnum):
    """How it is with what was looked at."""

    OK = "ok"
    WARNING = "warning"  # it works, and could do so better or longer
    PROBLEM = "problem"  # something does not work
    SKIPPED = "skipped"  # there was nothing to look at, or nobody asked


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was found: `found` has the values, `remedy` says what to do."""

    name: str
    status: Status
    found: str
    remedy: str = ""


def ok(name: str, found: str) -> Finding:
    """It is as it should be."""
    return Finding(name, Status.OK, found)


def warning(name: str, found: str, remedy: str) -> Finding:
    """It works, and could do so better or longer."""
    return Finding(name, Status.WARNING, found, remedy)


def problem(name: str, found: str, remedy: str) -> Finding:
    """It does not work."""
    return Finding(name, Status.PROBLEM, found, remedy)


def skipped(name: str, found: str) -> Finding:
    """There was nothing to look at."""
    return Finding(name, Status.SKIPPED, found)


def size(bytes_: int) -> str:
    """Return an amount as a person says it: `512 KiB`, `120 MiB`, `23.9 GiB`."""
    if bytes_ < 1 << 20:
        return f"{bytes_ >> 10} KiB"
    return f"{bytes_ / (1 << 20):.0f} MiB" if bytes_ < 10 << 30 else f"{bytes_ / (1 << 30):.1f} GiB"


def reason(error: OSError) -> str:
    """Return what went wrong, as it stands in a sentence."""
    return (error.strerror or str(error)).lower()
