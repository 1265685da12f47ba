"""What jobs tell while they run, on stderr: JSON lines for programs, text and a progress bar for a person.

Knows nothing of requests and sockets: it is handed one event after the other.
"""

import io
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TextIO, TypeAlias

import msgspec

from gen_worker.settings import Settings
from gen_worker.terminal import Style, colours, paint

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

Form: TypeAlias = Literal["json", "text", "bar"]
"""`bar` is text whose progress is one line that is drawn again and again; only a terminal can show it."""

ERASE = "\r\x1b[K"
_REDRAW_S = 0.05
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LEVELS = ("debug", "info", "warning", "error")
_STYLES: dict[str, Style] = {"warning": "yellow", "error": "red", "debug": "dim"}


def form_of(wanted: str, stream: TextIO, env: Mapping[str, str]) -> Form:
    """Return the form for a stream: as wanted, or for `auto` what fits it."""
    drawable = stream.isatty() and env.get("TERM") != "dumb"
    if wanted == "json" or (wanted == "auto" and not stream.isatty()):
        return "json"
    return "bar" if drawable else "text"


class Events:
    """The events of jobs, shown one after the other through `write`."""

    def __init__(
        self,
        form: Form,
        write: Callable[[str], object],
        level: str = "debug",
        *,
        coloured: bool = False,
        width: Callable[[], int] = lambda: shutil.get_terminal_size().columns,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.form = form
        self._write = write
        self._least = _LEVELS.index(level)
        self._coloured = coloured
        self._width = width
        self._clock = clock
        self._bar = ""
        self._drawn_at = -_REDRAW_S
        self._last = ("", "", -1)

    def show(self, function: str, request_id: str, what: str, value: Mapping[str, Any], at: float) -> None:
        """Show an event of a request, most often its `progress` or a `log` line, told at a unix time.

        As JSON, what names its own `kind` stands in the line itself, as fetches of models do, not in a `payload`.
        """
        level = str(value.get("level", "info")) if what == "log" else "info"
        if level in _LEVELS and _LEVELS.index(level) < self._least and what == "log":
            return
        if self.form == "json":
            own = value if "kind" in value else {"type": f"request.{what}", "payload": value}
            event = {**own, "request_id": request_id, "timestamp": at}
            self._write(msgspec.json.encode(event, order="sorted").decode() + "\n")
        elif what == "progress":
            self._progress(function, request_id, value)
        elif what != "log":
            self._line(f"[{function}] {what}: {msgspec.json.encode(value, order='sorted').decode()}\n")
        else:
            self._line(f"[{function}] {self._marked(level)}{_printable(str(value.get('message', '')))}\n")

    def _marked(self, level: str) -> str:
        if level == "info":
            return ""
        return (paint(f"{level}:", _STYLES[level]) if self._coloured and level in _STYLES else f"{level}:") + " "

    def _progress(self, function: str, request_id: str, value: Mapping[str, Any]) -> None:
        progress, stage = value.get("progress"), _printable(str(value.get("stage") or "")).replace("\n", " ")
        share = float(min(1, max(0, progress))) if isinstance(progress, int | float) else 0.0
        if self.form == "text":
            step = (request_id, stage, int(share * 10))
            if step != self._last:  # a line for each tenth and each stage
                self._last = step
                self._write(f"[{function}] {share:.0%} {stage}".rstrip() + "\n")
            return
        now = self._clock()
        bar = progress_bar(share, stage, self._width())
        if bar != self._bar and (now - self._drawn_at >= _REDRAW_S or share >= 1):
            self._drawn_at = now
            self._bar = bar
            self._write(ERASE + bar)

    def _line(self, text: str) -> None:
        bar = self._bar
        self._write(f"{ERASE}{text}{bar}" if bar else text)

    def hide(self) -> None:
        """Take the progress bar off the terminal, so that something else can be printed; the next event draws it."""
        if self._bar:
            self._bar = ""
            self._write(ERASE)

    @property
    def erasing(self) -> str:
        """What to write before a line that does not go through here, to take the progress bar away."""
        return ERASE if self._bar else ""


def events_on_stderr(settings: Settings) -> "Events":
    """Return the way for events to stderr that the settings want."""
    stream = sys.stderr  # this one, even if the author's code gets another

    def write(text: str) -> None:
        stream.write(text)
        stream.flush()

    form = form_of(settings.log_format, stream, os.environ)
    return Events(form, write, settings.log_level, coloured=colours(stream, os.environ))


@contextmanager
def prints_beside(events: Events) -> Iterator[None]:
    """Have whatever Python code prints take the progress bar off the terminal first; native code is not noticed."""
    if events.form != "bar":
        yield
        return
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        _opened(_Polite(descriptor, events), stream) for descriptor, stream in ((1, before[0]), (2, before[1]))
    )
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stdout, sys.stderr = before


def _opened(raw: io.FileIO, like: TextIO) -> TextIO:
    return io.TextIOWrapper(io.BufferedWriter(raw), like.encoding, like.errors, line_buffering=True)


class _Polite(io.FileIO):
    """A descriptor of the terminal, written to when no progress bar is in the way."""

    def __init__(self, descriptor: int, events: Events) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self._events = events

    def write(self, data: "ReadableBuffer", /) -> int:
        self._events.hide()
        return super().write(data)


def progress_bar(share: float, stage: str, width: int) -> str:
    """Return a progress bar with the percentage and the stage, in one line that is shorter than the terminal."""
    room = max(10, min(30, width // 3))
    full = round(room * min(1.0, max(0.0, share)))
    line = "━" * full + "╌" * (room - full) + f" {share:4.0%} {stage}".rstrip()
    return line if len(line) < width else line[: max(0, width - 2)] + "…"


def _printable(text: str) -> str:
    """Return the text without what would move a terminal's cursor or change its colours."""
    return _CONTROL.sub("�", text)
