"""The keys: what each of them does, where it is told, and whether it acts on the supervisor. One table for all."""

from collections.abc import Iterator
from typing import NamedTuple

SELECTED, VIEW = "Selected device or job", "View"


class Key(NamedTuple):
    """One thing that keys do."""

    keys: str  # as Textual names them
    shown: str
    action: str
    label: str  # in the footer; "" where it is not there
    means: str  # in the help
    section: str = VIEW
    acts: bool = False  # `--readonly` has it not


KEYS = (
    Key("k", "k", "stop", "Stop job", "stop its job (asks first: cancel or kill)", SELECTED, acts=True),
    Key("r", "r", "restart", "Restart", "restart its child process (asks first)", SELECTED, acts=True),
    Key("d", "d", "drain", "Drain", "drain: finish, then take no new job (again: undo)", SELECTED, acts=True),
    Key("s", "s", "stack", "Stack", "where each thread of its child is", SELECTED),
    Key("l", "l", "log", "Log", "its log, as it goes on", SELECTED),
    Key("e", "e", "postmortem", "", "what its last child died of", SELECTED),
    Key("", "enter", "", "", "details: models, memory, latest events", SELECTED),
    Key("1,2,3", "tab / 1 2 3", "panel", "", "go to Jobs, Downloads, Events"),
    Key("slash", "/", "filter", "Filter", "filter all tables and events; esc clears"),
    Key("space", "space", "freeze", "Freeze", "freeze the picture (again: go on)"),
    Key("question_mark", "?", "help", "Help", "these keys"),
    Key("q", "q", "leave", "Quit", "quit, as Ctrl-C does"),
)


def offered(*, readonly: bool) -> Iterator[Key]:
    """The keys that there are."""
    return (key for key in KEYS if not (readonly and key.acts))
