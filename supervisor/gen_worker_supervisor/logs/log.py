"""The supervisor's log: lines to standard error and to files, the last ones in memory, the recent events for `ps`.

Whoever tells something hands it over and never waits: threads do the rest. A reader of standard error that stops
reading, and a disk that holds whoever writes to it, cost lines, oldest first and counted, and hold nobody else. Values
that must not be seen are replaced in everything that is written or remembered.
"""

import os
import re
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Literal, NamedTuple, TypeAlias

from gen_worker.log_files import LEVELS, Line, encode
from gen_worker.terminal import Style, colours, paint, printable
from gen_worker.wire.messages import Level
from gen_worker.wire.status import EventStatus
from gen_worker_supervisor.logs.log_files import LineFiles
from gen_worker_supervisor.logs.redaction import redacted
from gen_worker_supervisor.logs.ring import Ring

Format: TypeAlias = Literal["text", "json"]

BACKLOG_BYTES = 1 << 20  # of what is ready for a reader
WAITING_BYTES = 16 << 20  # of what nobody has looked at yet: a burst of 45 000 lines
TOLD_BYTES = 300  # what a line that nobody has looked at yet takes beside its text
DROPPED_EVERY_S = 1.0  # between two lines that say how many are missing, while lines come too fast
AT_ONCE = 32  # lines that are made ready before others get their turn: half a millisecond
EVENTS = 256
NAMES_KEPT = 256  # of sources and jobs, as they are shown
HIDDEN = "[secret]"
LEAST_BEGINNING = 6  # characters of a secret that a cut text may not end with
_STYLES: dict[Level, Style] = {"warning": "yellow", "error": "red"}


def format_of(wanted: str, *, pid: int, terminal: bool) -> Format:
    """Return what `auto` stands for: text, but JSON where a container's log is read by a program."""
    if wanted == "json" or (wanted == "auto" and pid == 1 and not terminal):
        return "json"
    return "text"


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
        self._least = LEVELS[level]
        parts = {part for secret in secrets for part in secret.splitlines() if part}
        longest_first = sorted(parts, key=len, reverse=True)
        self._secrets = re.compile("|".join(map(re.escape, longest_first))) if parts else None
        self._values = longest_first
        self._named = lru_cache(NAMES_KEPT)(self._shown)  # many lines have the same

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
        return LEVELS[level] >= self._least

    def line(self, line: Line, *, bare: bool = False, marked: bool = False) -> bytes:
        """Return the bytes of a line. As text, a `bare` one names no source, a `marked` one begins with its level."""
        shown = self.fit(line)
        return encode(shown) + b"\n" if self.form == "json" else self.text(shown, bare=bare, marked=marked)

    def fit(self, line: Line) -> Line:
        """Return a line as it may be seen."""
        source, message = self._named(line.source), self._shown(line.message)
        job = None if line.job is None else self._named(line.job)
        child = None if line.child is None else self._named(line.child)
        return Line(line.ts, line.level, source, message, job, child, event=line.event)

    def text(self, shown: Line, *, bare: bool = False, marked: bool = False) -> bytes:
        """Return a line that may be seen as text."""
        text = printable(shown.message, lines=True).replace("\n", "\n  ")
        if marked:
            mark = f"{shown.level}:"
            style = _STYLES.get(shown.level) if self.colour else None
            text = f"{mark if style is None else paint(mark, style)} {text}"
        if not bare:
            named = shown.job is not None and not shown.event
            text = f"[{printable(f'{shown.source} job={shown.job}' if named else shown.source)}] {text}"
        return text.encode() + b"\n"

    def _shown(self, text: str) -> str:
        """Return the text without secret values, as UTF-8 can carry it."""
        hidden = self.hide(text)
        return hidden if hidden.isascii() else hidden.encode("utf-8", "backslashreplace").decode()


def stderr_look(form: str, level: Level, environment: Mapping[str, str], secrets: Iterable[str]) -> Look:
    """Return how this process's log looks on its standard error."""
    chosen = format_of(form, pid=os.getpid(), terminal=sys.stderr.isatty())
    return Look(chosen, level, colour=colours(sys.stderr, environment), secrets=secrets)


