"""Lengths of time as options take them."""

import math
from typing import Any

import click

from gen_worker.cli.failure import Failure

_LONGEST_S = 1e9  # over thirty years; what is computed from more does not fit a clock


class Length(click.FloatRange):
    """A number in a range that ends somewhere; `nan` is in none."""

    def __init__(self, least: float, most: float = _LONGEST_S) -> None:
        super().__init__(least, most)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number, or fail with the range."""
        found: float = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(f"{value} is not in the range {self._describe_range()}", param, ctx)
        return found


def seconds_of(_ctx: click.Context, option: click.Parameter, text: str) -> float:
    """Return the seconds, 0 or more, that an option's text means; the `callback` of such an option."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= _LONGEST_S:
        raise Failure(f"`{option.opts[0]}` takes seconds, 0 or more, not `{text}`", "0 sets no limit")
    return seconds
