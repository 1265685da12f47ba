"""Copies a snapshot's files into sealed memory, so that a model can be loaded again without its disk.

What is held is a memfd for each file: it has no name in any file system, lasts as long as a descriptor of it is open,
and can be neither written nor resized by anybody. Reads the disk, never the network.
"""

import errno
import fcntl
import os
from collections.abc import Callable, Iterable

from gen_worker.fetch.cancel import Cancel
from gen_worker.models.errors import ModelError
from gen_worker.models.snapshot import Snapshot, SnapshotEntry

FILES_LIMIT = 200  # each takes a descriptor for as long as it is held, and a process has about a thousand
_PIECE = 8 << 20  # the slowest disks give this in a tenth of a second, which is how soon a cancel is noticed
_AHEAD = 4 * _PIECE  # asked of the disk before it is needed: 2.6 GB/s of 2.7, against 1.6 with the kernel's own guess
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
_MFD_NOEXEC_SEAL = 0x8  # Linux 6.3 warns in its log about memfds made without saying whether they may be executed


def hold(snapshot: Snapshot, cancel: Cancel, on_bytes: Callable[[int], None]) -> list[tuple[str, int]]:
    """Copy the files of a snapshot into memory; return each path with the descriptor of its sealed memfd.

    Of a snapshot with more than `FILES_LIMIT` files the largest are copied. The descriptors are the caller's. Nothing
    is kept of what was read in the page cache. `on_bytes` is told how many bytes came in since the last time. Raises
    `ModelError`, also when `cancel` is set.
    """
    held: list[tuple[str, int]] = []
    try:
        for entry in largest(snapshot.files):
            held.append((entry.path, _held(snapshot, entry, cancel, on_bytes)))
    except BaseException:
        for _, descriptor in held:
            os.close(descriptor)
        raise
    return held


def largest(files: Iterable[SnapshotEntry]) -> list[SnapshotEntry]:
    """Return the files that are held of a snapshot, the largest first."""
    return sorted(files, key=lambda entry: (-entry.size, entry.path))[:FILES_LIMIT]


def _held(snapshot: Snapshot, entry: SnapshotEntry, cancel: Cancel, on_bytes: Callable[[int], None]) -> int:
    """Return the sealed copy of one file."""
    source = _opened(snapshot, entry)
    try:
        memory = _memfd(snapshot, entry)
        try:
            _copy(source, memory, entry.size, cancel, on_bytes)
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(memory)
            raise
    except OSError as error:
        raise _failed(snapshot, entry, error) from error
    except EOFError as error:
        raise _damaged(snapshot, entry, str(error)) from None
    finally:
        os.close(source)
    return memory


def _opened(snapshot: Snapshot, entry: SnapshotEntry) -> int:
    try:
        return os.open(snapshot.source(entry), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _damaged(snapshot, entry, (error.strerror or str(error)).lower()) from error


def _memfd(snapshot: Snapshot, entry: SnapshotEntry) -> int:
    name = f"gen-worker {snapshot.wanted.ref} {entry.path}"[:200].encode("ascii", "replace")
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(os.fsdecode(name), flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a kernel before 6.3
            raise
        return os.memfd_create(os.fsdecode(name), flags)


def _copy(source: int, memory: int, size: int, cancel: Cancel, on_bytes: Callable[[int], None]) -> None:
    """Copy `size` bytes, with the disk busy ahead and the page cache let go behind.

    Raises `EOFError` when the file has another size.
    """
    found = os.fstat(source).st_size
    if found != size:
        raise EOFError(f"it has {found} bytes, not {size}")
    os.posix_fadvise(source, 0, min(size, _AHEAD), os.POSIX_FADV_WILLNEED)
    done = 0
    while done < size:
        cancel.raise_if_set()
        os.posix_fadvise(source, done + _AHEAD, _PIECE, os.POSIX_FADV_WILLNEED)
        count = os.sendfile(memory, source, done, min(_PIECE, size - done))
        if not count:
            raise EOFError(f"it ends after {done} of {size} bytes")
        os.posix_fadvise(source, done, count, os.POSIX_FADV_DONTNEED)
        done += count
        on_bytes(count)


# --- errors -----------------------------------------------------------------------------------------------------------


def _failed(snapshot: Snapshot, entry: SnapshotEntry, error: OSError) -> ModelError:
    reason = (error.strerror or str(error)).lower()
    if error.errno == errno.EIO:
        return _damaged(snapshot, entry, reason)
    ref = snapshot.wanted.ref
    return ModelError(
        "load_failed",
        f"`{entry.path}` of `{ref}` cannot be held in memory: {reason}",
        "its jobs run all the same; GEN_WORKER_HOST_CACHE_BYTES says how much may be held",
        ref=ref,
        file=entry.path,
    )


def _damaged(snapshot: Snapshot, entry: SnapshotEntry, reason: str) -> ModelError:
    ref = snapshot.wanted.ref
    return ModelError(
        "load_failed",
        f"`{entry.path}` of `{ref}` cannot be read: {reason}",
        f"`gen-worker cache verify {ref}` finds what is damaged, and the next use fetches it again",
        ref=ref,
        file=entry.path,
    )
