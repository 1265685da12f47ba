"""The table of devices: a row for each, in three sets of columns. Pure."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from gen_worker.cli.table import size
from gen_worker.top.cells import (
    Line,
    Span,
    bar,
    brief,
    clean,
    cut,
    cut_front,
    cut_middle,
    joined,
    of_total,
    sparkline,
    width_of,
)
from gen_worker.top.columns import Column, fitting
from gen_worker.top.history import History, spent_s
from gen_worker.top.theme import DEVICES, EDGE, Look, Tone, look_of
from gen_worker.wire.status import DeviceStatus, JobStatus, Status

MEDIUM = 108  # columns that a table has on a terminal of 112, within its border
WIDE = 173
ID_ROOM = 8  # what is left of an id, where it stands before its function
BEAT_LATE_S, BEAT_LOST_S = 2.0, 10.0
NEARLY = 0.8  # of its time, and a job is worth a look
NEARLY_FULL, FULL = 0.9, 0.97
LAST_S = 30
LEAST_BAR, LEAST_STAGE = 6, 12  # columns, where a bar and the name of a stage stand side by side
WARM, HOT = 80.0, 90.0  # °C; an H100 slows itself down at 87
NOTHING: Line = (("—", "dim"),)
TIME_ROOM, LONGEST_TIME_ROOM = 11, 13  # columns: `4m05s/10m`, `59m01s/59m30s`
SPARE = ("°C", "↻", "UTIL", "VRAM", "MEMORY", "♥", "TIME/MAX")
"""The heads of columns that a table does without where it is too narrow, the first to go first."""


class DeviceRow(NamedTuple):
    """A device with what is told of it elsewhere in the document and in those before."""

    device: DeviceStatus
    job: JobStatus | None
    limit_s: float | None
    util: Sequence[float | None]


def device_rows(status: Status, history: History) -> list[tuple[str, DeviceRow]]:
    """Return a row for each device, by its name."""
    jobs = {job.id: job for job in status.jobs}
    rows = []
    for device in status.gpus:
        job = None if device.job is None else jobs.get(device.job)
        limit_s = None if job is None else history.limit_s(job)
        rows.append((device.name, DeviceRow(device, job, limit_s, history.util(device.name))))
    return rows


def label(name: str) -> str:
    """Return what a device is called where it is plain that it is one: `0`, `1:2` of a divided GPU, `cpu:0`."""
    return clean(name.removeprefix("cuda:"))


def state(device: DeviceStatus) -> str:
    """Return the word for how a device is; one that an operator keeps free of jobs says so."""
    if device.drained and device.state in ("idle", "busy", "loading", "drain"):
        return "drained" if device.state == "idle" and device.job is None else "drain"
    return device.state


def ails(device: DeviceStatus) -> bool:
    """Whether somebody should look at a device."""
    return look_of(DEVICES, state(device)).alarming or device.health != "ok"


def hang_of(device: DeviceStatus) -> Line:
    """Return how a device hangs; yellow is what is said of one that does not, such as that it is slow."""
    return () if device.hang is None else ((clean(device.hang), "red" if device.state == "hung" else "yellow"),)


def matches(row: DeviceRow, text: str) -> bool:
    """Whether any word of a row has this text in it, however it is written."""
    device, job = row.device, row.job
    words = [device.name, state(device), device.product or "", device.hang or "", device.reason or ""]
    words += [model.ref for model in device.models]
    words += [device.job or ""] + ([] if job is None else [job.function, job.tenant or ""])
    return any(text in word.lower() for word in words)


def columns_for(rows: Sequence[DeviceRow], room: int) -> list[Column[DeviceRow]]:
    """Return the columns for a table of so much room; those of which no device tells anything are left out."""
    devices = [row.device for row in rows]
    labels = max((len(label(device.name)) for device in devices), default=1)
    gpus = any(device.index is not None for device in devices) or not devices
    name = Column("GPU" if gpus else "DEVICE", _label, max(labels, 3 if gpus else 6), right=gpus)
    known = {
        "vram": any(device.vram_total is not None for device in devices),
        "rss": not any(device.vram_total is not None for device in devices),
        "util": any(device.util is not None for device in devices),
        "temp": any(device.temp is not None for device in devices),
        "power": any(device.power_w is not None for device in devices),
        "product": any(device.product for device in devices),
    }
    tier = _WIDE if room >= WIDE else _MEDIUM if room >= MEDIUM else _NARROW
    time = _TIME._replace(least=time_room(_time(row, 0) for row in rows))
    told = [time if column is _TIME else column for needs, column in tier if known.get(needs, True)]
    return fitting([_EDGE, name, *told], room, SPARE)


def time_room(times: Iterable[Line]) -> int:
    """Return how wide the column of these times is."""
    return min(LONGEST_TIME_ROOM, max([TIME_ROOM, *map(width_of, times)]))


# --- the cells --------------------------------------------------------------------------------------------------------


def _look(row: DeviceRow) -> Look:
    return look_of(DEVICES, state(row.device))


def _edge(row: DeviceRow, _room: int) -> Line:
    return ((EDGE, _look(row).tone),)


def _label(row: DeviceRow, _room: int) -> Line:
    return ((label(row.device.name), "bold"),)


def _product(row: DeviceRow, room: int) -> Line:
    words = short_product(row.device).split(" ")
    while len(words) > 1 and len(" ".join(words)) > room:
        words.pop()
    return ((cut(" ".join(words), room), "dim"),)


def short_product(device: DeviceStatus) -> str:
    """Return what a device's maker calls it, without the maker: `H100 80GB HBM3`; of a part of it, its profile."""
    name = clean(device.product or "").removeprefix("NVIDIA ").removeprefix("GeForce ")
    return f"{name} {clean(device.mig)}".strip() if device.mig else name


