"""What the control plane remembers, in one SQLite file.

One thread writes, many changes in one transaction, so that a crowd of submits costs one fsync. What somebody waits for
is on disk before they are told (`synchronous=FULL`); the rest is in the file at once, and safe from a crash of this
process.
"""

import fcntl
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeAlias

import msgspec

from gen_worker.orchestrator.state import Ending, Job
from gen_worker.orchestrator.views import ENDED, JobEvent, JobRequest, JobView, PlaneError, Status
from gen_worker.wire.scheduler import JobMetrics

BATCH = 1000  # changes in one transaction
BATCH_BYTES = 8 << 20
CHANGE_BYTES = 512  # of a change beside its values
READ_BYTES = 4 << 20  # of events at once, at least one of them
FORGOTTEN = 100  # jobs at once
LOST_EVENTS = 1 << 20  # whose numbers may have been told without being kept, when a control plane is killed
RETRY_S = 1.0  # until a disk that is full is tried again
TROUBLE_S = 60.0  # between two times that this is told

_SCHEMA = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    request_id TEXT NOT NULL UNIQUE,
    request BLOB NOT NULL,
    status TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    failures INTEGER NOT NULL,
    worker_id TEXT NOT NULL,
    created REAL NOT NULL,
    started REAL,
    finished REAL,
    code INTEGER NOT NULL,
    safe_message TEXT NOT NULL,
    output BLOB,
    blob_ref TEXT,
    metrics BLOB,
    progress BLOB
);
CREATE INDEX jobs_by_status ON jobs (status, number);
CREATE TABLE events (
    request_id TEXT NOT NULL,
    number INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    kind TEXT NOT NULL,
    seq INTEGER NOT NULL,
    content_type TEXT NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (request_id, number)
);
CREATE TRIGGER events_go_with_their_job AFTER DELETE ON jobs BEGIN
    DELETE FROM events WHERE request_id = old.request_id; END;
CREATE TABLE closed (clean INTEGER NOT NULL);
INSERT INTO closed VALUES (1);
"""
_VERSIONS = (
    _SCHEMA,
    "ALTER TABLE jobs ADD COLUMN canceled INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE jobs ADD COLUMN payload BLOB",  # NULL where `request` has it
)
"""What makes each version of the file of the one before."""

SCHEMA_VERSION = len(_VERSIONS)
_LISTED = "request, status, attempt, worker_id, created, started, finished, code, safe_message"
_COLUMNS = f"{_LISTED}, output, blob_ref, metrics, progress, payload"
_FORGET = """
DELETE FROM jobs WHERE number IN (
    SELECT number FROM jobs WHERE status != ? AND (
        COALESCE(finished, created) < ?
        OR number <= (SELECT number FROM jobs WHERE status != ? ORDER BY number DESC LIMIT 1 OFFSET ?)
        OR (SELECT (page_count - freelist_count) * page_size
            FROM pragma_page_count, pragma_freelist_count, pragma_page_size) > ?
    ) ORDER BY number LIMIT ?
)
"""
LIVE = "live"  # the status of a job that has not ended; how far it is only its control plane knows

_encode = msgspec.msgpack.Encoder().encode
_request = msgspec.msgpack.Decoder(JobRequest).decode
_metrics = msgspec.msgpack.Decoder(JobMetrics).decode

Done: TypeAlias = Callable[[bool], None]
"""Called on the writer's thread when a change is in the file; False: the row was there already, nothing was changed."""


class StoreError(PlaneError):
    """The state cannot be read or written."""


@dataclass(slots=True, eq=False)
class _Change:
    sql: str
    values: tuple[Any, ...] = ()
    durable: bool = False
    done: Done | None = None
    refused: Callable[[StoreError], None] | None = None
    """Who is told that it cannot be written; without one it is tried until it can."""

    changed: bool = True
    odd: bool = False
    """Whether it cannot be made at all."""

    @property
    def size_bytes(self) -> int:
        """What it takes in memory, about."""
        return CHANGE_BYTES + sum(len(value) for value in self.values if isinstance(value, bytes | str))


class Restored(NamedTuple):
    """A job that had not ended when its control plane did."""

    job: Job
    worker_id: str
    events: int
    """The highest number that one of its events can have."""

    canceled: bool
    """Whether its caller had asked for its end."""


