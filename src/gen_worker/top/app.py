"""The program around the board: it takes documents from the feed, keys from a person, and sends the errands.

Nothing here waits for the supervisor: what does is in threads, and comes back as a call in this one.
"""

import asyncio
import os
import select
import signal
import time
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from textual import events
from textual._xterm_parser import XTermParser
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.drivers.linux_driver import LinuxDriver
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Input, Static

from gen_worker.cli.postmortem import describe
from gen_worker.postmortem import PostMortem, PostMortemError, folder_in, names, read
from gen_worker.top import dialogs, errands
from gen_worker.top.board import Board
from gen_worker.top.cells import clean
from gen_worker.top.errands import Errands, Outcome
from gen_worker.top.feed import Feed, Seen
from gen_worker.top.keys import KEYS, Key, offered
from gen_worker.top.tail import Tail
from gen_worker.top.theme import BACKGROUND, BAND, FOCUSED, Tone
from gen_worker.top.views import DetailPage, LogPage, Page, StackPage
from gen_worker.wire.control import Stacked
from gen_worker.wire.status import DeviceStatus, JobStatus

INTERRUPTED = 130
TICK_S = 1.0  # between two looks at how old the picture is
TOAST_S = 5.0
_POSTMORTEMS = 64  # the latest ones, in which a device's last is looked for


class Terminal(LinuxDriver):
    """The terminal; what comes from its keyboard and is no UTF-8 is no key. It may be the shell's meanwhile."""

    _ours = False

    def start_application_mode(self) -> None:
        """Take the terminal; and have the loop take the signals, which may else come while it holds what they need."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTSTP, self._leave)
        loop.add_signal_handler(signal.SIGCONT, self._come_back)
        super().start_application_mode()  # type: ignore[no-untyped-call]
        self._ours = True

    def suspend_application_mode(self) -> None:
        """Hand the terminal to the shell."""
        super().suspend_application_mode()
        self._ours = False

    def _leave(self) -> None:
        """Hand the terminal to the shell, and stop."""
        self.suspend_application_mode()
        os.kill(os.getpid(), signal.SIGSTOP)

    def _come_back(self) -> None:
        """Take the terminal again; it is still ours where it was a SIGSTOP, or nothing, that stopped us."""
        if self._ours:
            self.suspend_application_mode()
        self._must_signal_resume = True
        self.resume_application_mode()

    @property
    def is_gone(self) -> bool:
        """Whether the other end is closed; no signal says so of a terminal that is not our session's."""
        look = select.poll()
        look.register(self.fileno, 0)
        return any(event & select.POLLHUP for _, event in look.poll(0))

    def run_input_thread(self) -> None:
        """Read keys until the end, which such bytes are not."""
        while True:
            try:
                return super().run_input_thread()
            except UnicodeDecodeError as error:
                for event in XTermParser().feed(error.object.decode(errors="ignore")):
                    self.process_message(event)


