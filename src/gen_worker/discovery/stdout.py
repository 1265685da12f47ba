"""Keep this process's stdout for its own document while the author's code prints whatever it likes."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn


@contextmanager
def reserved_stdout() -> Iterator[int]:
    """Yield a descriptor of the real stdout; until the end of the process everything printed goes to stderr.

    That holds for native code too: descriptor 1 itself is redirected. It is not set back, because what the author's
    code left running may print at any later time.
    """
    _flush()
    real = os.dup(1)
    os.dup2(2, 1)
    try:
        yield real
    finally:
        _flush()
        os.close(real)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of the bytes."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def leave(status: int) -> NoReturn:
    """End the process at once: threads that the author's import started must not keep it."""
    _flush()
    os._exit(status)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError, OSError):  # the author's code may have replaced or closed it
            stream.flush()
