"""Keep the files that jobs save, in threads, so that a slow disk never holds the loop.

A file is kept no longer than its job lives: what waits for its turn then is let go, what is being written is removed.
"""

import asyncio
import os
import stat
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gen_worker.outputs import ExistsError, FileTooLargeError, FolderSink, NotWantedError
from gen_worker.wire.channel import close_all
from gen_worker.wire.messages import Save, Saved
from gen_worker_supervisor.files.storing import JOB_ENDED, OF_ONE_JOB, TEXT_CHARS, TOO_MANY

THREADS = 2


@dataclass(slots=True, eq=False)
class _Kept:
    """A file that is to be kept, and who waits for it."""

    order: Save
    descriptors: list[int]
    then: Callable[[Saved], None]
    wanted: bool = True

    def let_go(self) -> None:
        """Close what it holds and tell that nobody needs it any more."""
        close_all(self.descriptors)
        self.then(Saved(self.order.job, self.order.token, error=JOB_ENDED))


class Saver:
    """Writes the files that children hand over, under one folder."""

    def __init__(self, loop: asyncio.AbstractEventLoop, folder: Path, max_bytes: int = 0) -> None:
        self._loop = loop
        self._sink = FolderSink(folder, max_bytes)
        self._threads = ThreadPoolExecutor(THREADS, "gen-worker-save")
        self._waiting: dict[int, deque[_Kept]] = {}  # by the job's number, whose turn is first: first
        self._writing: list[_Kept] = []

    def save(self, order: Save, descriptors: list[int], then: Callable[[Saved], None]) -> None:
        """Write a job's file and pass the answer to `then`, once; takes the descriptors over."""
        being_written = sum(kept.order.job == order.job for kept in self._writing)
        if len(self._waiting.get(order.job, ())) + being_written >= OF_ONE_JOB:
            close_all(descriptors)
            then(Saved(order.job, order.token, error=TOO_MANY))
            return
        self._waiting.setdefault(order.job, deque()).append(_Kept(order, descriptors, then))
        self._go_on()

    def forget(self, job: int) -> None:
        """A job has ended: nobody reads what it saves from now on."""
        if not self._writing and not self._waiting:
            return
        for kept in self._writing:
            if kept.order.job == job:
                kept.wanted = False
        for kept in self._waiting.pop(job, ()):
            kept.let_go()

    def close(self) -> None:
        """Let go of every file, and wait until none is written any more."""
        for kept in self._writing:
            kept.wanted = False
        for waiting in self._waiting.values():
            for kept in waiting:
                close_all(kept.descriptors)
        self._waiting.clear()
        self._threads.shutdown()

    def _go_on(self) -> None:
        """Have written what there is a thread for, one file of each job in turn."""
        while self._waiting and len(self._writing) < THREADS:
            job, waiting = next(iter(self._waiting.items()))
            del self._waiting[job]
            kept = waiting.popleft()
            if waiting:
                self._waiting[job] = waiting  # behind all others
            self._writing.append(kept)
            try:
                work = self._threads.submit(self._write, kept)
            except RuntimeError as error:  # no thread can be had; one that comes later closes what this holds
                kept.wanted = False
                self._writing.remove(kept)
                kept.then(_failed(kept.order, OSError(f"`{kept.order.ref[:40]}` cannot be kept: {error}")))
            else:
                work.add_done_callback(partial(self._tell, kept))

    def _tell(self, kept: _Kept, done: Future[Saved]) -> None:
        self._loop.call_soon_threadsafe(self._written, kept, done)

    def _written(self, kept: _Kept, done: Future[Saved]) -> None:
        self._writing.remove(kept)
        self._go_on()
        error = done.exception()
        kept.then(_failed(kept.order, error) if error is not None else done.result())

    def _write(self, kept: _Kept) -> Saved:
        order = kept.order
        try:
            source = None if order.inline is not None else _readable(kept.descriptors)
            saved = self._sink.save(
                order.ref, data=order.inline, path=source, create=order.create, wanted=lambda: kept.wanted
            )
        except FileTooLargeError as error:
            job, token, size = order.job, order.token, error.size_bytes
            text = str(error)[:TEXT_CHARS]
            return Saved(job, token, size_bytes=size, error=text, failure="too_large", limit_bytes=error.max_bytes)
        except ExistsError:
            return Saved(order.job, order.token, error=f"`{order.ref[:40]}` exists", failure="exists")
        except NotWantedError:
            return Saved(order.job, order.token, error=JOB_ENDED)
        finally:
            close_all(kept.descriptors)
        return Saved(order.job, order.token, saved.local_path, saved.size_bytes, saved.sha256)


def _failed(order: Save, error: BaseException) -> Saved:
    """Return what a child is told, whatever kept its file from being written: it waits for an answer."""
    name = type(error).__name__
    expected = isinstance(error, OSError | ValueError)
    text = str(error) if expected else f"`{order.ref[:40]}` cannot be kept: {name}: {error}"
    return Saved(order.job, order.token, error=text[:TEXT_CHARS] or name)


def _readable(descriptors: list[int]) -> Path:
    """Return the path under which a child's descriptor is read; only a plain file can be, as others may block."""
    if len(descriptors) != 1 or not stat.S_ISREG(os.fstat(descriptors[0]).st_mode):
        raise ValueError("the content is not a plain file")
    return Path(f"/proc/self/fd/{descriptors[0]}")
