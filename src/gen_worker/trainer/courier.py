"""What a training tells its platform while it goes on: by threads of their own, in the order in which it happened.

The file of its events is the journal: how far the platform has heard stands beside it. So the training waits for
nobody, and whatever was not told when its process died, or while nobody answered, is told later.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from gen_worker.api.errors import ArtifactTransferError, AuthError, CanceledError

SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0  # between two tries while nobody answers
_LOOK_S = 0.1  # how soon who waits for the end of it notices that it is not wanted any more


class Numbers(NamedTuple):
    """The metrics of a step."""

    step: int
    metrics: dict[str, object]


class Made(NamedTuple):
    """A checkpoint, or a sample, that is complete."""

    kind: str
    step: int
    path: str


News: TypeAlias = Numbers | Made


def pause_after(failures: int) -> float:
    """Return the seconds before the next try after so many failures before this one."""
    return float(min(LONGEST_PAUSE_S, SHORTEST_PAUSE_S * 2.0 ** min(failures, 30)))


class Courier:
    """Tells news of some kinds, one after the other; what is not taken stays, what is refused for good is dropped.

    `deliver` raises `ArtifactTransferError`, retryable where another try may help; `AuthError` and `CanceledError` end
    the courier. Any other exception is that of news that nobody takes.
    """

    def __init__(
        self,
        events: Path,
        kinds: tuple[str, ...],
        deliver: Callable[[News], None],
        warn: Callable[[str], None],
        *,
        pause_after: Callable[[int], float] = pause_after,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._events = events
        self._kinds = kinds
        self._deliver = deliver
        self._warn = warn
        self._pause_after = pause_after
        self._clock = clock
        self._mark = events.with_name(f".{kinds[0]}.told")
        self._told = _marked(self._mark, events)
        self._known = self._told
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._failures = 0
        self.fatal: AuthError | None = None
        """Why nothing more can be told."""

        self.moved_at = clock()
        """When something was told last."""

    @property
    def pending(self) -> bool:
        """Whether something has happened that is still to be told."""
        return self._told < self._known and self.fatal is None and not self._closed

    @property
    def failing(self) -> bool:
        """Whether nobody took the latest piece of news yet that was to be told."""
        return self._failures > 0

    def tell(self) -> None:
        """Have everything told that has happened; raise what ended the courier."""
        if self.fatal is not None:
            raise self.fatal
        with self._changed, suppress(FileNotFoundError):
            self._known = max(self._known, self._events.stat().st_size)
            if self._thread is None and self.pending:
                self._thread = threading.Thread(
                    target=self._work, name=f"gen-worker-tell-{self._kinds[0]}", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def wait(self, until: Callable[[], bool]) -> None:
        """Wait until everything is told, nothing more can be, or `until` says that it is enough."""
        with self._changed:
            while self.pending and not until():
                self._changed.wait(_LOOK_S)

    def close(self) -> None:
        """Tell nothing more; what is being told ends by itself."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # --- in its thread ---

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self.pending or self._closed):
                    self._changed.wait()
                if self._closed:
                    return
            for news, end in news_between(self._events, self._told, self._known, self._kinds):
                if not self._tell(news):
                    return
                self._note(end)

    def _tell(self, news: News | None) -> bool:
        """Tell it, for as long as that takes; say whether to go on."""
        while news is not None and not self._closed:
            try:
                self._deliver(news)
            except CanceledError:
                self.close()
            except AuthError as error:
                self._end(error)
                return False
            except Exception as error:  # noqa: BLE001 - whatever it is, it is no reason to tell nothing else
                if isinstance(error, ArtifactTransferError) and error.retryable:
                    self._pause(error)
                    continue
                if not self._closed:
                    self._warn(f"not told: {error}")
            self._failures = 0
            break
        return not self._closed

    def _pause(self, error: Exception) -> None:
        pause_s = self._pause_after(self._failures)
        if not self._failures:
            self._warn(f"not told: {error}; it is tried again until it is taken, and the training goes on")
        self._failures += 1
        with self._changed:
            self._changed.wait_for(lambda: self._closed, pause_s)

    def _note(self, end: int) -> None:
        try:
            _mark(self._mark, end)
        except OSError as error:
            self._warn(f"whoever goes on from here will tell it again: `{self._mark}`: {error.strerror}")
        with self._changed:
            self._told, self.moved_at = end, self._clock()
            self._changed.notify_all()

    def _end(self, error: AuthError) -> None:
        with self._changed:
            self.fatal = error
            self._changed.notify_all()


def news_between(path: Path, begin: int, end: int, kinds: tuple[str, ...]) -> Iterator[tuple[News | None, int]]:
    """Yield the news of some kinds in a part of an events' file, each with where it ends there; None at the end.

    What was measured after one step is one piece of news.
    """
    numbers: Numbers | None = None
    at = begin
    with path.open("rb") as file:
        file.seek(begin)
        while at < end and (line := file.readline()).endswith(b"\n"):
            event = _event(line)
            kind, step = event.get("event"), event.get("step", 0)
            if numbers is not None and (kind != "metric" or step != numbers.step):
                yield numbers, at
                numbers = None
            at += len(line)
            if kind == "metric" and "metric" in kinds:
                numbers = numbers or Numbers(step, {})
                numbers.metrics[event.get("name", "")] = event.get("value")
            elif kind in kinds:
                yield Made(kind, step, event.get("path", "")), at
    yield numbers, at


def _event(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _marked(path: Path, events: Path) -> int:
    """Return how far the platform has heard; a mark that is none, or of other events, stands for nothing."""
    try:
        told = int(path.read_bytes())
        return told if told <= events.stat().st_size else 0
    except (OSError, ValueError):
        return 0


def _mark(path: Path, told: int) -> None:
    """Note how far the platform has heard. One write of the same length: nobody reads a half."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.pwrite(fd, b"%020d\n" % told, 0)
    finally:
        os.close(fd)
