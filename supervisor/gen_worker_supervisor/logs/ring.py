"""The last lines of the log in memory, and which of them somebody asks for.

Lines come from one thread and are looked at by another; nobody waits for more than one look.
"""

import threading
from collections import deque
from itertools import islice
from typing import NamedTuple

from gen_worker.log_files import LEVELS, Line, encode
from gen_worker.wire.messages import Level

RING_BYTES = 4 << 20
ENTRY_BYTES = 256  # what a line takes beside its text
PAGE_BYTES = 1 << 20
LOOKED_AT = 4096  # lines at a time: half a millisecond


class Filter(NamedTuple):
    """Which lines are meant; each empty value means all."""

    events: bool = False
    device: str = ""
    request_id: str = ""
    level: Level = "debug"


class Page(NamedTuple):
    """Lines, the oldest first."""

    lines: list[bytes]
    last: int  # the number of the last one looked at
    left_out: int  # lines after the one that was asked for that are not remembered any more
    more: bool  # there are others that were not looked at


class _Entry(NamedTuple):
    level: int
    event: bool
    source: str
    child: str | None
    job: str | None
    text: bytes


class Ring:
    """Remembers as many of the last lines as fit into so many bytes."""

    def __init__(self, limit_bytes: int = RING_BYTES) -> None:
        self.last = 0  # the number of the newest line
        self._limit = limit_bytes
        self._bytes = 0
        self._entries: deque[_Entry] = deque()
        self._lock = threading.Lock()

    def add(self, line: Line) -> bytes:
        """Give a line its number and remember it, as what is returned."""
        line.seq = self.last + 1
        text = encode(line) + b"\n"
        entry = _Entry(LEVELS[line.level], line.event, line.source, line.child, line.job, text)
        with self._lock:
            self.last += 1
            self._entries.append(entry)
            self._bytes += len(text) + ENTRY_BYTES
            while self._bytes > self._limit and len(self._entries) > 1:
                self._bytes -= len(self._entries.popleft().text) + ENTRY_BYTES
        return text

    def page(self, after: int, meant: Filter, limit: int) -> Page:
        """Return lines that are meant: those after one, for a negative `after` from the so many last one on."""
        fits = _Test(meant)
        with self._lock:
            oldest = self.last - len(self._entries) + 1
            if after < 0:
                after = self._before_last(-after, fits, oldest)
            after = min(after, self.last)
            first = max(after + 1, oldest)
            found: list[bytes] = []
            room, seen = PAGE_BYTES, first - 1
            for entry in islice(self._entries, first - oldest, first - oldest + LOOKED_AT):
                if fits(entry):
                    room -= len(entry.text)
                    if len(found) >= limit or (room < 0 and found):
                        break
                    found.append(entry.text)
                seen += 1
            return Page(found, seen, first - after - 1, seen < self.last)

    def _before_last(self, number: int, fits: "_Test", oldest: int) -> int:
        """Return the line before the so many last one that is meant; before the oldest where there are fewer."""
        for at, entry in enumerate(reversed(self._entries)):
            if fits(entry):
                number -= 1
                if not number:
                    return self.last - at - 1
        return oldest - 1


class _Test:
    """Whether a line is meant."""

    __slots__ = ("_device", "_events", "_least", "_request_id")

    def __init__(self, meant: Filter) -> None:
        self._events, self._device, self._request_id = meant.events, meant.device, meant.request_id
        self._least = LEVELS[meant.level]

    def __call__(self, entry: _Entry) -> bool:
        if entry.level < self._least or (self._events and not entry.event):
            return False
        if self._device and self._device not in (entry.child, entry.source):
            return False
        return not self._request_id or entry.job == self._request_id
