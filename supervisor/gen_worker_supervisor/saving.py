"""Keep the files that jobs save, in threads, so that a slow disk never holds the loop."""

import asyncio
import os
import stat
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from gen_worker.outputs import FileTooLargeError, FolderSink
from gen_worker.wire.channel import close_all
from gen_worker.wire.messages import Save, Saved

THREADS = 2


class Saver:
    """Writes the files that children hand over, under one folder."""

    def __init__(self, loop: asyncio.AbstractEventLoop, folder: Path, max_bytes: int = 0) -> None:
        self._loop = loop
        self._sink = FolderSink(folder, max_bytes)
        self._threads = ThreadPoolExecutor(THREADS, "gen-worker-save")

    def save(self, order: Save, descriptors: list[int], then: Callable[[Saved], None]) -> None:
        """Write a job's file and pass the answer to `then`, on the loop; takes the descriptors over."""
        work = self._threads.submit(self._write, order, descriptors)
        work.add_done_callback(lambda done: self._loop.call_soon_threadsafe(_pass_on, done, then))

    def _write(self, order: Save, descriptors: list[int]) -> Saved:
        try:
            source = None if order.inline is not None else _readable(descriptors)
            saved = self._sink.save(order.ref, data=order.inline, path=source)
        except FileTooLargeError as error:
            job, token, size = order.job, order.token, error.size_bytes
            text = str(error)[:1024]
            return Saved(job, token, size_bytes=size, error=text, failure="too_large", limit_bytes=error.max_bytes)
        except (OSError, ValueError) as error:
            return Saved(order.job, order.token, error=str(error)[:1024] or type(error).__name__)
        finally:
            close_all(descriptors)
        return Saved(order.job, order.token, saved.local_path, saved.size_bytes, saved.sha256)

    def close(self) -> None:
        """Wait for the files that are being written."""
        self._threads.shutdown()


def _readable(descriptors: list[int]) -> Path:
    """Return the path under which a child's descriptor is read; only a plain file can be, as others may block."""
    if len(descriptors) != 1 or not stat.S_ISREG(os.fstat(descriptors[0]).st_mode):
        raise ValueError("the content is not a plain file")
    return Path(f"/proc/self/fd/{descriptors[0]}")


def _pass_on(done: "Future[Saved]", then: Callable[[Saved], None]) -> None:
    then(done.result())
