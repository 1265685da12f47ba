"""The status page: 4 KiB of shared memory in which a child says what it does and from which anyone may read it.

One writer, any number of readers, no lock: a sequence number is odd while the page changes. It is read without asking
the child, so it works while the child hangs, and after its death.
"""

import mmap
import os
import struct
import threading
import time
from dataclasses import dataclass

PAGE_BYTES = 4096
_SEQUENCE = struct.Struct("<Q")
_BEAT = struct.Struct("<QdQQQ")  # count, monotonic seconds, resident bytes; device bytes: in use, held by the allocator
_JOB = struct.Struct("<Qd")  # the last job the job thread began, monotonic seconds
_PROGRESS = struct.Struct("<Qd32s")  # job, fraction, stage
_LOOP = struct.Struct("<dQ")  # monotonic seconds, the loop's thread as the kernel calls it
_BEAT_AT = 8
_JOB_AT = _BEAT_AT + _BEAT.size
_PROGRESS_AT = _JOB_AT + _JOB.size
_LOOP_AT = _PROGRESS_AT + _PROGRESS.size
_END = _LOOP_AT + _LOOP.size


@dataclass(frozen=True, slots=True)
class Reading:
    """What a child's status page said at one moment. Times are of the monotonic clock, which all processes share."""

    beats: int
    beat_at: float
    rss: int
    vram_used: int  # bytes of its device that its tensors take, by its own account; 0 where nothing measures it
    vram_held: int  # bytes that its allocator holds of the device, those included
    job: int
    job_since: float
    progress_job: int
    fraction: float
    stage: str
    loop_at: float = 0.0  # when the asyncio loop last turned for a beat, 0.0 where there is none
    loop_tid: int = 0


def create_page() -> int:
    """Return a memfd of one page that no holder can shrink or grow; the caller owns it."""
    import fcntl

    fd = os.memfd_create("gen-worker-status", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, PAGE_BYTES)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


class PageWriter:
    """The child's side. Its threads take turns; nothing of that turn lies in the shared memory."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, PAGE_BYTES)
        self._turn = threading.Lock()
        self._sequence = 0
        self._beats = 0

    def _write(self, layout: struct.Struct, at: int, *values: object) -> None:
        with self._turn:
            _SEQUENCE.pack_into(self._map, 0, self._sequence + 1)
            layout.pack_into(self._map, at, *values)
            self._sequence += 2
            _SEQUENCE.pack_into(self._map, 0, self._sequence)

    def beat(self, rss: int, vram_used: int = 0, vram_held: int = 0) -> None:
        """Record that the frame loop turns."""
        self._beats += 1
        self._write(_BEAT, _BEAT_AT, self._beats, time.monotonic(), rss, vram_used, vram_held)

    def job(self, number: int) -> None:
        """Record that the job thread begins a job."""
        self._write(_JOB, _JOB_AT, number, time.monotonic())

    def progress(self, number: int, fraction: float, stage: str) -> None:
        """Record how far a job is, 0 to 1, and what it is at."""
        self._write(_PROGRESS, _PROGRESS_AT, number, fraction, stage.encode("utf-8", "replace")[:32])

    def loop(self) -> None:
        """Record that the asyncio loop turns, in whose thread this is called."""
        self._write(_LOOP, _LOOP_AT, time.monotonic(), threading.get_native_id())


class PageReader:
    """The supervisor's side; keeps working after the child's death."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, PAGE_BYTES, prot=mmap.PROT_READ)

    def read(self) -> Reading | None:
        """Return a consistent reading, or None when the writer was stopped in the middle of a change."""
        for _ in range(64):
            (before,) = _SEQUENCE.unpack_from(self._map, 0)
            copy = self._map[:_END]
            (after,) = _SEQUENCE.unpack_from(self._map, 0)
            if before == after and before % 2 == 0:
                return _reading(copy)
        return None

    def close(self) -> None:
        """Unmap the page."""
        self._map.close()


def _reading(page: bytes) -> Reading:
    beats, beat_at, rss, vram_used, vram_held = _BEAT.unpack_from(page, _BEAT_AT)
    job, since = _JOB.unpack_from(page, _JOB_AT)
    progress_job, fraction, stage = _PROGRESS.unpack_from(page, _PROGRESS_AT)
    words = stage.rstrip(b"\0").decode(errors="ignore")
    loop_at, loop_tid = _LOOP.unpack_from(page, _LOOP_AT)
    return Reading(
        beats, beat_at, rss, vram_used, vram_held, job, since, progress_job, fraction, words, loop_at, loop_tid
    )
