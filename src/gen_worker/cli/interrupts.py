"""Ctrl-C: the first one asks, a second one soon after insists."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

PRESS_AGAIN_S = 2.0  # a second press in this time insists; a later one asks again


@contextmanager
def interrupts(ask: Callable[[], None], insist: Callable[[], None]) -> Iterator[None]:
    """Call `ask` at the first Ctrl-C and `insist` at a second one soon after it, both in the main thread.

    In another thread nothing changes: signals are none of its business.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = -PRESS_AGAIN_S

    def on_press(_signal: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        now = time.monotonic()
        again, pressed = now - pressed < PRESS_AGAIN_S, now
        (insist if again else ask)()

    before = signal.signal(signal.SIGINT, on_press)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def announce(text: str, erasing: str = "") -> None:
    """Write a line to stderr from a signal handler, past the buffers that it may have interrupted."""
    os.write(2, f"{erasing}{text}\n".encode())
