"""What a benchmark says: figures beside their floors, as a table or as a document."""

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec


class Effort(NamedTuple):
    """How long to measure; a brief run shows that a benchmark works, and no figure worth quoting."""

    rounds: int
    brief: bool = False

    def times(self, count: int) -> int:
        """How often to repeat within a round what takes `count` times in a full run."""
        return max(count // 200, 1) if self.brief else count


class Target(msgspec.Struct, frozen=True):
    """What the figure, or its ratio to the floor, has to reach."""

    of: Literal["value", "ratio"]
    at: Literal["most", "least"]
    limit: float

    def met_by(self, figure: "Figure") -> bool:
        number = figure.value if self.of == "value" else figure.ratio
        if number is None:
            return False
        return number <= self.limit if self.at == "most" else number >= self.limit

    def __str__(self) -> str:
        return f"{self.of} {'<=' if self.at == 'most' else '>='} {shown(self.limit)}"


class Figure(msgspec.Struct):
    """One measured thing: medians over the rounds; `ratio` is the median of the rounds' own ratios.

    What could not be measured has no value, and `skipped` says why.
    """

    name: str
    unit: str
    value: float | None
    floor: float | None = None
    floor_name: str = ""
    ratio: float | None = None
    target: Target | None = None
    met: bool | None = None
    skipped: str = ""


def figure(
    name: str,
    unit: str,
    values: Sequence[float],
    *,
    floors: Sequence[float] = (),
    floor_name: str = "",
    target: Target | None = None,
) -> Figure:
    """The figure of some rounds; round N of `values` was measured right beside round N of `floors`."""
    result = Figure(name, unit, statistics.median(values), floor_name=floor_name, target=target)
    if floors:
        result.floor = statistics.median(floors)
        result.ratio = statistics.median(value / floor for value, floor in zip(values, floors, strict=True))
    if target:
        result.met = target.met_by(result)
    return result


def skipped(name: str, unit: str, why: str) -> Figure:
    """The figure of what cannot be measured here."""
    return Figure(name, unit, None, skipped=why)


def shown(number: float | None) -> str:
    """The number with three or four digits that count."""
    if number is None:
        return ""
    if abs(number) >= 100:
        return f"{number:,.0f}"
    return f"{number:.3g}"


def table(figures: Sequence[Figure]) -> str:
    """The figures for a person; also a Markdown table."""
    head = ("what", "figure", "unit", "floor", "of", "ratio", "target", "")
    rows = [
        (
            f.name,
            f"skipped: {f.skipped}" if f.skipped else shown(f.value),
            f.unit,
            shown(f.floor),
            f.floor_name,
            "" if f.ratio is None else f"{f.ratio:.2f}",
            str(f.target or ""),
            {True: "met", False: "missed", None: ""}[f.met],
        )
        for f in figures
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [head, tuple("-" * width for width in widths), *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def main(measures: Mapping[str, Callable[[Effort], list[Figure]]], *, rounds: int = 5) -> None:
    """The command of some benchmarks, each under what it shows; prints a table as soon as it has one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="; ".join(measures))
    parser.add_argument("--rounds", type=int, default=rounds, help="interleaved rounds (default: %(default)s)")
    parser.add_argument("--brief", action="store_true", help="one short round, only to see that it works")
    parser.add_argument("--json", action="store_true", help="print a document instead of tables")
    options = parser.parse_args()
    effort = Effort(1, brief=True) if options.brief else Effort(options.rounds)
    document: dict[str, list[Figure]] = {}
    for what, measure in measures.items():
        document[what] = measure(effort)
        if not options.json:
            print(f"{what}\n\n{table(document[what])}\n", flush=True)
    if options.json:
        print(json.dumps(msgspec.to_builtins(document), indent=2))
