"""The files of jobs and of callers, in one folder.

Contents lie under their blake3 in `blobs`; which names stand for them is in a small database beside it, so that no name
from outside ever becomes a name on this disk. A file appears only when it is complete and what its sender said it is.
Every method blocks, for as long as the disk takes, and may be called from any thread. Knows nothing of HTTP.
"""

import errno
import hashlib
import os
import re
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from time import time
from typing import NamedTuple, TypeAlias

import msgspec
from blake3 import blake3

from gen_worker.filetypes import HEAD_BYTES, mime_type
from gen_worker.orchestrator.refusal import Refusal
from gen_worker.orchestrator.signing import JobClaims
from gen_worker.outputs import safe_ref

NAME_BYTES = 1024
HELD = -1  # the attempt under which is kept what is no job's: jobs count theirs from 1
CALLER = "caller/"  # holds what a caller stores to publish it, until that is done; no job is called so
_UNKNOWN = "application/octet-stream"
_PIECE_BYTES = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MOST_PARTS = 10_000
_BLOCK_BYTES = 512  # of `st_blocks`, whatever the file system has
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_MIME = re.compile(r"[\w.+-]{1,100}/[\w.+-]{1,100}", re.ASCII)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS blobs (blake3 TEXT PRIMARY KEY, size INTEGER, sha256 TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (
    request_id TEXT, attempt INTEGER, name TEXT, owner TEXT, blake3 TEXT, mime_type TEXT, created REAL,
    PRIMARY KEY (request_id, attempt, name)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS files_by_content ON files (blake3);
CREATE TABLE IF NOT EXISTS uploads (
    id TEXT PRIMARY KEY, request_id TEXT, attempt INTEGER, name TEXT, owner TEXT, blake3 TEXT, mime_type TEXT,
    size INTEGER, part_bytes INTEGER, created REAL, done INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS parts (upload TEXT, number INTEGER, etag TEXT, PRIMARY KEY (upload, number)) WITHOUT ROWID;
"""
_FILE = "SELECT f.name, f.blake3, b.size, b.sha256, f.mime_type FROM files f JOIN blobs b USING (blake3) "


class FileLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What the store takes."""

    file_bytes: int = 20 << 30
    """The largest file."""

    quota_bytes: int = 0
    """Of all contents; 0: what the disk has room for."""

    spare_bytes: int = 512 << 20
    """What stays free of the disk."""

    part_bytes: int = 16 << 20
    """A longer file of a job comes in parts of this size."""

    lent_part_bytes: int = 64 << 20
    """A longer file that is sent with lent keys comes in parts of this size: the size that their holders choose."""

    uploads_s: float = 24 * 3600.0
    """After so long an unfinished upload is given up, and what a caller has stored to publish it and has not."""

    inputs_s: float = 7 * 24 * 3600.0
    """After so long a caller's file is removed."""


class StoredFile(NamedTuple):
    """A file of the store: under which name, and what it is."""

    name: str
    blake3: str
    size_bytes: int
    sha256: str
    mime_type: str


class Upload(NamedTuple):
    """A file that a job is sending."""

    id: str
    request_id: str
    attempt: int
    name: str
    owner: str
    blake3: str
    mime_type: str
    size_bytes: int
    part_bytes: int
    created: float
    done: bool

    @property
    def parts(self) -> int:
        """In how many parts it comes; the last one may be shorter."""
        return -(-self.size_bytes // self.part_bytes)

    def length_of(self, number: int) -> int:
        """Return the bytes of a part, counted from 1."""
        return min(self.part_bytes, self.size_bytes - (number - 1) * self.part_bytes)


class Filling:
    """Bytes that come in one after the other; `finish` says what they came to, `close` lets go of them."""

    def __init__(self, descriptor: int, offset: int, most: int, finish: "Finish") -> None:
        self._descriptor = descriptor
        self._offset = offset
        self._most = most
        self._finish = finish
        self._lock = threading.Lock()  # who gives up may do so while a thread still writes
        self.length = 0
        self.head = b""
        self.blake3 = blake3()
        self.sha256 = hashlib.sha256()

    def write(self, content: bytes) -> None:
        """Add some bytes; raise `Refusal` when there are more than were announced or allowed, or it was closed."""
        if self.length + len(content) > self._most:
            raise Refusal(413, "too_large", f"more than {self._most} bytes came")
        self._make_room(len(content))
        if len(self.head) < HEAD_BYTES:
            self.head = (self.head + content)[:HEAD_BYTES]
        view, at = memoryview(content), self._offset + self.length
        with self._lock, _disk():
            self._refuse_closed()
            while view:
                written = os.pwrite(self._descriptor, view, at)
                view, at = view[written:], at + written
        self.length += len(content)
        self.blake3.update(content)
        self.sha256.update(content)

    def finish(self) -> StoredFile | str:
        """Take what came for the whole; return the file, of a part its ETag. Raise `Refusal` for too little."""
        with self._lock:
            self._refuse_closed()
        with _disk():
            return self._finish(self)

    def close(self) -> None:
        """Close the file, unless it is closed already; from now on it takes nothing."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
            self._descriptor = -1

    def _make_room(self, more: int) -> None:
        """Raise `Refusal` where there is no room for more bytes; what was announced has its room already."""

    def _refuse_closed(self) -> None:
        if self._descriptor < 0:
            raise Refusal(409, "too_late", "the file takes no more bytes: it is being put together, or was given up")


Finish: TypeAlias = Callable[[Filling], StoredFile | str]


class FileStore:
    """The store in one folder. Only one process may use it at a time."""

    def __init__(self, folder: Path, limits: FileLimits | None = None, *, clock: Callable[[], float] = time) -> None:
        self.limits = limits or FileLimits()
        self._clock = clock
        self._blobs = folder / "blobs"
        self._arriving = folder / "arriving"
        for each in (folder, self._blobs, self._arriving):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._completing: set[str] = set()
        self._filling: dict[str, set[Filling]] = {}  # the parts that are coming in, by upload
        self._inputs: dict[Filling, int] = {}  # the callers' files that are coming in, and the room that each was given
        self._database = sqlite3.connect(folder / "files.sqlite", check_same_thread=False, isolation_level=None)
        self._database.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;" + _SCHEMA)
        self._forget_strays()

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._database.close()

    # --- what jobs send -----------------------------------------------------------------------------------------------

    def begin(
        self, claims: JobClaims, name: str, digest: str, size: int, mime: str = "", *, lent: bool = False
    ) -> Upload | StoredFile:
        """Return where a file of a job goes, or the file where its owner has the same content already.

        `lent`: keys are lent for it, and whoever holds them cuts the parts.
        """
        name = checked_name(name)
        if not _DIGEST.fullmatch(digest):
            raise Refusal(400, "bad_digest", "`blake3` is 64 lower-case hex digits")
        if size <= 0:
            raise Refusal(400, "empty", "a file has at least one byte")
        mime = mime if _MIME.fullmatch(mime) else ""
        with self._lock:
            self._refuse_over_claims(claims, size)
            if (there := self._deduplicated(claims, name, digest, size, mime)) is not None:
                return there
            self._refuse_no_room(size)
            shortest = self.limits.lent_part_bytes if lent else self.limits.part_bytes
            part_bytes = max(shortest, -(-size // _MOST_PARTS))
            key, now = os.urandom(16).hex(), self._clock()
            upload = Upload(
                key, claims.request_id, claims.attempt, name, claims.owner, digest, mime, size, part_bytes, now, False
            )
            with _disk():
                _make(self._arriving / key, size)
            self._database.execute(f"INSERT INTO uploads VALUES ({', '.join('?' * len(upload))})", upload)
        return upload

    def part(self, key: str, number: int, length: int | None) -> Filling:
        """Open a part of an upload for its bytes, whose number the sender announced; `finish` gives the ETag."""
        upload = self._upload(key)
        if upload.done or not 1 <= number <= upload.parts:
            raise Refusal(404, "no_such_part", f"the upload has no part {number} to be sent")
        wanted = upload.length_of(number)
        if length is not None and length != wanted:
            raise Refusal(400, "wrong_length", f"part {number} has {wanted} bytes, not {length}")

        def finish(filling: Filling) -> str:
            if filling.length != wanted:
                raise Refusal(400, "wrong_length", f"part {number} has {wanted} bytes, {filling.length} came")
            etag = filling.blake3.hexdigest()
            with self._lock:
                self._database.execute("INSERT OR REPLACE INTO parts VALUES (?, ?, ?)", (key, number, etag))
            return etag

        with self._lock:  # so that none is open that `complete` does not see
            if key in self._completing:
                raise _in_progress()
            try:
                descriptor = os.open(self._arriving / key, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                raise _no_upload() from None
            part = _Part(descriptor, (number - 1) * upload.part_bytes, wanted, finish, lambda: self._closed(key, part))
            self._filling.setdefault(key, set()).add(part)
        return part

    def _closed(self, key: str, part: Filling) -> None:
        with self._lock:
            parts = self._filling.get(key, set())
            parts.discard(part)
            if not parts:
                self._filling.pop(key, None)

    def upload(self, key: str) -> Upload:
        """Return an upload; raise `Refusal` for one that there is not."""
        return self._upload(key)

    def parts(self, key: str) -> dict[int, str]:
        """Return the ETags of the parts that have come."""
        with self._lock:
            return dict(self._database.execute("SELECT number, etag FROM parts WHERE upload = ?", (key,)).fetchall())

    def restart(self, key: str) -> None:
        """Forget the parts that have come."""
        with self._lock:
            self._database.execute("DELETE FROM parts WHERE upload = ?", (key,))

    def complete(self, claims: JobClaims, key: str, etags: Iterable[tuple[int, str]]) -> StoredFile:
        """Take the parts for the whole file; raise `Refusal` where that is not what was announced.

        Parts that are still coming in are closed: nothing is written to a content once it was read. Asked again, it
        gives the same answer.
        """
        upload = self._upload_of(claims, key)
        if upload.done:
            return self._file(upload.request_id, upload.attempt, upload.name)
        with self._lock:
            if key in self._completing:
                raise _in_progress()
            sent = self.parts(key)
            if {number: etag.strip('"') for number, etag in etags} != sent or len(sent) != upload.parts:
                raise Refusal(
                    400, "wrong_parts", f"the upload has {upload.parts} parts, {len(sent)} of which came as named"
                )
            self._completing.add(key)
            late = list(self._filling.get(key, ()))
        try:
            for part in late:
                part.close()
            return self._put_together(upload)
        finally:
            with self._lock:
                self._completing.discard(key)

    def abort(self, claims: JobClaims, key: str) -> None:
        """Let go of an upload; nothing happens to one that is complete."""
        upload = self._upload_of(claims, key)
        if not upload.done:
            self._drop([key])

    def _put_together(self, upload: Upload) -> StoredFile:
        place = self._arriving / upload.id
        with _disk():
            found, sha256, head = _digests(place)
            if found != upload.blake3:
                self._drop([upload.id])
                raise Refusal(422, "digest_mismatch", f"`{upload.name}` came with another content than was announced")
            mime = upload.mime_type or mime_type(head, upload.name) or _UNKNOWN
            file = StoredFile(upload.name, found, upload.size_bytes, sha256, mime)
            self._keep(place, file, upload)
        return file

    # --- what callers send --------------------------------------------------------------------------------------------

    def receive(self, name: str, length: int | None) -> Filling:
        """Open a caller's file for its bytes; `finish` puts it in the place of one of the same name.

        There is room for all that was announced. What comes unannounced gets its room as it comes: `write` may refuse.
        """
        name = checked_name(name)
        most = min(self.limits.file_bytes, self.limits.file_bytes if length is None else length)
        if (length or 0) > self.limits.file_bytes:
            raise Refusal(413, "too_large", f"a file has at most {self.limits.file_bytes} bytes, this one has {length}")
        place = self._arriving / f"input-{os.urandom(16).hex()}"

        def finish(filling: Filling) -> StoredFile:
            if length is not None and filling.length != length:
                raise Refusal(400, "wrong_length", f"{length} bytes were announced, {filling.length} came")
            found, sha256 = filling.blake3.hexdigest(), filling.sha256.hexdigest()
            file = StoredFile(name, found, filling.length, sha256, mime_type(filling.head, name) or _UNKNOWN)
            self._keep(place, file, None)
            return file

        with self._lock:
            self._refuse_no_room(length or 0)
            with _disk():
                _make(place, 0)
                descriptor = os.open(place, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            filling = _Temporary(descriptor, most, finish, place, self._grow if length is None else None, self._end)
            self._inputs[filling] = length or 0
        return filling

    def _grow(self, filling: Filling, more: int) -> None:
        """Give a caller's file room for more bytes; raise `Refusal` where there is none."""
        with self._lock:
            if filling in self._inputs:
                self._refuse_no_room(more)
                self._inputs[filling] += more

    def _end(self, filling: Filling) -> None:
        with self._lock:
            self._inputs.pop(filling, None)

    # --- what there is ------------------------------------------------------------------------------------------------

    def find(self, request_id: str, attempt: int, name: str) -> StoredFile | None:
        """Return a file of a job, or with no request id a caller's; None where there is none."""
        with self._lock:
            row = self._database.execute(
                _FILE + "WHERE request_id = ? AND attempt = ? AND name = ?", (request_id, attempt, name)
            ).fetchone()
        return StoredFile(*row) if row else None

    def of_job(self, request_id: str, attempt: int) -> Mapping[str, StoredFile]:
        """Return what an attempt of a job has stored, by name."""
        with self._lock:
            rows = self._database.execute(_FILE + "WHERE request_id = ? AND attempt = ?", (request_id, attempt))
            return {row[0]: StoredFile(*row) for row in rows}

    def open(self, file: StoredFile) -> int:
        """Return a descriptor of a file's content, for reading."""
        try:
            return os.open(self._place(file.blake3), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise Refusal(404, "not_found", f"the content of `{file.name}` is gone") from None

    def read(self, file: StoredFile) -> bytes:
        """Return a file's content."""
        with open(self.open(file), "rb") as content:
            return content.read()

    def jobs(self) -> list[str]:
        """Return the requests that have files or uploads."""
        with self._lock:
            rows = self._database.execute(
                "SELECT request_id FROM files WHERE attempt >= 0"
                " UNION SELECT request_id FROM uploads WHERE attempt >= 0"
            )
            return [request_id for (request_id,) in rows if request_id]

    def content(self, digest: str, owner: str) -> StoredFile | None:
        """Return a content `blake3:hex` or `sha256:hex` that an owner, or nobody in particular, has stored."""
        algorithm, _, digits = digest.rpartition(":")
        column = {"": "f.blake3", "blake3": "f.blake3", "sha256": "b.sha256"}.get(algorithm)
        if column is None:
            return None
        with self._lock:
            row = self._database.execute(
                _FILE + f"WHERE {column} = ? AND f.owner IN ('', ?) AND f.request_id != ''", (digits.lower(), owner)
            ).fetchone()
        return StoredFile(*row) if row else None

    def unfinished(self) -> list[Upload]:
        """Return the uploads that are not complete."""
        with self._lock:
            rows = self._database.execute("SELECT * FROM uploads WHERE NOT done AND attempt >= 0")
            return [Upload(*row) for row in rows]

    # --- what is kept for something other than a job ------------------------------------------------------------------

    def adopt(self, holder: str, attempt: int, name: str, digest: str, owner: str) -> StoredFile:
        """Have a content that its owner has stored kept under a name of the holder, too; raise `Refusal` for another.

        With an `attempt` below 0 nothing of the holder goes with a job.
        """
        name = checked_name(name)
        with self._lock:
            row = self._database.execute(
                _FILE + "WHERE f.blake3 = ? AND f.owner = ? AND f.request_id != ''", (digest, owner)
            ).fetchone()
            if row is None:
                raise Refusal(409, "no_such_content", f"the bytes of `{name}` were not stored here before")
            there = StoredFile(*row)._replace(name=name)
            self._name(holder, attempt, name, owner, digest, there.mime_type)
        return there

    def let_go(self, holder: str, attempt: int) -> None:
        """Keep nothing of a holder any more, and give up what is still coming for it."""
        with self._lock:
            found = self._database.execute(
                "SELECT id FROM uploads WHERE request_id = ? AND attempt = ?", (holder, attempt)
            )
            self._drop([key for (key,) in found if key not in self._completing])
            self._database.execute("DELETE FROM files WHERE request_id = ? AND attempt = ?", (holder, attempt))
        self._drop_contents()

    def let_go_of(self, holder: str, attempt: int, name: str) -> None:
        """Keep one name of a holder no more."""
        with self._lock:
            self._database.execute(
                "DELETE FROM files WHERE request_id = ? AND attempt = ? AND name = ?", (holder, attempt, name)
            )
        self._drop_contents()

    # --- what goes ----------------------------------------------------------------------------------------------------

    def give_up(self, keys: Iterable[str]) -> None:
        """Let go of uploads that nobody completes any more."""
        with self._lock:
            self._drop([key for key in keys if key not in self._completing])

    def forget(self, requests: Iterable[str]) -> None:
        """Remove the files of requests that nobody knows any more, and uploads and inputs that are too old."""
        now = self._clock()
        gone = [(request_id,) for request_id in requests]
        with self._lock, self._database:
            self._database.execute("BEGIN")
            self._database.executemany("DELETE FROM files WHERE request_id = ? AND attempt >= 0", gone)
            self._database.execute(
                "DELETE FROM files WHERE request_id = '' AND created < ?", (now - self.limits.inputs_s,)
            )
            self._database.execute(
                "DELETE FROM files WHERE request_id = ? AND created < ?", (CALLER, now - self.limits.uploads_s)
            )
            old = self._database.execute("SELECT id FROM uploads WHERE created < ?", (now - self.limits.uploads_s,))
            keys = [key for (key,) in old if key not in self._completing]
            for request in gone:
                found = self._database.execute("SELECT id FROM uploads WHERE request_id = ? AND attempt >= 0", request)
                keys += [key for (key,) in found if key not in self._completing]
        self._drop(keys)
        self._drop_contents()

    def remove(self, name: str) -> bool:
        """Remove a caller's file; return whether there was one."""
        with self._lock, self._database:
            gone = self._database.execute("DELETE FROM files WHERE request_id = '' AND name = ?", (name,)).rowcount
        self._drop_contents()
        return gone > 0

    def _drop(self, keys: list[str]) -> None:
        with self._lock, self._database:
            self._database.execute("BEGIN")
            self._database.executemany("DELETE FROM parts WHERE upload = ?", [(key,) for key in keys])
            self._database.executemany("DELETE FROM uploads WHERE id = ?", [(key,) for key in keys])
        for key in keys:
            (self._arriving / key).unlink(missing_ok=True)

    def _drop_contents(self) -> None:
        """Remove the contents that no name stands for; under the lock, so that none gets one meanwhile."""
        with self._lock:
            unnamed = "SELECT blake3 FROM blobs WHERE blake3 NOT IN (SELECT blake3 FROM files)"
            for (digest,) in self._database.execute(unnamed).fetchall():
                self._database.execute("DELETE FROM blobs WHERE blake3 = ?", (digest,))
                self._place(digest).unlink(missing_ok=True)

    def _forget_strays(self) -> None:
        """Remove what a process that was killed has left half done."""
        known = {key for (key,) in self._database.execute("SELECT id FROM uploads WHERE NOT done")}
        for each in self._arriving.iterdir():
            if each.name not in known:
                each.unlink()
        named = {digest for (digest,) in self._database.execute("SELECT blake3 FROM blobs")}
        for each in self._blobs.glob("??/*"):
            if each.name not in named:
                each.unlink()
        self._drop_contents()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _upload(self, key: str) -> Upload:
        with self._lock:
            row = self._database.execute("SELECT * FROM uploads WHERE id = ?", (key,)).fetchone()
        if row is None:
            raise _no_upload()
        return Upload(*row)

    def _upload_of(self, claims: JobClaims, key: str) -> Upload:
        upload = self._upload(key)
        if (upload.request_id, upload.attempt) != (claims.request_id, claims.attempt):
            raise _no_upload()
        return upload

    def _file(self, request_id: str, attempt: int, name: str) -> StoredFile:
        found = self.find(request_id, attempt, name)
        if found is None:
            raise _no_upload()
        return found

    def _deduplicated(self, claims: JobClaims, name: str, digest: str, size: int, mime: str) -> StoredFile | None:
        """Give another name to a content that its owner has stored; who only knows its digest does not get it."""
        row = self._database.execute(
            _FILE + "WHERE f.blake3 = ? AND f.owner = ? AND f.request_id != ''", (digest, claims.owner)
        ).fetchone()
        if row is None:
            return None
        there = StoredFile(*row)
        if there.size_bytes != size:
            raise Refusal(400, "bad_digest", f"the content of that digest has {there.size_bytes} bytes, not {size}")
        mime = mime or there.mime_type
        self._name(claims.request_id, claims.attempt, name, claims.owner, digest, mime)
        return there._replace(name=name, mime_type=mime)

    def _name(self, request_id: str, attempt: int, name: str, owner: str, digest: str, mime: str) -> None:
        self._database.execute(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?)",
            (request_id, attempt, name, owner, digest, mime, self._clock()),
        )

    def _keep(self, place: Path, file: StoredFile, upload: Upload | None) -> None:
        """Put a complete file among the contents, under its name in an upload's job or among callers' files."""
        _sync(place, os.O_RDONLY)
        target = self._place(file.blake3)
        with self._lock, self._database:
            target.parent.mkdir(mode=0o700, exist_ok=True)
            with suppress(FileExistsError):
                os.link(place, target)
            _sync(target.parent, os.O_RDONLY | os.O_DIRECTORY)
            self._database.execute("BEGIN")
            row = (file.blake3, file.size_bytes, file.sha256)
            self._database.execute("INSERT OR REPLACE INTO blobs VALUES (?, ?, ?)", row)
            if upload is None:
                self._name("", 0, file.name, "", file.blake3, file.mime_type)
            else:
                self._name(upload.request_id, upload.attempt, file.name, upload.owner, file.blake3, file.mime_type)
                self._database.execute("UPDATE uploads SET done = 1 WHERE id = ?", (upload.id,))
        place.unlink()

    def _place(self, digest: str) -> Path:
        return self._blobs / digest[:2] / digest

    def _refuse_over_claims(self, claims: JobClaims, size: int) -> None:
        most = min(filter(None, (claims.max_bytes_per_file, self.limits.file_bytes)))
        if size > most:
            raise Refusal(413, "too_large", f"a file has at most {most} bytes, this one has {size}")
        if claims.max_total_bytes:
            one = (claims.request_id, claims.attempt)
            stored = "SELECT SUM(b.size) FROM files JOIN blobs b USING (blake3) WHERE request_id = ? AND attempt = ?"
            coming = "SELECT SUM(size) FROM uploads WHERE request_id = ? AND attempt = ? AND NOT done"
            total = size + sum(self._database.execute(each, one).fetchone()[0] or 0 for each in (stored, coming))
            if total > claims.max_total_bytes:
                what = f"the files of a job have at most {claims.max_total_bytes} bytes together"
                raise Refusal(413, "too_large", f"{what}, with this one it is {total}")

    def _refuse_no_room(self, size: int) -> None:
        """Raise `Refusal` unless there is room for more beside all that is stored or promised; under the lock."""
        uploads = dict(self._database.execute("SELECT id, size FROM uploads WHERE NOT done").fetchall())
        if self.limits.quota_bytes:
            stored = self._database.execute("SELECT SUM(size) FROM blobs").fetchone()[0] or 0
            taken = stored + sum(uploads.values()) + sum(self._inputs.values())
            if taken + size > self.limits.quota_bytes:
                raise _no_room(f"the store may hold {self.limits.quota_bytes} bytes")
        missing = [promised - _allocated(self._arriving / key) for key, promised in uploads.items()]
        missing += [promised - filling.length for filling, promised in self._inputs.items()]
        promised = sum(each for each in missing if each > 0)
        free = shutil.disk_usage(self._blobs).free
        if size > free - promised - self.limits.spare_bytes:
            raise _no_room(f"the disk has {free} bytes free, {promised} of which are promised to files that are coming")


class _Part(Filling):
    """Bytes for a part of an upload, which is told when it is closed."""

    def __init__(
        self, descriptor: int, offset: int, most: int, finish: Callable[[Filling], str], on_close: Callable[[], None]
    ) -> None:
        super().__init__(descriptor, offset, most, finish)
        self._on_close = on_close

    def close(self) -> None:
        """Close the file, unless it is closed already; from now on it takes nothing."""
        super().close()
        self._on_close()


class _Temporary(Filling):
    """Bytes for a file that has its place only at the end; `grow` is asked for the room of what was not announced."""

    def __init__(
        self,
        descriptor: int,
        most: int,
        finish: Callable[[Filling], StoredFile],
        place: Path,
        grow: Callable[[Filling, int], None] | None,
        on_close: Callable[[Filling], None],
    ) -> None:
        super().__init__(descriptor, 0, most, finish)
        self._place = place
        self._grow = grow
        self._on_close = on_close

    def _make_room(self, more: int) -> None:
        if self._grow is not None:
            self._grow(self, more)

    def close(self) -> None:
        """Close the file; it is gone unless it was finished."""
        super().close()
        self._place.unlink(missing_ok=True)
        self._on_close(self)


def checked_name(name: str) -> str:
    """Return a relative name with `/`; raise `Refusal` for one that leads elsewhere, is too long or cannot be shown."""
    try:
        safe = safe_ref(name)
    except ValueError as error:
        raise Refusal(400, "bad_name", str(error)) from None
    if not safe.isprintable() or len(safe.encode()) > NAME_BYTES:
        raise Refusal(400, "bad_name", f"a name has at most {NAME_BYTES} bytes, and no control characters")
    return safe


def _digests(place: Path) -> tuple[str, str, bytes]:
    first, second, head = blake3(), hashlib.sha256(), b""
    with open(place, "rb", buffering=0) as file:
        for piece in _pieces(file.fileno()):
            head = head or piece[:HEAD_BYTES]
            first.update(piece)
            second.update(piece)
    return first.hexdigest(), second.hexdigest(), head


def _sync(place: Path, how: int) -> None:
    descriptor = os.open(place, how | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _pieces(descriptor: int) -> Iterator[bytes]:
    while piece := os.read(descriptor, _PIECE_BYTES):
        yield piece


def _make(place: Path, size: int) -> None:
    descriptor = os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)


def _allocated(place: Path) -> int:
    """Return what a file takes of the disk: one whose bytes have not come is sparse."""
    try:
        return place.stat().st_blocks * _BLOCK_BYTES
    except FileNotFoundError:
        return 0


@contextmanager
def _disk() -> Iterator[None]:
    """Turn a disk that is full into a refusal."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise _no_room((error.strerror or str(error)).lower()) from None


def _no_room(why: str) -> Refusal:
    return Refusal(507, "no_room", f"there is no room for the file: {why}", "remove files, or give the store more")


def _in_progress() -> Refusal:
    return Refusal(409, "upload_complete_in_progress", "the parts are being put together")


def _no_upload() -> Refusal:
    return Refusal(404, "no_such_upload", "there is no such upload of this job")
