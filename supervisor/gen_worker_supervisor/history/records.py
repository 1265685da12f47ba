"""Keeps one line of each job that ended: what it waited for, what it took, how it ended.

The loop makes records and lines of them, some at a time; a thread only writes. Whatever a thread computes it takes from
the loop, which shares the interpreter with it.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from gen_worker.job_records import JobRecord, encode_lines, folder_in
from gen_worker_supervisor.core.outcomes import body_length
from gen_worker_supervisor.core.state import Job, Outcome
from gen_worker_supervisor.logs.log import Log
from gen_worker_supervisor.logs.log_files import LineFiles
from gen_worker_supervisor.logs.redaction import redacted
from gen_worker_supervisor.loop.rounds import Rounds

EVERY_S = 0.25  # records are written so often at most
WAITING = 20_000  # records that are not written yet; what comes beyond them is dropped and counted
AT_ONCE = 64  # that are made lines of before the loop gets its turn
AT_A_WRITE = 4  # times so many: a write lets the loop go on, and so it costs the loop to have the thread come back


def record_of(job: Job, outcome: Outcome, now: float) -> JobRecord:
    """Return the record of a job that ends now, as the fleet's clock has it. Pure."""
    child, ending, detail, submitted = job.child, job.ending, outcome.detail, job.submitted
    run_s = outcome.run_s
    if (started := job.started) is None:
        started = now - run_s  # it was over before anybody looked, or never ran
    elif not run_s:
        run_s = now - started  # its child did not live to tell
    function, device, load_s, device_s = job.function, None, 0.0, 0.0
    if child is not None:
        device = child.device.name
        if (set_up := child.set_up.get(function.surveyed.instance)) is not None:
            loaded_at, load_s = set_up
            load_s = _whole(min(loaded_at, started) - max(submitted, loaded_at - load_s))
        if run_s and function.lane == "device":
            device_s = _whole((now - started) / outcome.together)
    record = JobRecord(  # by position, as this is made for every job
        now,
        job.request_id,
        function.surveyed.name,
        outcome.kind or "ok",
        job.attempt,
        device,
        job.tenant,
        job.priority,
        job.client.link,
        None if detail is None else detail.cause,
        None if ending is None else ending.hang or None,
        job.deaths,
        _whole(started - submitted),
        load_s,
        _whole(run_s),
        device_s,
        outcome.peak_vram,
        outcome.peak_rss,
        job.payload.length,
        body_length(outcome.body),
        outcome.yielded,
        "" if job.span is None else job.span.trace_id,
    )
    if detail is not None:
        record.hang = detail.hang or record.hang
        record.postmortem = detail.postmortem
    return record


def _whole(seconds: float) -> float:
    """Return a duration in whole microseconds; what clocks that differ make less than nothing is nothing."""
    return int(seconds * 1e6 + 0.5) / 1e6 if seconds > 0.0 else 0.0


def hide_in(records: list[JobRecord], hide: Callable[[str], str]) -> None:
    """Hide what callers and children named, in place; most have named nothing that `hide` changes."""
    named = "\n".join([text for each in records for text in (each.request_id, each.tenant, each.cause or "")])
    if hide(named) == named:
        return
    for each in records:
        each.request_id, each.tenant = hide(each.request_id), hide(each.tenant)
        each.cause = None if each.cause is None else hide(each.cause)


class Lines:
    """Lines of records that wait to be written, of no more than so many records. The loop adds, one thread takes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._added = 0  # records; the loop's
        self._taken = 0  # the thread's

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, count: int, lines: bytes) -> None:
        """Add the lines of so many records, for which there was room."""
        self._added += count
        self._waiting.append((count, lines))

    def has_room(self) -> bool:
        """Whether fewer records wait than may."""
        return self._added - self._taken < self._limit

    def take(self) -> bytes:
        """Take lines for one write."""
        taken = [self._waiting.popleft() for _ in range(min(AT_A_WRITE, len(self._waiting)))]
        self._taken += sum(count for count, _ in taken)
        return b"".join([lines for _, lines in taken])


class Records:
    """The records of one supervisor's jobs."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, log: Log, run_dir: Path, limit_bytes: int, boot_id: str
    ) -> None:
        self.dropped = 0
        self._loop = loop
        self._log = log
        self._files = LineFiles(folder_in(run_dir), limit_bytes, boot_id, self._complain)
        self._rounds = Rounds("supervisor", "a record of jobs", loop, log)
        self._records: list[JobRecord] = []
        self._lines = Lines(WAITING)
        self._due = threading.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._epoch = 0.0
        self._open = True
        self._thread = threading.Thread(target=self._work, name="gen-worker-jobs", daemon=True)
        self._thread.start()

    def keep(self, record: JobRecord) -> None:
        """Have the record of a job that ended just now written; never waits."""
        if self._timer is None and self._open:
            self._epoch = time.time() - record.ts
            self._timer = self._loop.call_later(EVERY_S, self._wake)
        records = self._records
        record.ts = int((self._epoch + record.ts) * 1000) / 1000
        records.append(record)
        if len(records) >= AT_ONCE:
            self._make_lines()

    def _make_lines(self) -> None:
        records, self._records = self._records, []
        if not records:
            return
        if not self._lines.has_room():
            self._drop(len(records))
            return
        hide_in(records, self._hide)
        self._lines.add(len(records), encode_lines(records))

    def _drop(self, count: int) -> None:
        if not self.dropped:
            text = f"{WAITING} records of jobs are not written yet: those of other jobs are left out, now and later"
            self._log.event("warning", "jobs", text)
        self.dropped += count

    def _wake(self) -> None:
        self._timer = None
        self._make_lines()
        self._due.set()

    def _complain(self, text: str) -> None:
        self._log.event("warning", "jobs", text)

    def _work(self) -> None:
        while self._open or self._lines:
            self._due.wait()
            self._due.clear()
            with self._rounds.one():
                self._write()
            if not self._open:
                self._due.set()
        self._files.close()

    def _write(self) -> None:
        while self._lines:
            self._files.write(self._lines.take())

    def _hide(self, text: str) -> str:
        hidden = redacted(self._log.hide(text))
        return hidden if hidden.isascii() else hidden.encode("utf-8", "backslashreplace").decode()

    def close(self, timeout_s: float = 1.0) -> None:
        """Write what is left, for as long as that may take."""
        if self._timer is not None:
            self._timer.cancel()
        self._make_lines()
        self._open = False
        self._due.set()
        self._thread.join(timeout_s)
