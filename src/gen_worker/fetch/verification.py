"""Read files again and compare them with what they must be."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from gen_worker.fetch.cancel import Cancel
from gen_worker.models.manifest import Algorithm, ManifestFile

_CHUNK = 4 << 20  # above 1 MiB blake3 runs at its full speed


class _Hash(Protocol):
    def update(self, data: memoryview, /) -> object: ...

    def hexdigest(self) -> str: ...


def problem(
    path: Path,
    file: ManifestFile,
    on_bytes: Callable[[int], None] = lambda _bytes: None,
    cancel: Cancel | None = None,
) -> str | None:
    """Return why a file is not what the manifest says, or None when it is; a digest that nobody knows is not checked.

    `on_bytes` is told how many bytes were read since the last time.
    """
    try:
        size = os.stat(path).st_size
    except FileNotFoundError:
        return "it is gone"
    if file.size not in (None, size):
        return f"it has {size} bytes instead of {file.size}"
    if not file.algorithm:
        on_bytes(size)
        return None
    found = digest(path, file.algorithm, on_bytes, cancel)
    return None if found == file.digest else f"its {file.algorithm} is {found} instead of {file.digest}"


def digest(
    path: Path,
    algorithm: Algorithm,
    on_bytes: Callable[[int], None] = lambda _bytes: None,
    cancel: Cancel | None = None,
) -> str:
    """Return the digest of a file in hexadecimal; raise `ModelError` when canceled meanwhile."""
    buffer = memoryview(bytearray(_CHUNK))
    with open(path, "rb", buffering=0) as source:
        made = _hash(algorithm, os.fstat(source.fileno()).st_size)
        while length := source.readinto(buffer):
            made.update(buffer[:length])
            on_bytes(length)
            if cancel is not None:
                cancel.raise_if_set()
    return made.hexdigest()


def _hash(algorithm: Algorithm, size: int) -> _Hash:
    if algorithm == "blake3":
        from blake3 import blake3  # only who verifies needs it

        return blake3()
    import hashlib

    if algorithm == "git-sha1":
        return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    return hashlib.sha256()
