"""`events.jsonl`: what happened in a training, a JSON object a line, for programs that follow it.

Also written to by the supervisor, for a training whose process cannot tell any more. No line is ever half there for a
reader that goes on from it: a process that continues the file takes a torn last line away first.
"""

import errno
import json
import os
import time
from pathlib import Path
from typing import Any, Literal, TypeAlias

from gen_worker.trainer.room import lacks_room, no_room

SCHEMA = "trainer_event.v1"
_TAIL_BYTES = 1 << 16
_ENOUGH_LINES = 2  # ends of lines: between them is the last whole one

Event: TypeAlias = Literal["started", "metric", "checkpoint", "sample", "completed", "failed"]


class EventFile:
    """The events of one training; numbers go on from what the file has."""

    def __init__(self, path: Path, request_id: str) -> None:
        self.path = path
        self._request_id = request_id
        path.parent.mkdir(parents=True, exist_ok=True)
        self._seq = _mend(path)

    def write(self, event: Event, **more: Any) -> dict[str, Any]:
        """Write one line, and return what it says; raise `NoRoomError` where the disk has no room for it."""
        document = {
            "schema_version": SCHEMA,
            "event": event,
            "seq": self._seq + 1,
            "request_id": self._request_id,
            "timestamp_ms": time.time_ns() // 1_000_000,
            **more,
        }
        line = json.dumps(document, ensure_ascii=False, default=str).encode("utf-8", "replace") + b"\n"
        try:
            _append(self.path, line)
        except OSError as error:
            if lacks_room(error, self.path.parent):
                raise no_room(self.path, len(line)) from error
            raise
        self._seq += 1
        return document


def _append(path: Path, line: bytes) -> None:
    """Write all of a line at the end of a file, or nothing."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        size = os.fstat(fd).st_size
        if os.write(fd, line) < len(line):
            os.ftruncate(fd, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(fd)


def _mend(path: Path) -> int:
    """Take away a last line that is torn; return the number of the last one that is whole, 0 where there is none."""
    if not path.exists():
        return 0
    whole_bytes, last = _ends(path)
    if whole_bytes < path.stat().st_size:
        os.truncate(path, whole_bytes)
    seq = last.get("seq", 0)
    return seq if isinstance(seq, int) else 0


def _ends(path: Path) -> tuple[int, dict[str, Any]]:
    """Return where the last whole line ends, and what it says."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        begin, found = size, b""
        while begin > 0 and found.count(b"\n") < _ENOUGH_LINES:
            begin = max(0, begin - max(_TAIL_BYTES, size - begin))  # a line may be of any length
            file.seek(begin)
            found = file.read()
    whole, newline, torn = found.rpartition(b"\n")
    try:
        last = json.loads(whole.rpartition(b"\n")[2]) if newline else {}
    except ValueError:
        last = {}
    return size - len(torn), last if isinstance(last, dict) else {}


def last_event(path: Path) -> str:
    """Return what the last line says that happened; empty where there is none."""
    if not path.exists():
        return ""
    _, last = _ends(path)
    return str(last.get("event", ""))
