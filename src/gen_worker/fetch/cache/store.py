"""The disk cache: finds models, makes room for them and makes them visible, together with other processes.

It moves no bytes and asks nobody. What it says is on disk is there whole: a snapshot is recorded after everything else.
"""

import errno
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from gen_worker.fetch.cache import locks
from gen_worker.fetch.cache.copies import Copy, copies, is_flocked, remove_copy
from gen_worker.fetch.cache.disk import device_of, free_bytes, has_file, may_write, written_bytes
from gen_worker.fetch.cache.eviction import Entry, evictable, excess, total, victims
from gen_worker.fetch.cache.layout import Layout, Record
from gen_worker.fetch.cache.ledger import UNREADABLE, Ledger, Rows, last_used, refs_of, replace
from gen_worker.fetch.cache.linking import link_all, unlink_all, unlink_files, write_hub_notes
from gen_worker.fetch.cache.refusals import FULL, READ_ONLY, disk_full, gone, limit_reached, read_only, writing
from gen_worker.fetch.cache.sweeping import sweep, sweepable
from gen_worker.fetch.cache.unrecorded import unrecorded
from gen_worker.fetch.cache.verification import problem
from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.config import FetchConfig
from gen_worker.models.errors import ModelError
from gen_worker.models.manifest import Manifest, ManifestFile
from gen_worker.models.selection import SelectionOptions
from gen_worker.models.snapshot import Snapshot
from gen_worker.models.wanted import Wanted

_COPY = "derived/"  # what the keys of copies begin with whose snapshot is gone
_TOUCH_S = 30.0  # a ledger that says when a model was used last is right to so many seconds
_TRIES = 5
_ORPHAN_S = 7 * 86400.0  # what nobody has finished for so long, nobody will


class Found(msgspec.Struct, frozen=True):
    """A model on disk. Nobody evicts it before `lease` and its copies are closed; whoever gets this closes it."""

    snapshot: Snapshot
    lease: int
    same_options: bool = True
    """Whether its files were chosen by the selection options of now; if not, other ones may be wanted."""


class Plan:
    """What is missing of a model. Until it is closed, or its process ends, nobody evicts what is there of it."""

    def __init__(
        self, record: Record, missing: list[tuple[ManifestFile, Path]], place: Path, lock: tuple[Path, int] | None
    ) -> None:
        self.record = record
        self.missing = missing
        """The files to fetch and where each goes, a blob once."""

        self.place = place
        """A folder on the disk that they go to."""

        self._lock = lock

    @property
    def missing_bytes(self) -> int:
        """Bytes that are yet to be written, as far as the provider says; what lies in parts is there."""
        return sum(max(0, (file.size or 0) - written_bytes(_part(blob))) for file, blob in self.missing)

    def close(self) -> None:
        """Give up what is there of it to eviction."""
        if self._lock is not None:
            locks.discard(*self._lock)
            self._lock = None

    def __enter__(self) -> "Plan":
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class Listed(msgspec.Struct, frozen=True):
    """One snapshot in the cache, as people are told of it."""

    record: Record
    refs: tuple[str, ...]
    path: str
    size: int
    last_used: float
    in_use: bool
    lower: bool
    """It lies in a cache that is only read."""

    layout: Layout
    """The cache that it lies in."""

    copies: int
    """Bytes of the copies in other dtypes that were made of it."""


class Damage(msgspec.Struct, frozen=True):
    """A file of a snapshot that is not what it was."""

    ref: str
    path: str
    reason: str


