"""How fetches of models look: JSON lines for programs; text, and on a terminal a bar for each, for a person.

Knows nothing of downloads: it is told what happens, one thing after the other.
"""

import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from gen_worker.cli.events import Form, progress_bar
from gen_worker.cli.table import duration, size
from gen_worker.models.errors import ModelError
from gen_worker.models.snapshot import Snapshot
from gen_worker.models.wanted import Wanted
from gen_worker.terminal import Style, colours, paint, printable

_REDRAW_S = 0.1
_TELL_EVERY_S = 1.0  # where lines stay
_RATE_OVER_S = 3.0


class Watch(Protocol):
    """Is told how fetches of models go."""

    def started(self, wanted: Wanted) -> None:
        """A model is looked for."""

    def waiting(self, wanted: Wanted, host: str) -> None:
        """Nothing has come of it for a while: who is asked does not answer yet."""

    def progress(self, wanted: Wanted, bytes_done: int, bytes_total: int | None, retries: int) -> None:
        """So many bytes of it are there."""

    def completed(self, wanted: Wanted, snapshot: Snapshot, fetched_bytes: int) -> None:
        """It is here."""

    def failed(self, wanted: Wanted, error: ModelError) -> None:
        """It cannot be had."""

    def hide(self) -> None:
        """Take what is drawn off the terminal, so that something else can be printed."""


def watch_of(form: Form, write: Callable[[str], object], *, coloured: bool = False) -> Watch:
    """Return the watch for a form; `write` gets whole lines, and of `bar` what draws them."""
    if form == "json":
        return JsonLines(write)
    return Bars(write, coloured=coloured) if form == "bar" else Lines(write, coloured=coloured)


def watch_on_stderr(form: Form) -> Watch:
    """Return the watch that writes to stderr."""
    stream = sys.stderr  # this one, even if the author's code gets another

    def write(text: str) -> None:
        stream.write(text)
        stream.flush()

    return watch_of(form, write, coloured=colours(stream, os.environ))


# --- for programs -----------------------------------------------------------------------------------------------------


