"""Everything between the top and the footer: the header, the devices, the jobs, the downloads, the events."""

from textual import events
from textual.app import ComposeResult
from textual.containers import Container, Horizontal
from textual.message import Message
from textual.widget import Widget

from gen_worker.top import device_rows, job_rows
from gen_worker.top.cells import Line
from gen_worker.top.columns import Column
from gen_worker.top.detail import Detail
from gen_worker.top.device_rows import DeviceRow
from gen_worker.top.header import Header, Seen
from gen_worker.top.history import History
from gen_worker.top.job_rows import JobRow
from gen_worker.top.panels import (
    devices_title,
    download_lines,
    downloads_title,
    event_lines,
    jobs_title,
    tab_at,
    tabs,
)
from gen_worker.top.tables import Fluid, Lines, Sheet, Table
from gen_worker.top.theme import BACKGROUND, BAND, BORDER, FOCUSED
from gen_worker.wire.status import DeviceStatus, JobStatus, Status

MEDIUM = 112  # columns from which all panels are seen at once
WIDE = 180  # columns from which the selected device is told of beside them
LEAST_LINES = 30  # for all panels at once


class Board(Container):
    """Draws status documents; knows which device and which job are selected, and acts on none."""

    DEFAULT_CSS = f"""
    Board {{ background: {BACKGROUND}; height: 1fr; }}
    Board Sheet {{
        background: {BACKGROUND}; border: round {BORDER}; padding: 0 1; height: 1fr;
        border-title-color: #dfe4ec; border-title-style: bold;
        scrollbar-color: {BORDER}; scrollbar-background: {BACKGROUND};
    }}
    Board Sheet:focus {{ border: round {FOCUSED}; border-title-color: {FOCUSED}; }}
    Board #header, Board #tabs {{ background: {BAND}; border: none; padding: 0; }}
    Board #tabs {{ height: 1; display: none; }}
    Board #middle {{ height: 1fr; }}
    Board #jobs {{ width: 4fr; }}
    Board #downloads {{ width: 3fr; }}
    Board #detail {{ width: 3fr; display: none; }}
    Board.wide #detail {{ display: block; }}
    Board.wide #middle {{ height: 3fr; }}
    Board.wide #events {{ height: 2fr; }}
    Board.tabs Sheet {{ border: none; }}
    Board.tabs #devices {{ padding: 0; }}
    Board.tabs #tabs {{ display: block; }}
    Board.tabs #middle, Board.tabs #middle Sheet, Board.tabs #events {{ display: none; }}
    Board.tabs.panel-1 #middle, Board.tabs.panel-1 #jobs {{ display: block; }}
    Board.tabs.panel-2 #middle, Board.tabs.panel-2 #downloads {{ display: block; }}
    Board.tabs.panel-3 #events {{ display: block; }}
    """

    class Picked(Message):
        """A device or a job is asked for: by Enter or a double click on it."""

        def __init__(self, device: DeviceStatus | None, job: JobStatus | None) -> None:
            super().__init__()
            self.device = device
            self.job = job

    def __init__(self, readonly: bool = False) -> None:
        super().__init__()
        self.history = History()
        self._readonly = readonly
        self._seen: Seen | None = None
        self._text = ""
        self._panel: int = 1
        self._header = Header(id="header")
        self._devices: Table[DeviceRow] = Table(self._device_columns, id="devices")
        self._tabs = Tabs(id="tabs")
        self._jobs: Table[JobRow] = Table(self._job_columns, id="jobs")
        self._downloads = Lines(id="downloads")
        self._detail = Detail(id="detail")
        self._events = Fluid(id="events", follows=True)
        self._acting: Widget = self._devices  # the table that had the keyboard last
        self._shown: list[tuple[str, DeviceRow]] = []
        self._shown_jobs: list[JobRow] = []

    def compose(self) -> ComposeResult:
        """Put the panels where they are."""
        yield self._header
        yield self._devices
        yield self._tabs
        with Horizontal(id="middle"):
            yield self._jobs
            yield self._downloads
            yield self._detail
        yield self._events

    # --- for the app ---

    def show(self, status: Status, *, rests: str = "", stale_s: float | None = None) -> None:
        """Draw a document. `rests`: why no newer one comes; `stale_s`: for so long nobody has been reachable."""
        self.history.note(status)
        self._seen = Seen(status, self.history.done_per_minute(), rests, stale_s, self._readonly)
        self._draw()

    def filter(self, text: str) -> None:
        """Show only what has this text in it; an empty one shows everything."""
        self._text = text.strip().lower()
        self._draw()

    def focus_panel(self, number: int) -> None:
        """Hand the keyboard to the jobs, the downloads or the events; where one of them is seen, that one is."""
        self._panel = number
        self._arrange()
        self._draw()
        self._hand_keyboard((self._jobs, self._downloads, self._events)[number - 1])

    @property
    def selected_device(self) -> DeviceStatus | None:
        """The device that is selected, or the one of the selected job where the jobs have the keyboard."""
        row = self._devices.selected
        if self._acting is not self._jobs:
            return None if row is None else row.device
        job = self._jobs.selected
        return None if job is None else self._device_named(job.job.gpu)

    @property
    def selected_job(self) -> JobStatus | None:
        """The job that is selected, or the one of the selected device where the devices have the keyboard."""
        if self._acting is self._jobs:
            job = self._jobs.selected
            return None if job is None else job.job
        row = self._devices.selected
        return None if row is None else row.job

    def focus_devices(self) -> None:
        """Hand the keyboard to the devices."""
        self._hand_keyboard(self._devices)

    def _hand_keyboard(self, panel: Widget) -> None:
        """Have the next key go there: it may have come with this one, and `focus` would be too late for it."""
        self.screen.set_focus(panel)
        self._keyboard_is_at(panel)

    def _keyboard_is_at(self, panel: Widget) -> None:
        if panel in (self._devices, self._jobs):
            self._acting = panel
            self._show_detail()

    # --- drawing ---

    def _draw(self) -> None:
        if self._seen is None or not self.is_mounted:
            return
        status, text = self._seen.status, self._text
        self._shown = device_rows.device_rows(status, self.history)
        jobs = job_rows.job_rows(status, self.history)
        self._shown_jobs = [row for _, row in jobs]
        tabbed = self.has_class("tabs")
        self._header.show(self._seen._replace(filter=text, alarm=tabbed))
        self._arrange()
        self._devices.show([row for row in self._shown if not text or device_rows.matches(row[1], text)])
        self._jobs.show([row for row in jobs if not text or job_rows.matches(row[1], text)])
        self._downloads.show(download_lines(status.downloads, text))
        self._events.fill(lambda room: event_lines(status.events, room, text))
        self._tabs.show(status, self._panel)
        self._show_detail()
        for panel, told in (
            (self._devices, devices_title),
            (self._jobs, jobs_title),
            (self._downloads, downloads_title),
        ):
            if panel.border_title != (title := told(status)):
                panel.border_title = title

    def _show_detail(self) -> None:
        if self._seen is None or not self._detail.display:
            return
        row = self._devices.selected
        device = self.selected_device or (None if row is None else row.device)
        self._detail.show(device, self._seen.status, self.history)

    def _device_columns(self, room: int) -> list[Column[DeviceRow]]:
        return device_rows.columns_for([row for _, row in self._shown], room)

    def _job_columns(self, room: int) -> list[Column[JobRow]]:
        return job_rows.columns_for(self._shown_jobs, room, [name for name, _ in self._shown])

    def _device_named(self, name: str | None) -> DeviceStatus | None:
        return next((row.device for key, row in self._shown if key == name), None)

    def _arrange(self) -> None:
        """Lay the panels out for the room there is."""
        width, height = self.size
        tabbed = width < MEDIUM or height < LEAST_LINES
        self.set_class(tabbed, "tabs")
        self.set_class(width >= WIDE and not tabbed, "wide")
        for number in (1, 2, 3):
            self.set_class(number == self._panel, f"panel-{number}")
        wanted = min(len(self._shown) + 1 + (0 if tabbed else 2), max(4, height // 2))
        now = self._devices.styles.height
        if now is None or now.value != wanted:
            self._devices.styles.height = wanted

    # --- what happens ---

    def on_mount(self) -> None:
        """Begin with the devices."""
        self._events.border_title = "Events"
        self._devices.focus()

    def on_resize(self, _event: events.Resize) -> None:
        """Lay everything out again."""
        self._arrange()
        self._draw()

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """Remember which table keys act on."""
        self._keyboard_is_at(event.widget)

    def on_table_selected(self, message: Table.Selected) -> None:
        """Tell of another device."""
        message.stop()
        self._show_detail()

    def on_table_picked(self, message: Table.Picked) -> None:
        """Hand on what was asked for."""
        message.stop()
        self.post_message(self.Picked(self.selected_device, self.selected_job))

    def on_tabs_chosen(self, message: "Tabs.Chosen") -> None:
        """Show the panel whose name was clicked."""
        message.stop()
        self.focus_panel(message.panel)


class Tabs(Sheet, can_focus=False):
    """The names of the panels of which one is seen."""

    DEFAULT_CSS = "Tabs { scrollbar-size: 0 0; }"

    class Chosen(Message):
        """A panel is wanted."""

        def __init__(self, panel: int) -> None:
            super().__init__()
            self.panel = panel

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._status: Status | None = None
        self._panel: int = 1

    def show(self, status: Status, panel: int) -> None:
        """Show how many there are of each, and which is seen."""
        self._status, self._panel = status, panel
        self.redraw()

    def count(self) -> int:
        """Return how many lines there are."""
        return 1

    def line(self, index: int, room: int) -> Line:
        """Return the line."""
        return () if self._status is None else tabs(self._status, self._panel)

    def on_click(self, event: events.Click) -> None:
        """Want the panel that was clicked."""
        number = None if self._status is None else tab_at(self._status, event.x)
        if number is not None:
            self.post_message(self.Chosen(number))
