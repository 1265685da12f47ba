r"""The child's standard output and error: whole lines, each marked with the job that printed it.

The mark is `\x1e<job>\x1f` at the start of a line; the supervisor takes it off. What native code writes to the same
descriptors carries no mark and is attributed by whoever reads it.
"""

import io
import os
import sys
from contextvars import ContextVar

CURRENT_JOB: ContextVar[int] = ContextVar("gen_worker_job", default=0)


class MarkedStream(io.TextIOWrapper):
    """A text stream over a descriptor that marks every line with the job of the code that wrote it."""

    def __init__(self, fd: int) -> None:
        super().__init__(
            io.FileIO(fd, "wb", closefd=False), encoding="utf-8", errors="backslashreplace", write_through=True
        )
        self._pending: dict[int, str] = {}
        self._fd = fd

    def write(self, text: str) -> int:
        """Write the whole lines of `text` and keep the rest for this job's next write."""
        job = CURRENT_JOB.get()
        *lines, rest = (self._pending.pop(job, "") + text).split("\n")
        if rest:
            self._pending[job] = rest
        if lines:
            mark = f"\x1e{job}\x1f" if job else ""
            self._put("".join(f"{mark}{line}\n" for line in lines))
        return len(text)

    def end_job(self, job: int) -> None:
        """Write what the job left without a newline."""
        if rest := self._pending.pop(job, ""):
            self._put(f"\x1e{job}\x1f{rest}\n")

    def end(self) -> None:
        """Write all that was left without a newline."""
        while self._pending:
            _, rest = self._pending.popitem()
            self._put(rest + "\n")

    def _put(self, text: str) -> None:
        view = memoryview(text.encode("utf-8", "backslashreplace"))
        while view:
            view = view[os.write(self._fd, view) :]


class MarkedStreams:
    """The two streams of this process, installed as `sys.stdout` and `sys.stderr`."""

    def __init__(self) -> None:
        self.out = MarkedStream(1)
        self.err = MarkedStream(2)

    def install(self) -> None:
        """Replace the interpreter's streams."""
        sys.stdout, sys.stderr = self.out, self.err

    def end_job(self, job: int) -> None:
        """Write what the job printed without a newline at its end."""
        if self.out._pending or self.err._pending:
            self.out.end_job(job)
            self.err.end_job(job)

    def end(self) -> None:
        """Write all that is left, before the process ends."""
        self.out.end()
        self.err.end()