class JsonLines:
    """One JSON object a line, with `kind`; `bytes_total` is null when nobody knows."""

    def __init__(self, write: Callable[[str], object], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._told: dict[Wanted, float] = {}

    def started(self, wanted: Wanted) -> None:
        """Tell nothing yet: it may be here."""

    def waiting(self, wanted: Wanted, host: str) -> None:
        """Tell `model_fetch.waiting`."""
        self.tell("model_fetch.waiting", wanted, host=host)

    def progress(self, wanted: Wanted, bytes_done: int, bytes_total: int | None, retries: int) -> None:
        """Tell `model_fetch.started`, and at most once a second `model_fetch.progress`."""
        now = self._clock()
        if wanted not in self._told:
            self.tell("model_fetch.started", wanted)
        if now - self._told.get(wanted, -_TELL_EVERY_S) >= _TELL_EVERY_S:
            self._told[wanted] = now
            progress = {"bytes_done": bytes_done, "bytes_total": bytes_total, "retries": retries}
            self.tell("model_fetch.progress", wanted, **progress)

    def completed(self, wanted: Wanted, snapshot: Snapshot, fetched_bytes: int) -> None:
        """Tell `model_fetch.completed`."""
        found = {"local_dir": snapshot.path, "bytes": snapshot.size, "fetched_bytes": fetched_bytes}
        self.tell("model_fetch.completed", wanted, **found, notes=list(snapshot.notes))

    def failed(self, wanted: Wanted, error: ModelError) -> None:
        """Tell nothing: whoever asked for the model says that it failed."""

    def hide(self) -> None:
        """There is nothing to hide."""

    def tell(self, kind: str, wanted: Wanted | None = None, **fields: Any) -> None:
        """Write an event, about a model or about all."""
        about = {} if wanted is None else {"ref": wanted.ref, "provider": wanted.provider}
        self._write(msgspec.json.encode({"kind": kind, **about, **fields}).decode() + "\n")


# --- for people -------------------------------------------------------------------------------------------------------


class _Course:
    """How far one fetch is, and how fast it goes."""

    def __init__(self, now: float) -> None:
        self.began = now
        self.bytes_done = 0
        self.bytes_total: int | None = None
        self.retries = 0
        self._marks: deque[tuple[float, int]] = deque()

    def go_on(self, now: float, bytes_done: int, bytes_total: int | None, retries: int) -> None:
        self.bytes_done, self.bytes_total, self.retries = bytes_done, bytes_total, retries
        self._marks.append((now, bytes_done))
        while now - self._marks[0][0] > _RATE_OVER_S:
            self._marks.popleft()

    @property
    def share(self) -> float:
        return self.bytes_done / self.bytes_total if self.bytes_total else 0.0

    def __str__(self) -> str:
        amount = size(self.bytes_done)
        if self.bytes_total is not None:
            amount = f"{amount} of {size(self.bytes_total)}"
        (then, before), (now, here) = self._marks[0], self._marks[-1]
        rate = f", {size(round((here - before) / (now - then)))}/s" if now - then > _REDRAW_S and here > before else ""
        return f"{amount}{rate}{f', tried again: {self.retries}' if self.retries else ''}"


class Lines:
    """A line when a download has come a tenth further, one a second at most, and one at its end.

    Nothing of what was here already.
    """

    def __init__(
        self,
        write: Callable[[str], object],
        *,
        coloured: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write
        self._coloured = coloured
        self._clock = clock
        self._courses: dict[Wanted, _Course] = {}
        self._told: dict[Wanted, tuple[float, int]] = {}  # when, and at which tenth

    def started(self, wanted: Wanted) -> None:
        """Say nothing yet."""
        now = self._clock()
        self._courses[wanted] = _Course(now)
        self._told[wanted] = (now, -1)

    def waiting(self, wanted: Wanted, host: str) -> None:
        """Say who is waited for, and how to do without."""
        text = f"waiting for `{printable(host)}`; without a network, `--offline` uses what is on this machine"
        self._line(f"{printable(wanted.ref)}: {text}")

    def progress(self, wanted: Wanted, bytes_done: int, bytes_total: int | None, retries: int) -> None:
        """Say how far it is."""
        course = self._courses.get(wanted)
        if course is None:  # it has ended: somebody else's download of the same bytes still counted for it
            return
        now = self._clock()
        course.go_on(now, bytes_done, bytes_total, retries)
        tenth = int(course.share * 10)
        told_at, told = self._told[wanted]
        if tenth != told and now - told_at >= _TELL_EVERY_S:
            self._told[wanted] = (now, tenth)
            share = f"{course.share:.0%} " if bytes_total else ""
            self._line(f"{printable(wanted.ref)}: {share}{course}")

    def completed(self, wanted: Wanted, snapshot: Snapshot, fetched_bytes: int) -> None:
        """Say what was fetched, and what a person should know of it."""
        course = self._courses.pop(wanted)
        if fetched_bytes:
            took = duration(self._clock() - course.began)
            done = paint("fetched", "green") if self._coloured else "fetched"
            self._line(f"{printable(wanted.ref)}: {done} {size(fetched_bytes)} in {took}")
        for note in snapshot.notes:
            self._line(f"{self._mark('warning', 'yellow')} {printable(note)}")

    def failed(self, wanted: Wanted, error: ModelError) -> None:
        """Say nothing: whoever asked for the model says that it failed."""
        self._courses.pop(wanted, None)

    def hide(self) -> None:
        """There is nothing to hide."""

    def _line(self, text: str) -> None:
        self._write(f"{text}\n")

    def _mark(self, what: str, style: Style) -> str:
        return paint(f"{what}:", style) if self._coloured else f"{what}:"


class Bars(Lines):
    """A bar for each model that is downloaded, drawn again and again below the lines of those that are done."""

    def __init__(
        self,
        write: Callable[[str], object],
        *,
        coloured: bool = False,
        clock: Callable[[], float] = time.monotonic,
        width: Callable[[], int] = lambda: shutil.get_terminal_size().columns,
    ) -> None:
        super().__init__(write, coloured=coloured, clock=clock)
        self._width = width
        self._drawn = 0  # lines
        self._drawn_at = -_REDRAW_S

    def progress(self, wanted: Wanted, bytes_done: int, bytes_total: int | None, retries: int) -> None:
        """Draw the bars, at most ten times a second."""
        now = self._clock()
        course = self._courses.get(wanted)
        if course is None:
            return
        course.go_on(now, bytes_done, bytes_total, retries)
        if now - self._drawn_at >= _REDRAW_S:
            self._drawn_at = now
            self.hide()
            self._draw()

    def failed(self, wanted: Wanted, error: ModelError) -> None:
        """Take its bar away."""
        super().failed(wanted, error)
        self.hide()

    def hide(self) -> None:
        """Take all bars off the terminal; the next progress draws them."""
        if self._drawn:
            up = f"\x1b[{self._drawn - 1}A" if self._drawn > 1 else ""
            self._write(f"\r{up}\x1b[J")
            self._drawn = 0

    def _draw(self) -> None:
        under_way = [(wanted, course) for wanted, course in self._courses.items() if course.bytes_done]
        width = self._width()
        lines = [progress_bar(each.share, f"{printable(wanted.ref)} {each}", width) for wanted, each in under_way]
        self._write("\n".join(lines))
        self._drawn = len(lines)

    def _line(self, text: str) -> None:
        self.hide()
        super()._line(text)
