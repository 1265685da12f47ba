"""Ctrl-C: the first one asks, a second one soon after insists."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

PRESS_AGAIN_S = 2.0  # a second press in this time insists; a later one asks again

Handler = Callable[[int, FrameType | None], Any]


@contextmanager
def interrupts(ask: Callable[[], None], insist: Callable[[], None]) -> Iterator[None]:
    """Call `ask` at the first Ctrl-C and `insist` at a second one soon after it, both in the main thread.

    In another thread nothing changes: signals are none of its business.
    """
    press = _presses(ask, insist)
    with _handling(lambda _signal, _frame: press()):
        yield


@contextmanager
def interrupts_of_native_code(ask: Callable[[], None], insist: Callable[[], None]) -> Iterator[None]:
    """As `interrupts`, but in a thread of their own: the main thread may be in native code that takes its time.

    Native code that holds the interpreter's lock cannot be interrupted by anything in this process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    press = _presses(ask, insist)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def watch() -> None:
        while told := os.read(reading, 1):
            if told[0] == signal.SIGINT:
                press()

    watcher = threading.Thread(target=watch, name="gen-worker-interrupts", daemon=True)
    with _handling(lambda _signal, _frame: None):
        before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        watcher.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            os.close(writing)
            watcher.join()
            os.close(reading)


def _presses(ask: Callable[[], None], insist: Callable[[], None]) -> Callable[[], None]:
    """Return what to call at each press."""
    pressed = -PRESS_AGAIN_S

    def press() -> None:
        nonlocal pressed
        now = time.monotonic()
        again, pressed = now - pressed < PRESS_AGAIN_S, now
        (insist if again else ask)()

    return press


@contextmanager
def _handling(handler: Handler) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def announce(text: str, erasing: str = "") -> None:
    """Write a line to stderr past the buffers that the code which was interrupted may be writing to."""
    os.write(2, f"{erasing}{text}\n".encode())
