"""What the chaos suite has measured, and how it is shown."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Row:
    """All injections of one fault."""

    promise: int
    fault: str
    injections: int = 0
    survived: int = 0
    lost: int = 0
    took_s: list[float] = field(default_factory=list)
    measured: str = ""


ROWS: dict[tuple[int, str], Row] = {}
_lock = threading.Lock()


def injected(promise: int, fault: str) -> Row:
    """Count an injection before it happens; who comes through it says so with `survived`."""
    with _lock:
        row = ROWS.setdefault((promise, fault), Row(promise, fault))
        row.injections += 1
    return row


def survived(row: Row, took_s: float, measured: str = "") -> None:
    """Note that everything that was promised has held, and how long that took."""
    with _lock:
        row.survived += 1
        row.took_s.append(took_s)
        row.measured = measured or row.measured


def table() -> Iterator[str]:
    """Yield the lines of a table of all there is."""
    yield "| promise | fault | injections | survived | worst time | lost | measured |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for row in sorted(ROWS.values(), key=lambda row: (row.promise, row.fault)):
        worst = f"{max(row.took_s) * 1000:.0f} ms" if row.took_s else "-"
        counted = f"{row.injections} | {row.survived} | {worst} | {row.lost or 'nothing'}"
        yield f"| {row.promise} | {row.fault} | {counted} | {row.measured} |"
