"""Files that a producer writes piece by piece: gathered on the disk, hashed on the way, kept when they are finished."""

import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, BinaryIO, Generic, Literal, TypeAlias, TypeVar

from gen_worker.api.errors import OutputTooLargeError

Kept = TypeVar("Kept")
StreamMode: TypeAlias = Literal["presigned", "local_fallback"]
Stage: TypeAlias = Literal["stream_write", "stream_upload", "stream_finalized", "stream_aborted"]

PROGRESS_INTERVAL_S = 0.2
LIMIT_BYTES = 20 << 30


class OutputStream(Generic[Kept]):
    """A file in the making; `finalize` keeps it and returns what stands for it, `close` before that gives it up.

    As a context manager it is finalized at the end of the body, and given up when the body raises. Every call but
    `close` raises `CanceledError` once the request was asked to end. Belongs to one thread.
    """

    def __init__(
        self,
        ref: str,
        keep: Callable[[str, str, str], Kept],
        *,
        mode: StreamMode,
        tell: Callable[[dict[str, Any]], None],
        check: Callable[[], None],
        expected_size_bytes: int | None = None,
    ) -> None:
        """`keep` takes the file's path and its sha256 and blake3; `check` raises once the request shall end."""
        import hashlib
        import tempfile

        from blake3 import blake3

        self._ref = ref
        self._keep = keep
        self._mode: StreamMode = mode
        self._tell = tell
        self._check = check
        self._expected = expected_size_bytes
        self._began = time.monotonic()
        self._told_at, self._told_bytes = self._began, 0
        self._written = self._chunks = self._uploaded = 0
        self._sha256, self._blake3 = hashlib.sha256(), blake3()
        self._kept: Kept | None = None
        self._file: BinaryIO | None = None
        if expected_size_bytes is not None and expected_size_bytes > LIMIT_BYTES:
            raise OutputTooLargeError(size_bytes=expected_size_bytes, max_bytes=LIMIT_BYTES)
        check()
        descriptor, self._path = tempfile.mkstemp(prefix="gen-worker-stream-")
        self._file = os.fdopen(descriptor, "wb")

    @property
    def ref(self) -> str:
        """The name that the file gets."""
        return self._ref

    @property
    def bytes_written(self) -> int:
        """What was written so far."""
        return self._written

    @property
    def bytes_uploaded(self) -> int:
        """What has left this machine: nothing before `finalize`, and nothing at all where files stay here."""
        return self._uploaded

    @property
    def stream_mode(self) -> StreamMode:
        """`presigned` where the file goes to the platform's store, `local_fallback` where it stays here."""
        return self._mode

    @property
    def elapsed_s(self) -> float:
        """Seconds since it was opened."""
        return time.monotonic() - self._began

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Add some bytes; return how many."""
        file = self._open()
        self._check()
        view = memoryview(data).cast("B")
        if self._written + len(view) > LIMIT_BYTES:
            raise OutputTooLargeError(size_bytes=self._written + len(view), max_bytes=LIMIT_BYTES)
        file.write(view)
        self._sha256.update(view)
        self._blake3.update(view)
        self._written += len(view)
        self._chunks += 1
        self._progress("stream_write")
        return len(view)

    def flush(self) -> None:
        """Have what was written so far on the disk."""
        self._open().flush()

    def finalize(self) -> Kept:
        """Keep the file and return what stands for it; the same again when asked again."""
        if self._kept is not None:
            return self._kept
        file = self._open()
        self._check()
        if self._expected is not None and self._written != self._expected:
            raise ValueError(f"`{self._ref}` was to have {self._expected} bytes, {self._written} were written")
        file.close()
        self._progress("stream_upload", forced=True)
        try:
            self._kept = kept = self._keep(self._path, self._sha256.hexdigest(), self._blake3.hexdigest())
        except BaseException as error:
            self._give_up(type(error).__name__)
            raise
        self._uploaded = self._written if self._mode == "presigned" else 0
        self._remove()
        self._progress("stream_finalized", forced=True)
        return kept

    def close(self) -> None:
        """Give the file up, unless it is finalized."""
        if self._file is not None:
            self._give_up("")

    def __enter__(self) -> "OutputStream[Kept]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            if self._file is not None:
                self._give_up(kind.__name__)
        elif self._file is not None:
            try:
                self.finalize()
            finally:
                self.close()

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            self._remove()

    def _open(self) -> BinaryIO:
        if self._file is None or self._file.closed:
            raise ValueError(f"`{self._ref}` is closed: it takes no more bytes")
        return self._file

    def _give_up(self, error_class: str) -> None:
        self._remove()
        self._progress("stream_aborted", forced=True, error_class=error_class)

    def _remove(self) -> None:
        if self._file is not None:
            self._file.close()
            os.unlink(self._path)
        self._file = None

    def _progress(self, stage: Stage, *, forced: bool = False, error_class: str = "") -> None:
        now = time.monotonic()
        if not forced and now - self._told_at < PROGRESS_INTERVAL_S:
            return
        elapsed, since = now - self._began, now - self._told_at
        uploaded = self._uploaded
        told: dict[str, Any] = {
            "stage": stage,
            "ref": self._ref,
            "stream_mode": self._mode,
            "bytes_written": self._written,
            "bytes_uploaded": uploaded,
            "chunks_written": self._chunks,
            "chunks_uploaded": self._chunks if uploaded else 0,
            "upload_bps": uploaded / elapsed if elapsed else 0.0,
            "inst_upload_bps": (uploaded - self._told_bytes) / since if since else 0.0,
            "elapsed_s": elapsed,
        }
        if error_class:
            told["error_class"] = error_class
        self._told_at, self._told_bytes = now, uploaded
        self._tell(told)
