"""A word to who waits: that something long goes on."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from gen_worker.discovery.process import NOTICE_S


@contextmanager
def told_when_long(words: str, notice_s: float = NOTICE_S) -> Iterator[None]:
    """Say on stderr, once, that the body still goes on when it takes longer than `notice_s`."""
    timer = threading.Timer(notice_s, _say, (words,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # so that nothing comes after the body


def _say(words: str) -> None:
    with suppress(AttributeError, ValueError, OSError):  # the endpoint's code may have taken stderr away, or closed it
        sys.stderr.write(f"still {words}\nhint: Ctrl-C ends it\n")
        sys.stderr.flush()
