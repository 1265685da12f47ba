"""An asyncio loop in a thread of its own, for the author's async handlers. Loaded when the first of them is called."""

import asyncio
import os
import queue
import threading
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias

from gen_worker.api.errors import CanceledError

EXIT_BROKEN = 70  # software error, as sysexits.h calls it
CLOSE_LIMIT_S = 5.0  # for tasks that were cancelled

Aside: TypeAlias = Callable[[Callable[[], None]], Awaitable[None]]
"""Has a call made in the thread that sets instances up, while the loop goes on; raises what the call raises."""


class LoopThread:
    """A running asyncio loop and its thread."""

    def __init__(self) -> None:
        self._closing = False
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="gen-worker-loop", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.loop.run_forever()
        finally:
            if not self._closing:  # a task of the author's raised SystemExit: every job on the loop is lost
                traceback.print_exc()
                os._exit(EXIT_BROKEN)

    def start(self, work: Callable[[Aside], Coroutine[Any, Any, Any]]) -> "LoopCall":
        """Begin a coroutine from any other thread; what it sets aside is done by whoever waits for it."""
        return LoopCall(self.loop, work)

    def close(self) -> None:
        """Cancel what still runs, stop the loop and wait for its thread."""
        with suppress(TimeoutError):  # a task that takes no cancel ends with the process
            asyncio.run_coroutine_threadsafe(_cancel_others(), self.loop).result(CLOSE_LIMIT_S)
        self._closing = True
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


class LoopCall:
    """A coroutine on the loop that another thread waits for; a canceled one is waited for to its real end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Callable[[Aside], Coroutine[Any, Any, Any]]) -> None:
        self._loop = loop
        self._task: asyncio.Task[Any] | None = None
        self._done: Future[Any] = Future()
        self._set_aside: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()  # None: it has ended
        loop.call_soon_threadsafe(self._begin, work)

    def _begin(self, work: Callable[[Aside], Coroutine[Any, Any, Any]]) -> None:
        self._task = self._loop.create_task(work(partial(done_by, self._set_aside.put)))
        self._task.add_done_callback(self._end)

    def _end(self, task: "asyncio.Task[Any]") -> None:
        error = CanceledError("canceled") if task.cancelled() else task.exception()
        if error is None:
            self._done.set_result(task.result())
        else:
            self._done.set_exception(error)
        self._set_aside.put(None)

    def wait(self) -> Any:
        """Return what the coroutine returns, raise what it raises; do what it sets aside meanwhile."""
        for call in iter(self._set_aside.get, None):
            call()
        return self._done.result()

    def cancel(self) -> None:
        """Cancel the coroutine, if it has begun."""
        if self._task is not None:
            self._loop.call_soon_threadsafe(self._task.cancel)


async def done_by(thread: Callable[[Callable[[], None]], None], call: Callable[[], None]) -> None:
    """Have a thread make a call, which takes it through `thread`; raise what the call raises."""
    done: Future[None] = Future()
    thread(partial(_settle, done, call))
    await asyncio.wrap_future(done)


def _settle(done: "Future[None]", call: Callable[[], None]) -> None:
    if not done.set_running_or_notify_cancel():
        return  # nobody waits for it any more
    try:
        call()
    except BaseException as error:  # noqa: BLE001 - it is raised where the call was wanted
        done.set_exception(error)
    else:
        done.set_result(None)
