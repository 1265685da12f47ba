"""Remove what nobody will finish, and the snapshots in other dtypes that children leave. Called with the ledger locked.

A child writes `derived/<key>.building.<pid>` and renames it to `derived/<key>` when it is complete; it touches that
folder whenever it loads from it. Where it holds a shared flock on the folder, too, the folder is not evicted.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from gen_worker.fetch import locks
from gen_worker.fetch.eviction import Entry
from gen_worker.fetch.layout import Layout, Record
from gen_worker.fetch.linking import remove_blob

DERIVED = "derived/"
"""What the keys of snapshots in other dtypes begin with."""

_BUILDS_S = 3600.0  # nothing is written to a folder for so long and then goes on


def derived_entries(layout: Layout) -> list[Entry]:
    """Return the snapshots in other dtypes; each can be made again from its source."""
    found = []
    for folder in _folders(layout.derived):
        if ".building." not in folder.name:
            with suppress(FileNotFoundError):  # renamed or removed meanwhile
                blobs = {str(path): path.stat().st_size for path in _files(folder)}
                key = f"{DERIVED}{folder.name}"
                found.append(Entry(key, (key,), blobs, folder.stat().st_mtime, _is_flocked(folder)))
    return found


def remove_derived(layout: Layout, key: str) -> int | None:
    """Remove a snapshot in another dtype and return the bytes that became free; None when it is in use."""
    folder = layout.derived / key.removeprefix(DERIVED)
    if not folder.is_dir():
        return 0
    if _is_flocked(folder):
        return None
    freed = sum(path.stat().st_size for path in _files(folder))
    grave = folder.with_name(f"{folder.name}.building.{os.getpid()}")  # swept, should this process die here
    folder.rename(grave)
    shutil.rmtree(grave)
    return freed


def sweep(layout: Layout, older_s: float, claimed: Collection[Record]) -> int:
    """Remove parts of blobs, blobs without a snapshot and folders that were never finished, all older than so long."""
    before = time.time() - older_s
    spared = {layout.blob(record, file) for record in claimed for file in record.files}
    freed = sum(_remove_part(layout, part, before) for part in _parts(layout))
    freed += sum(remove_blob(layout, blob) for blob in _blobs(layout) if blob not in spared and _is_older(blob, before))
    for draft in layout.cas.glob("**/.draft-*"):
        if _is_older(draft, before):
            draft.unlink(missing_ok=True)
    unfinished = _unfinished(layout, time.time() - min(older_s, _BUILDS_S))
    return freed + sum(_remove_folder(folder) for folder in unfinished)


def _parts(layout: Layout) -> Iterator[Path]:
    for folder in (layout.cas / "blobs", *(each / "blobs" for each in layout.hub.glob("models--*"))):
        yield from (path for path in _files(folder) if path.name.endswith((".part", ".part.map", ".incomplete")))


def _remove_part(layout: Layout, part: Path, before: float) -> int:
    if not _is_older(part, before):
        return 0
    lock_file = layout.blob_lock(part.with_name(part.name.partition(".")[0]))
    lock = locks.attempt(lock_file)
    if lock is None:
        return 0  # somebody is at it
    try:
        size = part.stat().st_blocks * 512
        part.unlink()
    except FileNotFoundError:
        return 0
    finally:
        locks.discard(lock_file, lock)
    return size


def _blobs(layout: Layout) -> Iterator[Path]:
    yield from (path for path in _files(layout.cas / "blobs") if "." not in path.name)
    if layout.hub.is_relative_to(layout.root):  # else others keep theirs there
        for repository in layout.hub.glob("models--*"):
            yield from (path for path in _files(repository / "blobs") if "." not in path.name)


def _unfinished(layout: Layout, before: float) -> Iterator[Path]:
    """Yield the folders that were being built or removed by a process that is no more."""
    folders = [
        *(each for each in _folders(layout.derived) if ".building." in each.name),
        *layout.cas.glob("snapshots/*.building"),
        *layout.cas.glob("civitai/*.building"),
        *layout.cas.glob("modelscope/*/*/*.building"),
        *layout.hub.glob("models--*/building"),
    ]
    for folder in folders:
        pid = folder.name.rpartition(".")[2]
        alive = pid.isdigit() and Path(f"/proc/{pid}").exists()
        if not alive and not _is_flocked(folder) and all(_is_older(path, before) for path in (folder, *_files(folder))):
            yield folder


def _remove_folder(folder: Path) -> int:
    freed = sum(path.stat().st_size for path in _files(folder) if path.stat().st_nlink == 1)
    shutil.rmtree(folder)
    return freed


def _is_older(path: Path, before: float) -> bool:
    try:
        status = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return max(status.st_mtime, status.st_ctime) < before


def _is_flocked(folder: Path) -> bool:
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


def _folders(folder: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def _files(folder: Path) -> list[Path]:
    return [Path(where, name) for where, _folders, names in os.walk(folder) for name in names]
