"""A disk that has no room for what a training keeps: how that is noticed, whoever wrote, and what is said of it."""

import errno
import re
import shutil
import sys
from pathlib import Path

_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FOREIGN = re.compile(rf"\(os error ({'|'.join(map(str, _NUMBERS))})\)")  # as safetensors says it
_NOTHING_BYTES = 1 << 16  # a disk with less is full, whatever the error says: torch's has no reason


class NoRoomError(OSError):
    """There is no room for a file of a training; what was there before is whole."""


def lacks_room(error: BaseException, folder: Path) -> bool:
    """Whether a file could not be written for want of room; to be asked before anything is removed."""
    at: BaseException | None = error
    while at is not None:
        if (isinstance(at, OSError) and at.errno in _NUMBERS) or _FOREIGN.search(str(at)):
            return True
        at = at.__cause__ or at.__context__
    return free_bytes(folder) < _NOTHING_BYTES


def no_room(path: Path, needed_bytes: int) -> NoRoomError:
    """Return the error for a file, or a checkpoint, that takes at least so much."""
    free, most = free_bytes(path.parent), _longest_file_bytes()
    error = NoRoomError(f"no room for `{path}`: {_what_lacks(needed_bytes, free, most)}")
    error.errno = errno.ENOSPC
    return error


def _what_lacks(needed: int, free: int, most: int | None) -> str:
    """Say what there is too little of: files take whole blocks and inodes, and there may be a quota."""
    if free < needed:
        return f"it takes {needed} bytes or more, {free} are free"
    if most is not None:
        return f"it takes {needed} bytes or more, a file may have {most} (`ulimit -f`)"
    return f"it takes {needed} bytes or more; blocks, inodes or a quota are used up, although {free} bytes are free"


def _longest_file_bytes() -> int | None:
    """Return how long a file of this process may be, None where it may have any length."""
    if sys.platform == "win32":
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def free_bytes(folder: Path) -> int:
    """Return how much can be written to the disk of a folder."""
    return shutil.disk_usage(folder).free


def bytes_in(paths: list[Path]) -> int:
    """Return how much files, and all files in folders, take."""
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else (path,))]
    return sum(file.stat().st_size for file in files if file.is_file())
