"""Remove what nobody will finish. Called with the ledger locked."""

import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from gen_worker.fetch.cache import locks
from gen_worker.fetch.cache.copies import BUILDING, files_in, folders_in, is_flocked
from gen_worker.fetch.cache.disk import written_bytes
from gen_worker.fetch.cache.layout import Layout, Record
from gen_worker.fetch.cache.linking import is_shared, remove_blob

_BUILDS_S = 3600.0  # nothing is written to a folder for so long and then goes on


def sweep(layout: Layout, older_s: float, claimed: Collection[Record]) -> int:
    """Remove parts of blobs, blobs without a snapshot and folders that were never finished, all older than so long."""
    before = time.time() - older_s
    for draft in layout.cas.glob("**/.draft-*"):
        if _is_older(draft, before):
            draft.unlink(missing_ok=True)
    freed = sum(_remove_folder(folder) for folder in _unfinished(layout, time.time() - min(older_s, _BUILDS_S)))
    freed += sum(_remove_part(layout, part, before) for part in _parts(layout))
    spared = {layout.blob(record, file) for record in claimed for file in record.files}
    return freed + sum(  # last, as what went may have linked to them
        remove_blob(layout, blob) for blob in _blobs(layout) if blob not in spared and _is_older(blob, before)
    )


def sweepable(layout: Layout, older_s: float, claimed: Collection[Record]) -> int:
    """Return the bytes that `sweep` would free now, at most."""
    before = time.time() - older_s
    freed = sum(_own_bytes(folder) for folder in _unfinished(layout, time.time() - min(older_s, _BUILDS_S)))
    parts = (part for part in _parts(layout) if _is_older(part, before) and not locks.is_held(_lock_of(layout, part)))
    freed += sum(written_bytes(part) for part in parts)
    spared = {layout.blob(record, file) for record in claimed for file in record.files}
    unclaimed = (blob for blob in _blobs(layout) if blob not in spared and _is_older(blob, before))
    return freed + sum(blob.stat().st_size for blob in unclaimed if not is_shared(layout, blob))


def _parts(layout: Layout) -> Iterator[Path]:
    for folder in (layout.cas / "blobs", *(each / "blobs" for each in layout.hub.glob("models--*"))):
        yield from (path for path in files_in(folder) if path.name.endswith((".part", ".part.map", ".incomplete")))


def _remove_part(layout: Layout, part: Path, before: float) -> int:
    if not _is_older(part, before):
        return 0
    lock_file = _lock_of(layout, part)
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


def _lock_of(layout: Layout, part: Path) -> Path:
    return layout.blob_lock(part.with_name(part.name.partition(".")[0]))


def _blobs(layout: Layout) -> Iterator[Path]:
    yield from (path for path in files_in(layout.cas / "blobs") if "." not in path.name)
    if layout.hub.is_relative_to(layout.root):  # else others keep theirs there
        for repository in layout.hub.glob("models--*"):
            yield from (path for path in files_in(repository / "blobs") if "." not in path.name)


def _unfinished(layout: Layout, before: float) -> Iterator[Path]:
    """Yield the folders that were being built or removed by a process that is no more."""
    folders = [
        *(each for each in folders_in(layout.derived) if BUILDING in each.name),
        *layout.cas.glob("snapshots/*.building"),
        *layout.cas.glob("civitai/*.building"),
        *layout.cas.glob("modelscope/*/*/*.building"),
        *layout.hub.glob("models--*/building"),
    ]
    for folder in folders:
        pid = folder.name.rpartition(".")[2]
        alive = pid.isdigit() and Path(f"/proc/{pid}").exists()
        if (
            not alive
            and not is_flocked(folder)
            and all(_is_older(path, before) for path in (folder, *files_in(folder)))
        ):
            yield folder


def _remove_folder(folder: Path) -> int:
    freed = _own_bytes(folder)
    shutil.rmtree(folder)
    return freed


def _own_bytes(folder: Path) -> int:
    found = [path.stat(follow_symlinks=False) for path in files_in(folder)]
    return sum(each.st_size for each in found if each.st_nlink == 1)


def _is_older(path: Path, before: float) -> bool:
    try:
        status = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return max(status.st_mtime, status.st_ctime) < before
