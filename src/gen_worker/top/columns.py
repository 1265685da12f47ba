"""Columns of tables, and how the room is shared among them."""

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from gen_worker.top.cells import Line

Thing = TypeVar("Thing")

GAP = 1


class Column(NamedTuple, Generic[Thing]):
    """One column: how narrow it may be, which share of spare room it takes, and what it draws in the room it got."""

    head: str
    draw: Callable[[Thing, int], Line]
    least: int
    share: int = 0
    right: bool = False


def fitting(columns: Sequence[Column[Thing]], room: int, spare: Sequence[str]) -> list[Column[Thing]]:
    """Return the columns without as many of the spare ones, the first first, as it takes for the others to fit."""
    kept = list(columns)
    for head in spare:
        if sum(column.least + GAP for column in kept) - GAP <= room:
            break
        kept = [column for column in kept if column.head != head]
    return kept


def widths(columns: Sequence[Column[Thing]], room: int) -> list[int]:
    """Return the width of each column: at least its least, and all of the room where some of them take shares."""
    found = [column.least for column in columns]
    spare = room - sum(found) - GAP * (len(columns) - 1)
    shares = sum(column.share for column in columns)
    if spare <= 0 or not shares:
        return found
    taken = 0
    for index, column in enumerate(columns):
        before = spare * taken // shares
        taken += column.share
        found[index] += spare * taken // shares - before
    return found
