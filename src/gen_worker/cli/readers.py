"""Notice that nobody reads stdout any more, while nothing is written there."""

import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from gen_worker.cli.failure import NobodyReads


@contextmanager
def while_somebody_reads() -> Iterator[None]:
    """Raise `NobodyReads` in the block once stdout's reader is gone, as after `| head -1`, not at the next write.

    For the main thread, in a command that may wait for a long time between two lines.
    """
    gone = threading.Event()
    waits = threading.get_ident()
    stdout = select.poll()
    stdout.register(sys.stdout.fileno(), 0)  # a hang-up is told without being asked for, a file has none

    def watch() -> None:
        stdout.poll()
        gone.set()
        signal.pthread_kill(waits, signal.SIGPIPE)

    def noticed(_number: int, _frame: FrameType | None) -> None:
        if gone.is_set():  # else some other connection broke, and whoever wrote to it is told
            raise NobodyReads

    before = signal.signal(signal.SIGPIPE, noticed)
    try:
        threading.Thread(target=watch, name="gen-worker-reader", daemon=True).start()
        yield
    finally:
        signal.signal(signal.SIGPIPE, before)
