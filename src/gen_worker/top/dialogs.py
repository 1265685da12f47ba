"""What is asked before something is done, with its consequences; and the help. What they say is made by pure functions.

Author's text, such as names of functions and models, is never read as markup.
"""

from collections.abc import Iterable, Sequence
from typing import ClassVar, NamedTuple

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from gen_worker.cli.devices import number
from gen_worker.cli.table import duration, size
from gen_worker.top.cells import brief, clean
from gen_worker.top.history import History, spent_s
from gen_worker.top.keys import SELECTED, VIEW, offered
from gen_worker.top.theme import BAND, FOCUSED, STYLES
from gen_worker.wire.status import DeviceStatus, JobStatus, Status

_NAMED = 3
_FACT_WIDTH = 13
_CHOICE_WIDTH = 7
_MEANS_WIDTH = 14


class Choice(NamedTuple):
    """One way on: its key as Textual names it and as it is shown, what it gives, what it means."""

    key: str
    shown: str
    gives: str
    means: str
    grave: bool = False


class Ask(NamedTuple):
    """A question with what there is to know."""

    title: str
    question: str
    facts: Sequence[tuple[str, str]]
    choices: Sequence[Choice]


LEAVE = Choice("escape", "Esc", "", "leave it")


# --- what is asked. Pure ----------------------------------------------------------------------------------------------


def ask_stop(status: Status, job: JobStatus, history: History) -> Ask:
    """Ask how a job is to end."""
    device = next((each for each in status.gpus if each.name == job.gpu), None)
    asks = "cancel: ask it to stop; models stay loaded if it does, else its child is ended"
    cancel = Choice("c", "c", "cancel", asks)
    if device is None or device.pid is None:
        facts = [("waits", _spent(job, history)), *_present("stage", job.stage)]
        drop = cancel._replace(means="cancel: take it out of the queue")
        return Ask("Stop a job", f"Stop job {job.id} ({job.function}), which waits?", facts, (drop, LEAVE))
    beside = [each.id for each in status.jobs if each.gpu == device.name and each.id != job.id]
    facts = [
        ("runs for", _spent(job, history) + _progress(job)),
        ("child", _child(device)),
        *_present("in memory", models_held(device)),
        *_present("beside it", f"{names(beside)}: they begin again after a kill" if beside else ""),
    ]
    again = f" {_loads(status, device)}" if device.models else ""
    kill = Choice("K", "K", "kill", f"kill: end child {device.pid}, start another.{again} {_others(status)}", True)
    question = f"Stop job {job.id} ({job.function}) on {called(device)}?"
    return Ask("Stop a job", question, [(name, clean(text)) for name, text in facts], (cancel, kill, LEAVE))


def ask_restart(status: Status, device: DeviceStatus) -> Ask:
    """Ask whether, and when, a child is to be replaced."""
    running = _running(status, device)
    facts = [
        *_present("child", _child(device) if device.pid is not None else ""),
        *_present("runs", names([job.id for job in running])),
        *_present("in memory", models_held(device)),
    ]
    waits = f"restart: {names([job.id for job in running])} may finish first" if running else "restart its child"
    loads = f". {_loads(status, device)}" if device.models else ""
    choices = [Choice("r", "r", "restart", f"{waits}{loads}")]
    if running:
        ends = "its job ends" if len(running) == 1 else f"its {len(running)} jobs end"
        choices.append(Choice("N", "N", "now", f"now: {ends} with the child. {_others(status)}", True))
    return Ask("Restart a child", f"Restart the child of {called(device)}?", facts, (*choices, LEAVE))


def ask_drain(status: Status, device: DeviceStatus) -> Ask | None:
    """Ask whether a device is to be drained; None where nothing runs there: then there is nothing to ask."""
    running = _running(status, device)
    if not running:
        return None
    facts = [
        ("runs", names([job.id for job in running])),
        ("the longest", f"{brief(max(map(spent_s, running)))} so far"),
    ]
    choice = Choice("d", "d", "drain", "drain: it finishes, then takes no job until `d` again")
    return Ask("Drain a device", f"Drain {called(device)}?", facts, (choice, LEAVE))


def called(device: DeviceStatus) -> str:
    """Return what a device is called in a sentence."""
    return device.name if device.index is None else f"GPU {number(device)}"


def names(ids: Sequence[str]) -> str:
    """Return a few names, and how many more there are."""
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return ", ".join(ids[:_NAMED]) + more


def models_held(device: DeviceStatus) -> str:
    """Return the models that go with a child, each with its size."""
    held = [f"{model.ref} ({size(model.bytes)})" if model.bytes else model.ref for model in device.models]
    return names(held)


def _running(status: Status, device: DeviceStatus) -> list[JobStatus]:
    return [job for job in status.jobs if job.gpu == device.name]


def _spent(job: JobStatus, history: History) -> str:
    limit_s = history.limit_s(job)
    return brief(spent_s(job)) + (f" of {brief(limit_s)}" if limit_s else "")


def _progress(job: JobStatus) -> str:
    told = " ".join(filter(None, (job.stage, "" if job.progress is None else f"{job.progress:.0%}")))
    return f", {told}" if told else ""


