"""All that is known of one device."""

from collections.abc import Iterator
from textwrap import wrap

from gen_worker.cli.table import duration, size
from gen_worker.top.cells import (
    Line,
    bar,
    brief,
    clean,
    cut_middle,
    fitted,
    joined,
    of_total,
    sparkline,
    uptime,
)
from gen_worker.top.device_rows import (
    beat,
    hang_of,
    label,
    model_bytes,
    progress_of,
    short_product,
    state,
    telling,
    time_of,
)
from gen_worker.top.history import KEPT, History
from gen_worker.top.panels import event_lines
from gen_worker.top.tables import Drawn, Fluid
from gen_worker.top.theme import DEVICES, Tone, look_of
from gen_worker.wire.hangs import HANGS
from gen_worker.wire.status import DeviceStatus, JobStatus, MemberStatus, ModelStatus, Status

EVENTS = 12


class Detail(Fluid):
    """A device: what its memory holds, its job, its last minute, and what happened to it last."""

    def show(self, device: DeviceStatus | None, status: Status, history: History) -> None:
        """Show a device; without one, nothing."""
        named = "" if device is None else title(device)
        if self.border_title != named:
            self.border_title = named
        self.fill(lambda room: [] if device is None else list(detail_lines(device, status, history, room)))


def title(device: DeviceStatus) -> str:
    """Return what a device is: its number, its product, the beginning of its UUID."""
    kind = "" if device.index is None else "GPU "
    uuid = clean(device.uuid or "")[:12]
    return " · ".join(filter(None, (f"{kind}{label(device.name)}", short_product(device), uuid)))


def detail_lines(device: DeviceStatus, status: Status, history: History, room: int) -> Iterator[Drawn]:
    """Return the lines about a device; sentences take as many as they need in that room."""
    yield from _condition(device, room)
    yield _head("MEMORY")
    yield from _memory(device)
    if device.members:
        yield _head("MEMBERS")
        yield from map(_member, device.members)
    if device.job is not None:
        yield _head("JOB")
        yield from _job(device, status, history)
    minute = {"busy": history.util(device.name), "memory": history.vram(device.name)}
    if known := {name: values for name, values in minute.items() if any(value is not None for value in values)}:
        yield _head(f"LAST {KEPT} s")
        yield from (_spark(name, values) for name, values in known.items())
    if told := [event for event in status.events if event.source == device.name][-EVENTS:]:
        yield _head("EVENTS")
        yield from event_lines(told, room, sourced=False)


def _head(text: str) -> Drawn:
    return lambda _room: ((text, "dim"),)


def _fixed(line: Line) -> Drawn:
    return lambda _room: (("  ", "text"), *line)


# --- how it is --------------------------------------------------------------------------------------------------------


def _condition(device: DeviceStatus, room: int) -> Iterator[Drawn]:
    look = look_of(DEVICES, state(device))
    pid: Line = () if device.pid is None else ((f"pid {device.pid}", "text"),)
    age: Line = () if device.age_s is None else ((f"for {uptime(device.age_s)}", "dim"),)
    yield _fixed(joined([((f"{look.glyph} {look.word}", look.tone),), pid, age, (("♥", "dim"),), beat(device)]))
    if device.hang is not None:
        silent = "" if device.silent_s is None else f", nothing new for {duration(device.silent_s)}"
        yield _fixed((*hang_of(device), (silent, "text")))
        yield from (_fixed(((piece, "dim"),)) for piece in wrap(HANGS.get(device.hang, ""), max(20, room - 2)))
    if device.health != "ok" or device.reason:
        yield _fixed(((clean(device.health), "yellow"), (f" {clean(device.reason or '')}", "text")))
    if device.loading is not None:
        yield _fixed((("loads ", "dim"), (clean(device.loading), "cyan"), *_loaded(device)))
    for engine in device.engines:
        where = f" {engine.state}, port {engine.port}, pid {engine.pid}"
        yield _fixed((("engine ", "dim"), (clean(engine.name), "cyan"), (clean(where), "text")))
    if device.restarts or device.deaths:
        deaths = ", ".join(f"{clean(cause)} {count}" for cause, count in device.deaths.items())
        again = f"restarted {device.restarts}x" + (f": {deaths}" if deaths else "")
        soon = "" if device.restart_in_s is None else f"; again in {brief(device.restart_in_s)}"
        yield _fixed(((again + soon, "yellow"),))


