"""No two supervisors share a GPU: each holds the lock of a file that is named for the GPU's UUID.

The lock goes with the process, however that ends. The folder is one that every supervisor of this host sees, whatever
its user; in a container of its own a supervisor sees none of the others.
"""

import errno
import fcntl
import os
import re
import stat
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

from gen_worker_supervisor.core.state import Device

LOCK_FOLDERS = ("/run/lock", "/tmp")  # everybody's, and what is opened there is looked at
_PREFIX = "gen-worker-"
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # it may be anybody's: a link, a pipe
_HOLDER_BYTES = 256
_LOOK_S = 0.01
_TRIES = 8  # others may remove the file while it is opened


class GpuTakenError(Exception):
    """Another supervisor has the GPU; the text says which one."""


class GpuLockError(Exception):
    """It cannot be known whether another supervisor has the GPU."""


class GpuLocks:
    """The locks of this supervisor's GPUs, until they are closed or the process ends."""

    def __init__(self, serves: str, folder: Path | None = None) -> None:
        """`serves` is what others are told of this process."""
        self._serves = serves
        self._folder = folder or shared_folder()
        self._held: list[tuple[Path, int]] = []

    def __enter__(self) -> "GpuLocks":
        return self

    def __exit__(self, *raised: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def take(self, gpu: Device) -> None:
        """Have the GPU for this process alone; raise `GpuTakenError` where another one has it, else `GpuLockError`."""
        path = self._folder / f"{_PREFIX}{gpu.uuid}.lock"
        try:
            fd = _locked(path)
        except _HeldError as error:
            raise GpuTakenError(f"{gpu.name} ({gpu.uuid}) is in use by {error} `{path}`") from None
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise GpuLockError(f"{gpu.name} cannot be locked: `{path}`: {reason}") from None
        self._held.append((path, fd))
        with suppress(OSError):  # it is locked, whether or not there is room to say by whom
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()} {self._serves}".encode()[:_HOLDER_BYTES], 0)

    def close(self) -> None:
        """Let go of every GPU."""
        for path, fd in self._held:
            with suppress(OSError):  # another user's, in a folder where only they may remove it; it is empty then
                os.ftruncate(fd, 0)
                path.unlink()  # while it is locked: who opened it before sees that it is gone
            os.close(fd)
        self._held.clear()


def shared_folder(folders: Sequence[str] = LOCK_FOLDERS) -> Path:
    """Return a folder where everybody may make files and nobody remove another's; the process's own where none is."""
    for folder in folders:
        with suppress(OSError):
            found = os.stat(folder, follow_symlinks=False)
            everybodys = stat.S_IWOTH | stat.S_ISVTX
            if stat.S_ISDIR(found.st_mode) and found.st_mode & everybodys == everybodys and os.access(folder, os.W_OK):
                return Path(folder)
    return Path(tempfile.gettempdir())


class _HeldError(Exception):
    """Another process has the lock; the text is what the file says of it, and is followed by the file's name."""


def _locked(path: Path) -> int:
    """Return the descriptor of the file, locked; raise `_HeldError` or `OSError`."""
    for _ in range(_TRIES):
        with ExitStack() as opened:
            fd = _opened(path)
            opened.callback(os.close, fd)
            if not _locks(fd):
                raise _HeldError(_holder(fd))
            if _is_at(path, fd):
                opened.pop_all()
                return fd
    raise OSError(errno.EAGAIN, "others remove it again and again")


def _locks(fd: int) -> bool:
    """Lock a file; whoever only looks whether somebody holds it, as the doctor, lets go of it at once."""
    for _ in range(_TRIES):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOOK_S)
        else:
            return True
    return False


def _opened(path: Path) -> int:
    """Open the file, or make it. In two calls: Linux refuses one that may make it where the file is another user's."""
    for _ in range(_TRIES):
        try:
            fd = os.open(path, _FLAGS)
        except FileNotFoundError:
            with suppress(FileExistsError):
                fd = os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o666)
                os.fchmod(fd, 0o666)  # whatever the umask says: other users' supervisors lock it, too
                return fd
        else:
            found = os.fstat(fd)
            if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:
                return fd
            os.close(fd)
            raise OSError(errno.EPERM, "it is not a file of its own")
    raise OSError(errno.EAGAIN, "others remove it again and again")


def _is_at(path: Path, fd: int) -> bool:
    """Whether a file is still the one at this path: who held it before may have removed it."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(fd))
    except FileNotFoundError:
        return False


def _holder(fd: int) -> str:
    """Return who has the lock, by its own account; others may have written there."""
    told = os.pread(fd, _HOLDER_BYTES, 0).decode(errors="replace")
    pid, _, serves = re.sub(r"[^ -~]", "?", told).partition(" ")
    if not pid.isdecimal():
        return "another process, which holds a lock on"
    return f"pid {pid}" + (f" (`{serves}`)" if serves else "") + ", by its own account in"
