"""Lists and tables that are drawn line by line: only what is seen is made, only what changed is drawn again."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import ClassVar, Generic, TypeAlias

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from gen_worker.top.cells import Line, Span, fitted
from gen_worker.top.columns import GAP, Column, Thing, widths
from gen_worker.top.theme import SELECTED, SELECTED_AWAY, STYLES

Drawn: TypeAlias = Callable[[int], Line]
"""Draws a line in the room it is handed."""

_GAP: Span = (" " * GAP, "text")


class Sheet(ScrollView, can_focus=True):
    """Lines that scroll. Whoever makes one says how many there are and how each looks in the room there is."""

    DEFAULT_CSS = "Sheet { scrollbar-size: 1 1; overflow-x: hidden; }"
    heads = 0  # lines on top that do not scroll

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._drawn: dict[int, tuple[Line, str]] = {}  # by where it stands on the screen: what was drawn last

    # --- what a kind of sheet says of itself ---

    def count(self) -> int:
        """Return how many lines there are below the heads."""
        raise NotImplementedError

    def line(self, index: int, room: int) -> Line:
        """Return a line; it is cut or padded to the room."""
        raise NotImplementedError

    def head(self, room: int) -> Line:
        """Return the line on top."""
        return ()

    def background(self, index: int) -> str:
        """Return the colour behind a line; an empty one is the sheet's own."""
        return ""

    # --- drawing ---

    def redraw(self) -> None:
        """Draw again what is seen and has changed."""
        wanted = Size(0, self.count() + self.heads)
        if wanted != self.virtual_size:
            self.virtual_size = wanted
        changed = [y for y, drawn in self._drawn.items() if y < self.size.height and self._look(y) != drawn]
        if changed:
            self.refresh(*(Region(0, y, self.size.width, 1) for y in changed))

    def render_line(self, y: int) -> Strip:
        """Return what Textual is to show there."""
        line, background = self._drawn[y] = self._look(y)
        room = self.room
        strip = Strip([Segment(text, STYLES[tone]) for text, tone in line], room)
        base = self.rich_style
        if background:
            base += _behind(background)
        return strip.apply_style(base)

    @property
    def room(self) -> int:
        """How wide a line may be."""
        return self.scrollable_content_region.width

    def _look(self, y: int) -> tuple[Line, str]:
        room = self.room
        if y < self.heads:
            return fitted(self.head(room), room), ""
        index = y - self.heads + self.scroll_offset.y
        if not 0 <= index < self.count():
            return fitted((), room), ""
        return fitted(self.line(index, room), room), self.background(index)


class Fluid(Sheet):
    """Lines made for the room there is; with `follows` their end stays in sight until somebody scrolls away."""

    def __init__(self, *, id: str | None = None, follows: bool = False) -> None:
        super().__init__(id=id)
        self._lines: Sequence[Drawn] = ()
        self._make: Callable[[int], Sequence[Drawn]] = lambda _room: ()
        self._anchored = follows

    def fill(self, make: Callable[[int], Sequence[Drawn]]) -> None:
        """Show the lines that `make` returns for a room; it is asked again when there is another."""
        self._make = make
        if self.size:
            self._lines = make(self.size.width - 1)  # the bar for scrolling may come
            self.redraw()

    def on_resize(self) -> None:
        """Show what fits now."""
        self.fill(self._make)

    def count(self) -> int:
        """Return how many lines there are."""
        return len(self._lines)

    def line(self, index: int, room: int) -> Line:
        """Return a line."""
        return self._lines[index](room)


class Lines(Fluid):
    """Lines that are the same in every room but for what is cut of them."""

    def show(self, lines: Sequence[Drawn]) -> None:
        """Show these lines; each is handed the room it has."""
        self.fill(lambda _room: lines)


