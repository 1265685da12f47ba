"""What the disk cache says when it cannot: each with its figures, and what to do about it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gen_worker.fetch.cache.disk import existing
from gen_worker.models.errors import ModelError

READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
FULL = (errno.ENOSPC, errno.EDQUOT)
_ROOM_HINT = "`gen-worker cache ls` shows what takes space; `TENSORHUB_CACHE_DIR` names another place for models"


@contextmanager
def writing(ref: str, root: Path, verb: str = "kept") -> Iterator[None]:
    """Turn what a disk refuses inside this block into a `ModelError`; `verb` is what is done to models in it."""
    try:
        yield
    except OSError as error:
        if error.errno in READ_ONLY:
            raise read_only(ref, root, verb) from error
        if error.errno in FULL:
            text = f"{_subject(ref)}: no space is left in `{root}`"
            raise ModelError("insufficient_disk", text, _ROOM_HINT, ref=ref) from error
        raise


def read_only(ref: str, root: Path, verb: str = "kept") -> ModelError:
    """Return why nothing can be kept in a cache, or removed from it."""
    text = f"{_subject(ref)} cannot be {verb}: the cache may only be read: `{root}`"
    instead = ", or name a cache that is with `TENSORHUB_CACHE_DIR` and this one in `GEN_WORKER_LOWER_CACHES`"
    return ModelError("read_only", text, f"mount it writable{instead if verb == 'kept' else ''}", ref=ref)


def disk_full(ref: str, needed: int, spare: int, place: Path, *, free: int, evictable: int) -> ModelError:
    """Return why a download cannot begin: the disk has not enough room, whatever is evicted."""
    return ModelError(
        "insufficient_disk",
        f"{_subject(ref)}: {_size(needed)} are to be written and {_size(spare)} left free, but `{existing(place)}` "
        f"has {_size(free)} free, and {_size(evictable)} could be evicted",
        _ROOM_HINT,
        ref=ref,
    )


def limit_reached(ref: str, needed: int, limit: int, *, in_use: int) -> ModelError:
    """Return why a download cannot begin: the cache may not hold so much."""
    return ModelError(
        "insufficient_disk",
        f"{_subject(ref)}: {_size(needed)} are to be written, but the cache may hold {_size(limit)}, of which "
        f"{_size(in_use)} are in use",
        "`GEN_WORKER_CACHE_BYTES` is what it may hold; `gen-worker cache ls` shows what it holds",
        ref=ref,
    )


def gone(ref: str, path: str) -> ModelError:
    """Return why a model cannot be published: bytes that were there are not."""
    text, hint = f"`{ref}`: the bytes of `{path}` were there and are gone", "try again: they are fetched anew"
    return ModelError("download_failed", text, hint, ref=ref, file=path)


def _subject(ref: str) -> str:
    return f"`{ref}`" if ref else "models"


def _size(bytes_: int) -> str:
    if 0 < abs(bytes_) < 1 << 20:
        return f"{max(1, abs(bytes_) >> 10)} KiB"
    return f"{bytes_ / (1 << 20):.0f} MiB" if abs(bytes_) < 10 << 30 else f"{bytes_ / (1 << 30):.1f} GiB"
