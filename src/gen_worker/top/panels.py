"""The lists of downloads and events, and the titles of all panels. Pure."""

import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

from gen_worker.cli.table import size
from gen_worker.top.cells import (
    Line,
    Span,
    bar,
    brief,
    clean,
    cut,
    cut_middle,
    fitted,
    joined,
    of_total,
    whole,
    wrapped,
)
from gen_worker.top.device_rows import ails
from gen_worker.top.job_rows import running, waiting
from gen_worker.top.theme import LEVELS, Tone, look_of
from gen_worker.wire.status import DownloadStatus, EventStatus, Status

Drawn = Callable[[int], Line]
SOURCE_ROOM = 10
BAR_ROOM = 12


# --- titles -----------------------------------------------------------------------------------------------------------


def attention(status: Status) -> str:
    """Return how many devices somebody should look at; empty where none."""
    count = sum(map(ails, status.gpus))
    return "" if not count else "1 needs attention" if count == 1 else f"{count} need attention"


def devices_title(status: Status) -> str:
    """Return the title of the devices, with the alarm in it."""
    kind = "GPUs" if any(device.index is not None for device in status.gpus) else "Devices"
    return " · ".join(filter(None, (f"{kind} {len(status.gpus)}", attention(status))))


def jobs_title(status: Status) -> str:
    """Return the title of the jobs."""
    return f"Jobs · {running(status)} running · {waiting(status)} queued"


def downloads_title(status: Status) -> str:
    """Return the title of the downloads, with how fast they are together."""
    active = sum(download.state == "downloading" for download in status.downloads)
    if not status.downloads:
        return "Downloads"
    rate = download_rate(status)
    speed = f"{size(int(rate))}/s" if rate else ""
    rest = len(status.downloads) - active
    return " · ".join(filter(None, (f"Downloads · {active} active", f"{rest} queued" if rest else "", speed)))


def download_rate(status: Status) -> float:
    """Return how many bytes a second all downloads together bring."""
    return sum(download.bytes_per_s or 0.0 for download in status.downloads)


def tabs(status: Status, chosen: int) -> Line:
    """Return the line that names the three panels of which a narrow terminal shows one."""
    names = (
        f"Jobs {running(status)}+{waiting(status)}",
        f"Downloads {len(status.downloads)}" if status.downloads else "Downloads",
        "Events",
    )
    spans: list[Span] = [(" ", "dim")]
    for number, name in enumerate(names, 1):
        tone: Tone = "bold" if number == chosen else "dim"
        spans += [(f"{number} ", "key" if number == chosen else "dim"), (f"{name}  ", tone)]
    return tuple(spans)


def tab_at(status: Status, column: int) -> int | None:
    """Return which of the three panels is named at a column of that line."""
    so_far = 1
    spans = tabs(status, 1)[1:]
    for number in range(3):
        so_far += sum(len(text) for text, _ in spans[2 * number : 2 * number + 2])
        if column < so_far:
            return number + 1
    return None


# --- downloads --------------------------------------------------------------------------------------------------------


def download_lines(downloads: Sequence[DownloadStatus], text: str = "") -> list[Drawn]:
    """Return two lines for each download whose model's name has this text in it."""
    shown = [each for each in downloads if text in each.ref.lower()]
    if not shown:
        return [lambda _room: (("nothing is downloaded" if not text else "none of that name", "dim"),)]
    return [partial(draw, each) for each in shown for draw in (_named, _far)]


def _named(download: DownloadStatus, room: int) -> Line:
    wanted_by = ", ".join(map(clean, download.wanted_by))
    ref = cut_middle(clean(download.ref), room)
    return ((ref, "text"), (f" for {wanted_by}" if wanted_by else "", "dim"))


def _far(download: DownloadStatus, room: int) -> Line:
    total = download.bytes_total
    share = min(1.0, download.bytes_done / total) if total else None
    words = [size(download.bytes_done) if total is None else _text(of_total(download.bytes_done, total))]
    if total is not None and not download.bytes_done:
        words = [whole(total)]
    if download.bytes_per_s:
        words.append(f"{size(int(download.bytes_per_s))}/s")
        if total:
            words.append(brief((total - download.bytes_done) / download.bytes_per_s))
    if download.state != "downloading":
        words.append(clean(download.state))
    again: Line = ((f"retried {download.retries}x", "yellow"),) if download.retries else ()
    drawn = bar(min(BAR_ROOM, room // 4), [(share or 0.0, "cyan")])
    percent: Line = (("   ?" if share is None else f"{share:>4.0%}", "text"),)
    return joined([drawn, percent, ((" ".join(filter(None, words)), "dim"),), again])


def _text(line: Line) -> str:
    return "".join(text for text, _ in line)


# --- events -----------------------------------------------------------------------------------------------------------


def event_lines(events: Sequence[EventStatus], room: int, text: str = "", *, sourced: bool = True) -> list[Drawn]:
    """Return the events that have this text in them, the latest last: each as many rows as it takes in the room."""
    shown = (each for each in events if text in each.source.lower() or text in each.message.lower())
    rows = (
        row for each in shown for row in _rows(each.ts, each.level, each.source if sourced else "", each.message, room)
    )
    return [partial(_drawn, row) for row in rows]


@lru_cache(maxsize=1024)  # the same events are drawn every second
def _rows(ts: float, level: str, source: str, message: str, room: int) -> tuple[Line, ...]:
    look = look_of(LEVELS, level)
    when = time.strftime("%H:%M:%S", time.localtime(ts))
    named: Line = fitted(((cut(clean(source), SOURCE_ROOM), "purple"),), SOURCE_ROOM) if source else ()
    told = clean(message.replace("\n", " "))
    return wrapped(joined([((when, "dim"),), ((look.glyph, look.tone),), named, ((told, look.tone),)]), room)


def _drawn(row: Line, _room: int) -> Line:
    return row
