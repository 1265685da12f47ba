"""Copies of snapshots in other dtypes, which children make. A copy goes with the snapshot that it was made of.

A child writes `derived/<key of the snapshot>-<dtype>.building.<pid>`, holds a lock on that folder meanwhile, and
renames it when it is complete. It loads from a copy only while somebody holds the lease of the snapshot.
"""

import fcntl
import os
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from gen_worker.fetch.cache.layout import Layout

BUILDING = ".building."


class Copy(msgspec.Struct, frozen=True):
    """One copy: the key of the snapshot it was made of, empty when that is gone, and its files with their sizes."""

    name: str
    source: str
    files: Mapping[str, int]
    made: float

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(self.files.values())


def copies(layout: Layout, keys: Collection[str]) -> list[Copy]:
    """Return all copies; `keys` are those of the snapshots that are there."""
    found = []
    for folder in folders_in(layout.derived):
        if BUILDING not in folder.name:
            with suppress(FileNotFoundError):  # removed meanwhile
                files = {str(path): path.stat().st_size for path in files_in(folder)}
                source = next((key for key in keys if folder.name.startswith(f"{key}-")), "")
                found.append(Copy(folder.name, source, files, folder.stat().st_mtime))
    return found


def remove_copy(layout: Layout, copy: Copy) -> int:
    """Remove a copy and return the bytes that became free."""
    folder = layout.derived / copy.name
    grave = folder.with_name(f"{folder.name}{BUILDING}{os.getpid()}")  # swept, should this process die here
    try:
        folder.rename(grave)
    except FileNotFoundError:
        return 0
    shutil.rmtree(grave)
    return copy.size


def is_flocked(folder: Path) -> bool:
    """Whether somebody holds a lock on a folder itself; where a file system knows no such locks, nobody does."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # as on NFS, which locks no folders
        return False
    finally:
        os.close(descriptor)
    return False


def folders_in(folder: Path) -> list[Path]:
    """Return the folders in a folder; none when there is no such folder."""
    try:
        return [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def files_in(folder: Path) -> list[Path]:
    """Return the files anywhere below a folder."""
    return [Path(where, name) for where, _folders, names in os.walk(folder) for name in names]
