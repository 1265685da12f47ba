"""What children print: pipes read without ever waiting, cut into lines, told apart by job, the last ones kept."""

import os
from collections.abc import Callable

READ_BYTES = 4 * 1024  # a turn's worth: 4,096 empty lines hold the loop for some 15 ms
LAST_READS = 16  # a full pipe, by its usual size; a descendant that goes on printing does not hold the supervisor
LINE_BYTES = 16 * 1024  # a longer line is cut
TAIL_LINES = 20

OnLine = Callable[[int, str], None]
"""Takes a job number, 0 when unknown, and a line."""


class OutputPipe:
    """The read end of one output stream of one child."""

    def __init__(self, fd: int, on_line: OnLine) -> None:
        self.fd = fd
        os.set_blocking(fd, False)
        self._on_line = on_line
        self._rest = b""

    def read(self) -> bool:
        """Read one turn; say whether the stream may have more to come at all."""
        try:
            data = os.read(self.fd, READ_BYTES)
        except BlockingIOError:
            return True
        if data:
            self._take(data)
        return bool(data)

    def close(self) -> None:
        """Read what is left, without waiting for a descendant that still holds the stream, and close it."""
        try:
            for _ in range(LAST_READS):
                self._take(os.read(self.fd, READ_BYTES))
        except BlockingIOError:
            pass  # a descendant of the child's has it still; what it may yet print belongs to nobody
        if self._rest:
            self._line(self._rest)
        os.close(self.fd)

    def _take(self, data: bytes) -> None:
        *lines, rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line)
        while len(rest) > LINE_BYTES:
            self._line(rest[:LINE_BYTES])
            rest = rest[LINE_BYTES:]
        self._rest = rest

    def _line(self, line: bytes) -> None:
        job = 0
        if line.startswith(b"\x1e"):
            mark, found, text = line[1:].partition(b"\x1f")
            if found and mark.isdigit():
                job, line = int(mark[:18]), text
        self._on_line(job, line.decode("utf-8", "replace").replace("\x1b", "\\x1b"))
