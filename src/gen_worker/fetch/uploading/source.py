"""The bytes that are stored: read where they are, never mapped, for they belong to somebody who may change them."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator

import msgspec

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.uploading.failure import UploadError

_PIECE_BYTES = 256 << 10  # few enough that progress moves on a slow line, enough that a fast one does not wait
_HASHED_BYTES = 1 << 20  # blake3 is at its best from here on


class Digests(msgspec.Struct, frozen=True):
    """What names the content."""

    blake3: str
    sha256: str


class Source:
    """The first `length` bytes of a descriptor. Any thread may read them."""

    def __init__(self, fd: int, length: int, ref: str) -> None:
        self.length = length
        self._fd = fd
        self._ref = ref
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise UploadError("transfer", f"`{ref}` is not a plain file")
        self._size = found.st_size
        if self._size < length:
            raise self._changed(f"it has {self._size} bytes, not {length}")

    def head(self, count: int) -> bytes:
        """Return the first bytes, as many as there are."""
        view = memoryview(bytearray(min(count, self.length)))
        return bytes(view[: self._read(view, 0)])

    def digests(self, cancel: Cancel) -> Digests:
        """Read everything once and return its digests."""
        from blake3 import blake3

        sha256, blake = hashlib.sha256(), blake3()
        for piece in self._pieces(0, self.length, _HASHED_BYTES):
            cancel.raise_if_set()
            sha256.update(piece)
            blake.update(piece)
        self.check()
        return Digests(blake.hexdigest(), sha256.hexdigest())

    def part(self, start: int, stop: int, on_bytes: Callable[[int], None]) -> "Part":
        """Return some of the bytes as a body; `on_bytes` is told how many are on their way."""
        return Part(self, start, stop, on_bytes)

    def check(self) -> None:
        """Raise `UploadError` when the file is no longer as long as it was."""
        size = os.fstat(self._fd).st_size
        if size != self._size:
            raise self._changed(f"it had {self._size} bytes and has {size}")

    def _pieces(self, start: int, stop: int, step: int) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(min(step, stop - start)))
        while start < stop:
            count = self._read(buffer[: stop - start], start)
            if not count:
                raise self._changed(f"it ends after {start} bytes")
            yield buffer[:count]
            start += count

    def _read(self, view: memoryview, at: int) -> int:
        try:
            return os.preadv(self._fd, [view], at)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UploadError("transfer", f"`{self._ref}` cannot be read: {reason}") from error

    def _changed(self, how: str) -> UploadError:
        return UploadError("transfer", f"`{self._ref}` changed while it was stored: {how}")


class Part:
    """Some bytes of a source, which one request sends."""

    def __init__(self, source: Source, start: int, stop: int, on_bytes: Callable[[int], None]) -> None:
        self._source = source
        self._start = start
        self._stop = stop
        self._on_bytes = on_bytes
        self._told = 0

    @property
    def length(self) -> int:
        """How many bytes it has."""
        return self._stop - self._start

    def pieces(self) -> Iterator[memoryview]:
        """Yield them, and tell when each was taken."""
        for piece in self._source._pieces(self._start, self._stop, _PIECE_BYTES):
            yield piece
            self._told += len(piece)
            self._on_bytes(len(piece))
        self._source.check()

    def take_back(self) -> None:
        """What was sent of it does not count."""
        told, self._told = self._told, 0
        if told:
            self._on_bytes(-told)

    def sha256(self) -> str:
        """Return the digest of these bytes."""
        digest = hashlib.sha256()
        for piece in self._source._pieces(self._start, self._stop, _HASHED_BYTES):
            digest.update(piece)
        return digest.hexdigest()


class Text:
    """A short body."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    @property
    def length(self) -> int:
        """How many bytes it has."""
        return len(self.content)

    def pieces(self) -> Iterator[bytes]:
        """Yield them."""
        yield self.content