def _loaded(device: DeviceStatus) -> Line:
    if not device.loading_bytes:
        return ()
    total = "" if device.loading_total is None else f" of {size(device.loading_total)}"
    return ((f" {size(device.loading_bytes)}{total}", "text"),)


# --- its memory -------------------------------------------------------------------------------------------------------


def _memory(device: DeviceStatus) -> Iterator[Drawn]:
    total = device.vram_total
    for model in device.models:
        yield _share(_model_name(model), model.bytes, total, "blue" if model.tier in (None, "VRAM") else "dim")
    if total is None:
        yield _share("child", device.rss, None, "text")
        return
    used = device.vram_used
    ours = device.vram_ours if device.vram_ours is not None else used if device.vram_other is None else None
    if ours is not None:
        yield _share("working memory", max(0, ours - model_bytes(device)), total, "purple")
    if device.vram_other:
        others = "engine, driver, other programs" if device.engines else "other programs, driver"
        yield _share(others, device.vram_other, total, "yellow")
    if used is not None:
        yield _share("free", max(0, total - used), total, "green")


def _member(member: MemberStatus) -> Drawn:
    """Return what the driver says of one GPU of a group."""
    known: list[Line] = []
    if member.vram_total is not None:
        known.append(of_total(member.vram_used, member.vram_total))
    if member.util is not None:
        known.append(((f"{member.util:.0%}", "text"),))
    if member.temp is not None:
        known.append(((f"{member.temp:.0f} °C", "text"),))
    if member.power_w is not None:
        known.append(((f"{member.power_w:.0f} W", "dim"),))
    uuid: Line = ((clean(member.uuid or "")[:12], "dim"),) if member.uuid else ()
    return _fixed(joined([((label(member.name), "bold"),), *known, uuid]))


def _model_name(model: ModelStatus) -> str:
    marks = [model.rung or "", "" if model.tier in (None, "VRAM") else f"in {model.tier}", "pinned" * model.pinned]
    return " ".join([telling(clean(model.ref)), *(clean(mark) for mark in marks if mark)])


def _share(name: str, bytes_: int | None, total: int | None, tone: Tone) -> Drawn:
    def draw(room: int) -> Line:
        amount = size(bytes_).rjust(9)
        drawn = 0 if not total else max(6, room // 3)
        left = max(0, room - drawn - 11)
        named = fitted((("  ", "text"), (cut_middle(name, left - 3), "text")), left)
        picture: Line = () if not total else bar(drawn, [((bytes_ or 0) / total, tone)])
        return (*named, *picture, (f" {amount}", "text"))

    return draw


# --- its job and its last minute --------------------------------------------------------------------------------------


def _job(device: DeviceStatus, status: Status, history: History) -> Iterator[Drawn]:
    job = next((each for each in status.jobs if each.id == device.job), None)
    time: Line = () if job is None else time_of(job, history.limit_s(job))
    yield _fixed(joined([((clean(device.job or ""), "purple"), *_whose(job)), time]))
    if job is not None and (job.progress is not None or job.stage):
        yield lambda room: (("  ", "text"), *progress_of(job, room - 2))


def _whose(job: JobStatus | None) -> Line:
    if job is None:
        return ()
    tenant: Line = ((f" for {clean(job.tenant)}", "dim"),) if job.tenant else ()
    return ((f" {clean(job.function)}", "text"), *tenant)


def _spark(name: str, values: list[float | None]) -> Drawn:
    return lambda room: ((f"  {name:<7}", "dim"), (sparkline(values, min(KEPT, room - 11), KEPT), "blue"))
