"""Whether a stream takes colour, how text is painted, and which text is fit to be shown."""

import re
from collections.abc import Mapping
from typing import Literal, TextIO, TypeAlias

Style: TypeAlias = Literal["bold", "dim", "red", "green", "yellow", "blue"]

_CODES: dict[Style, str] = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34"}
_DIRECTIONS = r"\u202a-\u202e\u2066-\u2069"  # what turns round the text after it, whosever that is
# What could steer a terminal; a tab only moves on.
_CONTROL = re.compile(rf"[\x00-\x08\x0a-\x1f\x7f-\x9f{_DIRECTIONS}]")
_CONTROL_IN_LINES = re.compile(rf"[\x00-\x08\x0b-\x1f\x7f-\x9f{_DIRECTIONS}]")


def colours(stream: TextIO, env: Mapping[str, str]) -> bool:
    """Whether to paint what is written to a stream: on a terminal, or anywhere with `FORCE_COLOR`.

    A `NO_COLOR` that is not empty forbids it in every case.
    """
    if env.get("NO_COLOR"):
        return False
    if env.get("FORCE_COLOR"):
        return True
    return stream.isatty() and env.get("TERM") != "dumb"


def printable(text: str, *, lines: bool = False) -> str:
    """Return the text with its control characters spelt out in hexadecimal; with `lines` it may have several."""
    control = _CONTROL_IN_LINES if lines else _CONTROL
    return control.sub(lambda found: _spelt(ord(found[0])), text)


def _spelt(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def paint(text: str, style: Style) -> str:
    """Return the text in a style."""
    return f"\x1b[{_CODES[style]}m{text}\x1b[0m"
