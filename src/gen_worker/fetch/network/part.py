"""A file that is being downloaded: `<name>.part`, and beside it `<name>.part.map` with what is there of it already.

Both may be left by a process that was killed at any moment: what the map says is there, is there.
"""

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ctypes import CDLL, c_int, c_int64, c_uint
from functools import cache
from pathlib import Path

import msgspec

from gen_worker.fetch.cache.ledger import flush_folder
from gen_worker.models.errors import ModelError
from gen_worker.models.manifest import ManifestFile

_FULL = (errno.ENOSPC, errno.EDQUOT)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
_NOTE = re.compile(rb"(\d{1,18}) ([1-9]\d{0,17})")
_START_WRITING = 2  # SYNC_FILE_RANGE_WRITE of sync_file_range(2)


class Identity(msgspec.Struct, frozen=True):
    """What a part is of. Parts of another content are of no use."""

    size: int
    algorithm: str
    digest: str
    etag: str
    piece_bytes: int
    boot: str
    """The machine's start that it was written after. After a power cut only a digest tells what is on the disk."""


class Part:
    """The two files, opened. Belongs to whoever holds the blob's lock.

    What the disk refuses is raised as `ModelError`.
    """

    def __init__(self, to: Path) -> None:
        self.path = to.with_name(f"{to.name}.part")
        self._to = to
        self._map_path = to.with_name(f"{to.name}.part.map")
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with _on_disk(self.path):
            to.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.path, flags, 0o644)
        self._map: int | None = None
        self.identity: Identity | None = None

    def resume(self, file: ManifestFile) -> dict[int, int]:
        """Return what is there of a file: by a piece's number, how many bytes from its start on.

        If there is anything, `identity` says what it is of.
        """
        with _on_disk(self.path):
            return self._resume(file)

    def _resume(self, file: ManifestFile) -> dict[int, int]:
        identity, there = self._read_map()
        if identity is None or not there or not matches(identity, file, boot_id()):
            return {}
        end = min(os.fstat(self._fd).st_size, identity.size)
        starts = {number: number * identity.piece_bytes for number in there}
        if any(count > identity.piece_bytes or starts[number] + count > end for number, count in there.items()):
            return {}
        self.identity = identity
        self._map = os.open(self._map_path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        return there

    def _read_map(self) -> tuple[Identity | None, dict[int, int]]:
        try:
            head, *lines = self._map_path.read_bytes().split(b"\n")
            identity = msgspec.json.decode(head, type=Identity)
        except (FileNotFoundError, ValueError, RecursionError):
            return None, {}
        if identity.piece_bytes < 1 or identity.size < 0:
            return None, {}
        there: dict[int, int] = {}
        for line in lines:
            if match := _NOTE.fullmatch(line):
                number, count = int(match[1]), int(match[2])
                there[number] = max(count, there.get(number, 0))
        return identity, there

    def begin(self, identity: Identity) -> None:
        """Begin anew, with the content of this identity."""
        self.discard()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with _on_disk(self._map_path):
            self._map = os.open(self._map_path, flags, 0o644)
            os.write(self._map, msgspec.json.encode(identity))
        self.identity = identity

    def write(self, view: memoryview, offset: int) -> None:
        """Write all of a buffer."""
        with _on_disk(self.path):
            while view:
                count = os.pwrite(self._fd, view, offset)
                view, offset = view[count:], offset + count

    def read(self, view: memoryview, offset: int) -> int:
        """Read what was written."""
        with _on_disk(self.path):
            count = os.preadv(self._fd, [view], offset)
            if count == 0:
                raise OSError(errno.EIO, "somebody else cut it short")
            return count

    def note(self, number: int, count: int) -> None:
        """Record that so many bytes from a piece's start on are there, every one of them written."""
        if self._map is not None:
            with _on_disk(self._map_path):
                os.write(self._map, b"\n%d %d" % (number, count))  # cut short it says that there is less: no lie

    def begin_to_flush(self, start: int, end: int) -> None:
        """Have the kernel write some bytes to the disk now, so that little is left for the fsync at the end."""
        call = _sync_file_range()
        if call is not None:
            call(self._fd, start, end - start, _START_WRITING)  # a hint: what the disk says to it, the fsync tells

    def discard(self) -> None:
        """Throw away what is there."""
        self._close_map()
        self.identity = None
        with _on_disk(self.path):
            self._map_path.unlink(missing_ok=True)  # first: a map without its part would promise too much
            os.ftruncate(self._fd, 0)

    def remove(self) -> None:
        """Leave nothing of it on the disk."""
        self.discard()
        with _on_disk(self.path):
            self.path.unlink(missing_ok=True)

    def publish(self, size: int) -> None:
        """Make it the file that it is a part of, for good: whoever sees that file sees all of it."""
        with _on_disk(self.path):
            os.ftruncate(self._fd, size)
            os.fsync(self._fd)
            os.rename(self.path, self._to)
            flush_folder(self._to.parent)
            self._map_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close both; they stay on the disk."""
        self._close_map()
        os.close(self._fd)

    def _close_map(self) -> None:
        if self._map is not None:
            os.close(self._map)
            self._map = None


def matches(identity: Identity, file: ManifestFile, boot: str) -> bool:
    """Whether a part is of a file. Without a digest that decides in the end, it takes an ETag and the same boot."""
    if file.size is not None and file.size != identity.size:
        return False
    if file.digest:
        return (identity.algorithm, identity.digest) == (file.algorithm, file.digest)
    return not identity.digest and bool(identity.etag) and bool(boot) and identity.boot == boot


def boot_id() -> str:
    """Return what names the machine's present start; nothing where the system does not tell."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


@contextmanager
def _on_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        text = f"`{path}` cannot be written: {error.strerror or error}"
        if error.errno in _FULL:
            raise ModelError("insufficient_disk", text, "make room on that disk; what came is kept") from error
        if error.errno in _READ_ONLY:
            raise ModelError("read_only", text, "choose a cache that can be written") from error
        raise ModelError("download_failed", text) from error


@cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    call = getattr(CDLL(None), "sync_file_range", None)  # of Linux only
    if call is not None:
        call.argtypes = (c_int, c_int64, c_int64, c_uint)
    return call
