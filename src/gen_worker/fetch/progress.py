"""How far the models are that are being fetched, when several of them need the same blob.

Pure bookkeeping: whoever downloads a blob tells it here, and every fetch that waits for that blob counts it.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

OnProgress = Callable[[int, int | None, int], None]
"""Takes the bytes of a model that are there, all its bytes (None: nobody knows), and how often something was tried
again. Called by one thread at a time, as often as something changes."""


class Progress:
    """How far one fetch is."""

    def __init__(self, total: int | None, on_progress: OnProgress) -> None:
        self._total = total
        self._done = 0
        self._retries = 0
        self._on_progress = on_progress
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """So many more bytes are there; fewer when it is negative."""
        with self._lock:
            self._done += count
            self._on_progress(self._done, self._total, self._retries)

    def retried(self) -> None:
        """Something is tried again."""
        with self._lock:
            self._retries += 1
            self._on_progress(self._done, self._total, self._retries)


@dataclass(slots=True, eq=False)
class _Blob:
    size: int  # 0 when nobody knows
    there: int = 0
    waiting: list[Progress] = field(default_factory=list)


class Ongoing:
    """The blobs that fetches of this process wait for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blobs: dict[Path, _Blob] = {}

    def join(self, blobs: Mapping[Path, int], progress: Progress) -> int:
        """Have `progress` count these blobs, of these sizes, as they come; what already came is counted at once.

        Return the bytes that are still to come of other blobs.
        """
        with self._lock:
            others = sum(max(0, blob.size - blob.there) for path, blob in self._blobs.items() if path not in blobs)
            there = 0
            for path, size in blobs.items():
                blob = self._blobs.setdefault(path, _Blob(size))
                blob.waiting.append(progress)
                there += blob.there
            progress.add(there)
            return others

    def leave(self, blobs: Iterable[Path], progress: Progress) -> None:
        """Count them no longer."""
        with self._lock:
            for path in blobs:
                blob = self._blobs[path]
                blob.waiting.remove(progress)
                if not blob.waiting:
                    del self._blobs[path]

    def add(self, path: Path, count: int) -> None:
        """So many more bytes of a blob are there; fewer when it is negative."""
        with self._lock:
            self._add(self._blobs[path], count)

    def settle(self, path: Path, there: int) -> None:
        """So many bytes of a blob are there, whatever was counted: all when it is whole, 0 when its download failed."""
        with self._lock:
            blob = self._blobs[path]
            self._add(blob, there - blob.there)

    def _add(self, blob: _Blob, count: int) -> None:
        blob.there += count
        for progress in blob.waiting:
            progress.add(count)
