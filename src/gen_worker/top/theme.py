"""The colours and the glyphs of `gen-worker top`, in one table. A state is never told by its colour alone."""

from typing import Literal, NamedTuple, TypeAlias

from rich.style import Style

Tone: TypeAlias = Literal[
    "text", "bold", "dim", "faint", "green", "blue", "cyan", "purple", "yellow", "red", "alarm", "brand", "key"
]

BACKGROUND = "#0d1117"
BAND = "#161d27"  # the header, the tabs, the footer
BORDER = "#3b4350"
FOCUSED = "#6cb6ff"
SELECTED = "#243f63"
SELECTED_AWAY = "#1b2533"  # the selection of a table that has not the keyboard

_COLOURS = {
    "text": "#dfe4ec",
    "dim": "#7d8590",
    "faint": "#3b4350",
    "green": "#5fd38d",
    "blue": "#6cb6ff",
    "cyan": "#56d4dd",
    "purple": "#b794f6",
    "yellow": "#f2c14e",
    "red": "#ff7b72",
}

STYLES: dict[Tone, Style] = {
    "text": Style(color=_COLOURS["text"]),
    "bold": Style(color=_COLOURS["text"], bold=True),
    "dim": Style(color=_COLOURS["dim"]),
    "faint": Style(color=_COLOURS["faint"]),
    "green": Style(color=_COLOURS["green"]),
    "blue": Style(color=_COLOURS["blue"]),
    "cyan": Style(color=_COLOURS["cyan"]),
    "purple": Style(color=_COLOURS["purple"]),
    "yellow": Style(color=_COLOURS["yellow"]),
    "red": Style(color=_COLOURS["red"]),
    "alarm": Style(color=_COLOURS["red"], bold=True),
    "brand": Style(color=BACKGROUND, bgcolor=_COLOURS["blue"], bold=True),
    "key": Style(color=_COLOURS["blue"], bold=True),
}


class Look(NamedTuple):
    """How a state is shown: a glyph, a word, and a colour that only repeats them."""

    glyph: str
    word: str
    tone: Tone
    alarming: bool = False


DEVICES: dict[str, Look] = {
    "idle": Look("○", "idle", "blue"),
    "busy": Look("●", "busy", "green"),
    "loading": Look("◐", "loading", "cyan"),
    "starting": Look("◌", "starting", "cyan"),
    "drain": Look("◓", "drain", "purple"),
    "drained": Look("◓", "drained", "purple"),
    "restart": Look("↻", "restart", "yellow", alarming=True),
    "dying": Look("✖", "dying", "red", alarming=True),
    "hung": Look("✖", "HUNG", "alarm", alarming=True),
    "failed": Look("✖", "FAILED", "alarm", alarming=True),
    "wedged": Look("✖", "WEDGED", "alarm", alarming=True),
    "retired": Look("✖", "RETIRED", "alarm", alarming=True),
}

JOBS: dict[str, Look] = {
    "running": Look("●", "running", "green"),
    "queued": Look("○", "queued", "dim"),
    "loading": Look("◐", "loading", "cyan"),
    "ending": Look("◓", "ending", "purple"),
    "overdue": Look("▲", "overdue", "alarm", alarming=True),
    "hung": Look("✖", "HUNG", "alarm", alarming=True),
}

LEVELS: dict[str, Look] = {
    "info": Look("·", "info", "text"),
    "warning": Look("▲", "warning", "yellow"),
    "error": Look("✖", "error", "red", alarming=True),
}

EDGE = "▌"
BAR = ("━", "╍", "─")  # lines: full blocks of neighbouring rows would melt together, and these are told without colour
SPARKS = "▁▂▃▄▅▆▇"  # the highest leaves a gap to the row above


def look_of(table: dict[str, Look], state: str) -> Look:
    """Return the look of a state; of one that is not known, its own word."""
    return table.get(state) or Look("·", state, "text")