class _Told(NamedTuple):
    """Something to be told, as it was handed over."""

    line: Line
    shown: bool  # on standard error
    bare: bool = False
    marked: bool = False
    lines: tuple[str, ...] = ()  # what goes below it


class Log:
    """Everything a person may want to read of this supervisor."""

    def __init__(self, look: Look | None = None, fd: int = 2, kept: "Callable[[Log], LineFiles] | None" = None) -> None:
        """`kept` makes the files that the lines go to; without it they go to none."""
        self._look = look or Look()
        self._waiting: deque[_Told] = deque()
        self._bytes = 0
        self._dropped = 0
        self._dropped_told_at = 0.0
        self._change = threading.Condition()
        self._open = True
        self.ring = Ring()
        self.on_lines: Callable[[], None] = lambda: None
        """Called by a thread of the log's when the ring has new lines; must return at once."""

        self.events: deque[EventStatus] = deque(maxlen=EVENTS)
        self._events = 0
        self._stderr = Outlet("gen-worker-stderr", _Writer(fd).write, self._dropped_there)
        self._files = None if kept is None else kept(self)
        self._to_files = None
        if self._files is not None:
            self._to_files = Outlet("gen-worker-log-files", self._files.write, lambda count: b"")
        self._thread = threading.Thread(target=self._work, name="gen-worker-log", daemon=True)
        self._thread.start()

    def hide(self, text: str) -> str:
        """Return the text without secret values."""
        return self._look.hide(text)

    def hide_cut(self, text: str) -> str:
        """Return a text without secret values that may have been cut in the middle of one."""
        return self._look.hide_cut(text)

    def say(self, message: str, level: Level = "info") -> None:
        """Write a line of the supervisor's own, which `ps` does not show; never blocks."""
        line = Line(time.time(), level, "serve", message, event=True)
        self._put(_Told(line, self._look.shows(level), bare=True, marked=level != "info"))

    def printed(self, child: str, job: str | None, message: str) -> None:
        """Write a line that a child printed; never blocks."""
        self._put(_Told(Line(time.time(), "info", child, message, job, child), self._look.shows("info")))

    def logged(self, child: str, job: str, level: str, message: str) -> None:
        """Write what a job logged; never blocks."""
        known = level if level in LEVELS else "info"
        self._put(_Told(Line(time.time(), known, child, message, job, child), self._look.shows(known), marked=True))

    def event(
        self,
        level: Literal["info", "warning", "error"],
        source: str,
        message: str,
        lines: tuple[str, ...] = (),
        job: str | None = None,
    ) -> None:
        """Write a line and remember it for `ps`; `lines` go below it, `job` is whose it is. Never blocks."""
        now = time.time()
        self._events += 1
        if job is not None:  # what an author's code says may be in it
            message = redacted(message)
        self.events.append(EventStatus(self._events, now, level, self.hide(source), self.hide(message)))
        line = Line(now, level, source, message, job, event=True)
        self._put(_Told(line, self._look.shows(level), marked=level != "info", lines=lines))

    def _put(self, told: _Told) -> None:
        with self._change:
            self._waiting.append(told)
            self._bytes += _size(told)
            while self._bytes > WAITING_BYTES:
                self._bytes -= _size(self._waiting.popleft())
                self._dropped += 1
            self._change.notify()

    # --- in the thread ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._waiting or not self._open)
                if not self._waiting:
                    return
                batch = [self._waiting.popleft() for _ in range(min(AT_ONCE, len(self._waiting)))]
                self._bytes -= sum(map(_size, batch))
                dropped = self._dropped_by_now()
            if dropped:
                text = f"{dropped} older lines dropped: they came faster than they could be kept"
                batch.insert(0, _Told(Line(time.time(), "info", "log", text), shown=True))
            self._keep(batch)
            time.sleep(0)  # the loop's turn

    def _dropped_by_now(self) -> int:
        """Return how many lines are missing that nobody was told of, 0 where that was told of just now."""
        now = time.monotonic()
        if self._waiting and now < self._dropped_told_at + DROPPED_EVERY_S:
            return 0
        dropped, self._dropped = self._dropped, 0
        if dropped:
            self._dropped_told_at = now
        return dropped

    def _keep(self, batch: list[_Told]) -> None:
        kept: list[bytes] = []
        shown: list[bytes] = []
        for told in batch:
            line = self._fit(told)
            data = self.ring.add(line)
            kept.append(data)
            if told.shown:
                shown.append(data if self._look.form == "json" else self._text(line, told))
        self.on_lines()
        if shown:
            self._stderr.put(b"".join(shown), len(shown))
        if self._to_files is not None:
            self._to_files.put(b"".join(kept), len(kept))

    def _fit(self, told: _Told) -> Line:
        """Return a line as everybody may see it; what an author's code says may have secrets that nobody here knows."""
        line = told.line
        whole = _whole(told) if told.lines else line.message
        if line.child is not None or line.job is not None or told.lines:
            whole = redacted(whole)
        return self._look.fit(Line(line.ts, line.level, line.source, whole, line.job, line.child, event=line.event))

    def _text(self, line: Line, told: _Told) -> bytes:
        if not told.lines:
            return self._look.text(line, bare=told.bare, marked=told.marked)
        first, *below = line.message.split("\n")
        head = Line(line.ts, line.level, line.source, first)
        rest = (self._look.text(Line(line.ts, "info", line.source, f"  {each}")) for each in below)
        return b"".join((self._look.text(head, marked=told.marked), *rest))

    def _dropped_there(self, count: int) -> bytes:
        line = Line(time.time(), "info", "log", f"{count} older lines dropped: nobody read them")
        return self._look.line(line)

    def close(self, timeout_s: float = 1.0) -> None:
        """Write what is left, for as long as its readers take it."""
        deadline = time.monotonic() + timeout_s
        with self._change:
            self._open = False
            self._change.notify()
        self._thread.join(timeout_s)
        self._stderr.close(max(0.0, deadline - time.monotonic()))
        written = self._to_files is not None and self._to_files.close(max(0.0, deadline - time.monotonic()))
        if written and self._files is not None:
            self._files.close()


