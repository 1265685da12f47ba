"""Read files again and compare them with what they must be."""

import os
from collections.abc import Callable
from pathlib import Path

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.network.digests import digest_of
from gen_worker.models.manifest import Algorithm, ManifestFile

_CHUNK = 4 << 20  # above 1 MiB blake3 runs at its full speed


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
    if file.parts:
        return _problem_of_parts(path, file, on_bytes, cancel)
    found = digest(path, file.algorithm, on_bytes, cancel)
    return f"its {file.algorithm} is {found} instead of {file.digest}" if found and found != file.digest else None


def _problem_of_parts(
    path: Path, file: ManifestFile, on_bytes: Callable[[int], None], cancel: Cancel | None
) -> str | None:
    buffer = memoryview(bytearray(_CHUNK))
    with open(path, "rb", buffering=0) as source:
        for number, part in enumerate(file.parts):
            left = part.size or 0
            made = digest_of(part.algorithm, left)
            while left and (length := source.readinto(buffer[:left])):
                made.update(buffer[:length])
                left -= length
                on_bytes(length)
                if cancel is not None:
                    cancel.raise_if_set()
            if made.hexdigest() != part.digest:
                return f"the {part.algorithm} of its part {number} is {made.hexdigest()} instead of {part.digest}"
    return None


def digest(
    path: Path,
    algorithm: Algorithm,
    on_bytes: Callable[[int], None] = lambda _bytes: None,
    cancel: Cancel | None = None,
) -> str:
    """Return the digest of a file in hexadecimal, empty where there is no algorithm; may raise `ModelError`."""
    buffer = memoryview(bytearray(_CHUNK))
    with open(path, "rb", buffering=0) as source:
        size = os.fstat(source.fileno()).st_size
        if not algorithm:
            on_bytes(size)
            return ""
        made = digest_of(algorithm, size)
        while length := source.readinto(buffer):
            made.update(buffer[:length])
            on_bytes(length)
            if cancel is not None:
                cancel.raise_if_set()
    return made.hexdigest()
