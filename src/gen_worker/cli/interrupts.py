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
    """Call `ask` at the first Ctrl-C, and at a second one soon after it `insist`; `KeyboardInterrupt` follows that.

    Both are called in threads of their own: the main one may be in native code, or about to wait for something. `ask`
    may take its time, and is left alone when the body ends first; `insist` must not wait.
    Native code that holds the interpreter's lock cannot be interrupted by anything in this process. Without effect
    outside the main thread.
    """
    main = threading.current_thread()
    if main is not threading.main_thread():
        yield
        return
    pressed, raises, leaving = -PRESS_AGAIN_S, False, False
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def watch() -> None:
        nonlocal pressed, raises
        while told := os.read(reading, 1):  # the number of a signal, from the moment of its arrival
            if told[0] != signal.SIGINT or raises:
                continue
            now = time.monotonic()
            again, pressed = now - pressed < PRESS_AGAIN_S, now
            if not again:
                threading.Thread(target=ask, name="gen-worker-ask", daemon=True).start()
                continue
            insist()
            raises = True
            signal.pthread_kill(main.ident or 0, signal.SIGINT)  # ends a call to the system that it waits in

    def on_press(_signal: int, _frame: FrameType | None) -> None:
        if raises and not leaving:
            raise KeyboardInterrupt

    watcher = threading.Thread(target=watch, name="gen-worker-interrupts", daemon=True)
    handler = signal.signal(signal.SIGINT, on_press)
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watcher.start()
    try:
        yield
    finally:
        leaving = True
        signal.set_wakeup_fd(wakeup)
        os.close(writing)
        watcher.join()
        os.close(reading)
        signal.signal(signal.SIGINT, handler)


def announce(text: str, erasing: str = "") -> None:
    """Write a line to stderr past the buffers that the main thread may be writing to."""
    os.write(2, f"{erasing}{text}\n".encode())
