"""Lengths of time as options take them."""

import math

import click

from gen_worker.cli.failure import Failure

_LONGEST_S = 1e9  # over thirty years; what is computed from more does not fit a clock


def seconds_of(_ctx: click.Context, option: click.Parameter, text: str) -> float:
    """Return the seconds, 0 or more, that an option's text means; the `callback` of such an option."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= _LONGEST_S:
        raise Failure(f"`{option.opts[0]}` takes seconds, 0 or more, not `{text}`", "0 sets no limit")
    return seconds
