"""Where the batches of a training come from: Parquet files, an Arrow file, or the job spec itself.

All of them go round and round, as the training's length is its number of steps; each knows where it is.
"""

import os
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Any

from gen_worker.extras import installed_by
from gen_worker.trainer.spec import Dataset

_LOOK_S = 0.1


class InputError(ValueError):
    """The data of a training cannot be had, or is none."""


class Repeated:
    """Batches of a list, again and again."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self._batches = batches
        self._next = 0

    def skip(self, count: int) -> None:
        """Pass over so many."""
        self._next = (self._next + count) % max(1, len(self._batches))

    def __iter__(self) -> Iterator[Any]:
        while self._batches:
            batch = self._batches[self._next]
            self._next = (self._next + 1) % len(self._batches)
            yield batch


class Rows:
    """Rows of files, a batch at a time as lists by column; some batches are read ahead by a thread.

    Raises `InputError` naming the file that cannot be read, when its turn comes.
    """

    def __init__(self, paths: Sequence[str], form: "str", dataset: Dataset) -> None:
        """`form` is `parquet` or `arrow`; raise `InputError` where pyarrow is not installed, or no file is named."""
        if not paths:
            raise InputError("the data set names no file: `parquet_paths` is empty")
        try:
            import pyarrow
        except ImportError as error:
            text = f"a data set needs pyarrow: {installed_by('trainer')}"
            raise InputError(text) from error
        self._errors: tuple[type[BaseException], ...] = (OSError, pyarrow.ArrowException)
        self._paths = paths
        self._form = form
        self._dataset = dataset
        self._skipped = 0

    def skip(self, count: int) -> None:
        """Pass over so many batches."""
        self._skipped += count

    def __iter__(self) -> Iterator[dict[str, list[Any]]]:
        skipped, self._skipped = self._skipped, 0
        return read_ahead(islice(self._endless(), skipped, None), self._dataset.readahead)

    def _endless(self) -> Iterator[dict[str, list[Any]]]:
        while True:
            found = False
            for batch in self._once():
                found = True
                yield batch
            if not found:
                raise InputError(f"the data set has no rows: {', '.join(f'`{path}`' for path in self._paths)}")

    def _once(self) -> Iterator[dict[str, list[Any]]]:
        for path in self._paths:
            try:
                yield from self._parquet(path) if self._form == "parquet" else self._arrow(path)
            except self._errors as error:
                raise InputError(f"`{path}` cannot be read: {_why(error)}") from None

    def _parquet(self, path: str) -> Iterator[dict[str, list[Any]]]:
        import pyarrow.parquet

        with closing(pyarrow.parquet.ParquetFile(path)) as file:
            columns = _known(self._dataset.columns, file.schema_arrow.names, path)
            for batch in file.iter_batches(self._dataset.batch_size, columns=columns, use_threads=False):
                yield batch.to_pydict()

    def _arrow(self, path: str) -> Iterator[dict[str, list[Any]]]:
        import pyarrow

        with pyarrow.memory_map(path) as source, pyarrow.ipc.open_file(source) as file:
            columns = _known(self._dataset.columns, file.schema.names, path)
            table = file.read_all()
            table = table if columns is None else table.select(columns)
            for batch in table.to_batches(max_chunksize=self._dataset.batch_size):
                yield batch.to_pydict()


def _why(error: BaseException) -> str:
    """Return why a file cannot be read, in one line."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return str(error).strip().partition("\n")[0]


def _known(columns: Sequence[str] | None, there: Sequence[str], path: str) -> list[str] | None:
    if columns is None:
        return None
    if missing := [name for name in columns if name not in there]:
        raise InputError(f"`{path}` has no column `{missing[0]}`; it has {', '.join(f'`{name}`' for name in there)}")
    return list(columns)


def read_ahead(items: Iterator[Any], count: int) -> Iterator[Any]:
    """Yield items, up to `count` of which another thread has made already; it ends with whoever takes them."""
    if count == 0:
        yield from items
        return
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(count)
    over = threading.Event()
    reader = threading.Thread(target=_read, args=(items, ready, over), name="gen-worker-readahead", daemon=True)
    reader.start()
    try:
        while True:
            what, item = ready.get()
            if what == "end":
                return
            if what == "error":
                raise item
            yield item
    finally:
        over.set()
        reader.join()


def _read(items: Iterable[Any], ready: "queue.Queue[tuple[str, Any]]", over: threading.Event) -> None:
    try:
        for item in items:
            if not _put(ready, ("item", item), over):
                return
        _put(ready, ("end", None), over)
    except Exception as error:  # noqa: BLE001 - it is raised again where the items are taken
        _put(ready, ("error", error), over)


def _put(ready: "queue.Queue[tuple[str, Any]]", entry: tuple[str, Any], over: threading.Event) -> bool:
    while not over.is_set():
        try:
            ready.put(entry, timeout=_LOOK_S)
            return True
        except queue.Full:
            continue
    return False