class Top(App[None]):
    """`gen-worker top`; `return_code` says how it ended."""

    ENABLE_COMMAND_PALETTE = False
    CSS = "Toast { padding: 0 1; margin-top: 0; width: auto; max-width: 60; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+c", "interrupt", show=False, priority=True),
        Binding("ctrl+z", "suspend_process", show=False, priority=True),
    ]

    def __init__(self, feed: Feed, run_dir: Path, *, readonly: bool = False) -> None:
        super().__init__(Terminal)
        self.animation_level = "none"  # what scrolls is there at once: each step between would be a screen for an SSH
        self.feed = feed
        self.run_dir = run_dir
        self.readonly = readonly
        self.errands = Errands(feed.address, self.call_later)
        self.home = Home(readonly=readonly)
        self._looked_at = True  # its terminal has the keyboard, as far as it says
        self._comes = False  # a call of `news` is on its way
        self._boot_id: str | None = None

    def get_default_screen(self) -> Screen[None]:
        """Return the board's screen."""
        return self.home

    def on_load(self) -> None:
        """Have signals end the program in order, before it touches the terminal."""
        for number in (signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, partial(self.exit, return_code=128 + number))

    def on_mount(self) -> None:
        """Have the feed tell its news."""
        self.set_interval(TICK_S, self._tick)
        self.app_resume_signal.subscribe(self, lambda _app: self.refresh(layout=True))  # its terminal was another's
        self.feed.tell(self._told)

    def on_unmount(self) -> None:
        """Wait for nothing any more."""
        self.feed.tell(lambda: None)
        self.errands.close()

    def action_interrupt(self) -> None:
        """End by Ctrl-C."""
        self.exit(return_code=INTERRUPTED)

    def on_key(self, event: events.Key) -> None:
        """Type what came so soon after `/` that it went to another widget first."""
        box = self.focused
        if isinstance(box, Input) and event.is_printable and event.character is not None:
            event.prevent_default()
            box.insert_text_at_cursor(event.character)

    def on_app_focus(self, _event: events.AppFocus) -> None:
        """Go on: somebody looks."""
        self._looked_at = True
        self._rest()

    def on_app_blur(self, _event: events.AppBlur) -> None:
        """Draw nothing more until somebody looks, and say so."""
        self._looked_at = False
        self._rest()

    def freeze(self, frozen: bool) -> None:
        """Keep the picture as it is, or go on."""
        self.home.frozen = frozen
        self._rest()

    @property
    def _rests(self) -> str:
        return "frozen" if self.home.frozen else "" if self._looked_at else "paused: no focus"

    def _rest(self) -> None:
        """Have nothing newer sent, or have it sent again; and draw which of the two it is."""
        self.feed.pause(bool(self._rests))
        self.news()

    def _told(self) -> None:
        """Have the news drawn, once for many; called by the feed's thread."""
        if not self._comes:
            self._comes = True
            self.call_later(self.news)

    def _tick(self) -> None:
        if isinstance(self._driver, Terminal) and self._driver.is_gone:
            self.exit(return_code=128 + signal.SIGHUP)
        if self.feed.stale_s() is not None and not self._rests:
            self.news()

    def news(self) -> None:
        """Draw what the feed has."""
        self._comes = False
        seen = self.feed.latest
        if seen is None:
            return
        if self._boot_id not in (None, seen.boot_id):
            self.say(Outcome(f"another supervisor answers now: pid {seen.status.pid}", "warning"))
        self._boot_id = seen.boot_id
        self.home.show(seen, None if self._rests else self.feed.stale_s(), rests=self._rests)
        if isinstance(self.screen, DetailPage):
            self.screen.news(seen.status, self.home.board.history)

    def say(self, outcome: Outcome) -> None:
        """Tell what came of something, for a moment."""
        text = "\n".join(map(clean, outcome.text.split("\n")))
        self.notify(text, severity=outcome.severity, timeout=TOAST_S, markup=False)


