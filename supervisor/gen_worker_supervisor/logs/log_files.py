"""Writes lines to files that outlive this supervisor, within a limit of bytes that all of a run directory share.

For one thread, which a disk may hold as long as it likes.
"""

import fcntl
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gen_worker.line_files import PARTS, LineFileError, keep_within, name_of
from gen_worker.rundir import make_private

AGAIN_S = 10.0  # what could not be written once is not tried for so long: a full disk does not get better by it


class LineFiles:
    """The files of one supervisor in one folder."""

    def __init__(self, folder: Path, limit_bytes: int, boot_id: str, complain: Callable[[str], None]) -> None:
        """`complain` is told the first time that something cannot be written, until it could be again."""
        self.lost = 0  # bytes that could not be written
        self._folder = folder
        self._limit = limit_bytes
        self._each = max(1, limit_bytes // PARTS)
        self._boot_id = boot_id
        self._complain = complain
        self._number = 0
        self._file = -1
        self._path = folder  # of that file, once there is one
        self._size = 0
        self._broken = False
        self._again_at = 0.0

    def write(self, data: bytes) -> None:
        """Append whole lines, to a new file when the one at hand is full or gone. What does not work costs lines."""
        if self._broken and time.monotonic() < self._again_at:
            self.lost += len(data)
            return
        try:
            if self._file < 0 or self._size + len(data) > self._each or not os.fstat(self._file).st_nlink:
                self._begin()
            self._append(data)
        except (OSError, LineFileError) as error:
            self.lost += len(data)
            self._give_up(error)
        else:
            self._broken = False

    def _begin(self) -> None:
        self.close()
        make_private(self._folder)
        keep_within(self._folder, self._limit - self._each)
        self._number += 1
        name = name_of(time.strftime("%Y%m%d-%H%M%S", time.gmtime()), self._boot_id, self._number)
        self._path = self._folder / name
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file, self._size = os.open(self._path, flags, 0o600), 0
        with suppress(OSError):  # a disk without locks: others may remove it while it is written
            fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._file, view) :]
        except OSError:
            with suppress(OSError):  # half a line: nobody reads it
                os.ftruncate(self._file, self._size)
            raise
        self._size += len(data)

    def _give_up(self, error: OSError | LineFileError) -> None:
        if self._file >= 0 and not self._size:  # each try would leave another one
            with suppress(OSError):
                self._path.unlink()
        self.close()
        self._again_at = time.monotonic() + AGAIN_S
        if not self._broken:
            self._broken = True
            reason = str(error)
            if isinstance(error, OSError):
                reason = f"cannot write to `{self._folder}`: {(error.strerror or reason).lower()}"
            self._complain(f"nothing more is kept: {reason}")

    def close(self) -> None:
        """Close the file at hand."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
