"""Shared memory that carries big bodies between processes: sealed memfds and their mappings.

A region has no name in any file system, so nothing is left of it once its descriptors are closed. It never holds a
lock, and it never shrinks: a reader can only be shown other bytes, not be killed. This module does not know messages.
"""

import errno
import mmap
import os
import sys
from contextlib import suppress
from types import TracebackType

from gen_worker.wire.messages import REGION_LIMIT

SMALLEST = 64 * 1024
FINE_ABOVE = 16 << 20  # from here four classes to each doubling: a body of 32 MiB and a bit does not take 64 MiB
_FUTURE_WRITE = 0x10  # F_SEAL_FUTURE_WRITE, which `fcntl` does not name: later writes and writable mappings fail
_MFD_NOEXEC_SEAL = 0x8  # Linux 6.3 warns in its log about memfds made without saying whether they may be executed
_REFERENCES = 3  # to an unlent mapping: the attribute, `view`, the argument of `getrefcount`; each lent view adds one


class RegionError(Exception):
    """The region that a peer sent, or that we need, cannot be used: not sealed, too short, too long, or no memory."""


class _Region:
    """A mapping of the whole memfd, readable through `view`."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self.size = len(memory)
        self.view = memoryview(memory)

    def body(self, length: int) -> memoryview:
        """Return the first `length` bytes, not copied; raise `RegionError` when the region is shorter."""
        if not 0 <= length <= self.size:
            raise RegionError(f"a body of {length} bytes does not fit a region of {self.size} bytes")
        return memoryview(self._memory)[:length]

    def holds(self, pattern: bytes, length: int) -> bool:
        """Whether the pattern is somewhere in the first `length` bytes."""
        return self._memory.find(pattern, 0, length) >= 0

    @property
    def lent(self) -> bool:
        """Whether what `body()` returned, or a view made from that, is still alive somewhere."""
        return sys.getrefcount(self._memory) > _REFERENCES

    def close(self) -> None:
        """Unmap the memory now or, where a view of it is alive elsewhere, when that view goes."""
        self.view.release()
        with suppress(BufferError):
            self._memory.close()

    def __exit__(self, *raised: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


class OwnRegion(_Region):
    """A region this process made and may write to; `fd` goes to the reader with each message that names it."""

    def __init__(self, fd: int, memory: mmap.mmap) -> None:
        super().__init__(memory)
        self.fd = fd

    @classmethod
    def create(cls, size: int, *, shared_with_readers_only: bool) -> "OwnRegion":
        """Make a zeroed region of `size` bytes; with `shared_with_readers_only` nobody else can write to it.

        Raises `RegionError` when `size` is over `REGION_LIMIT` or the system has no memory or descriptor to give.
        """
        import fcntl

        if not 0 < size <= REGION_LIMIT:
            raise RegionError(f"a region has 1 to {REGION_LIMIT} bytes: {size}")
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        try:
            fd = _memfd()
        except OSError as error:
            raise RegionError(f"no region of {size} bytes: {error.strerror}") from error
        try:
            os.ftruncate(fd, size)
            memory = mmap.mmap(fd, size)  # before the seal, which forbids writable mappings
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals | (_FUTURE_WRITE if shared_with_readers_only else 0))
        except OSError as error:
            os.close(fd)
            raise RegionError(f"no region of {size} bytes: {error.strerror}") from error
        return cls(fd, memory)

    def close(self) -> None:
        """Close `fd`, and unmap the memory now or, where a view of it is alive elsewhere, when that view goes."""
        super().close()
        os.close(self.fd)

    def __enter__(self) -> "OwnRegion":
        return self


class Mapped(_Region):
    """A region that a peer made, mapped here whole."""

    def __enter__(self) -> "Mapped":
        return self


def open_region(fd: int, length: int, *, writable: bool) -> Mapped:
    """Map a region that a peer sent with a body of `length` bytes; `fd` is closed in any case.

    Raises `RegionError` when it could shrink under us, does not hold `length` bytes, or is over `REGION_LIMIT`.
    """
    try:
        size = _judged_size(fd, length)
        memory = mmap.mmap(fd, size, prot=mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0))
    except OSError as error:
        raise RegionError(f"the region cannot be mapped: {error.strerror}") from error
    finally:
        os.close(fd)
    return Mapped(memory)


def check_region(fd: int, length: int) -> None:
    """Raise `RegionError`, and close `fd`, when a peer's region could shrink or does not hold `length` bytes."""
    try:
        _judged_size(fd, length)
    except RegionError:
        os.close(fd)
        raise


def size_class(length: int) -> int:
    """Return the size of the region that a body of `length` bytes goes in, so that regions of few sizes serve all."""
    if length > REGION_LIMIT:
        raise RegionError(f"a body has at most {REGION_LIMIT} bytes: {length}")
    power = max(SMALLEST, 1 << max(length - 1, 0).bit_length())
    if power <= FINE_ABOVE:
        return power
    quarter = power // 8  # of the doubling that ends at `power`
    return -(-length // quarter) * quarter


def _memfd() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("gen-worker", flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a kernel before 6.3
            raise
        return os.memfd_create("gen-worker", flags)


def _judged_size(fd: int, length: int) -> int:
    import fcntl

    if not 0 <= length <= REGION_LIMIT:
        raise RegionError(f"a body has at most {REGION_LIMIT} bytes: {length}")
    needed = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise RegionError(f"not a memfd: {error.strerror}") from error
    if seals & needed != needed:
        raise RegionError("the memfd is not sealed against shrinking and growing")
    size = os.fstat(fd).st_size
    if not 0 < size <= REGION_LIMIT:
        raise RegionError(f"a region has 1 to {REGION_LIMIT} bytes: {size}")
    if size < length:
        raise RegionError(f"a body of {length} bytes does not fit a region of {size} bytes")
    return size
