"""The two lines above everything: where this is, how its link and its host are; a third one when something is wrong."""

from typing import NamedTuple

from gen_worker.cli.table import size
from gen_worker.top.cells import Line, Span, bar, brief, clean, cut, fitted, joined, of_total, uptime, width_of
from gen_worker.top.job_rows import running, waiting
from gen_worker.top.panels import attention, download_rate
from gen_worker.top.tables import Sheet
from gen_worker.top.theme import Tone
from gen_worker.wire.status import LinkStatus, Status

ROOMY = 112
WIDE = 180
HOST_ROOM = 32
SCARCE = 2  # with less than so many times the reserve left, the host's memory is worth a look
FULL_DISK, FULLEST_DISK = 0.85, 0.95


class Seen(NamedTuple):
    """What the header is about."""

    status: Status
    done_per_minute: float | None = None
    rests: str = ""  # why nothing newer is drawn, in a word or two
    stale_s: float | None = None
    readonly: bool = False
    filter: str = ""
    alarm: bool = True  # whether the devices' panel has no title to tell it


class Header(Sheet, can_focus=False):
    """The header: two lines, three when something is wrong with the host or the supervisor."""

    DEFAULT_CSS = "Header { height: 2; scrollbar-size: 0 0; overflow-y: hidden; }"

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._seen: Seen | None = None

    def show(self, seen: Seen) -> None:
        """Show this."""
        self._seen = seen
        if self.styles.height is None or self.styles.height.value != self.count():
            self.styles.height = self.count()
        self.redraw()

    def count(self) -> int:
        """Return how many lines there are."""
        return 2 if self._seen is None or not alarms(self._seen.status) else 3

    def line(self, index: int, room: int) -> Line:
        """Return a line."""
        if self._seen is None:
            return ()
        return (_identity, _host, _alarms)[index](self._seen, room)


def _apart(left: Line, right: Line, room: int) -> Line:
    """Return two lines at both ends of a row; the left one is cut where they meet."""
    kept = fitted(right, min(width_of(right), room))
    return (*fitted(left, room - width_of(kept)), *kept)


# --- the first line ---------------------------------------------------------------------------------------------------


def _identity(seen: Seen, room: int) -> Line:
    status = seen.status
    parts: list[Line] = [((" gen-worker ", "brand"),), ((cut(clean(status.host), HOST_ROOM), "bold"),)]
    if seen.alarm and (told := attention(status)):
        parts.append(((told, "alarm"),))
    if room >= ROOMY:
        parts += [((f"v{clean(status.version)}  pid {status.pid}", "dim"),)]
    parts.append(((f"up {uptime(status.uptime_s)}", "dim"),))
    if seen.rests:
        parts.append(((f"‖ {seen.rests}", "yellow"),))
    if seen.filter:
        parts.append(((f"/{cut(clean(seen.filter), 20)}", "yellow"),))
    if seen.readonly:
        parts.append((("read-only", "dim"),))
    return _apart(joined(parts, "  "), (*_reach(seen, room), (" ", "text")), room)


def _reach(seen: Seen, room: int) -> Line:
    if seen.stale_s is not None:
        return ((f"✖ not reachable for {brief(seen.stale_s)}", "alarm"),)
    link = seen.status.link
    return (("○ no orchestrator", "dim"),) if link is None else _link(link, room)


def _link(link: LinkStatus, room: int) -> Line:
    glyph: Span = ("● ", "green") if link.state == "connected" else ("◌ ", "yellow")
    word = clean(link.state)
    if room >= ROOMY and link.addr:
        word = f"orchestrator {clean(link.addr)}" + ("" if link.state == "connected" else f" {word}")
    since: Line = () if link.state == "connected" or link.since_s is None else ((f"for {brief(link.since_s)}", "dim"),)
    rtt: Line = () if link.rtt_ms is None else ((f"{link.rtt_ms:.0f} ms", "dim"),)
    return (glyph, *joined([((word, "text" if link.state == "connected" else "yellow"),), since, rtt]))


# --- the second line --------------------------------------------------------------------------------------------------


def _host(seen: Seen, room: int) -> Line:
    drawn = 16 if room >= WIDE else 8 if room >= ROOMY else 6
    left = joined([_cpu(seen.status, drawn), _ram(seen.status, drawn, room), _disk(seen.status, drawn, room)], "  ")
    return _apart(((" ", "text"), *left), (*_rates(seen, room), (" ", "text")), room)


def _cpu(status: Status, drawn: int) -> Line:
    if status.cpu_percent is None:
        return ()
    share = status.cpu_percent / 100
    return (("CPU ", "dim"), *bar(drawn, [(share, _tone(share, 0.9, 0.98))]), (f" {share:.0%}", "text"))


def _ram(status: Status, drawn: int, room: int) -> Line:
    if status.ram_used is None or not status.ram_total:
        return ()
    share = status.ram_used / status.ram_total
    number = of_total(status.ram_used, status.ram_total) if room >= ROOMY else ((f"{share:.0%}", "text"),)
    return (("RAM ", "dim"), *bar(drawn, [(share, _tone(share, 0.85, 0.95))]), (" ", "text"), *number)


def _disk(status: Status, drawn: int, room: int) -> Line:
    if status.disk_used is None or not status.disk_total:
        return ()
    share = status.disk_used / status.disk_total
    number = of_total(status.disk_used, status.disk_total) if room >= ROOMY else ((f"{share:.0%}", "text"),)
    return (("DISK ", "dim"), *bar(drawn, [(share, _tone(share, FULL_DISK, FULLEST_DISK))]), (" ", "text"), *number)


def _tone(share: float, much: float, most: float) -> Tone:
    return "red" if share >= most else "yellow" if share >= much else "green"


def _rates(seen: Seen, room: int) -> Line:
    status = seen.status
    rate = status.net_bps if status.net_bps is not None else download_rate(status)
    parts: list[Line] = [((f"↓ {size(int(rate))}/s", "cyan"),)] if rate >= 1024 else []
    counts = [(running(status), "run"), (waiting(status), "wait")]
    if room >= ROOMY:
        counts.append((status.jobs_done, "done"))
    parts += [((f"{count:,}", "text"), (f" {word}", "dim")) for count, word in counts]
    if room >= ROOMY and status.jobs_failed:
        parts.append(((f"{status.jobs_failed:,}", "red"), (" failed", "dim")))
    if room >= WIDE and seen.done_per_minute:
        parts.append(((f"{seen.done_per_minute:.0f}", "text"), ("/min", "dim")))
    return joined(parts, "  ")


# --- the third line ---------------------------------------------------------------------------------------------------


def alarms(status: Status) -> list[str]:
    """Return what is wrong, or soon will be, with the supervisor and its host as a whole."""
    found = []
    if status.draining:
        found.append("draining: it takes no more jobs")
    memory = status.memory
    if memory is not None and memory.left < SCARCE * memory.reserve:
        word = "short" if memory.left < memory.reserve else "scarce"
        found.append(f"host memory is {word}: {size(memory.left)} of {size(memory.limit)} left")
    if status.quarantined:
        found.append(
            "1 payload is refused" if status.quarantined == 1 else f"{status.quarantined} payloads are refused"
        )
    found += [
        f"{clean(each.name)} is unavailable: {clean(each.reason or 'no reason given')}"
        for each in status.functions
        if each.state == "unavailable"
    ]
    return found


def _alarms(seen: Seen, room: int) -> Line:
    return ((" ▲ ", "yellow"), (cut(" · ".join(alarms(seen.status)), room - 4), "yellow"))
