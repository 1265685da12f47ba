"""Where each thread of this process is, and what waits on its asyncio loop, in the form of a stack dump.

Whoever asks holds the interpreter's lock, so that nothing moves meanwhile.
"""

import sys
import threading
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

DEPTH = 100  # frames of each, as a fault handler writes them
MOST_TASKS = 64
MOST_BYTES = 40_000  # so that they fit into a frame


def stacks(loop: "asyncio.AbstractEventLoop | None") -> list[str]:
    """Return the frames of each thread, the innermost first, then those of each task of a loop."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    found: list[str] = []
    for ident, frame in sorted(sys._current_frames().items(), key=lambda each: _rank(names.get(each[0], ""))):
        found.append(f"Thread 0x{ident:016x} [{names.get(ident, 'unknown')}] (most recent call first):")
        walked: FrameType | None = frame
        for _ in range(DEPTH):
            if walked is None:
                break
            if walked.f_code.co_filename != __file__:
                found.append(_line(walked.f_code, walked.f_lineno))
            walked = walked.f_back
    if loop is not None:
        found += _tasks(loop)
    return list(_fitting(found))


def _rank(name: str) -> int:
    """Put the threads first where the author's code runs."""
    order = ("gen-worker-job", "gen-worker-loop")
    return order.index(name) if name in order else len(order)


def _tasks(loop: "asyncio.AbstractEventLoop") -> list[str]:
    import asyncio

    found: list[str] = []
    waiting = sorted(asyncio.all_tasks(loop), key=lambda task: task.get_name())
    for task in waiting[:MOST_TASKS]:
        found.append(f"Task {task.get_name()} (most recent call first):")
        found += reversed(list(_awaited(task.get_coro())))
    if len(waiting) > MOST_TASKS:
        found.append(f"and {len(waiting) - MOST_TASKS} more tasks")
    return found


def _awaited(coroutine: Any) -> Iterator[str]:
    """Yield the frames from a coroutine to the innermost one that it awaits; generators and foreign ones among them."""
    for _ in range(DEPTH):
        kind = next((each for each in ("cr", "ag", "gi") if hasattr(coroutine, f"{each}_frame")), None)
        if kind is None:
            return
        frame = getattr(coroutine, f"{kind}_frame")
        if frame is not None:
            yield _line(frame.f_code, frame.f_lineno)
        coroutine = getattr(coroutine, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")


def _line(code: CodeType, number: int | None) -> str:
    return f'  File "{code.co_filename}", line {"???" if number is None else number} in {code.co_name}'


def _fitting(lines: list[str]) -> Iterator[str]:
    left = MOST_BYTES
    for at, line in enumerate(lines):
        told = line.encode("utf-8", "replace")  # a file's name may be no text
        left -= len(told) + 8
        if left < 0:
            yield f"and {len(lines) - at} more lines"
            return
        yield told.decode()
