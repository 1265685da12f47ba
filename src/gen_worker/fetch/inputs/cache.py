"""The files that payloads have named, by the SHA-256 of what is in them, for later runs that name the same.

Whoever asks for one has heard its SHA-256 from a file API that knew who asked. Files are copied in and out, as a
handler may write to its own; what comes out is hashed by whoever reads it. Processes share the folder without a word:
files appear whole, by renaming, and one that somebody reads may go.
"""

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from stat import S_ISREG

from gen_worker.fetch.cancel import Cancel

PART = "part-"  # begins the names of files that are being written
ABANDONED_S = 3600.0  # such a file is written to for less
_LOOK_S = 0.1  # how late somebody who waits for another hears that nobody wants it any more
_CHUNK_BYTES = 1 << 20


class InputCache:
    """A folder of files of at most so many bytes, the least recently used of which go first. Any thread may use it."""

    def __init__(
        self, folder: Path, max_bytes: int, complain: Callable[[str], None], spare: Callable[[int], int]
    ) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._complain = complain
        self._spare = spare
        """Says how many bytes stay free of a disk of a size."""

        self._turns = threading.Condition()
        self._under_way: set[str] = set()
        self._room = threading.Lock()
        self._trouble = ""  # that was told of last

    @contextmanager
    def turn(self, sha256: str, cancel: Cancel) -> Iterator[None]:
        """Have the block run while no other thread's for this file does, so that it comes once; raise `ModelError`."""
        with self._turns:
            while sha256 in self._under_way:
                cancel.raise_if_set()
                self._turns.wait(_LOOK_S)
            self._under_way.add(sha256)
        try:
            yield
        finally:
            with self._turns:
                self._under_way.discard(sha256)
                self._turns.notify_all()

    @contextmanager
    def opened(self, sha256: str) -> Iterator[FileIO | None]:
        """Yield what is kept under this name, None where nothing is; it may be damaged."""
        try:
            descriptor = os.open(self._folder / sha256, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # it is not here, or none of ours
            yield None
            return
        with FileIO(descriptor, "rb") as file:
            if not S_ISREG(os.fstat(descriptor).st_mode):
                yield None
                return
            with suppress(PermissionError):  # another user's, in a folder that both may use
                os.utime(descriptor)
            yield file

    def drop(self, sha256: str) -> None:
        """Keep this file no longer: it is damaged."""
        with suppress(OSError):
            (self._folder / sha256).unlink()

    def keep(self, sha256: str, file: FileIO) -> None:
        """Keep a copy of a file, unless that is too long or the disk too full; trouble with it is complained of."""
        try:
            self._keep(sha256, file)
            self._trouble = ""
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            if reason != self._trouble:
                self._trouble = reason
                self._complain(f"files of payloads cannot be kept in `{self._folder}` for later runs: {reason}")

    def give_room(self, size: int, device: int) -> bool:
        """Remove the least recently used until a disk has so many bytes more; return whether any went of that disk."""
        gone = 0
        with self._room, suppress(FileNotFoundError):
            if os.stat(self._folder).st_dev != device:
                return False
            for _, each, path in sorted(self._kept()):
                if gone >= size:
                    break
                with suppress(OSError):
                    os.unlink(path)
                    gone += each
        return gone > 0

    def _keep(self, sha256: str, file: FileIO) -> None:
        size = os.fstat(file.fileno()).st_size
        if size > self._max_bytes:
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        disk = os.statvfs(self._folder)
        if disk.f_blocks and disk.f_bavail * disk.f_frsize - size < self._spare(disk.f_blocks * disk.f_frsize):
            return
        descriptor, part = tempfile.mkstemp(prefix=PART, dir=self._folder)
        try:
            with FileIO(descriptor, "wb") as copy:
                _copy(file, copy)
            with self._room:
                self._make_room(size)
                os.rename(part, self._folder / sha256)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(part)
            raise

    def _make_room(self, size: int) -> None:
        """Remove what was not used for longest until so many bytes may come, and what killed processes have left."""
        kept = self._kept()
        total = sum(each for _, each, _ in kept)
        for _, each, path in sorted(kept):
            if total + size <= self._max_bytes:
                return
            with suppress(FileNotFoundError):
                os.unlink(path)
            total -= each

    def _kept(self) -> list[tuple[float, int, str]]:
        """Return when each file was used last, how long it is and where; what killed processes have left goes."""
        kept = []
        for entry in os.scandir(self._folder):
            with suppress(FileNotFoundError):  # another process was faster
                status = entry.stat(follow_symlinks=False)
                if not entry.name.startswith(PART):
                    kept.append((status.st_mtime, status.st_size, entry.path))
                elif time.time() - status.st_mtime > ABANDONED_S:
                    os.unlink(entry.path)
        return kept


def _copy(file: FileIO, copy: FileIO) -> None:
    offset = 0
    while chunk := os.pread(file.fileno(), _CHUNK_BYTES, offset):
        rest = memoryview(chunk)
        while rest:
            rest = rest[copy.write(rest) :]
        offset += len(chunk)
