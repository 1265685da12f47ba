"""Files that are there whole or not at all, whatever dies when, and that tell when a byte of them is another.

A file is written under another name, synced, renamed, and its folder synced: rename(2) replaces in one go.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypedDict

_BLOCK = 1 << 20


class Digest(TypedDict):
    """What a file must be."""

    sha256: str
    size_bytes: int


def write_file(path: Path, content: bytes) -> Path:
    """Write a file; it is complete and on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    sync_folder(path.parent)
    return path


def publish(part: Path, path: Path) -> Path:
    """Sync a file and give it its name, in the place of what has it; who may read its folder may read it.

    Some writers, as that of safetensors, make files that nobody else may read.
    """
    part.chmod(0o600 | path.parent.stat().st_mode & 0o444)
    _sync(part)
    part.replace(path)
    sync_folder(path.parent)
    return path


def sync_all(folder: Path) -> None:
    """Have everything in a folder, and the folder, outlive the machine."""
    for each in (folder, *folder.rglob("*"), folder.parent):
        _sync(each)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder outlive the machine."""
    _sync(folder)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def digest_of(path: Path) -> Digest:
    """Return what a file is; raise `OSError`."""
    found = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
            size += len(block)
    return {"sha256": found.hexdigest(), "size_bytes": size}


def digests_in(folder: Path) -> dict[str, Digest]:
    """Return what every file in a folder is, by its path there."""
    return {str(file.relative_to(folder)): digest_of(file) for file in _files(folder)}


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def damage(folder: Path, files: Mapping[str, Digest]) -> str | None:
    """Return what is wrong with the files of a folder, None where all are as they were."""
    for name, known in files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != known["size_bytes"]:
                return f"`{name}` has {size} bytes, not {known['size_bytes']}"
            if digest_of(path)["sha256"] != known["sha256"]:
                return f"`{name}` is damaged: its sha256 is another"
        except OSError as error:
            return f"`{name}` cannot be read: {(error.strerror or str(error)).lower()}"
    return None
