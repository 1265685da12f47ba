"""The table of jobs that have not ended. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

from gen_worker.top.cells import Line, clean, cut_front, width_of
from gen_worker.top.columns import Column, fitting
from gen_worker.top.device_rows import label, progress_of, time_of, time_room
from gen_worker.top.history import History
from gen_worker.top.theme import JOBS, Look, look_of
from gen_worker.wire.hangs import HANGS
from gen_worker.wire.status import JobStatus, Status

FOR_TENANTS = 76  # columns of a table that has room for whose jobs they are
ROOMY = 110  # and of one that has room for long ids
NAME_ROOM = 14  # columns; names of functions that are longer take part in what is spare
NO_HANG = ("loading_slow", "unmeasurable")
SPARE = ("PROGRESS", "GPU", "DEVICE", "TIME/MAX")
"""The heads of columns that a table does without where it is too narrow, the first to go first."""


class JobRow(NamedTuple):
    """A job with what is told of it elsewhere in the document and in those before."""

    job: JobStatus
    state: str
    limit_s: float | None


def job_rows(status: Status, history: History) -> list[tuple[str, JobRow]]:
    """Return a row for each job, by id and attempt: those that hang or are late first, then as they will be served."""
    loading = {device.name for device in status.gpus if device.state == "loading"}
    rows = [(f"{job.id} {job.attempt}", JobRow(job, _state(job, loading), history.limit_s(job))) for job in status.jobs]
    return sorted(rows, key=lambda row: not look_of(JOBS, row[1].state).alarming)


def _state(job: JobStatus, loading: set[str]) -> str:
    if job.hang in HANGS and job.hang not in NO_HANG:
        return "hung"
    if job.status != "running":
        return job.status
    if job.deadline_s is not None and job.deadline_s <= 0.0:
        return "overdue"
    return "loading" if job.gpu in loading else "running"


def running(status: Status) -> int:
    """Return how many jobs are under way."""
    return sum(job.status != "queued" for job in status.jobs)


def waiting(status: Status) -> int:
    """Return how many jobs wait, with those that the document does not list."""
    return len(status.jobs) - running(status) + status.jobs_left_out


def matches(row: JobRow, text: str) -> bool:
    """Whether any word of a row has this text in it, however it is written."""
    job = row.job
    words = (job.id, job.function, row.state, job.gpu or "", job.tenant or "", job.stage or "", job.hang or "")
    return any(text in word.lower() for word in words)


def columns_for(rows: Sequence[JobRow], room: int, devices: Sequence[str] = ()) -> list[Column[JobRow]]:
    """Return the columns for a table of so much room; without tenants there is none for them.

    `devices` are the names of all, whether a job runs there or not.
    """
    jobs = [row.job for row in rows]
    ids = max((len(clean(job.id)) for job in jobs), default=4)
    names = max((width_of(_function(row, 0)) for row in rows), default=8)
    labels = max((len(label(name)) for name in (*devices, *(job.gpu for job in jobs)) if name), default=3)
    found = [
        Column("ID", _id, max(4, min(ids, 16 if room >= ROOMY else 8))),
        Column("FUNCTION", _function, max(8, min(names, NAME_ROOM)), share=2 if names > NAME_ROOM else 0),
        Column("GPU" if labels <= 3 else "DEVICE", _device, 3 if labels <= 3 else max(6, labels)),
        Column("STATUS", _status, 9),
        Column("PROGRESS", _progress, 10, share=3),
        Column("TIME/MAX", _time, time_room(_time(row, 0) for row in rows)),
    ]
    if room >= FOR_TENANTS and any(job.tenant for job in jobs):
        found.append(Column("TENANT", _tenant, 8, share=1))
    return fitting(found, room, SPARE)


def _look(row: JobRow) -> Look:
    return look_of(JOBS, row.state)


def _id(row: JobRow, room: int) -> Line:
    return ((cut_front(clean(row.job.id), room), "purple"),)


def _function(row: JobRow, _room: int) -> Line:
    attempt: Line = () if row.job.attempt == 1 else ((f" #{row.job.attempt}", "yellow"),)
    return ((clean(row.job.function), "text"), *attempt)


def _device(row: JobRow, _room: int) -> Line:
    return (("—", "dim"),) if row.job.gpu is None else ((label(row.job.gpu), "text"),)


def _status(row: JobRow, _room: int) -> Line:
    look = _look(row)
    return ((f"{look.glyph} {look.word}", look.tone),)


def _progress(row: JobRow, room: int) -> Line:
    if row.state == "hung" and row.job.hang is not None:
        return ((clean(row.job.hang), "red"), (f" {clean(row.job.stage)}" if row.job.stage else "", "dim"))
    return progress_of(row.job, room, "green" if row.state == "running" else _look(row).tone)


def _time(row: JobRow, _room: int) -> Line:
    return time_of(row.job, row.limit_s)


def _tenant(row: JobRow, _room: int) -> Line:
    return ((clean(row.job.tenant or "—"), "dim"),)