def _child(device: DeviceStatus) -> str:
    hang = f", hung: {device.hang}" if device.state == "hung" and device.hang else f", {device.state}"
    silent_s = device.heartbeat_age_s if device.silent_s is None else device.silent_s
    silence = "" if silent_s is None or silent_s < 2 else f", silent for {duration(silent_s)}"
    return f"pid {device.pid}{hang}{silence}"


def _loads(status: Status, device: DeviceStatus) -> str:
    known = [model.bytes for model in device.models if model.bytes]
    amount = size(sum(known)) if len(known) == len(device.models) else ""
    took_s = reload_s(status, device)
    told = ", ".join(filter(None, (amount, "" if took_s is None else f"about {duration(took_s)}")))
    return f"Its models load again ({told})." if told else "Its models load again."


def reload_s(status: Status, device: DeviceStatus) -> float | None:
    """Return what a child's models take to be loaded again, as they took last; None where that is not known of all.

    An instance has several models, which were loaded together: the longest of them counts.
    """
    last = {model.ref: model.load_s for model in status.models}
    took: dict[str | None, float] = {}
    for model in device.models:
        seconds = last.get(model.ref)
        if seconds is None:
            return None
        took[model.instance] = max(seconds, took.get(model.instance, 0.0))
    return sum(took.values()) if took else None


def _others(status: Status) -> str:
    if len(status.gpus) < 2:
        return ""
    return "Other GPUs go on." if all(each.index is not None for each in status.gpus) else "Other devices go on."


def _present(name: str, text: str | None) -> list[tuple[str, str]]:
    return [(name, text)] if text else []


# --- how it is shown --------------------------------------------------------------------------------------------------


class _Row(Horizontal):
    """A name, and beside it what there is to say, in as many lines as it takes."""

    DEFAULT_CSS = """
    _Row { height: auto; }
    _Row .name { width: auto; color: $text-muted; }
    _Row .text { width: 1fr; }
    """

    def __init__(self, name: str | Content, text: str, width: int) -> None:
        label, says = Static(Content.assemble(name), classes="name"), Static(Content(clean(text)), classes="text")
        label.styles.width = width
        super().__init__(label, says)


class _Way(_Row):
    """A choice, which a click takes, too."""

    def __init__(self, choice: Choice) -> None:
        colour = STYLES["red" if choice.grave else "yellow" if choice.gives else "dim"].color
        mark = Content.styled(f" {choice.shown} ", f"reverse bold {colour.name if colour else ''}")
        super().__init__(mark, choice.means, _CHOICE_WIDTH)
        self._gives = choice.gives

    def on_click(self) -> None:
        """Take it."""
        self.screen.dismiss(self._gives)


class Question(ModalScreen[str]):
    """Asks; gives what the choice gives, "" for none."""

    DEFAULT_CSS = f"""
    Question {{
        align: center middle;
        & > VerticalScroll {{
            width: 76; max-width: 100%; height: auto; max-height: 100%; padding: 1 2;
            border: round $warning; border-title-color: $warning; border-title-style: bold; background: {BAND};
        }}
        #facts {{ height: auto; margin: 1 0; padding: 0 2; }}
    }}
    """

    def __init__(self, ask: Ask) -> None:
        super().__init__()
        self._ask = ask
        for choice in ask.choices:
            self._bindings.bind(choice.key, f"choose({choice.gives!r})", choice.means, show=False)

    def compose(self) -> ComposeResult:
        """Show the question, the facts and the ways on."""
        box = VerticalScroll()
        box.border_title = Content(self._ask.title)
        with box:
            yield Static(Content(clean(self._ask.question)))
            with Vertical(id="facts"):
                yield from (_Row(name, text, _FACT_WIDTH) for name, text in self._ask.facts)
            yield from map(_Way, self._ask.choices)

    def action_choose(self, gives: str) -> None:
        """Give what was chosen."""
        self.dismiss(gives)


class Help(ModalScreen[None]):
    """The keys and the marks."""

    DEFAULT_CSS = f"""
    Help {{
        align: center middle;
        & > VerticalScroll {{
            width: 72; max-width: 100%; height: auto; max-height: 100%; padding: 0 2;
            border: round {FOCUSED}; border-title-color: {FOCUSED}; border-title-style: bold; background: {BAND};
        }}
    }}
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,question_mark,q,enter,space", "dismiss", show=False)]

    def __init__(self, *, readonly: bool) -> None:
        super().__init__()
        self._readonly = readonly

    def compose(self) -> ComposeResult:
        """Show them."""
        box = VerticalScroll()
        box.border_title = Content("Keys")
        keys = list(offered(readonly=self._readonly))
        with box:
            for section in (SELECTED, VIEW):
                told = [(key.shown, key.means) for key in keys if key.section == section]
                yield Static(_section(section, told))
            yield Static(_section("Marks", _MARKS))


_MARKS = (
    ("━━╍╍──", "memory: models, working memory, free"),
    ("♥", "age of the last heartbeat"),
    ("↻", "restarts of the child since the start"),
)


def _section(title: str, rows: Iterable[tuple[str, str]]) -> Content:
    lines = [Content.assemble("  ", Content.styled(name.ljust(_MEANS_WIDTH), "bold"), means) for name, means in rows]
    return Content("\n").join([Content.styled(title, f"bold {FOCUSED}"), *lines, ""])
