"""Put a file together from its parts, one after the other, so that the disk never holds it twice.

The caller holds the lock of the file's blob. What is there of it lies in `<name>.part`, the part that is on its way in
`<name>.<number>.part`.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gen_worker.fetch.cache.ledger import flush_folder
from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.network.digests import digest_of
from gen_worker.models.manifest import ManifestFile

_CHUNK_BYTES = 4 << 20


def put_together(
    file: ManifestFile,
    to: Path,
    bring: Callable[[ManifestFile, Path], int],
    *,
    on_bytes: Callable[[int], None],
    cancel: Cancel,
) -> int:
    """Have a file that comes in parts be at `to`, whole; return how many bytes came over the network for it.

    `bring` has one part be at a path, verified. `on_bytes` is told of bytes that are there already.
    """
    draft = to.with_name(f"{to.name}.part")
    received = 0
    fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with open(fd, "r+b", buffering=0) as whole:
        there, end = _there(file, whole.fileno(), cancel)
        os.ftruncate(whole.fileno(), end)
        on_bytes(end)
        for number in range(there, len(file.parts)):
            part = file.parts[number]
            piece = to.with_name(f"{to.name}.{number}.part")
            received += bring(part, piece)
            end = _append(piece, whole.fileno(), end)
            piece.unlink()
    os.replace(draft, to)
    flush_folder(to.parent)
    return received


def _there(file: ManifestFile, fd: int, cancel: Cancel) -> tuple[int, int]:
    """Return how many parts a draft has whole, and where the last of them ends: read again, as it may be of a crash."""
    size, end = os.fstat(fd).st_size, 0
    for number, part in enumerate(file.parts):
        after = end + (part.size or 0)
        if after > size or _digest(part, fd, end, after, cancel) != part.digest:
            return number, end
        end = after
    return len(file.parts), end


def _digest(part: ManifestFile, fd: int, start: int, end: int, cancel: Cancel) -> str:
    made = digest_of(part.algorithm, end - start)
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    while start < end and (count := os.preadv(fd, [buffer[: end - start]], start)):
        cancel.raise_if_set()
        made.update(buffer[:count])
        start += count
    return made.hexdigest()


def _append(piece: Path, fd: int, end: int) -> int:
    """Add a part to a draft, on the disk before this returns; return where it ends."""
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with open(piece, "rb", buffering=0) as source:
        while count := source.readinto(buffer):
            left = buffer[:count]
            while left:
                written = os.pwrite(fd, left, end)
                left, end = left[written:], end + written
    os.fsync(fd)
    return end


def last_change(blob: Path) -> float:
    """Return when something came for a blob that is on its way; 0 where nothing is."""
    found = 0.0
    for path in blob.parent.glob(f"{blob.name}.*part"):
        with suppress(FileNotFoundError):
            found = max(found, path.stat().st_mtime)
    return found
