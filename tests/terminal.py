"""A command on a terminal: what it shows, and what a person types."""

import fcntl
import os
import pty
import re
import select
import struct
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

PATIENCE_S = 30.0
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")


class Terminal:
    """A terminal with one command in it."""

    def __init__(self, descriptor: int, pid: int) -> None:
        self._descriptor = descriptor
        self._pid = pid
        self._unread = b""
        self._ended = False
        self.code: int | None = None
        self.shown = ""
        """Everything that came so far, with its escape sequences."""

    def until(self, text: str, within_s: float = PATIENCE_S) -> str:
        """Return what is shown up to and with a text, without escape sequences; fail when it does not come."""
        deadline = time.monotonic() + within_s
        while text not in _ESCAPES.sub("", self._unread.decode(errors="replace")):
            if self._ended or time.monotonic() > deadline:
                raise AssertionError(f"no {text!r} in {self._unread!r}")
            self._read(deadline)
        plain = _ESCAPES.sub("", self._unread.decode(errors="replace"))
        seen, found, rest = plain.partition(text)
        self._unread = rest.encode()
        return seen + found

    def _read(self, deadline: float) -> None:
        ready, _, _ = select.select([self._descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return
        data = b""
        with suppress(OSError):  # the other side is closed
            data = os.read(self._descriptor, 65536)
        self._ended = not data
        self._unread += data
        self.shown += data.decode(errors="replace")

    def type(self, text: str) -> None:
        """Type; control characters are what their keys send."""
        os.write(self._descriptor, text.encode())

    def interrupt(self, answer: str) -> None:
        """Press Ctrl-C at a prompt until there is an answer: one that meets a key being handled waits for the next."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            self.type("\x03")
            with suppress(AssertionError):
                self.until(answer, within_s=1.0)
                return
        raise AssertionError(f"no {answer!r} in {self._unread!r}")

    def end(self) -> str:
        """Return the rest that is shown until the command has ended; its exit code is then in `code`."""
        deadline = time.monotonic() + PATIENCE_S
        while not self._ended:
            assert time.monotonic() < deadline, f"still there: {self._unread!r}"
            self._read(deadline)
        _, status = os.waitpid(self._pid, 0)
        self.code = os.waitstatus_to_exitcode(status)
        return _ESCAPES.sub("", self._unread.decode(errors="replace"))

    def close(self) -> None:
        """Hang up."""
        os.close(self._descriptor)
        if self.code is None:
            with suppress(ProcessLookupError):
                os.kill(self._pid, 9)
            os.waitpid(self._pid, 0)


@contextmanager
def terminal(command: Sequence[str], cwd: Path, env: Mapping[str, str]) -> Iterator[Terminal]:
    """Run a command on a terminal of 100 columns until the body ends."""
    pid, descriptor = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.execvpe(command[0], list(command), {"TERM": "xterm", **env})
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    made = Terminal(descriptor, pid)
    try:
        yield made
    finally:
        made.close()
