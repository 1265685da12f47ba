"""What a supervisor tells its exporter of spans: one msgpack frame for each job that ended, over a SEQPACKET socket.

The first frame is another: the variables with the collector's keys, which do not stand in the exporter's environment.
"""

import msgspec

SPAN_LIMIT = 16 * 1024  # bytes of a frame
KEYS_LIMIT = 128 * 1024  # of the first one


class JobSpan(msgspec.Struct, array_like=True):
    """A job that ended, as a trace shows it; times in nanoseconds since 1970, 0 where it never came to that."""

    trace_id: str
    span_id: str
    parent_id: str  # the caller's span; "" where the trace begins with the job
    function: str
    device: str  # where it ran last; "" for nowhere
    outcome: str  # "ok", or the kind of error that its client got
    attempt: int
    submitted_ns: int
    started_ns: int
    ended_ns: int
    load_ns: int = 0  # how long its instance was set up for it, until it started
