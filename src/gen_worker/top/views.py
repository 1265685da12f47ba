"""What is shown instead of the board for a while: a stack, a log, a post-mortem, one device in detail."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Input, Static

from gen_worker import log_files
from gen_worker.top.cells import Line, clean, wrapped
from gen_worker.top.detail import Detail, title
from gen_worker.top.history import History
from gen_worker.top.tables import Drawn, Lines, Sheet
from gen_worker.top.tail import Tail
from gen_worker.top.theme import BACKGROUND, BAND, LEVELS, Tone, look_of
from gen_worker.wire.status import Status

KEPT_LINES = 5000  # of a log that is followed


class Kept:
    """A line, with the rows that it took in the room it had last: many are shown again for each that comes."""

    __slots__ = ("_room", "_rows", "line")

    def __init__(self, line: Line) -> None:
        self.line = line
        self._room = 0
        self._rows: Sequence[Drawn] = ()

    def rows(self, room: int) -> Sequence[Drawn]:
        """Return it as rows that fit."""
        if room != self._room:
            self._room, self._rows = room, [partial(_whole, row) for row in wrapped(self.line, room)]
        return self._rows


def _whole(row: Line, _room: int) -> Line:
    return row


class Page(Screen[None]):
    """A title, something that scrolls, and the keys that there are."""

    DEFAULT_CSS = f"""
    Page {{
        background: {BACKGROUND};
        & > .title {{ height: 1; padding: 0 1; background: {BAND}; text-style: bold; }}
        & > .keys {{ height: 1; padding: 0 1; background: {BAND}; color: $text-muted; }}
        & > Lines {{ height: 1fr; background: {BACKGROUND}; padding: 0; }}
    }}
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q", "app.pop_screen", show=False)]
    keys = "↑ ↓ PgUp PgDn scroll · Esc back"
    empty = ""  # what is said while there is no line

    def __init__(self, title: str, *, follows: bool = False) -> None:
        super().__init__()
        self._title = clean(title)
        self._lines: deque[Kept] = deque(maxlen=KEPT_LINES)
        self._follows = follows
        self._shown = False  # answers may come before and after

    def compose(self) -> ComposeResult:
        """Show the lines between title and keys."""
        yield Static(Content(self._title), classes="title")
        yield Lines(follows=self._follows)
        yield Static(Content(self.keys), classes="keys")

    def on_mount(self) -> None:
        """Give what scrolls the keyboard, and begin."""
        self._shown = True
        self.query_one(Sheet).focus()
        self.begin()
        self.show()

    def on_unmount(self) -> None:
        """Draw nothing any more."""
        self._shown = False

    def begin(self) -> None:
        """Ask for what is shown, where that is not there yet."""

    def on_resize(self, _event: events.Resize) -> None:
        """Wrap the lines anew."""
        self.call_after_refresh(self.show)

    def say(self, texts: Iterable[str], tone: Tone = "text") -> None:
        """Show these lines, and no others."""
        self._lines.clear()
        self.add(((clean(text), tone),) for text in texts)

    def add(self, lines: Iterable[Line]) -> None:
        """Show more lines; the oldest go where there are too many."""
        self._lines.extend(map(Kept, lines))
        self.show()

    @property
    def lines(self) -> list[Line]:
        """What there is to show."""
        return [kept.line for kept in self._lines]

    def wants(self, line: Line) -> bool:
        """Whether a line is to be shown."""
        return True

    def show(self) -> None:
        """Draw the lines as they are now; long ones take several rows."""
        if not self._shown:
            return
        box = self.query_one(Lines)
        room = max(8, box.size.width - 1)
        shown = [kept for kept in self._lines if self.wants(kept.line)]
        if not self._lines and self.empty:
            shown = [Kept(((self.empty, "dim"),))]
        box.show([row for kept in shown for row in kept.rows(room)])


