"""One line of a supervisor's log, as programs see it: on standard error, over the control socket and in files."""

from pathlib import Path

import msgspec

from gen_worker.wire.messages import Level

FOLDER = "logs"
LEVELS: dict[Level, int] = {"debug": 0, "info": 1, "warning": 2, "error": 3}


class Line(msgspec.Struct, omit_defaults=True):
    """One line. What is not known of it is left out; names are only added."""

    ts: float
    """Seconds since 1970."""

    level: Level
    """How grave it is: `debug`, `info`, `warning` or `error`."""

    source: str
    """Who tells it: a device for what its child prints, else a part of the supervisor."""

    message: str
    """What is told; it may have several lines."""

    job: str | None = None
    """The request that it belongs to."""

    child: str | None = None
    """The device whose child printed or logged it."""

    seq: int = 0
    """Its number at its supervisor, from 1 on."""

    event: bool = False
    """Whether the supervisor tells it of itself, its children and its jobs; else a child printed or logged it."""


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Line).decode


def folder_in(run_dir: Path) -> Path:
    """Return where the logs of a run directory lie."""
    return run_dir / FOLDER
