"""What is kept of each job that ended: one JSON line, in files that outlive every supervisor.

None holds a payload, an output or a secret.
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from gen_worker.line_files import files_in, lines_of

FOLDER = "jobs"


class JobRecord(msgspec.Struct, omit_defaults=True, gc=False):
    """One job that ended. What is not known of it is left out; names are only added."""

    ts: float
    """When it ended, in seconds since 1970."""

    request_id: str
    """The request that it ran for."""

    function: str
    """What it ran."""

    outcome: str
    """`ok`, or the kind of error that its client got."""

    attempt: int = 1
    """Which attempt of the request it was."""

    device: str | None = None
    """Where it ran last; unset: nowhere."""

    tenant: str = ""
    """For whom it ran."""

    priority: int = 0
    """What it asked to go before, or after."""

    link: str = ""
    """Which way it came: by `serve`'s socket, the `control` socket, or from an `orchestrator`."""

    cause: str | None = None
    """What was behind an error, as `SIGSEGV`."""

    hang: str | None = None
    """How it hung, in one word."""

    deaths: int = 0
    """Children that died while it ran."""

    queue_s: float = 0.0
    """How long it waited until it ran, or ended without; what it waited for its models is in it."""

    load_s: float = 0.0
    """How much of that its instance was set up for it."""

    run_s: float = 0.0
    """How long its handler ran."""

    device_s: float = 0.0
    """How long it held its device; 0 for what shares it with others."""

    peak_vram: int = 0
    """The most bytes of its device's memory while it ran; left out where nobody measured it."""

    peak_rss: int = 0
    """The most bytes of host memory that its child took while it ran; left out where nobody measured it."""

    in_bytes: int = 0
    """The length of its payload."""

    out_bytes: int = 0
    """The length of its output, without the items of a stream and without files."""

    items: int = 0
    """Items of its stream."""

    trace: str = ""
    """The id of the trace that its caller, or a collector, had it in."""

    postmortem: str | None = None
    """The record of its child's death."""


_UNKNOWN = {"tenant": "", "link": "", "trace": "", "peak_vram": 0, "peak_rss": 0}  # what is kept of what nobody said


def whole(record: JobRecord) -> dict[str, object]:
    """Return a record with every field, for programs: null for what is not known of it."""
    return {
        name: None if name in _UNKNOWN and value == _UNKNOWN[name] else value
        for name, value in msgspec.structs.asdict(record).items()
    }


encode_lines = msgspec.json.Encoder().encode_lines
_decode = msgspec.json.Decoder(JobRecord).decode


def folder_in(run_dir: Path) -> Path:
    """Return where the records of a run directory lie."""
    return run_dir / FOLDER


def read(folder: Path) -> Iterator[JobRecord]:
    """Yield what is kept, file by file, the oldest file first; a line that says other things is left out.

    Raises `LineFileError` for a folder or file that cannot be read.
    """
    for file in files_in(folder):
        for line in lines_of(file):
            try:
                yield _decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
