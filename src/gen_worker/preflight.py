"""What can be checked of a host before a worker starts on it: that models can be kept, and how much room there is."""

import errno
import os
import shutil
from pathlib import Path
from tempfile import NamedTemporaryFile

import msgspec

IN_MEMORY = ("tmpfs", "ramfs")
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)


class CacheError(Exception):
    """Models cannot be kept where they are to be; `hint` says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class CacheLook(msgspec.Struct, frozen=True):
    """What there is to know of the folder of models."""

    path: str
    writable: bool
    free_bytes: int
    total_bytes: int
    filesystem: str
    """As the kernel calls it; empty where it does not say."""

    @property
    def in_memory(self) -> bool:
        """Whether what is kept there takes the host's memory and is gone with it."""
        return self.filesystem in IN_MEMORY


def look_at_cache(root: Path, *, mounts: Path = Path("/proc/self/mountinfo")) -> CacheLook:
    """Make the folder of models, write to it, and return what there is; raise `CacheError` where it is of no use.

    One that may only be read is of use when it holds models.
    """
    writable = True
    try:
        _write(root / "cas")
    except OSError as error:
        if error.errno not in _REFUSED or not _holds_models(root):
            raise _unusable(root, error) from None
        writable = False
    usage = shutil.disk_usage(root)
    table = mounts.read_text(errors="surrogateescape") if mounts.exists() else ""
    return CacheLook(str(root), writable, usage.free, usage.total, filesystem_of(root.resolve(), table))


def _write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(prefix=".probe-", dir=folder) as file:
        file.write(b"written by the start of a worker")
        file.flush()
        os.fsync(file.fileno())


def _holds_models(root: Path) -> bool:
    """Whether a snapshot is recorded in the cache."""
    records = root / "cas" / "manifests"
    try:
        return any(name.endswith(".json") for name in os.listdir(records))
    except OSError:  # there is none, or it may not be read either
        return False


def _unusable(root: Path, error: OSError) -> CacheError:
    reason = (error.strerror or str(error)).lower()
    hint = "mount it writable, or set `TENSORHUB_CACHE_DIR` to a folder that is"
    if error.errno == errno.ENOSPC:
        hint = "make room on that disk, or set `TENSORHUB_CACHE_DIR` to a folder on another one"
    return CacheError(f"models cannot be kept in `{root}`: {reason}", hint)


def filesystem_of(path: Path, mountinfo: str) -> str:
    """Return the type of the file system that an absolute path is on, by the kernel's table of mounts. Pure."""
    best, kind = Path(), ""
    for line in mountinfo.splitlines():
        mounted, separator, mount = line.partition(" - ")
        fields = mounted.split(" ")
        if not separator or len(fields) < 5:
            continue
        place = Path(fields[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\"))
        if path.is_relative_to(place) and len(place.parts) >= len(best.parts):  # a later mount covers an earlier one
            best, kind = place, mount.split(" ")[0]
    return kind