def _size(told: _Told) -> int:
    return len(told.line.message) + TOLD_BYTES + sum(map(len, told.lines))


def _whole(told: _Told) -> str:
    return "\n".join((told.line.message, *(extra.rstrip() for extra in told.lines)))


class Outlet:
    """Somewhere for lines to go, through a thread of its own: whoever has lines never waits for it."""

    def __init__(self, name: str, write: Callable[[bytes], object], dropped: Callable[[int], bytes]) -> None:
        """`write` may take as long as it likes; `dropped` says in a line how many were lost before it."""
        self._write = write
        self._told_dropped = dropped
        self._batches: deque[tuple[bytes, int]] = deque()
        self._bytes = 0
        self._dropped = 0
        self._change = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def put(self, data: bytes, lines: int) -> None:
        """Take so many lines; the oldest are dropped where too many wait."""
        with self._change:
            self._batches.append((data, lines))
            self._bytes += len(data)
            while self._bytes > BACKLOG_BYTES and len(self._batches) > 1:
                oldest, count = self._batches.popleft()
                self._bytes -= len(oldest)
                self._dropped += count
            self._change.notify()

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._batches or not self._open)
                if not self._batches:
                    return
                data = b"".join(batch for batch, _ in self._batches)
                dropped, self._dropped, self._bytes = self._dropped, 0, 0
                self._batches.clear()
            self._write((self._told_dropped(dropped) if dropped else b"") + data)

    def close(self, timeout_s: float) -> bool:
        """Write what is left, within so many seconds; return whether that was possible."""
        with self._change:
            self._open = False
            self._change.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()


class _Writer:
    """Writes to a descriptor until nobody can ever read there again: a closed pipe or terminal."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._over = False

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view and not self._over:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                select.select([], [self._fd], [])
            except OSError:
                self._over = True
