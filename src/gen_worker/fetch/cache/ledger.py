"""The ledger of a cache: which wish came to which snapshot, and when it was used last.

One JSON file that many processes share: read at any time, as it is replaced and never written in place; changed only
under its lock. What is not understood of it is left as it is. It holds nothing that the records beside the snapshots do
not hold, but for the times: a damaged one is made anew from them.
"""

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from gen_worker.fetch.cache import locks
from gen_worker.fetch.cache.layout import Layout, Record
from gen_worker.fetch.cancel import Cancel
from gen_worker.models.errors import ModelError
from gen_worker.models.wanted import Wanted

Rows: TypeAlias = dict[str, dict[str, Any]]
"""By the wish's key."""

UNREADABLE = (ValueError, RecursionError)
"""What decoding raises for a file of ours that somebody damaged: its bytes may be anything."""


class Ledger:
    """The ledger of one cache."""

    def __init__(self, layout: Layout, patience_s: float = math.inf) -> None:
        self._layout = layout
        self._patience_s = patience_s
        self._lock = layout.locks / "ref-index.lock"

    def read(self) -> Rows:
        """Return the rows as they are now."""
        return self._rows() or {}

    def record(self, key: object) -> Record | None:
        """Return what a snapshot consists of; None when nothing is known of it."""
        if not isinstance(key, str):
            return None
        try:
            record = msgspec.json.decode(self._layout.record(key).read_bytes(), type=Record)
            self._layout.check(record)
        except (OSError, *UNREADABLE, ModelError):  # a damaged one is made again when its model is
            return None
        return record if record.key == key else None

    def records(self) -> dict[str, Record]:
        """Return all records by their key."""
        try:
            names = sorted(os.listdir(self._layout.records))
        except FileNotFoundError:
            return {}
        found = (self.record(name.removesuffix(".json")) for name in names if name.endswith(".json"))
        return {record.key: record for record in found if record is not None}

    @contextmanager
    def changing(self, cancel: Cancel | None = None) -> Iterator[Rows]:
        """Yield the rows to change, with nobody else changing them; they are saved when the block does not raise.

        Raises `ModelError` when it is canceled while others change them, or when that takes too long.
        """
        begun, waiting = time.monotonic(), cancel or Cancel()
        while (lock := locks.attempt(self._lock)) is None:
            if time.monotonic() - begun > self._patience_s:
                raise _stalled(self._lock, self._patience_s)
            waiting.wait(locks.LOOK_S)
        with self._saved(lock) as rows:
            yield rows

    @contextmanager
    def changing_if_free(self) -> Iterator[Rows | None]:
        """Yield the rows to change as `changing` does, or None at once while somebody else changes them."""
        lock = locks.attempt(self._lock)
        if lock is None:
            yield None
            return
        with self._saved(lock) as rows:
            yield rows

    @contextmanager
    def _saved(self, lock: int) -> Iterator[Rows]:
        try:
            rows = self._rows()
            before = None if rows is None else msgspec.json.encode(rows)
            if rows is None:
                rows = self._from_records()
            yield rows
            if msgspec.json.encode(rows) != before:
                replace(self._layout.ledger, msgspec.json.format(msgspec.json.encode(rows), indent=1))
        finally:
            os.close(lock)

    def enter(self, rows: Rows, wanted: Wanted, record: Record, now: float | None = None, *, options: str = "") -> None:
        """Say in the rows that a wish came to a snapshot, chosen by some options, and that it is used now."""
        snapshot = self._layout.described(record, wanted)
        rows.setdefault(wanted.key, {}).update(
            ref=wanted.ref,
            provider=wanted.provider,
            wanted=msgspec.to_builtins(wanted),
            key=record.key,
            commit=record.commit,
            path=snapshot.path,
            bytes=record.size,
            options=options,
            last_used=time.time() if now is None else now,
        )

    def _rows(self) -> Rows | None:
        """Return the rows; None when there is no ledger or it is damaged."""
        try:
            return msgspec.json.decode(self._layout.ledger.read_bytes(), type=Rows)
        except (FileNotFoundError, *UNREADABLE):
            return None

    def _from_records(self) -> Rows:
        rows: Rows = {}
        records = self.records()
        written = {key: self._layout.record(key).stat().st_mtime for key in records}
        for key in sorted(written, key=written.__getitem__):  # of two for one wish the later one holds
            self.enter(rows, records[key].wanted, records[key], written[key])
        return rows


def _stalled(lock: Path, waited_s: float) -> ModelError:
    users = ", ".join(f"process {pid}" for pid in locks.holders(lock)) or "another process"
    text = f"{users} has kept the cache's ledger locked for {waited_s:g} s: `{lock}`"
    return ModelError("stalled", text, "end what hangs there, and try again: what came is kept")


def refs_of(rows: Rows, record: Record) -> list[str]:
    """Return the refs that came to a snapshot; of one that was superseded, its own with its commit."""
    found = sorted({str(row.get("ref")) for row in rows.values() if row.get("key") == record.key})
    return found or [f"{record.wanted.repo}@{record.commit[:12]}"]


def last_used(row: dict[str, Any]) -> float:
    """Return when a row's model was used last; 0 where the row does not say."""
    value = row.get("last_used")
    return float(value) if isinstance(value, int | float) else 0.0


def replace(path: Path, content: bytes, draft: Path | None = None) -> None:
    """Have a file with this content, or the one before, whatever happens meanwhile; `draft` is where it is made."""
    draft = draft or path.with_name(f".draft-{os.getpid()}")
    for each in (path, draft):
        each.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(draft, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Have the names in a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