def _pid(row: DeviceRow, _room: int) -> Line:
    return NOTHING if row.device.pid is None else ((str(row.device.pid), "dim"),)


def _state(row: DeviceRow, room: int) -> Line:
    look, device = _look(row), row.device
    named: Line = ((f"{look.glyph} {look.word}", look.tone),)
    if room <= 12:
        return named
    ill: Line = ((clean(device.health), "yellow"),) if device.health not in ("ok", device.state) else ()
    return joined([named, hang_of(device) or ill])


def _memory(row: DeviceRow, room: int) -> Line:
    device = row.device
    if device.vram_total is None:
        return ((" " * (room - 1), "text"), *NOTHING) if room > 0 else ()
    number = of_total(device.vram_used, device.vram_total)
    columns = sum(len(text) for text, _ in number)
    aligned = max(8, columns)
    padding: Span = (" " * (aligned - columns), "text")
    return (*memory_bar(device, room - aligned - 1), (" ", "text"), padding, *number)


def memory_bar(device: DeviceStatus, room: int) -> Line:
    """Return what models take, what else is in use, and what is free."""
    used, total = device.vram_used or 0, device.vram_total or 1
    models = min(model_bytes(device), used)
    share = used / total
    alarm: Tone | None = (
        "red" if share >= FULL or device.state == "hung" else "yellow" if share >= NEARLY_FULL else None
    )
    return bar(room, [(models / total, alarm or "blue"), ((used - models) / total, alarm or "purple")])


def model_bytes(device: DeviceStatus) -> int:
    """Return what models take of a device's own memory."""
    return sum(model.bytes or 0 for model in device.models if model.tier in (None, "VRAM"))


def _rss(row: DeviceRow, _room: int) -> Line:
    return NOTHING if row.device.rss is None else ((size(row.device.rss), "text"),)


def _util(row: DeviceRow, _room: int) -> Line:
    util = row.device.util
    return NOTHING if util is None else ((f"{util:.0%}", "text" if util >= 0.005 else "dim"),)


def _last(row: DeviceRow, room: int) -> Line:
    return ((sparkline(row.util, room, LAST_S), "blue"),)


def _temp(row: DeviceRow, _room: int) -> Line:
    temp = row.device.temp
    if temp is None:
        return NOTHING
    return ((f"{temp:.0f}", "red" if temp >= HOT else "yellow" if temp >= WARM else "text"),)


