"""Lines that are written by a thread of their own, so that a reader who stops reading holds nothing up."""

import os
import queue
import threading

MOST_LINES = 10_000
LAST_LINES_S = 1.0


class Lines:
    """Writes lines to a descriptor, in order; those that find no room are dropped and counted."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._dropped = 0
        self._queue: queue.Queue[str | None] = queue.Queue(MOST_LINES)
        self._thread = threading.Thread(target=self._write, name="gen-worker-lines", daemon=True)
        self._thread.start()

    def tell(self, line: str) -> None:
        """Have a line written; returns at once."""
        try:
            self._queue.put_nowait(line)
        except queue.Full:
            self._dropped += 1

    def close(self) -> None:
        """Write what is left, if somebody reads it soon."""
        try:
            self._queue.put(None, timeout=LAST_LINES_S)
        except queue.Full:
            return
        self._thread.join(LAST_LINES_S)

    def _write(self) -> None:
        while (line := self._queue.get()) is not None:
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                line = f"{line}\n[{dropped} lines were dropped]"
            left = f"{line}\n".encode(errors="replace")
            try:
                while left:
                    left = left[os.write(self._descriptor, left) :]
            except OSError:  # nobody reads any more, and nobody misses it
                return
