"""What a disk says of itself: what is there, what is free, whether it may be written, whether it is one."""

import os
from pathlib import Path
from stat import S_ISREG


def existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    return path if path.exists() else existing(path.parent)


def may_write(path: Path) -> bool:
    """Whether something could be made at a path."""
    return os.access(existing(path), os.W_OK)


def device_of(path: Path) -> int:
    """Return the number of the disk that a path is on, or would be."""
    return existing(path).stat().st_dev


def free_bytes(path: Path) -> int:
    """Return what is free on the disk of a path for those who are not root."""
    status = os.statvfs(existing(path))
    return status.f_bavail * status.f_frsize


def written_bytes(path: Path) -> int:
    """Return the bytes that a file takes on the disk, which of one with gaps is less than its length; 0 for none."""
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def has_file(path: Path, size: int | None) -> bool:
    """Whether there is a file of this size; of any size for None."""
    try:
        status = path.stat()
    except OSError:
        return False
    return S_ISREG(status.st_mode) and size in (None, status.st_size)


def on_memory(path: Path) -> bool:
    """Whether a folder lies in memory, as on a tmpfs, so that what is kept there takes memory and ends with it."""
    inside = os.path.realpath(existing(path))
    mounts = []
    for line in Path("/proc/self/mounts").read_text(errors="replace").splitlines():
        _source, point, kind, *_rest = line.split(" ")
        point = point.encode().decode("unicode_escape")  # a space is written as \040
        if point == "/" or inside == point or inside.startswith(f"{point}/"):
            mounts.append((len(point), kind))
    return max(mounts, default=(0, ""))[1] in ("tmpfs", "ramfs")