class Home(Screen[None]):
    """The board, the keys below it, and what they do."""

    DEFAULT_CSS = f"""
    Home {{
        background: {BACKGROUND};
        & > Board {{ height: 1fr; }}
        & > #keys {{ height: 1; background: {BAND}; }}
        & > Input {{ height: 1; border: none; padding: 0 1; background: {BAND}; display: none; }}
    }}
    """
    app: Top

    def __init__(self, *, readonly: bool) -> None:
        super().__init__()
        self.frozen = False
        self.board = Board(readonly=readonly)
        self._readonly = readonly
        self._seen: Seen | None = None
        self._before: Widget | None = None  # what had the keyboard before the filter was typed
        for key in offered(readonly=readonly):
            for each in filter(None, key.keys.split(",")):
                action = f"{key.action}({each})" if key.action == "panel" else key.action
                self._bindings.bind(each, action, key.means, show=False)
        self._bindings.bind("escape", "unfilter", show=False)

    def compose(self) -> ComposeResult:
        """Show the board above the keys."""
        yield self.board
        yield Static(_footer(readonly=self._readonly), id="keys")
        yield Input(placeholder="filter", compact=True, select_on_focus=False)

    def show(self, seen: Seen, stale_s: float | None, *, rests: str) -> None:
        """Draw what was seen; `rests`: why nothing newer is asked for."""
        if not self.frozen or self._seen is None:
            self._seen = seen
        self.board.show(self._seen.status, rests=rests, stale_s=stale_s)

    # --- what acts ----------------------------------------------------------------------------------------------------

    def action_stop(self) -> None:
        """Ask how the selected job is to end."""
        job = self.board.selected_job
        if job is None or self._seen is None:
            self._refuse("no job runs there")
            return
        ask = dialogs.ask_stop(self._seen.status, job, self.board.history)
        ways = {"cancel": (f"canceling {job.id} …", errands.cancel), "kill": (f"killing {job.id} …", errands.kill)}

        def chosen(gives: str | None) -> None:
            if gives:
                said, errand = ways[gives]
                self._do(said, errand(job.id))

        self.app.push_screen(dialogs.Question(ask), chosen)

    def action_restart(self) -> None:
        """Ask whether the selected device's child is to be replaced."""
        device = self._device()
        if device is None or self._seen is None:
            return

        def chosen(gives: str | None) -> None:
            if gives:
                self._do(f"restarting the child of {device.name} …", errands.restart(device.name, now=gives == "now"))

        self.app.push_screen(dialogs.Question(dialogs.ask_restart(self._seen.status, device)), chosen)

    def action_drain(self) -> None:
        """Drain the selected device, or end that; ask first where something runs."""
        device = self._device()
        if device is None or self._seen is None:
            return
        said = f"{device.name} takes jobs again …" if device.drained else f"draining {device.name} …"
        act = partial(self._do, said, errands.drain(device.name, undo=device.drained))
        ask = None if device.drained else dialogs.ask_drain(self._seen.status, device)
        if ask is None:
            act()
        else:
            self.app.push_screen(dialogs.Question(ask), lambda gives: act() if gives else None)

    def _do(self, said: str, errand: errands.Errand) -> None:
        if self._seen is not None:
            self.app.say(Outcome(said))
            self.app.errands.run(self._seen.boot_id, errand, self.app.say, self.app.say)

    def _device(self) -> DeviceStatus | None:
        device = self.board.selected_device
        if device is None:
            self._refuse("no device is selected")
        return device

    def _refuse(self, text: str) -> None:
        self.app.say(Outcome(text, "warning"))

    # --- what shows more ----------------------------------------------------------------------------------------------

    def action_stack(self) -> None:
        """Show where the selected device's child is."""
        device, seen = self._device(), self._seen
        if device is None or seen is None:
            return

        def ask(page: StackPage) -> None:
            def failed(outcome: Outcome) -> None:
                page.say(outcome.text.splitlines(), "red")

            def then(stacked: Stacked) -> None:
                page.say(*_stack(stacked))

            self.app.errands.run(seen.boot_id, lambda client: client.stack(device.name, errands.SOON_S), then, failed)

        self.app.push_screen(StackPage(f"Stack of {device.name}, child {device.pid}", ask))

    def action_log(self) -> None:
        """Follow the log of what is selected."""
        job, device = self._chosen_job(), self.board.selected_device
        if job is not None:
            title, only = f"Log of job {job.id} ({job.function})", {"request_id": job.id}
        elif device is not None:
            title, only = f"Log of {device.name}", {"device": device.name}
        else:
            title, only = "Log", {}

        def follow(page: LogPage) -> Tail:
            return Tail(self.app.feed.address, lambda lines: page.call_later(page.take, lines), **only)

        self.app.push_screen(LogPage(title, follow))

    def _chosen_job(self) -> JobStatus | None:
        """Return the job that is selected as such, not for its device."""
        return self.board.selected_job if self.focused is not None and self.focused.id == "jobs" else None

    def action_postmortem(self) -> None:
        """Show what the last child of the selected device died of."""
        device, seen = self._device(), self._seen
        if device is None or seen is None:
            return
        try:
            told = last_death(folder_in(self.app.run_dir), seen.status.pid, device.name)
        except PostMortemError as error:
            self.app.say(Outcome(str(error), "error"))
            return
        if told is None:
            self._refuse(f"no post-mortem is kept of a child of {device.name}")
            return
        page = Page(f"The last death of {device.name}")
        self.app.push_screen(page)
        page.say(describe(told, time.time(), self.size.width - 2).splitlines())

    def on_board_picked(self, event: Board.Picked) -> None:
        """Show the details of a device; of a job those of its device."""
        name = event.device.name if event.device is not None else event.job.gpu if event.job is not None else None
        if name is not None and self._seen is not None:
            page = DetailPage(name)
            self.app.push_screen(page)
            page.news(self._seen.status, self.board.history)

    # --- how it is looked at ------------------------------------------------------------------------------------------

    def action_panel(self, number: Literal[1, 2, 3]) -> None:
        """Go to Jobs, Downloads or Events."""
        self.board.focus_panel(number)

    def action_freeze(self) -> None:
        """Keep the picture as it is, or go on."""
        self.app.freeze(not self.frozen)

    def action_help(self) -> None:
        """Show the keys."""
        self.app.push_screen(dialogs.Help(readonly=self._readonly))

    def action_leave(self) -> None:
        """End the program."""
        self.app.exit(return_code=0)

    def action_filter(self) -> None:
        """Ask what to show only."""
        self._typing(True)

    def action_unfilter(self) -> None:
        """Show everything."""
        self.query_one(Input).value = ""
        self._typing(False)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while it is typed."""
        self.board.filter(event.value)

    def on_input_submitted(self, _event: Input.Submitted) -> None:
        """Keep the filter, and have the keys back."""
        self._typing(False)

    def _typing(self, typing: bool) -> None:
        box, keys = self.query_one(Input), self.query_one("#keys", Static)
        if typing:
            self._before = self.focused
        box.display, keys.display = typing, not typing
        self.set_focus(box if typing else self._before)  # at once: what was typed with this key goes there
        self._show_keys(box.value)

    def _show_keys(self, filtered: str) -> None:
        keys = _footer(readonly=self._readonly)
        mark = Content.styled(f" /{clean(filtered)} ", f"reverse {FOCUSED}")
        self.query_one("#keys", Static).update(Content.assemble(mark, " ", keys) if filtered else keys)


def _footer(*, readonly: bool) -> Content:
    """Return the keys as they stand below the board; a click does what the key does."""
    told = [_told(key) for key in KEYS if key.label and key in offered(readonly=readonly)]
    return Content.from_markup(" ".join(told))


def _told(key: Key) -> str:
    glyph = {"space": "␣"}.get(key.shown, key.shown)
    return f"[@click=screen.{key.action}()][bold {FOCUSED}]{glyph}[/] {key.label}[/]"


def _stack(stacked: Stacked) -> tuple[list[str], Tone]:
    match stacked.outcome:
        case "shown":
            return stacked.lines or ["no thread of it runs Python"], "text"
        case "no_child":
            return [f"{stacked.device} has no child now"], "yellow"
        case _:
            return [stacked.message or f"the stack of {stacked.device} cannot be had"], "red"


def last_death(folder: Path, supervisor: int, device: str) -> PostMortem | None:
    """Return the latest post-mortem of a device's children at a supervisor; raise `PostMortemError`."""
    for name in reversed(names(folder)[-_POSTMORTEMS:]):
        told = read(folder, name)
        if told.supervisor == supervisor and told.device == device:
            return told
    return None
