"""When the status document is sent to whoever watches, on a clock that is moved by hand."""

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

from gen_worker.wire import control as wire
from gen_worker_supervisor.clients.verbs import SHARED_S, Subscription, Verbs
from gen_worker_supervisor.core.bodies import OutputBody


class Clock:
    """What a subscription needs of a loop."""

    def __init__(self) -> None:
        self.now = 0.0
        self._soon: deque[asyncio.Handle] = deque()
        self._later: list[tuple[float, int, asyncio.Handle]] = []
        self._loop = cast("asyncio.AbstractEventLoop", SimpleNamespace(get_debug=lambda: False))

    def time(self) -> float:
        return self.now

    def call_soon(self, call: Callable[..., object], *given: Any) -> asyncio.Handle:
        self._soon.append(asyncio.Handle(call, given, self._loop))
        return self._soon[-1]

    def call_at(self, when: float, call: Callable[..., object], *given: Any) -> asyncio.Handle:
        handle = asyncio.Handle(call, given, self._loop)
        heapq.heappush(self._later, (when, len(self._later), handle))
        return handle

    @property
    def due(self) -> int:
        """How many calls are to come."""
        return sum(not handle.cancelled() for _, _, handle in self._later)

    def passes(self, seconds: float) -> None:
        """Let so much time pass, and do what becomes due."""
        end = self.now + seconds
        while self._soon or (self._later and self._later[0][0] <= end):
            if not self._soon:
                self.now, _, due = heapq.heappop(self._later)
                self._soon.append(due)
            handle = self._soon.popleft()
            if not handle.cancelled():
                handle._run()
        self.now = end


class Watcher:
    """A client that watches."""

    def __init__(self, clock: Clock) -> None:
        self.caught_up, self.closed = True, False
        self.breaks = False
        self.got: list[tuple[float, bytes]] = []
        self._clock = clock

    def send(self, frame: wire.ServerFrame, descriptors: Sequence[int] = ()) -> None: ...

    def send_body(self, body: OutputBody, frame_of: Callable[[wire.Value], wire.ServerFrame]) -> None:
        assert isinstance(body, bytes)
        self.closed = self.breaks
        self.got.append((round(self._clock.now, 3), body))

    @property
    def times(self) -> list[float]:
        return [at for at, _ in self.got]


class Watched:
    """A supervisor whose documents are numbers."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.made = 0
        log = SimpleNamespace(ring=None, on_lines=None, hide=str)
        supervisor, reporter = SimpleNamespace(log=log, fleet=None), SimpleNamespace(document=self._document)
        self.verbs = Verbs(cast("Any", supervisor), cast("Any", self.clock), cast("Any", reporter))

    def _document(self, jobs: int) -> bytes:
        self.made += 1
        return str(self.made).encode()

    def watcher(self, every_ms: int) -> tuple[Watcher, Subscription]:
        """Somebody watches from now on."""
        watcher = Watcher(self.clock)
        return watcher, self.verbs.watch(watcher, every_ms, 0)


def test_what_is_shown_at_once_is_how_things_are_now_and_not_a_document_of_just_before() -> None:
    watched = Watched()
    watcher, _ = watched.watcher(3_600_000)
    watched.clock.passes(SHARED_S / 4)
    watched.verbs.show_now()
    watched.clock.passes(SHARED_S / 4)
    assert watcher.got == [(0.0, b"1"), (0.05, b"2")]


def test_after_what_is_shown_at_once_each_gets_the_next_at_their_interval_from_there() -> None:
    watched = Watched()
    often, _ = watched.watcher(1_000)
    seldom, _ = watched.watcher(3_000)
    watched.clock.passes(1.5)
    watched.verbs.show_now()
    watched.verbs.show_now()
    watched.clock.passes(4)
    assert often.times == [0, 1, 1.5, 2.5, 3.5, 4.5, 5.5]
    assert seldom.times == [0, 1.5, 4.5]


def test_who_watches_no_more_is_shown_nothing_and_not_held_on_to() -> None:
    watched = Watched()
    ended, subscription = watched.watcher(1_000)
    gone, _ = watched.watcher(1_000)
    stays, _ = watched.watcher(1_000)
    watched.clock.passes(0.5)
    subscription.close()
    gone.closed = True
    watched.verbs.show_now()
    watched.clock.passes(0.75)
    watched.verbs.show_now()
    watched.clock.passes(0.5)
    assert (ended.times, gone.times, stays.times) == ([0], [0], [0, 0.5, 1.25])


def test_who_is_slow_gets_what_is_shown_at_once_with_their_next_document() -> None:
    watched = Watched()
    watcher, _ = watched.watcher(1_000)
    watched.clock.passes(0.5)
    watcher.caught_up = False
    watched.verbs.show_now()
    watched.clock.passes(0.5)
    watcher.caught_up = True
    watched.clock.passes(1)
    assert watcher.got == [(0.0, b"1"), (1.5, b"2")]


def test_who_is_found_gone_as_a_document_is_sent_is_not_held_on_to_until_the_next() -> None:
    watched = Watched()
    watcher, _ = watched.watcher(3_600_000)
    watched.clock.passes(1)
    assert watched.clock.due == 1
    watcher.breaks = True
    watched.verbs.show_now()
    watched.clock.passes(1)
    assert watched.clock.due == 0
