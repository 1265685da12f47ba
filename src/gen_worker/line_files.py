"""Files of JSON lines in a folder that outlives every supervisor: what they are called, and how they are read.

Files are written by supervisors and read by anybody of the same user, with or without a supervisor. Several
supervisors may share a folder: each has files of its own, and removes only those that nobody writes.
"""

import fcntl
import os
import re
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

PARTS = 8  # of the limit each file takes one, so that what goes at once is never much
_NAME = re.compile(r"(\d{8}-\d{6})-([0-9a-f]{8})-(\d{4,9})\.jsonl", re.ASCII)


class LineFileError(Exception):
    """A folder of lines cannot be read; the text says why."""


class LineFile(NamedTuple):
    """One file. Sorted they are in the order of time, as far as one supervisor goes."""

    begun: str  # the second in which it was begun, as `YYYYMMDD-HHMMSS` in UTC
    boot: str  # the beginning of its supervisor's `boot_id`
    number: int  # of the files of its supervisor
    path: Path


def name_of(begun: str, boot_id: str, number: int) -> str:
    """Return what a file is called."""
    return f"{begun}-{boot_of(boot_id)}-{number:04d}.jsonl"


def boot_of(boot_id: str) -> str:
    """Return as much of a supervisor's `boot_id` as its files are named by."""
    return boot_id[:8]


def files_in(folder: Path) -> list[LineFile]:
    """Return the files of a folder, the oldest first; raise `LineFileError` for a foreign one."""
    try:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (0, os.getuid()) or found.st_mode & stat.S_IWOTH:
            raise LineFileError(f"`{folder}` is not a folder of this user alone")
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise LineFileError(f"cannot look into `{folder}`: {(error.strerror or str(error)).lower()}") from None
    return sorted(file for file in (_file(folder, name) for name in names) if file is not None)


def _file(folder: Path, name: str) -> LineFile | None:
    found = _NAME.fullmatch(name)
    return None if found is None else LineFile(found[1], found[2], int(found[3]), folder / name)


def lines_of(file: LineFile) -> Iterator[bytes]:
    """Yield the whole lines of a file; nothing of one that is gone meanwhile, or is no file.

    Raises `LineFileError` for one that cannot be read.
    """
    try:
        with _opened(file.path) as content:
            if stat.S_ISREG(os.fstat(content.fileno()).st_mode):
                yield from (line for line in content if line.endswith(b"\n"))
    except FileNotFoundError:
        return
    except OSError as error:
        raise LineFileError(f"cannot read `{file.path}`: {(error.strerror or str(error)).lower()}") from None


def _opened(path: Path) -> IO[bytes]:
    return open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")


def keep_within(folder: Path, limit_bytes: int) -> int:
    """Remove the files that were written longest ago until the rest takes no more bytes; return how many that are.

    A file that some supervisor still writes stays.
    """
    found: list[tuple[float, int, Path]] = []
    for file in files_in(folder):
        with suppress(FileNotFoundError):  # another supervisor was faster
            status = file.path.lstat()
            found.append((status.st_mtime, status.st_size, file.path))
    taken = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if taken <= limit_bytes:
            break
        if not is_written(path):
            path.unlink(missing_ok=True)
            taken -= size
    return taken


def wait_until_written(files: Sequence[LineFile], within_s: float) -> None:
    """Return when no supervisor writes these files any more, or after so many seconds."""

    def wait() -> None:
        for each in files:
            with suppress(OSError), _opened(each.path) as file:
                fcntl.flock(file, fcntl.LOCK_EX)

    waiting = threading.Thread(target=wait, name="gen-worker-line-files", daemon=True)
    waiting.start()
    waiting.join(within_s)


def is_written(path: Path) -> bool:
    """Whether a supervisor holds a file open to write more."""
    try:
        with _opened(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # it is gone, or its disk has no locks
        return False
    return False
