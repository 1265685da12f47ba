"""Tables that fit a terminal, and the words in them."""

import shutil
import sys
from collections.abc import Callable, Sequence
from typing import TypeAlias

from gen_worker.terminal import printable

WIDTH = 80
_GAP = "  "

Painter: TypeAlias = Callable[[str, str, str], str]
"""Returns a cell as it is printed: is handed its head, its text, which is empty for the head itself, and the cell."""


def room() -> int:
    """Return how wide a table on stdout may be: as its terminal, but at least 80; what a program reads is never cut."""
    return max(WIDTH, shutil.get_terminal_size().columns) if sys.stdout.isatty() else sys.maxsize


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    elastic: Sequence[str],
    width: int = WIDTH,
    painted: Painter = lambda _head, _text, cell: cell,
) -> str:
    """Return the rows under their heads; where they are too wide, the `elastic` columns are cut, the widest first."""
    lines = [list(heads), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    may_shrink = [index for index, head in enumerate(heads) if head in elastic]
    while sum(widths) + len(_GAP) * (len(widths) - 1) > width:
        widest = max(may_shrink, key=lambda index: widths[index], default=None)
        if widest is None or widths[widest] <= len(heads[widest]):
            break
        widths[widest] -= 1
    fitted = [[_fitted(cell, room) for cell, room in zip(line, widths, strict=True)] for line in lines]
    for line in fitted:
        line[-1] = line[-1].rstrip()
    texts = [[""] * len(heads), *map(list, rows)]
    return "\n".join(
        _GAP.join(map(painted, heads, words, cells)).rstrip() for words, cells in zip(texts, fitted, strict=True)
    )


def _fitted(cell: str, room: int) -> str:
    return cell.ljust(room) if len(cell) <= room else cell[: room - 1] + "…"


def duration(seconds: float | None) -> str:
    """Return a length of time as a person says it: `3.2s`, `4m05s`, `2h03m`."""
    if seconds is None:
        return "-"
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def size(bytes_: int | None) -> str:
    """Return an amount of memory: `36 KiB`, `120 MiB`, `23.9 GiB`."""
    if bytes_ is None:
        return "-"
    if 0 < bytes_ < 1 << 20:
        return f"{max(1, bytes_ >> 10)} KiB"
    return f"{bytes_ / (1 << 20):.0f} MiB" if bytes_ < 10 << 30 else f"{bytes_ / (1 << 30):.1f} GiB"
