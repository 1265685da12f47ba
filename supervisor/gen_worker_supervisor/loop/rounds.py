"""The rounds of a thread that does the same again and again: what nobody expected costs one of them, not the others.

A watch that ended unnoticed would be worse than none.
"""

import asyncio
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from gen_worker_supervisor.logs.log import Log

_KINDS_SAID = 8


class Rounds:
    """Of one thread, each of them `what`; `source` says what went wrong."""

    def __init__(self, source: str, what: str, loop: asyncio.AbstractEventLoop, log: Log) -> None:
        self._source = source
        self._what = what
        self._loop = loop
        self._log = log
        self._said: set[str] = set()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Around one round: what is raised in it ends it, and is said the first time."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - around a thread's whole life
            self._tell(error)

    def _tell(self, error: Exception) -> None:
        kind = f"{type(error).__name__}: {error}"
        if kind in self._said or len(self._said) >= _KINDS_SAID:
            return
        self._said.add(kind)
        stack = tuple("".join(traceback.format_exception(error)).splitlines())
        text = f"{self._what} failed, which is a fault of gen-worker: {kind}"
        with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(self._log.event, "error", self._source, text, stack)