class Table(Sheet, Generic[Thing]):
    """Rows below their heads, one of which is selected: by its key, wherever the row moves to."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "Up", show=False),
        Binding("down", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home", "first", "First", show=False),
        Binding("end", "last", "Last", show=False),
        Binding("enter", "pick", "Details", show=False),
    ]
    heads = 1

    class Selected(Message):
        """Another row is selected."""

    class Picked(Message):
        """The selected row is asked for: by Enter or a double click."""

    def __init__(self, columns: Callable[[int], Sequence[Column[Thing]]], *, id: str | None = None) -> None:
        """`columns` returns those that a table of so many columns of the terminal has."""
        super().__init__(id=id)
        self.columns = columns
        self._rows: Sequence[tuple[str, Thing]] = ()
        self._places: dict[str, int] = {}
        self._key: str | None = None
        self._at = 0  # where the selected row was: the next one takes its place when it goes
        self._laid: tuple[int, Sequence[Column[Thing]], list[int]] | None = None

    @property
    def selected(self) -> Thing | None:
        """The row that is selected, as it was shown last; None where there are no rows."""
        place = self._place()
        return None if place is None else self._rows[place][1]

    def show(self, rows: Sequence[tuple[str, Thing]]) -> None:
        """Show these rows, each with its key."""
        self._rows = rows
        self._places = {key: place for place, (key, _) in enumerate(rows)}
        self._laid = None
        place = self._place()
        if place is not None:
            self._key, self._at = rows[place][0], place
        self.redraw()

    def _place(self) -> int | None:
        """Return where the selected row is, or the one that is there now."""
        if not self._rows:
            return None
        if self._key is None:
            return 0
        return self._places.get(self._key, min(self._at, len(self._rows) - 1))

    def _go(self, place: int) -> None:
        if not self._rows:
            return
        self._at = max(0, min(len(self._rows) - 1, place))
        self._key = self._rows[self._at][0]
        seen = max(1, self.size.height - self.heads)
        top = self.scroll_offset.y
        if self._at < top or self._at >= top + seen:
            top = self._at if self._at < top else self._at - seen + 1
            self.scroll_to(y=top, animate=False, immediate=True, force=True)
        self.redraw()
        self.post_message(self.Selected())

    # --- drawing ---

    def count(self) -> int:
        """Return how many rows there are."""
        return len(self._rows)

    def head(self, room: int) -> Line:
        """Return the heads of the columns."""
        columns, found = self._layout(room)
        cells = (
            fitted(((column.head, "dim"),), width, right=column.right)
            for column, width in zip(columns, found, strict=True)
        )
        return self._beside(cells)

    def line(self, index: int, room: int) -> Line:
        """Return a row."""
        columns, found = self._layout(room)
        thing = self._rows[index][1]
        cells = (
            fitted(column.draw(thing, width), width, right=column.right)
            for column, width in zip(columns, found, strict=True)
        )
        return self._beside(cells)

    def background(self, index: int) -> str:
        """Return the colour of the selection."""
        if index != self._place():
            return ""
        return SELECTED if self.has_focus else SELECTED_AWAY

    def _layout(self, room: int) -> tuple[Sequence[Column[Thing]], list[int]]:
        if self._laid is None or self._laid[0] != room:
            columns = self.columns(room)
            self._laid = (room, columns, widths(columns, room))
        return self._laid[1:]

    @staticmethod
    def _beside(cells: Iterable[Line]) -> Line:
        spans: list[Span] = []
        for cell in cells:
            spans += cell
            spans.append(_GAP)
        return tuple(spans[:-1])

    # --- keys and mouse ---

    def action_move(self, by: int) -> None:
        """Select the row so many further down."""
        self._go((self._place() or 0) + by)

    def action_page(self, by: int) -> None:
        """Select the row so many pages further down."""
        self._go((self._place() or 0) + by * max(1, self.size.height - self.heads - 1))

    def action_first(self) -> None:
        """Select the first row."""
        self._go(0)

    def action_last(self) -> None:
        """Select the last row."""
        self._go(len(self._rows) - 1)

    def action_pick(self) -> None:
        """Ask for the selected row."""
        if self._rows:
            self.post_message(self.Picked())

    def on_click(self, event: events.Click) -> None:
        """Select the row that was clicked; twice, ask for it."""
        at = event.get_content_offset(self)
        index = -1 if at is None else at.y - self.heads + self.scroll_offset.y
        if at is None or at.y < self.heads or index >= len(self._rows):
            return
        self._go(index)
        if event.chain == 2:
            self.action_pick()

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Select the next row."""
        event.stop()
        event.prevent_default()
        self.action_move(1)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Select the row above."""
        event.stop()
        event.prevent_default()
        self.action_move(-1)

    def on_focus(self) -> None:
        """Show the selection as the one that keys act on."""
        self.redraw()

    def on_blur(self) -> None:
        """Show the selection as one that waits."""
        self.redraw()


@cache
def _behind(colour: str) -> Style:
    return Style(bgcolor=colour)
