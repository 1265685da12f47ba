"""Bring weights into the page cache ahead of the loader that maps them, and count them meanwhile.

A loader that maps its files reads them page by page and tells nobody how far it is. Reading ahead in large pieces, from
several threads, is at least as fast as the disk allows, and says so.
"""

import fcntl
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

PIECE_BYTES = 8 << 20
THREADS = 2  # one waits for the disk while the other copies; more bring nothing on the disks measured
_NOWAIT = getattr(os, "RWF_NOWAIT", 0)  # Linux: read only what is in memory already
_GET_SEALS = 1034  # F_GET_SEALS of fcntl(2): only files that live in memory answer it


class ReadAhead:
    """Reads files in the background, in their order; leaving the block waits for the end, or stops it on an error."""

    def __init__(self, files: Sequence[Path], on_bytes: Callable[[int, int], None]) -> None:
        """`on_bytes(done, total)` is called from any thread, one call at a time."""
        self.total = sum(file.stat().st_size for file in files)
        self._pieces = iter([(file, at) for file in files for at in range(0, file.stat().st_size, PIECE_BYTES)])
        self._on_bytes = on_bytes
        self._done = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, name="gen-worker-ahead", daemon=True) for _ in range(THREADS)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        buffer = memoryview(bytearray(PIECE_BYTES))
        while not self._stop.is_set():
            with self._lock:
                piece = next(self._pieces, None)
            if piece is None:
                return
            try:
                length = _read(*piece, buffer)
            except OSError:
                return  # the loader meets the same error and tells it with the model's name
            with self._lock:
                self._done += length
                self._on_bytes(self._done, self.total)


def _read(file: Path, at: int, buffer: memoryview) -> int:
    """Have a piece of a file in memory; return its length. One that is there already is not copied."""
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        length = min(PIECE_BYTES, os.fstat(fd).st_size - at)
        if _in_memory(fd) or all(_cached(fd, place) for place in (at, at + length // 2, at + length - 1)):
            return length
        done = 0
        while done < length and (got := os.preadv(fd, [buffer[: length - done]], at + done)):
            done += got
        return length
    finally:
        os.close(fd)


def _in_memory(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, _GET_SEALS)
    except OSError:
        return False
    return True


def _cached(fd: int, at: int) -> bool:
    if not _NOWAIT:
        return False
    try:
        return os.preadv(fd, [bytearray(1)], at, _NOWAIT) == 1
    except OSError:  # it is not there, or this file system cannot tell
        return False
