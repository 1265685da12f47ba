"""Moments as a person writes them: so long ago, a date, or seconds since 1970; and as they are shown."""

import re
import time
from datetime import UTC, datetime

import click

from gen_worker.cli.failure import Failure

_AGO = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", re.ASCII)
_SECONDS = (86400, 3600, 60, 1)
_LAST = 253402300800.0  # after the year 9999


def moment(text: str, now: float) -> float:
    """Return the moment that a text means, in seconds since 1970; raise `Failure` for one that means none.

    A date without a zone is in UTC, as those that are shown.
    """
    ago = _AGO.fullmatch(text)
    if text and ago is not None:
        return now - sum(int(part or 0) * seconds for part, seconds in zip(ago.groups(), _SECONDS, strict=True))
    try:
        found = float(text)
    except ValueError:
        found = _date(text)
    if not 0 <= found < _LAST:
        raise _unknown(text)
    return found


def _date(text: str) -> float:
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        raise _unknown(text) from None
    return (date if date.tzinfo is not None else date.replace(tzinfo=UTC)).timestamp()


def _unknown(text: str) -> Failure:
    return Failure(f"`{text}` is no moment", "write `10m`, `1h30m`, `2026-11-22T13:15:02` or seconds since 1970")


def clock(moment_s: float, now: float) -> str:
    """Return a moment as it is shown, in UTC: with its date where that is not today's."""
    date, milliseconds = time.gmtime(moment_s), int(moment_s * 1000) % 1000
    form = "%H:%M:%S" if date[:3] == time.gmtime(now)[:3] else "%Y-%m-%d %H:%M:%S"
    return f"{time.strftime(form, date)}.{milliseconds:03d}Z"


class _Moment(click.ParamType[float]):
    name = "when"

    def convert(self, value: str | float, _param: click.Parameter | None, _ctx: click.Context | None) -> float:
        return value if isinstance(value, float) else moment(value, time.time())


since_option = click.option(
    "--since",
    type=_Moment(),
    metavar="WHEN",
    help="Nothing older: so long ago (`10m`, `1h30m`), a date (UTC), or seconds since 1970.",
)