class StackPage(Page):
    """Where each thread of a child is."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("s", "again", show=False)]
    keys = "s again · ↑ ↓ PgUp PgDn scroll · Esc back"

    def __init__(self, title: str, ask: Callable[["StackPage"], None]) -> None:
        super().__init__(title)
        self._ask = ask

    def begin(self) -> None:
        """Ask for the stack."""
        self.action_again()

    def action_again(self) -> None:
        """Ask for it as it is now."""
        self.say(["asking its child …"], "dim")
        self._ask(self)


class LogPage(Page):
    """A log, as it goes on."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "search", show=False),
        Binding("escape", "back", show=False),
    ]
    DEFAULT_CSS = "LogPage > Input { dock: bottom; height: 1; border: none; padding: 0 1; display: none; }"
    keys = "/ search · ↑ ↓ PgUp PgDn End scroll · Esc back"
    empty = "no line so far"

    def __init__(self, title: str, follow: Callable[["LogPage"], Tail]) -> None:
        super().__init__(title, follows=True)
        self._follow = follow
        self._tail: Tail | None = None
        self._searched = ""

    def compose(self) -> ComposeResult:
        """Show the lines, and a place to type what is searched."""
        yield from super().compose()
        yield Input(placeholder="search", compact=True, select_on_focus=False)

    def begin(self) -> None:
        """Begin to follow."""
        self._tail = self._follow(self)

    def on_unmount(self) -> None:
        """Follow no more."""
        if self._tail is not None:
            self._tail.close()

    def take(self, lines: Sequence[log_files.Line | str]) -> None:
        """Show more lines."""
        self.add(piece for line in lines for piece in _described(line))

    def wants(self, line: Line) -> bool:
        """Whether a line has what is searched."""
        return not self._searched or any(self._searched in text.casefold() for text, _ in line)

    def action_search(self) -> None:
        """Ask what to search."""
        box = self.query_one(Input)
        box.display = True
        self.set_focus(box)  # at once: what was typed with this key goes there

    def action_back(self) -> None:
        """End the search, or the page."""
        box = self.query_one(Input)
        if not box.display and not self._searched:
            self.app.pop_screen()
            return
        box.value = ""
        box.display = False
        self.set_focus(self.query_one(Lines))

    def on_input_changed(self, event: Input.Changed) -> None:
        """Search while it is typed."""
        self._searched = event.value.casefold()
        self.show()

    def on_input_submitted(self, _event: Input.Submitted) -> None:
        """Keep what is searched, and let the lines scroll."""
        self.query_one(Input).display = False
        self.set_focus(self.query_one(Lines))


def _described(line: log_files.Line | str) -> list[Line]:
    """Return a line of the log as rows; what goes on over several lines is indented."""
    if isinstance(line, str):
        return [((clean(line), "dim"),)]
    look = look_of(LEVELS, line.level)
    clock = time.strftime("%H:%M:%S", time.localtime(line.ts))
    job: Line = ((f"[{clean(line.job)}] ", "dim"),) if line.job else ()
    first, *more = line.message.splitlines() or [""]
    head: Line = ((f"{clock} ", "dim"), (f"{look.glyph} ", look.tone), (f"{clean(line.source)} ", "purple"), *job)
    return [(*head, (clean(first), look.tone)), *((("  ", "dim"), (clean(each), look.tone)) for each in more)]


class DetailPage(Page):
    """One device in detail, as it goes on."""

    DEFAULT_CSS = f"""
    DetailPage > Detail {{ height: 1fr; background: {BACKGROUND}; padding: 0 1; }}
    """

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self._device = device
        self._known: tuple[Status, History] | None = None

    def compose(self) -> ComposeResult:
        """Show the detail between title and keys."""
        yield Static(Content(self._title), classes="title")
        yield Detail()
        yield Static(Content(self.keys), classes="keys")

    def news(self, status: Status, history: History) -> None:
        """Show a newer document."""
        self._known = status, history
        self.show()

    def show(self) -> None:
        """Draw the device as it is now."""
        if not self._shown or self._known is None:
            return
        status, history = self._known
        device = next((each for each in status.gpus if each.name == self._device), None)
        if device is not None:
            self.query_one(".title", Static).update(Content(title(device)))
            self.query_one(Detail).show(device, status, history)
