"""Numbers as options take them: finite ones, in a range that has a meaning."""

import math
from typing import Any

import click

from gen_worker.cli.failure import Failure

_MOST = 1e9  # as seconds over thirty years; what is computed from more does not fit a clock


class Amount(click.ParamType[float]):
    """A number of some unit in a range; `above` leaves out its least."""

    name = "amount"

    def __init__(
        self, unit: str, least: float = 0.0, most: float = _MOST, *, above: bool = False, hint: str = ""
    ) -> None:
        self._unit = unit
        self._least = least
        self._most = most
        self._above = above
        self._hint = hint

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number; raise `Failure`, naming the option and the range, for what is none."""
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not self._least <= number <= self._most or (self._above and number == self._least):
            raise Failure(f"`{_named(param)}` takes {self._unit}, {self._bounds()}, not `{value}`", self._hint)
        return number

    def _bounds(self) -> str:
        if self._most < _MOST:
            return f"{self._least:g} to {self._most:g}"
        return f"more than {self._least:g}" if self._above else f"{self._least:g} or more"


class Count(click.ParamType[int]):
    """A whole number in a range."""

    name = "count"

    def __init__(self, least: int, most: int | None = None) -> None:
        self._least = least
        self._most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number; raise `Failure`, naming the option and the range, for what is none."""
        try:
            number = int(value)
        except ValueError:
            number = None
        if number is None or number < self._least or (self._most is not None and number > self._most):
            bounds = f"{self._least} or more" if self._most is None else f"{self._least} to {self._most}"
            raise Failure(f"`{_named(param)}` takes a whole number, {bounds}, not `{value}`")
        return number


def _named(param: click.Parameter | None) -> str:
    return "this option" if param is None else max(param.opts, key=len)


TIMEOUT = Amount("seconds", hint="0 sets no limit")
"""A time to wait that may be without an end."""
