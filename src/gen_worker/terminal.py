"""Whether a stream takes colour, and how text is painted."""

from collections.abc import Mapping
from typing import Literal, TextIO, TypeAlias

Style: TypeAlias = Literal["bold", "dim", "red", "green", "yellow", "blue"]

_CODES: dict[Style, str] = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34"}


def colours(stream: TextIO, env: Mapping[str, str]) -> bool:
    """Whether to paint what is written to a stream: on a terminal, or anywhere with `FORCE_COLOR`.

    A `NO_COLOR` that is not empty forbids it in every case.
    """
    if env.get("NO_COLOR"):
        return False
    if env.get("FORCE_COLOR"):
        return True
    return stream.isatty() and env.get("TERM") != "dumb"


def paint(text: str, style: Style) -> str:
    """Return the text in a style."""
    return f"\x1b[{_CODES[style]}m{text}\x1b[0m"
