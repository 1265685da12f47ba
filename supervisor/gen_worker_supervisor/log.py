"""The supervisor's log: lines to standard error through a thread of its own, and the recent events for `ps`.

A reader of standard error that stops reading costs lines, oldest first and counted, and never holds the loop.
"""

import os
import threading
import time
from collections import deque
from typing import Literal

from gen_worker.wire.status import EventStatus

RING_BYTES = 1 << 20
EVENTS = 256


class Log:
    """Everything a person may want to read of this supervisor."""

    def __init__(self, fd: int = 2) -> None:
        self._fd = fd
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._dropped = 0
        self._change = threading.Condition()
        self._open = True
        self.events: deque[EventStatus] = deque(maxlen=EVENTS)
        self._events = 0
        self._thread = threading.Thread(target=self._write, name="gen-worker-log", daemon=True)
        self._thread.start()

    def line(self, text: str) -> None:
        """Write one line; never blocks."""
        data = text.encode("utf-8", "backslashreplace") + b"\n"
        with self._change:
            self._lines.append(data)
            self._bytes += len(data)
            while self._bytes > RING_BYTES:
                self._bytes -= len(self._lines.popleft())
                self._dropped += 1
            self._change.notify()

    def event(
        self, level: Literal["info", "warning", "error"], source: str, message: str, lines: tuple[str, ...] = ()
    ) -> None:
        """Write a line and remember it for `ps`; `lines` go below it."""
        self._events += 1
        self.events.append(EventStatus(self._events, time.time(), level, source, message))
        mark = "" if level == "info" else f"{level}: "
        self.line(f"[{source}] {mark}{message}")
        for extra in lines:
            self.line(f"[{source}]   {extra.rstrip()}")

    def _write(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._lines or not self._open)
                if not self._lines:
                    return
                batch, self._bytes, dropped = b"".join(self._lines), 0, self._dropped
                self._lines.clear()
                self._dropped = 0
            if dropped:
                batch = f"[log] {dropped} older lines dropped: nobody read them\n".encode() + batch
            if not self._put(batch):
                return

    def _put(self, data: bytes) -> bool:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                import select

                select.select([], [self._fd], [])
            except OSError:
                return False  # nobody can ever read it again: a closed pipe or terminal
        return True

    def close(self, timeout_s: float = 1.0) -> None:
        """Write what is left, for as long as its reader takes it."""
        with self._change:
            self._open = False
            self._change.notify()
        self._thread.join(timeout_s)
