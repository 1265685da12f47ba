"""The supervisor's log: lines to standard error through a thread of its own, and the recent events for `ps`.

A reader of standard error that stops reading costs lines, oldest first and counted, and never holds the loop. Values
that must not be seen are replaced in everything that is written or remembered.
"""

import os
import re
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

import msgspec

from gen_worker.terminal import Style, colours, paint, printable
from gen_worker.wire.messages import Level
from gen_worker.wire.status import EventStatus

Format: TypeAlias = Literal["text", "json"]

RING_BYTES = 1 << 20
EVENTS = 256
HIDDEN = "[secret]"
LEAST_BEGINNING = 6  # characters of a secret that a cut text may not end with
_LEVELS: dict[Level, int] = {"debug": 0, "info": 1, "warning": 2, "error": 3}
_STYLES: dict[Level, Style] = {"warning": "yellow", "error": "red"}


def format_of(wanted: str, *, pid: int, terminal: bool) -> Format:
    """Return what `auto` stands for: text, but JSON where a container's log is read by a program."""
    if wanted == "json" or (wanted == "auto" and pid == 1 and not terminal):
        return "json"
    return "text"


class Line(msgspec.Struct, omit_defaults=True):
    """One line of the log as JSON."""

    ts: float
    level: Level
    source: str
    message: str
    job: str | None = None
    child: str | None = None


_encode = msgspec.json.Encoder().encode


class Look:
    """How lines look and which are shown at all. Pure."""

    def __init__(
        self,
        form: Format = "text",
        level: Level = "info",
        *,
        colour: bool = False,
        secrets: Iterable[str] = (),
    ) -> None:
        self.form = form
        self.colour = colour
        self._least = _LEVELS[level]
        parts = {part for secret in secrets for part in secret.splitlines() if part}
        longest_first = sorted(parts, key=len, reverse=True)
        self._secrets = re.compile("|".join(map(re.escape, longest_first))) if parts else None
        self._values = longest_first

    def hide(self, text: str) -> str:
        """Return the text without secret values."""
        return text if self._secrets is None else self._secrets.sub(HIDDEN, text)

    def hide_cut(self, text: str) -> str:
        """Return a text without secret values that may have been cut in the middle of one."""
        hidden = self.hide(text)
        for secret in self._values:
            at = hidden.find(secret[:LEAST_BEGINNING], max(0, len(hidden) - len(secret)))
            while at >= 0 and not secret.startswith(hidden[at:]):
                at = hidden.find(secret[:LEAST_BEGINNING], at + 1)
            if at >= 0:
                return hidden[:at] + HIDDEN
        return hidden

    def shows(self, level: Level) -> bool:
        """Whether lines of this level are written."""
        return _LEVELS[level] >= self._least

    def line(self, line: Line, *, bare: bool = False, marked: bool = False) -> bytes:
        """Return the bytes of a line. As text, a `bare` one names no source, a `marked` one begins with its level."""
        shown = Line(line.ts, line.level, *map(self._shown, (line.source, line.message)))
        shown.job = None if line.job is None else self._shown(line.job)
        shown.child = None if line.child is None else self._shown(line.child)
        if self.form == "json":
            return _encode(shown) + b"\n"
        text = printable(shown.message, lines=True).replace("\n", "\n  ")
        if marked:
            mark = f"{line.level}:"
            style = _STYLES.get(line.level) if self.colour else None
            text = f"{mark if style is None else paint(mark, style)} {text}"
        if not bare:
            text = f"[{printable(shown.source if shown.job is None else f'{shown.source} job={shown.job}')}] {text}"
        return text.encode() + b"\n"

    def _shown(self, text: str) -> str:
        """Return the text without secret values, as UTF-8 can carry it."""
        return self.hide(text).encode("utf-8", "backslashreplace").decode()


def stderr_look(form: str, level: Level, environment: Mapping[str, str], secrets: Iterable[str]) -> Look:
    """Return how this process's log looks on its standard error."""
    chosen = format_of(form, pid=os.getpid(), terminal=sys.stderr.isatty())
    return Look(chosen, level, colour=colours(sys.stderr, environment), secrets=secrets)


class Log:
    """Everything a person may want to read of this supervisor."""

    def __init__(self, look: Look | None = None, fd: int = 2) -> None:
        self._look = look or Look()
        self._fd = fd
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._dropped = 0
        self._change = threading.Condition()
        self._open = True
        self.events: deque[EventStatus] = deque(maxlen=EVENTS)
        self._events = 0
        self._thread = threading.Thread(target=self._write, name="gen-worker-log", daemon=True)
        self._thread.start()

    def hide(self, text: str) -> str:
        """Return the text without secret values."""
        return self._look.hide(text)

    def hide_cut(self, text: str) -> str:
        """Return a text without secret values that may have been cut in the middle of one."""
        return self._look.hide_cut(text)

    def say(self, message: str, level: Level = "info") -> None:
        """Write a line of the supervisor's own; never blocks."""
        if self._look.shows(level):
            line = Line(time.time(), level, "serve", message)
            self._put(self._look.line(line, bare=True, marked=level != "info"))

    def printed(self, child: str, job: str | None, message: str) -> None:
        """Write a line that a child printed; never blocks."""
        if self._look.shows("info"):
            self._put(self._look.line(Line(time.time(), "info", child, message, job, child)))

    def logged(self, child: str, job: str, level: str, message: str) -> None:
        """Write what a job logged; never blocks."""
        known = level if level in _LEVELS else "info"
        if self._look.shows(known):
            self._put(self._look.line(Line(time.time(), known, child, message, job, child), marked=True))

    def event(
        self, level: Literal["info", "warning", "error"], source: str, message: str, lines: tuple[str, ...] = ()
    ) -> None:
        """Write a line and remember it for `ps`; `lines` go below it. Never blocks."""
        now = time.time()
        self._events += 1
        self.events.append(EventStatus(self._events, now, level, self.hide(source), self.hide(message)))
        if not self._look.shows(level):
            return
        if self._look.form == "json":
            whole = "\n".join((message, *(extra.rstrip() for extra in lines)))
            self._put(self._look.line(Line(now, level, source, whole)))
            return
        self._put(self._look.line(Line(now, level, source, message), marked=level != "info"))
        for extra in lines:
            self._put(self._look.line(Line(now, "info", source, f"  {extra.rstrip()}")))

    def _put(self, data: bytes) -> None:
        with self._change:
            self._lines.append(data)
            self._bytes += len(data)
            while self._bytes > RING_BYTES:
                self._bytes -= len(self._lines.popleft())
                self._dropped += 1
            self._change.notify()

    def _write(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._lines or not self._open)
                if not self._lines:
                    return
                batch, self._bytes, dropped = b"".join(self._lines), 0, self._dropped
                self._lines.clear()
                self._dropped = 0
            if dropped:
                told = Line(time.time(), "info", "log", f"{dropped} older lines dropped: nobody read them")
                batch = self._look.line(told) + batch
            if not self._write_out(batch):
                return

    def _write_out(self, data: bytes) -> bool:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                select.select([], [self._fd], [])
            except OSError:
                return False  # nobody can ever read it again: a closed pipe or terminal
        return True

    def close(self, timeout_s: float = 1.0) -> None:
        """Write what is left, for as long as its reader takes it."""
        with self._change:
            self._open = False
            self._change.notify()
        self._thread.join(timeout_s)
