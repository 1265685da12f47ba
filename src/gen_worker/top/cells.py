"""What stands in a cell: pieces of text with a tone, which fit their room whatever an author's text contains.

Widths are columns of the terminal, not characters: wide characters take two, combining ones none.
"""

import re
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from rich.cells import cell_len, chop_cells

from gen_worker.cli.table import duration
from gen_worker.terminal import printable
from gen_worker.top.theme import BAR, SPARKS, Tone

Span: TypeAlias = tuple[str, Tone]
Line: TypeAlias = tuple[Span, ...]

ELLIPSIS = "…"
_HIDDEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
"""What is printable and not seen: fillers, and variation selectors, of whose width each terminal thinks differently."""

LEAST_PIECE = 8  # columns of a row that goes on: with less a text would run down the screen
_UNITS = ((1 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"))


# --- text -------------------------------------------------------------------------------------------------------------


def clean(text: str) -> str:
    """Return a text that cannot steer a terminal, nor reorder, hide or join what stands beside it."""
    spelt = printable(text.replace("\t", " "))
    if spelt.isascii() or (spelt.isprintable() and not _HIDDEN.search(spelt)):
        return spelt
    return "".join(map(_seen, spelt))


def _seen(character: str) -> str:
    if character.isprintable() and not _HIDDEN.match(character):
        return character
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"


def cut(text: str, room: int) -> str:
    """Return the beginning of a text that fits, with an ellipsis where it was cut."""
    if cell_len(text) <= room:
        return text
    return _head(text, room - 1) + ELLIPSIS if room > 0 else ""


def cut_front(text: str, room: int) -> str:
    """Return the end of a text that fits: of names whose end tells them apart."""
    if cell_len(text) <= room:
        return text
    return ELLIPSIS + _head(text[::-1], room - 1)[::-1] if room > 0 else ""


def cut_middle(text: str, room: int) -> str:
    """Return both ends of a text: two thirds of what fits from its beginning."""
    if cell_len(text) <= room or room < 4:
        return cut(text, room)
    tail = (room - 1) // 3
    return _head(text, room - 1 - tail) + ELLIPSIS + _head(text[::-1], tail)[::-1]


def _head(text: str, room: int) -> str:
    return chop_cells(text, room)[0] if room > 0 and text else ""


def width_of(line: Line) -> int:
    """Return how many columns a line takes."""
    return sum(cell_len(text) for text, _ in line)


def fitted(line: Line, room: int, *, right: bool = False) -> Line:
    """Return a line that takes exactly so many columns: cut at its end, or padded."""
    missing = room - width_of(line)
    if missing == 0:
        return line
    if missing > 0:
        padding: Span = (" " * missing, "text")
        return (padding, *line) if right else (*line, padding)
    kept: list[Span] = []
    left = room - 1  # the last column is the ellipsis
    for text, tone in line:
        part = text if cell_len(text) <= left else _head(text, left)
        left -= cell_len(part)
        if part != text:
            kept.append((part + ELLIPSIS + " " * left if room > 0 else "", tone))
            break
        kept.append((part, tone))
    return tuple(kept)


def wrapped(line: Line, room: int) -> tuple[Line, ...]:
    """Return a line as rows that fit: its last piece goes on below itself, broken between words where it can be."""
    *before, (text, tone) = line
    taken = width_of(tuple(before))
    first, *rest = _pieces(text, max(LEAST_PIECE, room - taken))
    return ((*before, (first, tone)), *(((" " * taken + piece, tone),) for piece in rest))


def _pieces(text: str, room: int) -> list[str]:
    pieces: list[str] = []
    start = 0
    while start < len(text) or not pieces:
        piece = text[start : start + 4 * room]  # not all of it for each piece: a text may be very long
        if cell_len(piece) > room:
            piece = _head(piece, room)
            at = piece.rfind(" ") + 1
            piece = piece[:at] if at > len(piece) // 2 else piece
        pieces.append(piece)
        start += len(piece)
    return pieces


def joined(parts: Iterable[Line], gap: str = " ") -> Line:
    """Return the lines that are not empty as one, with a gap between."""
    spans: list[Span] = []
    for part in parts:
        if part and spans:
            spans.append((gap, "text"))
        spans += part
    return tuple(spans)


# --- numbers ----------------------------------------------------------------------------------------------------------


def brief(seconds: float | None) -> str:
    """Return a length of time in four or five columns: as `duration`, but without tenths from ten seconds on."""
    if seconds is not None and 9.95 <= seconds < 59.95:
        return f"{seconds:.0f}s"
    return duration(seconds)


def uptime(seconds: float) -> str:
    """Return a length of time that may be days: `3d04h`."""
    days, rest = divmod(int(seconds), 86400)
    return f"{days}d{rest // 3600:02d}h" if days else duration(seconds)


def of_total(used: int | None, total: int) -> Line:
    """Return what is used of how much, in the unit of the whole: `28.7/80G`, `1.6/1.9T`, `120/800M`."""
    return (("-" if used is None else _in(_unit(total)[0], used), "text"), (f"/{whole(total)}", "dim"))


def whole(bytes_: int) -> str:
    """Return an amount of memory in as few columns as can be: `80G`, `6.6G`, `1.9T`."""
    unit, letter = _unit(bytes_)
    return _in(unit, bytes_).removesuffix(".0") + letter


def _unit(bytes_: int) -> tuple[int, str]:
    return next(each for each in _UNITS if bytes_ >= each[0] or each is _UNITS[-1])


def _in(unit: int, bytes_: int) -> str:
    amount = bytes_ / unit
    return f"{amount:.1f}" if amount < 99.95 else f"{amount:.0f}"


# --- pictures ---------------------------------------------------------------------------------------------------------


def bar(room: int, parts: Sequence[tuple[float, Tone]]) -> Line:
    """Return a bar of at most two shares of the whole, each with its tone; what is there at all has one column."""
    spans: list[Span] = []
    drawn, so_far = 0, 0.0
    for glyph, (share, tone) in zip(BAR, parts, strict=False):
        so_far = min(1.0, so_far + max(0.0, share))
        columns = max(round(so_far * room) - drawn, 1 if share > 0 else 0)
        columns = min(columns, room - drawn)
        if columns > 0:
            spans.append((glyph * columns, tone))
        drawn += columns
    if drawn < room:
        spans.append((BAR[-1] * (room - drawn), "faint"))
    return tuple(spans)


def sparkline(values: Sequence[float | None], room: int, over: int) -> str:
    """Return the last so many values, shares of one, as blocks of seven heights; blank where nothing was known."""
    if room <= 0:
        return ""
    each = -(-over // room)  # values behind one block
    kept = each * -(-over // each)
    last = [None] * (kept - len(values)) + list(values[-kept:])
    return "".join(_block(last[at : at + each]) for at in range(0, kept, each))


def _block(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return " "
    mean = min(1.0, max(0.0, sum(known) / len(known)))
    return SPARKS[min(len(SPARKS) - 1, int(mean * len(SPARKS)))]