def _power(row: DeviceRow, _room: int) -> Line:
    return NOTHING if row.device.power_w is None else ((f"{row.device.power_w:.0f}", "dim"),)


def _models(row: DeviceRow, room: int) -> Line:
    refs = list(dict.fromkeys(clean(model.ref) for model in row.device.models))
    return NOTHING if not refs else ((named_together([telling(ref) for ref in refs], room), "text"),)


def telling(ref: str) -> str:
    """Return the part of a model's name that tells it from others: without who has published it."""
    return ref.rsplit("/", 1)[-1] or ref


def named_together(names: Sequence[str], room: int) -> str:
    """Return the names with commas between where they all fit, else the first and how many more there are."""
    whole = ", ".join(names)
    more = f" +{len(names) - 1}" if len(names) > 1 else ""
    return whole if len(whole) <= room else cut_middle(names[0], room - len(more)) + more


def _job(row: DeviceRow, room: int) -> Line:
    """Return what a device is at: its job, how it hangs, or why it has none."""
    hang = hang_of(row.device) if row.device.state == "hung" else ()
    return _jobless(row.device) if row.device.job is None else _named(row, hang, room)


def _job_alone(row: DeviceRow, room: int) -> Line:
    """Return the same where the way it hangs is told with its state."""
    return _jobless(row.device) if row.device.job is None else _named(row, (), room)


def _named(row: DeviceRow, hang: Line, room: int) -> Line:
    id_ = clean(row.device.job or "")
    more: Line = ((f"+{row.device.jobs - 1}", "dim"),) if row.device.jobs > 1 else ()
    function: Line = () if row.job is None else ((clean(row.job.function), "text"),)
    rest = joined([hang or function, more])
    return joined([((cut_front(id_, max(ID_ROOM, room - width_of(rest) - 1)), "purple"),), rest])


def _jobless(device: DeviceStatus) -> Line:
    reason = clean(device.reason or "")
    if device.restart_in_s is not None:
        return ((f"in {brief(device.restart_in_s)} {reason or _died(device)}".rstrip(), "yellow"),)
    loads: Line = () if device.loading is None else ((f"loads {clean(device.loading)}{_share(device)}", "cyan"),)
    if device.hang is not None:
        hang = hang_of(device)
        return joined([hang, loads] if device.state == "hung" else [loads, hang])
    if loads:
        return loads
    if reason:
        return ((reason, "yellow" if device.health == "ok" else "red"),)
    return NOTHING


def _died(device: DeviceStatus) -> str:
    """Return what a device's children died of."""
    causes = [f"{clean(cause)} {count}x" if count > 1 else clean(cause) for cause, count in device.deaths.items()]
    return ", ".join(causes)


def _share(device: DeviceStatus) -> str:
    if not device.loading_total or device.loading_bytes is None:
        return ""
    return f" {min(1.0, device.loading_bytes / device.loading_total):.0%}"


def _time(row: DeviceRow, _room: int) -> Line:
    return () if row.job is None else time_of(row.job, row.limit_s)


def time_of(job: JobStatus, limit_s: float | None) -> Line:
    """Return how long a job has taken of how long it may."""
    spent = spent_s(job)
    if job.deadline_s is not None and job.deadline_s <= 0.0:
        return ((f"{brief(spent)}/{'over' if limit_s is None else _limit(limit_s)}", "red"),)
    if limit_s is None:
        return ((brief(spent), "text"),)
    tone: Tone = "yellow" if spent >= NEARLY * limit_s else "text"
    return ((brief(spent), tone), (f"/{_limit(limit_s)}", "dim" if tone == "text" else tone))


def _limit(seconds: float) -> str:
    """Return a length of time that is often a whole number of minutes or hours, and then told as such: `10m`, `2h`."""
    return brief(seconds).removesuffix("00s").removesuffix("00m")


