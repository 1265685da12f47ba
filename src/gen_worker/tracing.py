"""Where a job belongs in a trace that its caller began: the `traceparent` of W3C Trace Context.

https://www.w3.org/TR/trace-context/. What breaks its rules counts as none at all, and nobody is told: as the standard
asks. `tracestate` is not passed on.
"""

import os
import re
from typing import NamedTuple

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII | re.DOTALL)
_NO_TRACE = "0" * 32
_NO_SPAN = "0" * 16
_SAMPLED = 1


class Span(NamedTuple):
    """A job's place in a trace."""

    trace_id: str
    span_id: str  # the job's own
    parent_id: str  # its caller's; "" where the trace begins with the job
    sampled: bool

    @property
    def traceparent(self) -> str:
        """What those are told who do something for the job."""
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}"


def continued(traceparent: str) -> Span | None:
    """Return a new span below a caller's, None for what is no `traceparent`."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None:
        return None
    version, trace_id, parent_id, flags, rest = found.groups()
    if version == "ff" or (version == "00" and rest is not None):
        return None
    if trace_id == _NO_TRACE or parent_id == _NO_SPAN:
        return None
    return Span(trace_id, new_id(8), parent_id, bool(int(flags, 16) & _SAMPLED))


def known(traceparent: str) -> str:
    """Return a caller's `traceparent` as far as this version of the standard knows it, "" for what is none."""
    span = continued(traceparent)
    return "" if span is None else span._replace(span_id=span.parent_id).traceparent


def begun() -> Span:
    """Return the first span of a new trace."""
    return Span(new_id(16), new_id(8), "", True)


def new_id(length: int) -> str:
    """Return so many random bytes in hexadecimal, which are not all zero but for one time in the age of the world."""
    return os.urandom(length).hex()
