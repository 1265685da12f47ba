"""Make the folder of a snapshot from its blobs, and take it away again. Called with the ledger locked."""

import errno
import os
import shutil
from collections.abc import Collection, Iterable
from contextlib import nullcontext, suppress
from pathlib import Path
from stat import S_ISREG

import msgspec

from gen_worker.fetch.cache import locks
from gen_worker.fetch.cache.layout import Layout, Record
from gen_worker.fetch.cache.ledger import UNREADABLE, flush_folder, replace
from gen_worker.fetch.cancel import Cancel
from gen_worker.models.manifest import ManifestFile
from gen_worker.models.wanted import Wanted

_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


# --- made -------------------------------------------------------------------------------------------------------------


def link_all(layout: Layout, record: Record, cancel: Cancel | None = None) -> None:
    """Have the folder of a snapshot hold all files of a record, beside what else it holds.

    A folder that is new appears whole.
    """
    with locks.locked(layout.linking(record), cancel=cancel) if record.provider == "hf" else nullcontext():
        folder = layout.snapshot(record)
        if not folder.exists() and _built(layout, record):
            return
        _link_into(folder, layout, record)


def _built(layout: Layout, record: Record) -> bool:
    """Build the folder beside its place and move it there; False when somebody else made one meanwhile."""
    building, folder = layout.building(record), layout.snapshot(record)
    if building.exists():  # of one that died: the lock is ours
        shutil.rmtree(building)
    _link_into(building, layout, record)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(building, folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        shutil.rmtree(building)
        return False
    flush_folder(folder.parent)
    return True


def _link_into(folder: Path, layout: Layout, record: Record) -> None:
    folders = {folder}
    for file in record.files:
        link = folder / file.path
        _link(layout.blob(record, file), link, layout.draft(record), symbolic=record.provider == "hf")
        folders.update(each for each in link.parents if each.is_relative_to(folder))
    for each in sorted(folders, reverse=True):
        flush_folder(each)


def _link(blob: Path, link: Path, draft: Path, *, symbolic: bool) -> None:
    if link.exists() and link.samefile(blob):
        return
    for folder in (link.parent, draft.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        draft.unlink()
    target = os.path.relpath(blob, link.parent)
    if symbolic:
        os.symlink(target, draft)
    else:
        link_or_copy(blob, target, draft)
    os.replace(draft, link)


def link_or_copy(blob: Path, target: str, draft: Path) -> None:
    """Make a hard link, else a symbolic one, else a copy: what the file system can."""
    try:
        os.link(blob, draft)
        return
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    try:
        os.symlink(target, draft)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(blob, draft)
        draft.chmod(0o444)


def write_hub_notes(layout: Layout, wanted: Wanted, record: Record, listing: Iterable[ManifestFile]) -> None:
    """Tell Hugging Face's libraries what they look for without a network: the listing of a commit, and its ref."""
    repository, draft = layout.repository(record.repo), layout.draft(record)
    tag = layout.hub / "CACHEDIR.TAG"
    if not tag.exists():
        replace(tag, b"Signature: 8a477f597d28d172789f06886806bc55\n")
    if files := {file.path: _noted(file) for file in sorted(listing, key=lambda file: file.path)}:
        document = {"format_version": 1, "files": files}
        replace(repository / "trees" / f"{record.commit}.json", msgspec.json.encode(document), draft)
    ref = layout.ref(wanted)
    if ref is not None:
        replace(ref, record.commit.encode(), draft)
    with suppress(OSError):  # another process's folder is in it
        draft.parent.rmdir()


def _noted(file: ManifestFile) -> dict[str, object]:
    if file.algorithm == "sha256":
        return {"size": file.size, "blob_id": file.etag, "lfs_sha256": file.digest, "lfs_size": file.size}
    return {"size": file.size, "blob_id": file.digest or file.etag}


def hub_listing(layout: Layout, record: Record) -> tuple[ManifestFile, ...]:
    """Return the listing of a commit that Hugging Face's libraries, or we, have noted; empty without one."""
    if record.provider != "hf":
        return ()
    try:
        noted = (layout.repository(record.repo) / "trees" / f"{record.commit}.json").read_bytes()
        files = msgspec.json.decode(noted, type=_Listing).files
    except (FileNotFoundError, *UNREADABLE):
        return ()
    return tuple(
        ManifestFile(path, file.size, "sha256", file.lfs_sha256, etag=file.lfs_sha256)
        if file.lfs_sha256
        else ManifestFile(path, file.size, "git-sha1", file.blob_id, etag=file.blob_id)
        for path, file in files.items()
    )


class _Noted(msgspec.Struct):
    size: int
    blob_id: str
    lfs_sha256: str | None = None


class _Listing(msgspec.Struct):
    files: dict[str, _Noted]


# --- taken away -------------------------------------------------------------------------------------------------------


def unlink_all(layout: Layout, record: Record, others: Collection[Record]) -> int:
    """Remove a snapshot and the blobs that nothing else links to, and return the bytes that became free.

    `others` are the snapshots that stay, and those that are about to be made.
    """
    folder = layout.snapshot(record)
    stay = {file.path for other in others if layout.snapshot(other) == folder for file in other.files}
    gone = [file for file in record.files if file.path not in stay]
    freed = unlink_files(layout, record, {file.path for file in gone})
    needed = {layout.blob(other, file) for other in others for file in other.files}
    freed += sum(remove_blob(layout, blob) for blob in {layout.blob(record, file) for file in gone} - needed)
    if record.provider == "hf":
        _remove_repository(layout.repository(record.repo))
    return freed


def unlink_files(layout: Layout, record: Record, paths: Collection[str]) -> int:
    """Remove files from the folder of a snapshot, and what is empty without them; their blobs stay.

    Returns the bytes that became free: those of files that are no links.
    """
    folder, freed = layout.snapshot(record), 0
    for path in paths:
        with suppress(FileNotFoundError):
            status = (folder / path).stat(follow_symlinks=False)
            (folder / path).unlink()
            freed += status.st_size if S_ISREG(status.st_mode) and status.st_nlink == 1 else 0
        _remove_empty(folder / path, above=folder)
    if record.provider == "hf" and not _has_files(folder):
        _forget_commit(layout.repository(record.repo), record.commit)
    _remove_empty(folder / "-", above=layout.hub if record.provider == "hf" else layout.cas)
    return freed


def remove_blob(layout: Layout, blob: Path) -> int:
    """Remove a blob that no snapshot links to and nobody is writing, and return the bytes that became free."""
    lock_file = layout.blob_lock(blob)
    lock = locks.attempt(lock_file)
    if lock is None:
        return 0
    gone = False
    try:
        status = blob.stat(follow_symlinks=False)
        if is_shared(layout, blob):
            return 0
        blob.unlink()
        gone = True
    except FileNotFoundError:
        gone = True
        return 0
    finally:
        locks.discard(lock_file, lock) if gone else os.close(lock)
    _remove_empty(blob, above=layout.cas / "blobs")
    return status.st_size


def is_shared(layout: Layout, blob: Path) -> bool:
    """Whether a snapshot links to a blob."""
    if blob.is_relative_to(layout.hub):
        return _is_linked(blob)
    return blob.stat(follow_symlinks=False).st_nlink > 1


def _is_linked(blob: Path) -> bool:
    """Whether a snapshot of a repository in Hugging Face's layout links to a blob of it."""
    snapshots = blob.parent.parent / "snapshots"
    for folder, _folders, names in os.walk(snapshots):
        for name in names:
            link = os.path.join(folder, name)
            if os.path.islink(link) and os.path.basename(os.readlink(link)) == blob.name:
                return True
    return False


def _has_files(folder: Path) -> bool:
    return any(names for _folder, _folders, names in os.walk(folder))


def _forget_commit(repository: Path, commit: str) -> None:
    """Remove the refs that mean a commit, and its listing."""
    for folder, _folders, names in os.walk(repository / "refs"):
        for name in names:
            ref = Path(folder, name)
            if ref.read_bytes().strip() == commit.encode():
                ref.unlink()
                _remove_empty(ref, above=repository)
    with suppress(FileNotFoundError):
        (repository / "trees" / f"{commit}.json").unlink()


def _remove_repository(repository: Path) -> None:
    """Remove the folders of a repository when there is nothing in them."""
    if _has_files(repository) or (repository / "snapshots").exists():
        return
    with suppress(FileNotFoundError):
        shutil.rmtree(repository)


def _remove_empty(path: Path, *, above: Path) -> None:
    """Remove the folders that a path was in, as far as they are empty; `above` stays."""
    for folder in path.parents:
        if folder == above or not folder.is_relative_to(above):
            return
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError:  # something is in it
            return