def progress_of(job: JobStatus, room: int, tone: Tone = "green") -> Line:
    """Return how far a job is; of one that waits, what for."""
    stage = clean(job.stage or "")
    if job.status == "queued":
        place = "" if job.position is None else f"#{job.position}"
        soon = "" if job.starts_in_s is None else f"starts in {brief(job.starts_in_s)}"
        return ((" ".join(filter(None, (place, stage or soon or "waits for a device"))), "dim"),)
    if job.progress is None:
        return ((stage or "—", "dim"),)
    share = min(1.0, max(0.0, job.progress))
    drawn = max(LEAST_BAR, room // 4)
    if not stage or room - drawn - 6 < min(len(stage), LEAST_STAGE):
        drawn, stage = max(0, room - 5), ""
    return joined([bar(drawn, [(share, tone)]), ((f"{share:>4.0%}", "text"),), ((stage, "dim"),) if stage else ()])


def _progress(row: DeviceRow, room: int) -> Line:
    return () if row.job is None else progress_of(row.job, room, "red" if row.device.hang else "green")


def beat(device: DeviceStatus) -> Line:
    """Return how long ago a device's child gave its last sign of life."""
    age = device.heartbeat_age_s
    if age is None:
        return NOTHING
    tone: Tone = "red" if age >= BEAT_LOST_S else "yellow" if age >= BEAT_LATE_S else "dim"
    return ((brief(age), tone),)


def _beat(row: DeviceRow, _room: int) -> Line:
    return beat(row.device)


def _restarts(row: DeviceRow, _room: int) -> Line:
    restarts = row.device.restarts
    return ((str(restarts), "yellow"),) if restarts else (("·", "dim"),)


_EDGE: Column[DeviceRow] = Column("", _edge, 1)
_BEAT: Column[DeviceRow] = Column("♥", _beat, 5, right=True)
_RESTARTS: Column[DeviceRow] = Column("↻", _restarts, 2, right=True)
_UTIL: Column[DeviceRow] = Column("UTIL", _util, 4, right=True)
_TEMP: Column[DeviceRow] = Column("°C", _temp, 2, right=True)
_TIME: Column[DeviceRow] = Column("TIME/MAX", _time, TIME_ROOM)

Tier = tuple[tuple[str, Column[DeviceRow]], ...]  # what must be known for a column, and the column
_NARROW: Tier = (
    ("", Column("STATE", _state, 9)),
    ("vram", Column("VRAM", _memory, 15)),
    ("rss", Column("MEMORY", _rss, 8, right=True)),
    ("util", _UTIL),
    ("temp", _TEMP),
    ("", Column("JOB", _job, 12, share=1)),
    ("", _TIME),
    ("", _BEAT),
    ("", _RESTARTS),
)
_MEDIUM: Tier = (
    ("product", Column("NAME", _product, 9)),
    ("", Column("PID", _pid, 6)),
    ("", Column("STATE", _state, 9)),
    ("vram", Column("VRAM", _memory, 15, share=2)),
    ("rss", Column("MEMORY", _rss, 8, right=True)),
    ("util", _UTIL),
    ("temp", _TEMP),
    ("", Column("MODELS", _models, 12, share=3)),
    ("", Column("JOB", _job, 14, share=6)),
    ("", _TIME),
    ("", _BEAT),
    ("", _RESTARTS),
)
_WIDE: Tier = (
    ("product", Column("NAME", _product, 9, share=1)),
    ("", Column("PID", _pid, 7)),
    ("", Column("STATE", _state, 24)),
    ("vram", Column("VRAM", _memory, 20, share=3)),
    ("rss", Column("MEMORY", _rss, 8, right=True)),
    ("util", _UTIL),
    ("util", Column(f"LAST {LAST_S} s", _last, 10)),
    ("temp", _TEMP),
    ("power", Column("W", _power, 4, right=True)),
    ("", Column("MODELS", _models, 14, share=3)),
    ("", Column("JOB", _job_alone, 20, share=2)),
    ("", Column("PROGRESS", _progress, 20, share=4)),
    ("", _TIME),
    ("", _BEAT),
    ("", _RESTARTS),
)
