"""A checkpoint as one file: a tar archive of all that belongs to it, for places that take a file at a time."""

import json
import shutil
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gen_worker.trainer.checkpoints import CheckpointError
from gen_worker.trainer.room import bytes_in, lacks_room, no_room


@contextmanager
def as_one_file(path: Path) -> Iterator[Path]:
    """Yield a file that has all of a checkpoint: itself where it is whole by itself, else an archive for the block.

    `path` is a step file, a file that a plugin wrote, or a folder. Equal checkpoints make equal archives. Raises
    `NoRoomError` where the disk has no room for one.
    """
    members = _members(path)
    if members == [path]:
        yield path
        return
    folder = path.parent / f".archive-{threading.current_thread().name}"  # what a death has left goes with the next
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        archive = folder / f"{path.stem}.tar"
        _write(archive, members, path if path.is_dir() else path.parent)
        yield archive
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(archive: Path, members: list[Path], root: Path) -> None:
    try:
        with tarfile.open(archive, "w") as file:
            for each in members:
                file.add(each, str(each.relative_to(root)), False, filter=_plain)
    except OSError as error:
        if lacks_room(error, archive.parent):
            archive.unlink(missing_ok=True)
            raise no_room(archive, bytes_in(members)) from None
        raise


def unpacked(archive: Path, folder: Path) -> Path:
    """Put what an archive has into a folder of its own, and return that; raise `CheckpointError`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")
    except (tarfile.TarError, OSError) as error:
        raise CheckpointError(f"`{archive}` cannot be unpacked: {error}") from error
    return folder


def is_archive(path: Path) -> bool:
    """Whether this is an archive; not every file is, and none that cannot be read."""
    try:
        return path.is_file() and tarfile.is_tarfile(path)
    except OSError:
        return False


def _members(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(each for each in path.rglob("*") if each.is_file())
    files = _files_of_step(path) if path.suffix == ".json" else []
    return [path, *(path.parent / name for name in files)]


def _files_of_step(path: Path) -> list[str]:
    """Return what else a step file says its checkpoint has; of another JSON file of a plugin's: nothing."""
    try:
        document = json.loads(path.read_bytes())
    except ValueError:
        return []
    files = document.get("files") if isinstance(document, dict) and "digest" in document else None
    return sorted(files) if isinstance(files, dict) else []


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mtime = member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
