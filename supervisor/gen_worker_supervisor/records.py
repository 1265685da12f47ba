"""Keeps one line of each job that ended: what it waited for, what it took, how it ended.

The loop only sets down what is known; a thread makes lines of that and writes them, some at a time.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from gen_worker.job_records import JobRecord, encode, folder_in
from gen_worker.wire.messages import ErrorDetail
from gen_worker_supervisor.ladder import Ending
from gen_worker_supervisor.log import Log
from gen_worker_supervisor.log_files import LineFiles
from gen_worker_supervisor.outcomes import body_length
from gen_worker_supervisor.redaction import redacted
from gen_worker_supervisor.rounds import Rounds
from gen_worker_supervisor.state import Child, Job, Outcome, lane_of

EVERY_S = 0.25  # records are written so often at most
WAITING = 20_000  # records that are not written yet; what comes beyond them is dropped and counted
AT_ONCE = 64  # that are made ready before the loop gets its turn: a quarter of a millisecond
TURN_S = 1e-4
_NOTHING = (0.0, 0.0)  # was set up


class Ended(msgspec.Struct, frozen=True):
    """What is known of a job at its end, times as the fleet has them."""

    at: float
    request_id: str
    attempt: int
    function: str
    outcome: str
    child: Child | None
    sharing: int  # jobs that had its device meanwhile, this among them; 0: it had none
    loaded_at: float  # when its instance was set up there
    load_s: float  # and how long that took
    tenant: str
    priority: int
    link: str
    detail: ErrorDetail | None
    ending: Ending | None
    deaths: int
    submitted: float
    started: float | None
    run_s: float
    peak_rss: int
    peak_vram: int
    in_bytes: int
    out_bytes: int
    items: int
    trace: str = ""


def ended(job: Job, outcome: Outcome, now: float) -> Ended:
    """Return what is known of a job that has its answer."""
    child = job.child
    loaded_at, load_s = _NOTHING if child is None else child.set_up.get(job.instance, _NOTHING)
    return Ended(
        now,
        job.request_id,
        job.attempt,
        job.function.name,
        outcome.kind or "ok",
        child,
        outcome.together if lane_of(job.function) == "device" else 0,
        loaded_at,
        load_s,
        job.tenant,
        job.priority,
        job.client.link,
        outcome.detail,
        job.ending,
        job.deaths,
        job.submitted,
        job.started,
        outcome.run_s,
        outcome.peak_rss,
        outcome.peak_vram,
        job.payload.length,
        body_length(outcome.body),
        outcome.yielded,
        "" if job.span is None else job.span.trace_id,
    )


def record_of(told: Ended, epoch: float, hide: Callable[[str], str]) -> JobRecord:
    """Return the record of a job; `epoch` is the time of day at which the fleet's clock was at 0. Pure."""
    run_s = told.run_s or (0.0 if told.started is None else told.at - told.started)
    started = told.started if told.started is not None else told.at - run_s
    child, detail = told.child, told.detail
    load_s = 0.0
    if told.load_s:
        load_s = max(0.0, min(told.loaded_at, started) - max(told.submitted, told.loaded_at - told.load_s))
    record = JobRecord(
        ts=round(epoch + told.at, 3),
        request_id=hide(told.request_id),
        function=told.function,
        outcome=told.outcome,
        attempt=told.attempt,
        device=None if child is None else child.device.name,
        tenant=hide(told.tenant) if told.tenant else "",
        priority=told.priority,
        link=told.link,
        deaths=told.deaths,
        queue_s=round(max(0.0, started - told.submitted), 6),
        load_s=round(load_s, 6),
        run_s=round(run_s, 6),
        device_s=round((told.at - started) / told.sharing, 6) if told.sharing and child and run_s else 0.0,
        peak_vram=told.peak_vram,
        peak_rss=told.peak_rss,
        in_bytes=told.in_bytes,
        out_bytes=told.out_bytes,
        items=told.items,
        trace=told.trace,
        hang=(told.ending.hang or None) if told.ending is not None else None,
    )
    if detail is not None:
        record.cause = None if detail.cause is None else hide(detail.cause)
        record.hang = detail.hang or record.hang
        record.postmortem = detail.postmortem
    return record


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
        self._waiting: deque[Ended] = deque()
        self._due = threading.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._open = True
        self._thread = threading.Thread(target=self._work, name="gen-worker-jobs", daemon=True)
        self._thread.start()

    def keep(self, told: Ended) -> None:
        """Have a job's record written; never waits."""
        if len(self._waiting) >= WAITING:
            self._drop()
            return
        self._waiting.append(told)
        if self._timer is None and self._open:
            self._timer = self._loop.call_later(EVERY_S, self._wake)

    def _drop(self) -> None:
        if not self.dropped:
            text = f"{WAITING} records of jobs are not written yet: those of other jobs are left out, now and later"
            self._log.event("warning", "jobs", text)
        self.dropped += 1

    def _wake(self) -> None:
        self._timer = None
        self._due.set()

    def _complain(self, text: str) -> None:
        self._log.event("warning", "jobs", text)

    def _work(self) -> None:
        while self._open or self._waiting:
            self._due.wait()
            self._due.clear()
            with self._rounds.one():
                self._write()
            if not self._open:
                self._due.set()
        self._files.close()

    def _write(self) -> None:
        epoch = time.time() - time.monotonic()
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(AT_ONCE, len(self._waiting)))]
            self._files.write(b"".join(encode(record_of(told, epoch, self._hide)) + b"\n" for told in batch))
            time.sleep(TURN_S)  # the loop's turn

    def _hide(self, text: str) -> str:
        hidden = redacted(self._log.hide(text))
        return hidden if hidden.isascii() else hidden.encode("utf-8", "backslashreplace").decode()

    def close(self, timeout_s: float = 1.0) -> None:
        """Write what is left, for as long as that may take."""
        if self._timer is not None:
            self._timer.cancel()
        self._open = False
        self._due.set()
        self._thread.join(timeout_s)