class Store:
    """The cache of one root, with the caches below it that are only read. Safe for any number of processes."""

    def __init__(self, config: FetchConfig) -> None:
        self.layout = Layout(Path(config.root), Path(config.hf_cache))
        self._ledger = Ledger(self.layout, config.stall_timeout_s)
        self._distrusted: set[str] = set()  # keys of what turned out damaged where nothing may be removed
        self._lower = [_lower_layout(Path(root)) for root in config.lower]
        self._cache_bytes = config.cache_bytes
        self._free_bytes = config.free_bytes
        self._options = config.selection
        self._mark = _mark_of(config.selection)

    # --- what is there ------------------------------------------------------------------------------------------------

    def find(self, wanted: Wanted, manifest: Manifest | None = None) -> Found | None:
        """Return a model that is on disk, whole, here or in a lower cache; None when it is not.

        Without a manifest a branch or tag means what it meant when it was fetched; with one, only just these files
        count. Sizes are compared; digests are `verify`'s.
        """
        return self._find(wanted, manifest, _is_whole)

    def find_verified(
        self,
        wanted: Wanted,
        manifest: Manifest | None = None,
        *,
        cancel: Cancel | None = None,
        on_bytes: Callable[[int], None] = lambda _bytes: None,
    ) -> Found | None:
        """Return a model as `find` does, having read all its files; may raise `ModelError`.

        Files that are damaged are taken from the disk. Where nothing may be removed, as in a lower cache, this process
        no longer looks for their model.
        """

        def is_sound(layout: Layout, record: Record) -> bool:
            if not _is_whole(layout, record):
                return False
            damaged = _damages(layout, record, on_bytes, cancel)
            if damaged and layout == self.layout and may_write(layout.cas):
                self.discard(record, damaged)
            elif damaged:
                self._distrusted.add(record.key)
            return not damaged

        return self._find(wanted, manifest, is_sound)

    def _find(
        self, wanted: Wanted, manifest: Manifest | None, is_good: Callable[[Layout, Record], bool]
    ) -> Found | None:
        return self._find_here(wanted, manifest, is_good) or self._find_below(wanted, manifest, is_good)

    def _find_here(
        self, wanted: Wanted, manifest: Manifest | None, is_good: Callable[[Layout, Record], bool]
    ) -> Found | None:
        for record, mark in self._candidates(self.layout, wanted, manifest):
            lease = None if record.key in self._distrusted else self._leased(record)
            if lease is None:
                continue
            try:
                if is_good(self.layout, record):
                    self._touch(wanted, record, mark)
                    return Found(self.layout.described(record, wanted), os.dup(lease), mark == self._mark)
            finally:
                os.close(lease)
        return None

    def _find_below(
        self, wanted: Wanted, manifest: Manifest | None, is_good: Callable[[Layout, Record], bool]
    ) -> Found | None:
        for layout in self._lower:
            for record, mark in self._candidates(layout, wanted, manifest, lower=True):
                if record.key not in self._distrusted and is_good(layout, record):
                    lease = os.open(layout.snapshot(record), os.O_RDONLY | os.O_DIRECTORY)  # nobody evicts there
                    return Found(layout.described(record, wanted), lease, mark == self._mark)
        return None

    def _candidates(
        self, layout: Layout, wanted: Wanted, manifest: Manifest | None, *, lower: bool = False
    ) -> Iterator[tuple[Record, str]]:
        """Yield the records that may answer a wish, each with the mark of the options that its files were chosen by.

        In a lower cache also what has no record but the files themselves.
        """
        ledger = Ledger(layout)
        asked = None if manifest is None else Record.of(wanted, manifest)
        row = ledger.read().get(wanted.key, {})
        known = ledger.record(row.get("key"))
        if known is not None and (asked is None or asked.key == known.key):
            yield known, self._mark if asked else str(row.get("options", ""))
        if asked is not None:
            same = ledger.record(asked.key)
            if same is not None or lower or not self._is_kept_here(wanted):
                yield same or asked, self._mark
        elif lower or wanted.provider == "hf":  # a folder of ours without a record may hold a part of what is wanted
            recorded = {layout.snapshot(record) for record in ledger.records().values()}
            dropped = unrecorded(layout, wanted, self._options, recorded)
            if dropped is not None:
                yield ledger.record(dropped.key) or dropped, self._mark

    def _is_kept_here(self, wanted: Wanted) -> bool:
        """Whether what lies here of such a model is this cache's to record and evict.

        It is not where nothing may be written, and in a folder of Hugging Face's that others share: what is whole there
        others fetched for themselves.
        """
        shared = wanted.provider == "hf" and not self.layout.hub.is_relative_to(self.layout.root)
        return not shared and may_write(self.layout.cas)

    def _leased(self, record: Record) -> int | None:
        """Lock a snapshot against eviction; where no lock can be written nobody evicts, and its folder stands for it.

        None when there is no such snapshot.
        """
        try:
            return locks.acquire(self.layout.lease(record), shared=True)
        except OSError as error:
            if error.errno not in (*READ_ONLY, *FULL, errno.ENOENT):
                raise
        try:
            return os.open(self.layout.snapshot(record), os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return None

    def _touch(self, wanted: Wanted, record: Record, mark: str) -> None:
        """Say in the ledger that a model is used now; one that cannot be written, or is being, goes without."""
        row = self._ledger.read().get(wanted.key, {})
        recorded = self.layout.record(record.key).exists()
        same = (row.get("key"), row.get("options", "")) == (record.key, mark)
        if recorded and same and time.time() - last_used(row) < _TOUCH_S:
            return
        if not recorded and not (self._is_kept_here(wanted) and self._is_lasting(record)):
            return
        try:
            with self._ledger.changing_if_free() as rows:
                if rows is None:
                    return
                if not recorded:
                    replace(self.layout.record(record.key), msgspec.json.encode(record))
                self._ledger.enter(rows, wanted, record, options=mark)
        except OSError as error:
            if error.errno not in (*READ_ONLY, *FULL):
                raise

    def _is_lasting(self, record: Record) -> bool:
        """Whether a record would be read back; one is not of files that nobody knows the digests of."""
        try:
            self.layout.check(record)
        except ModelError:
            return False
        return True

    def listed(self) -> list[Listed]:
        """Return all snapshots that are whole, here and in the lower caches, the last used first."""
        here = self._listed(self.layout, lower=False)
        below = [each for layout in self._lower for each in self._listed(layout, lower=True)]
        return sorted([*here, *below], key=lambda each: -each.last_used)

    def _listed(self, layout: Layout, *, lower: bool) -> Iterator[Listed]:
        ledger = Ledger(layout)
        rows, records = ledger.read(), ledger.records()
        made = copies(layout, records)
        for record in records.values():
            if _is_whole(layout, record):
                yield Listed(
                    record,
                    tuple(refs_of(rows, record)),
                    layout.described(record, record.wanted).path,
                    record.size,
                    max(map(last_used, _rows_of(rows, record.key)), default=0.0),
                    not lower and locks.is_held(layout.lease(record)),
                    lower,
                    layout,
                    sum(copy.size for copy in _copies_of(record.key, made)),
                )

    def stock(self) -> Iterator[tuple[Wanted, int]]:
        """Yield the wishes that came to what is whole, here and in the lower caches, each with its bytes.

        Those of each cache come by their last use, the latest first.
        """
        for layout in (self.layout, *self._lower):
            ledger = Ledger(layout)
            for row in sorted(ledger.read().values(), key=last_used, reverse=True):
                record = ledger.record(row.get("key"))
                with suppress(msgspec.ValidationError):  # it was written by another program
                    wanted = msgspec.convert(row.get("wanted"), Wanted)
                    if record is not None and _is_whole(layout, record):
                        yield wanted, record.size

    def wishes(self, listed: Listed) -> tuple[Wanted, ...]:
        """Return the wishes that came to a snapshot."""
        rows = _rows_of(Ledger(listed.layout).read(), listed.record.key)
        found = []
        for row in rows:
            with suppress(KeyError, msgspec.ValidationError):  # it was written by another program
                found.append(msgspec.convert(row["wanted"], Wanted))
        return tuple(dict.fromkeys([*found, listed.record.wanted]))

    @contextmanager
    def holding(self, listed: Listed) -> Iterator[None]:
        """Have nobody evict a snapshot inside this block."""
        lease = None if listed.lower else self._leased(listed.record)
        try:
            yield
        finally:
            if lease is not None:
                os.close(lease)

    def users(self, record: Record) -> list[int]:
        """Return the processes that use a snapshot, as far as they may be looked at."""
        return locks.holders(self.layout.lease(record))

    # --- what is added ------------------------------------------------------------------------------------------------

    def plan(self, wanted: Wanted, manifest: Manifest, cancel: Cancel | None = None) -> Plan:
        """Return what is missing of a model, and spare from eviction what is not; raise `ModelError`.

        Blobs that others laid into Hugging Face's layout are read once: a damaged one is missing. Close it when the
        model is published, or given up.
        """
        record = Record.of(wanted, manifest)
        self.layout.check(record)
        blobs = {self.layout.blob(record, file): file for file in manifest.files}
        place = next(iter(blobs), self.layout.cas).parent
        if not may_write(self.layout.cas) or not may_write(place):
            missing = _missing(blobs)
            if missing:
                raise read_only(wanted.ref, self.layout.root)
            return Plan(record, missing, place, None)
        with writing(wanted.ref, self.layout.root):
            with self._ledger.changing(cancel):
                lock = self._announced(record)  # before it is looked at, so that nothing goes in between
                missing = _missing(blobs)
                for _file, blob in missing:
                    self._remove_wrong(blob)
            plan = Plan(record, missing, place, lock)
            try:
                plan.missing += self._damaged_by_others(blobs, cancel)
            except BaseException:
                plan.close()
                raise
            return plan

    def _damaged_by_others(
        self, blobs: dict[Path, ManifestFile], cancel: Cancel | None
    ) -> list[tuple[ManifestFile, Path]]:
        """Return the blobs that nobody here has verified and that are not what their name says, having removed them."""
        unsealed = {blob for blob in blobs if blob.is_relative_to(self.layout.hub) and _may_change(blob)}
        if unsealed:  # on a disk that knows no permissions all are
            records = self._ledger.records().values()
            unsealed -= {self.layout.blob(record, file) for record in records for file in record.files}
        found = []
        for blob, file in blobs.items():
            if blob in unsealed:
                with self.locked(blob, cancel or Cancel()):
                    if not _may_change(blob):
                        continue  # another process has read it meanwhile
                    if problem(blob, file, cancel=cancel) is None:
                        _seal(blob)
                    else:
                        blob.unlink(missing_ok=True)
                        found.append((file, blob))
        return found

    def _remove_wrong(self, blob: Path) -> None:
        """Remove a blob that has not the size it should have, if it is not just being made."""
        lock = locks.attempt(self.layout.blob_lock(blob)) if blob.exists() else None
        if lock is not None:
            blob.unlink()
            os.close(lock)

    def _announced(self, record: Record) -> tuple[Path, int]:
        """Write down what is about to be published, and return the lock that makes it count."""
        number = 0
        while (lock := locks.attempt(path := self.layout.plans / f"{record.key}.{number}.json")) is None:
            number += 1
        try:
            path.write_bytes(msgspec.json.encode(record))  # in place: the lock is on this very file
        except BaseException:
            locks.discard(path, lock)
            raise
        return path, lock

    @contextmanager
    def locked(self, blob: Path, cancel: Cancel) -> Iterator[None]:
        """Be the only one who writes a blob, of all processes; waits, and raises `ModelError` when canceled.

        Whoever makes one verifies it: nobody may write to it from then on, and nobody reads it again to be sure.
        """
        with locks.locked(self.layout.blob_lock(blob), cancel=cancel):
            there = blob.exists()
            yield
            if not there and blob.exists():
                _seal(blob)

    def publish(self, wanted: Wanted, manifest: Manifest, cancel: Cancel | None = None) -> Found:
        """Make a model visible whose blobs are all there, and return it with its lease; raise `ModelError`.

        Until this is done nobody finds it; from then on it is found whole, also after a loss of power.
        """
        with writing(wanted.ref, self.layout.root):
            record = self._measured(Record.of(wanted, manifest))
            lease = locks.acquire(self.layout.lease(record), shared=True, cancel=cancel)
            try:
                with self._ledger.changing(cancel) as rows:
                    self._measured(record)
                    link_all(self.layout, record, cancel)
                    if record.provider == "hf":
                        write_hub_notes(self.layout, wanted, record, manifest.listing)
                    replace(self.layout.record(record.key), msgspec.json.encode(record))
                    self._ledger.enter(rows, wanted, record, options=self._mark)
            except BaseException:
                os.close(lease)
                raise
        self._distrusted.discard(record.key)
        return Found(self.layout.described(record, wanted), lease)

    def _measured(self, record: Record) -> Record:
        """Return a record with the sizes that its files have, which nobody may write from now on."""
        files = []
        for file in record.files:
            blob = self.layout.blob(record, file)
            try:
                status = blob.stat()
            except FileNotFoundError:
                raise gone(record.wanted.ref, file.path) from None
            if file.size not in (None, status.st_size):
                raise gone(record.wanted.ref, file.path)
            _seal(blob)
            files.append(msgspec.structs.replace(file, size=status.st_size))
        return msgspec.structs.replace(record, files=tuple(files))

    # --- what goes ----------------------------------------------------------------------------------------------------

    def make_room(
        self,
        bytes_needed: int,
        keep: Collection[str] = (),
        *,
        at: Path | None = None,
        ref: str = "",
        cancel: Cancel | None = None,
    ) -> list[tuple[str, int]]:
        """Evict until so many bytes can be written, and return the refs that went, with their bytes.

        `at` is a folder on the disk that they go to, where that may not be the hub's. Evicts nothing and raises
        `ModelError` of the kind `insufficient_disk` when there is not enough to evict.
        """
        place = at or self.layout.hub
        if bytes_needed <= 0 or not self._lacks(bytes_needed, place):
            return []
        gone: list[tuple[str, int]] = []
        with writing(ref, self.layout.root), self._ledger.changing(cancel) as rows:
            sweep(self.layout, _ORPHAN_S, self._claimed())
            for _attempt in range(_TRIES):  # somebody may begin to use a chosen one before it goes
                if not self._lacks(bytes_needed, place):
                    break
                for key in self._chosen(rows, bytes_needed, keep, place, ref):
                    gone += self._evict(rows, key) or []
        return gone

    def _lacks(self, needed: int, place: Path) -> bool:
        if free_bytes(place) < needed + self._free_bytes:
            return True
        return bool(self._cache_bytes) and total(self.entries()) + needed > self._cache_bytes

    def _chosen(self, rows: Rows, needed: int, keep: Collection[str], place: Path, ref: str) -> list[str]:
        entries, now = self._entries(rows), time.time()
        here = [
            each for each in entries if device_of(Path(next(iter(each.blobs), self.layout.cas))) == device_of(place)
        ]
        short = needed + self._free_bytes - free_bytes(place)
        over = excess(total(entries), needed, self._cache_bytes)
        for_disk = victims(here, short, now, keep)
        for_limit = victims(entries, over, now, keep)
        if over > 0 and not for_limit:
            raise limit_reached(ref, needed, self._cache_bytes, in_use=total(entries) - evictable(entries))
        if short > 0 and not for_disk:
            raise disk_full(ref, needed, self._free_bytes, place, free=free_bytes(place), evictable=evictable(here))
        return list(dict.fromkeys([*for_disk, *for_limit]))

    def used(self) -> int:
        """Return the bytes that all snapshots take, what they share counted once."""
        return total(self.entries())

    def entries(self) -> list[Entry]:
        """Return what may be evicted, and what is in use."""
        return self._entries(self._ledger.read())

    def _entries(self, rows: Rows) -> list[Entry]:
        records = self._ledger.records()
        made = copies(self.layout, records)
        left = [self._left(copy) for copy in made if not copy.source]
        here = (self._entry(rows, each, _copies_of(each.key, made)) for each in records.values())
        return [*(each for each in here if each.blobs), *left]

    def _left(self, copy: Copy) -> Entry:
        """Return the entry of a copy whose snapshot is gone."""
        in_use = is_flocked(self.layout.derived / copy.name)
        return Entry(f"{_COPY}{copy.name}", (copy.name,), copy.files, copy.made, in_use)

    def _entry(self, rows: Rows, record: Record, made: list[Copy]) -> Entry:
        named = _rows_of(rows, record.key)
        there = (file for file in record.files if self._is_there(record, file))
        blobs = {str(self.layout.blob(record, file)): file.size or 0 for file in there}
        for copy in made:
            blobs |= copy.files
        used = max(map(last_used, named), default=0.0)
        return Entry(record.key, tuple(refs_of(rows, record)), blobs, used, locks.is_held(self.layout.lease(record)))

    def _is_there(self, record: Record, file: ManifestFile) -> bool:
        """Whether a file takes space here: it does not in another folder of Hugging Face's that was used before."""
        return self.layout.blob(record, file).exists() or (self.layout.snapshot(record) / file.path).exists()

    def evict(self, keys: Collection[str]) -> list[tuple[str, int]]:
        """Take these snapshots from the disk, but for those in use, and return the refs that went, with their bytes."""
        with writing("", self.layout.root, "removed"), self._ledger.changing() as rows:
            return [each for key in keys for each in self._evict(rows, key) or []]

    def _evict(self, rows: Rows, key: str) -> list[tuple[str, int]] | None:
        """Take a snapshot from the disk; None when it is in use."""
        made = copies(self.layout, self._ledger.records())
        if key.startswith(_COPY):
            return [(copy.name, remove_copy(self.layout, copy)) for copy in made if key == f"{_COPY}{copy.name}"]
        record = self._ledger.record(key)
        if record is None:
            return []
        lease = locks.attempt(self.layout.lease(record))
        if lease is None:
            return None
        try:
            refs = self._erase(rows, record)
            freed = unlink_all(self.layout, record, self._claimed())
            freed += sum(remove_copy(self.layout, copy) for copy in _copies_of(key, made))
        except BaseException:
            os.close(lease)
            raise
        locks.discard(self.layout.lease(record), lease)
        return [(ref, freed if ref == refs[0] else 0) for ref in refs]

    def _erase(self, rows: Rows, record: Record) -> list[str]:
        """Let nobody find a snapshot any more, and return the refs that came to it."""
        refs = refs_of(rows, record)
        for name in [name for name, row in rows.items() if row.get("key") == record.key]:
            del rows[name]
        with suppress(FileNotFoundError):
            self.layout.record(record.key).unlink()
        return refs

    def _claimed(self) -> list[Record]:
        """Return the snapshots that are there and those that are about to be."""
        return [*self._ledger.records().values(), *self._planned()]

    def _planned(self) -> Iterator[Record]:
        with suppress(FileNotFoundError):
            names = os.listdir(self.layout.plans)
            for path in (self.layout.plans / name for name in names):
                lock = locks.attempt(path)
                if lock is not None:
                    locks.discard(path, lock)
                    continue
                with suppress(FileNotFoundError, *UNREADABLE):  # given up meanwhile
                    yield msgspec.json.decode(path.read_bytes(), type=Record)

    def sweep(self, older_s: float = _ORPHAN_S) -> int:
        """Remove what nobody has finished for so long, and return the bytes that became free."""
        with writing("", self.layout.root, "removed"), self._ledger.changing():
            return sweep(self.layout, older_s, self._claimed())

    def sweepable(self, older_s: float = _ORPHAN_S) -> int:
        """Return the bytes that `sweep` would free now, at most."""
        return sweepable(self.layout, older_s, list(self._ledger.records().values()))

    # --- what is damaged ----------------------------------------------------------------------------------------------

    def damaged(
        self, record: Record, on_bytes: Callable[[int], None] = lambda _bytes: None, cancel: Cancel | None = None
    ) -> list[Damage]:
        """Read all files of a snapshot and return those that are not what they were."""
        layout = next((each for each in (self.layout, *self._lower) if _is_whole(each, record)), self.layout)
        return _damages(layout, record, on_bytes, cancel)

    def discard(self, record: Record, damaged: list[Damage]) -> list[Damage]:
        """Take files of a snapshot from the disk, and with it all snapshots that share their bytes; return them.

        They are fetched again when the model is wanted next.
        """
        if not damaged:
            return []
        paths = {each.path for each in damaged}
        blobs = {self.layout.blob(record, file) for file in record.files if file.path in paths}
        with writing(record.wanted.ref, self.layout.root, "removed"), self._ledger.changing() as rows:
            unlink_files(self.layout, record, paths)
            for other in self._ledger.records().values():
                if any(self.layout.blob(other, file) in blobs for file in other.files):
                    self._erase(rows, other)
                    unlink_files(self.layout, other, {file.path for file in other.files})
            for blob in blobs:
                with suppress(FileNotFoundError):
                    blob.unlink()
        return damaged


# --- what the disk says -----------------------------------------------------------------------------------------------


def _lower_layout(root: Path) -> Layout:
    """Return where in a lower cache to look: a root like ours, or a folder in Hugging Face's layout."""
    return Layout(root, root / "hub" if (root / "hub").is_dir() else root)


def _is_whole(layout: Layout, record: Record) -> bool:
    folder = layout.snapshot(record)
    return bool(record.files) and all(has_file(folder / file.path, file.size) for file in record.files)


def _damages(layout: Layout, record: Record, on_bytes: Callable[[int], None], cancel: Cancel | None) -> list[Damage]:
    checked = ((file, problem(layout.snapshot(record) / file.path, file, on_bytes, cancel)) for file in record.files)
    return [Damage(record.wanted.ref, file.path, reason) for file, reason in checked if reason]


def _mark_of(options: SelectionOptions) -> str:
    """Return what differs between options that may choose other files; empty for the default ones."""
    if options == SelectionOptions():
        return ""
    import hashlib  # only who fetches needs it

    return hashlib.sha256(msgspec.json.encode(options)).hexdigest()[:16]


def _may_change(blob: Path) -> bool:
    """Whether a blob is there that its writer did not seal."""
    try:
        return bool(blob.stat().st_mode & 0o222)
    except FileNotFoundError:
        return False


def _seal(blob: Path) -> None:
    """See that a blob that was verified is only read from now on, where it is ours."""
    status = blob.stat()
    if status.st_mode & 0o777 != 0o444 and status.st_uid in (os.geteuid(), 0):
        blob.chmod(0o444)


def _missing(blobs: dict[Path, ManifestFile]) -> list[tuple[ManifestFile, Path]]:
    return [(file, blob) for blob, file in blobs.items() if not has_file(blob, file.size)]


def _copies_of(key: str, made: list[Copy]) -> list[Copy]:
    return [copy for copy in made if copy.source == key]


def _part(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.part")


def _rows_of(rows: Rows, key: str) -> list[dict[str, Any]]:
    return [row for row in rows.values() if row.get("key") == key]
