"""Locks that hold across processes, each a file that is flocked. A lock ends with the last copy of its descriptor.

A lock file may be removed by who holds it alone. Whoever locked a file looks afterwards whether it still has its name,
and begins again where it has not: so nobody ever holds a lock that the next one does not see.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gen_worker.fetch.cancel import Cancel

LOOK_S = 0.02
"""Between tries, so that a wait can be canceled; flock itself can only be interrupted by a signal."""


def acquire(path: Path, *, shared: bool = False, cancel: Cancel | None = None) -> int:
    """Lock a file, made when missing, and return the descriptor that holds it.

    Waits for it; raises `ModelError` of the kind `canceled` when that is asked for meanwhile.
    """
    waiting = cancel or Cancel()
    while (held := attempt(path, shared=shared)) is None:
        waiting.wait(LOOK_S)
    return held


def attempt(path: Path, *, shared: bool = False) -> int | None:
    """Lock a file, made when missing, and return the descriptor that holds it; None when somebody else does."""
    while True:
        descriptor = _opened(path)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return None
            raise
        if _is_named(descriptor, path):
            return descriptor
        os.close(descriptor)  # it was removed by who held it before


@contextmanager
def locked(path: Path, *, cancel: Cancel | None = None) -> Iterator[None]:
    """Hold a lock alone inside this block; waits for it."""
    descriptor = acquire(path, cancel=cancel)
    try:
        yield
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether somebody holds a lock, shared or alone."""
    if not path.exists():
        return False
    descriptor = attempt(path)
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


def discard(path: Path, descriptor: int) -> None:
    """Remove a lock file that this descriptor holds alone, and give it up."""
    with suppress(FileNotFoundError):
        path.unlink()
    os.close(descriptor)


def holders(path: Path) -> list[int]:
    """Return the processes of this machine that have a lock file open, as far as they may be looked at."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with suppress(OSError):  # it ended, or belongs to somebody else
            folder = f"/proc/{entry}/fd"
            if any(os.readlink(f"{folder}/{name}") == str(path) for name in os.listdir(folder)):
                found.append(int(entry))
    return sorted(found)


def _opened(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags, 0o664)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, flags, 0o664)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EROFS):
            raise
        try:  # to read is enough to lock
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise error from None


def _is_named(descriptor: int, path: Path) -> bool:
    ours = os.fstat(descriptor)
    try:
        named = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino)