class Store:
    """The state in one file, of one control plane at a time. `close` it, or what waits is lost."""

    def __init__(self, path: Path, troubled: Callable[[StoreError], None] = lambda _: None) -> None:
        """Open the file, make it where there is none; raise `StoreError`, too for one that is in use.

        `troubled` is called on the writer's thread, now and then, for as long as nothing can be written.
        """
        self._path = path
        self._troubled = troubled
        self._taken_bytes = 0  # only whoever changes something counts these
        self._settled_bytes = 0  # and only the writer's thread these
        self.is_new = False
        self._changes: SimpleQueue[_Change | None] = SimpleQueue()
        self._reading = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write, name="state", daemon=True)
        with ExitStack() as opened:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch(mode=0o600)  # payloads are nobody else's business
                opened.enter_context(_locked(path))
                self._writer = opened.enter_context(closing(_connect(path)))
                self._reader = opened.enter_context(closing(_connect(path)))
                self.is_new = _prepare(self._writer, path) == 0
            except (sqlite3.Error, OSError) as error:
                raise StoreError(f"the state in {path} cannot be opened: {error}") from error
            self._opened = opened.pop_all()

    def restore(self) -> list[Restored]:
        """Return the jobs that have not ended, in the order they came, and begin to take changes.

        After a crash it is not known whether a job without a worker was given to one: its attempt is spent.
        """
        writer = self._writer
        with _transaction(writer):
            (clean,) = writer.execute("SELECT clean FROM closed").fetchone()
            if not clean:
                writer.execute("UPDATE jobs SET attempt = attempt + 1 WHERE status = ? AND worker_id = ''", (LIVE,))
            writer.execute("UPDATE closed SET clean = 0")
        rows = writer.execute(
            "SELECT request, attempt, failures, worker_id, created, started, progress, canceled, payload,"
            " (SELECT COALESCE(MAX(number), 0) FROM events WHERE events.request_id = jobs.request_id)"
            " FROM jobs WHERE status = ? ORDER BY number",
            (LIVE,),
        )
        found = [_restored(row, lost=0 if clean else LOST_EVENTS) for row in rows]
        self._thread.start()
        return found

    def close(self) -> None:
        """Write what waits, and close the file."""
        if self._thread.is_alive():
            self._closing.set()
            self._changes.put(None)
            self._thread.join()
        self._opened.close()

    @property
    def unwritten_bytes(self) -> int:
        """What waits to be written, about."""
        return self._taken_bytes - self._settled_bytes

    # --- changes ------------------------------------------------------------------------------------------------------

    def accept(self, job: Job, done: Done, refused: Callable[[StoreError], None]) -> None:
        """Put a new job on disk, unless there is one of its id."""
        request = _encode(msgspec.structs.replace(job.request, payload=b""))
        values = (job.request_id, request, LIVE, job.attempt, 0, "", job.created, 0, "", job.request.payload)
        self._put(
            "INSERT INTO jobs"
            " (request_id, request, status, attempt, failures, worker_id, created, code, safe_message, payload)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            values,
            done=done,
            refused=refused,
        )

    def save(self, job: Job, done: Done | None = None) -> None:
        """Put down which attempt a job is at, where, and whether its end is asked for."""
        worker_id = job.worker.worker_id if job.worker else ""
        self._put(
            "UPDATE jobs SET attempt = ?, failures = ?, worker_id = ?, started = ?, canceled = ? WHERE request_id = ?",
            (job.attempt, job.failures, worker_id, job.started, job.canceled, job.request_id),
            done=done,
        )

    def record(self, job: Job, end: Ending, done: Done) -> None:
        """Put down how a job ended."""
        metrics = None if end.metrics is None else _encode(end.metrics)
        self._put(
            "UPDATE jobs SET status = ?, attempt = ?, failures = ?, worker_id = ?, started = ?, finished = ?, code = ?,"
            " safe_message = ?, output = ?, blob_ref = ?, metrics = ?, progress = ? WHERE request_id = ?",
            (
                end.status,
                job.attempt,
                job.failures,
                job.worker.worker_id if job.worker else "",
                job.started,
                job.finished,
                end.code,
                end.safe_message,
                end.output,
                end.blob_ref,
                metrics,
                job.progress,
                job.request_id,
            ),
            done=done,
        )

    def tell(self, request_id: str, event: JobEvent) -> None:
        """Put down something that happened to a job. What an attempt did is void with the next one."""
        if event.kind == "accepted":
            self._put("DELETE FROM events WHERE request_id = ? AND attempt < ?", (request_id, event.attempt))
        self._put(
            "INSERT OR REPLACE INTO events VALUES (?, ?, ?, ?, ?, ?, ?)",
            (request_id, event.number, event.attempt, event.kind, event.seq, event.content_type, event.body),
        )

    def shorten(self, request_id: str, number: int) -> None:
        """Forget what happened to a job up to this event."""
        self._put("DELETE FROM events WHERE request_id = ? AND number <= ?", (request_id, number))

    def forget(self, *, before: float, jobs: int, size: int, done: Done) -> None:
        """Forget some jobs that ended before a time, and the oldest ended ones beyond a number and a size in bytes.

        `done` is told whether there were any: there may be more.
        """
        self._put(_FORGET, (LIVE, before, LIVE, jobs, size, FORGOTTEN), done=done)

    def flush(self, done: Done) -> None:
        """Have `done` called when everything up to here can be read."""
        self._take(_Change("SELECT 1", done=done))

    def _put(
        self,
        sql: str,
        values: tuple[Any, ...],
        *,
        done: Done | None = None,
        refused: Callable[[StoreError], None] | None = None,
    ) -> None:
        self._take(_Change(sql, values, durable=done is not None, done=done, refused=refused))

    def _take(self, change: _Change) -> None:
        self._taken_bytes += change.size_bytes
        self._changes.put(change)

    # --- the writer's thread ------------------------------------------------------------------------------------------

    def _write(self) -> None:
        told_at = -TROUBLE_S
        while batch := self._next():
            while batch:
                try:
                    self._commit(batch)
                    break
                except sqlite3.Error as error:
                    trouble = StoreError(f"the state in {self._path} cannot be written: {error}")
                    if time.monotonic() - told_at >= TROUBLE_S:
                        told_at = time.monotonic()
                        self._troubled(trouble)
                    batch = self._refuse(batch, trouble)
                    if not batch or self._closing.wait(RETRY_S):
                        break
        with suppress(sqlite3.Error):  # a disk that is full: the next start takes it for a crash, which is safe
            self._writer.execute("UPDATE closed SET clean = 1")

    def _next(self) -> list[_Change]:
        """Return what waits, at least one change; nothing when it is time to end."""
        if (first := self._changes.get()) is None:
            return []
        batch, size = [first], first.size_bytes
        while len(batch) < BATCH and size < BATCH_BYTES and not self._changes.empty():
            if (change := self._changes.get()) is None:
                self._changes.put(None)
                break
            batch.append(change)
            size += change.size_bytes
        return batch

    def _commit(self, batch: list[_Change]) -> None:
        level = "FULL" if any(change.durable for change in batch) else "NORMAL"
        self._writer.execute(f"PRAGMA synchronous = {level}")
        with _transaction(self._writer):
            for change in batch:
                self._make(change)
        self._settle(batch)
        for change in batch:
            if change.done is not None and not change.odd:
                change.done(change.changed)

    def _make(self, change: _Change) -> None:
        """Make one change; a value that no file can hold costs that change alone."""
        try:
            change.changed = self._writer.execute(change.sql, change.values).rowcount != 0
        except (OverflowError, ValueError, sqlite3.DataError, sqlite3.InterfaceError) as error:
            change.odd = True
            trouble = StoreError(f"the state in {self._path} cannot hold a value: {error}")
            self._troubled(trouble)
            if change.refused is not None:
                change.refused(trouble)

    def _refuse(self, batch: list[_Change], trouble: StoreError) -> list[_Change]:
        """Tell those who can do without; return the rest."""
        self._settle(change for change in batch if change.refused is not None)
        for change in batch:
            if change.refused is not None:
                change.refused(trouble)
        return [change for change in batch if change.refused is None]

    def _settle(self, changes: Iterable[_Change]) -> None:
        self._settled_bytes += sum(change.size_bytes for change in changes)

    # --- reading, on any thread ---------------------------------------------------------------------------------------

    def job(self, request_id: str) -> JobView | None:
        """Return a job that has ended, or one that has not as it was accepted."""
        rows = self._read(f"SELECT {_COLUMNS} FROM jobs WHERE request_id = ?", (request_id,))
        return _view(rows[0]) if rows else None

    def jobs(self, *, status: Status | None, limit: int, after: str | None) -> list[JobView]:
        """Return jobs, the newest first, without what they were given and what they made.

        Of those that have not ended it is not known how far they are.
        """
        kept = (LIVE if status not in ENDED else status) if status else None
        rows = self._read(
            f"SELECT {_LISTED} FROM jobs WHERE (? IS NULL OR status = ?)"
            " AND (? IS NULL OR number < (SELECT number FROM jobs WHERE request_id = ?)) ORDER BY number DESC LIMIT ?",
            (kept, kept, after, after, limit),
        )
        return [_view(row) for row in rows]

    def known(self, request_ids: Iterable[str]) -> set[str]:
        """Return those of which there is a job."""
        rows = self._read(
            "SELECT request_id FROM jobs WHERE request_id IN (SELECT value FROM json_each(?))",
            (msgspec.json.encode(list(request_ids)).decode(),),
        )
        return {request_id for (request_id,) in rows}

    def events(self, request_id: str, *, after: int, limit: int) -> list[JobEvent]:
        """Return what happened to a job, without its end; fewer than asked for where they are large."""
        sql = (
            "SELECT number, kind, attempt, seq, content_type, body FROM events"
            " WHERE request_id = ? AND number > ? ORDER BY number LIMIT ?"
        )
        names = ("number", "kind", "attempt", "seq", "content_type", "body")
        found: list[JobEvent] = []
        size = 0
        with self._rows(sql, (request_id, after, limit)) as rows:
            while size < READ_BYTES and (row := rows.fetchone()) is not None:
                found.append(JobEvent(**dict(zip(names, row, strict=True))))
                size += len(found[-1].body)
        return found

    def last_event(self, request_id: str) -> int:
        """Return the number of the last thing that happened to a job, its end not counted."""
        rows = self._read("SELECT COALESCE(MAX(number), 0) FROM events WHERE request_id = ?", (request_id,))
        number: int = rows[0][0]
        return number

    def _read(self, sql: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        with self._rows(sql, values) as rows:
            return rows.fetchall()

    @contextmanager
    def _rows(self, sql: str, values: tuple[Any, ...]) -> Iterator[sqlite3.Cursor]:
        try:
            with self._reading, closing(self._reader.execute(sql, values)) as rows:
                yield rows
        except sqlite3.Error as error:
            raise StoreError(f"the state in {self._path} cannot be read: {error}") from error


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
    connection.execute("PRAGMA journal_mode = WAL")
    return connection


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the file against other control planes."""
    with open(f"{path}.lock", "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"the state in {path} is in use by another control plane") from None
        yield


def _prepare(writer: sqlite3.Connection, path: Path) -> int:
    """Make the file one of this version; return the version that it had, 0: none."""
    version: int
    (version,) = writer.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise StoreError(f"the state in {path} is of a later version of gen-worker: {version}, not {SCHEMA_VERSION}")
    with _transaction(writer):
        for schema in _VERSIONS[version:]:
            for statement in schema.split(";\n"):  # `executescript` would commit what is under way
                writer.execute(statement)
        writer.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    return version


@contextmanager
def _transaction(writer: sqlite3.Connection) -> Iterator[None]:
    writer.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        writer.execute("ROLLBACK")
        raise
    writer.execute("COMMIT")


def _restored(row: tuple[Any, ...], *, lost: int) -> Restored:
    request, attempt, failures, worker_id, created, started, progress, canceled, payload, events = row
    job = Job(
        _with_payload(request, payload),
        created,
        attempt=attempt,
        durable=attempt,
        failures=failures,
        started=started,
        progress=progress,
    )
    return Restored(job, worker_id, events + lost, bool(canceled))


def _with_payload(request: bytes, payload: bytes | None) -> JobRequest:
    found = _request(request)
    return found if payload is None else msgspec.structs.replace(found, payload=payload)


def _view(row: tuple[Any, ...]) -> JobView:
    request, status, attempt, worker_id, created, started, finished, code, message = row[:9]
    output, ref, metrics, progress, payload = row[9:] or (None,) * 5
    return JobView(
        request=_with_payload(request, payload),
        status="queued" if status == LIVE else status,
        code=code,
        attempt=attempt,
        worker_id=worker_id,
        created=created,
        started=started,
        finished=finished,
        safe_message=message,
        output=output,
        blob_ref=ref,
        metrics=None if metrics is None else _metrics(metrics),
        progress=progress,
    )
