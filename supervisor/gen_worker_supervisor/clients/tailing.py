"""Answers who reads the log over the control socket, and wakes those who wait for its next lines.

Who waits costs nothing while nothing is told, and is answered at most ten times a second however much is. A turn of the
loop looks at lines for no more than some milliseconds, however many ask.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from gen_worker.wire import control as wire
from gen_worker_supervisor.core.bodies import OutputBody
from gen_worker_supervisor.logs.ring import Filter, Ring
from gen_worker_supervisor.loop.turns import TURN_S

TICK_S = 0.1  # between two answers to those who wait
WAIT_MOST_S = 600.0


class Reader(Protocol):
    """Who asks, and gets the answer."""

    def send_body(self, body: OutputBody, frame_of: Callable[[wire.Value], wire.ServerFrame]) -> None:
        """Take a frame with a body of any length."""
        ...


@dataclass(slots=True, eq=False)
class _Asked:
    """A question that is not answered yet."""

    after: int
    meant: Filter
    limit: int
    until: float
    waits: bool  # for lines to come, and so is answered now and then only
    left_out: int = 0
    timer: asyncio.TimerHandle | None = None


class Tail:
    """Reads a ring for those who ask; of each who asks the latest question counts."""

    def __init__(self, ring: Ring, loop: asyncio.AbstractEventLoop) -> None:
        self._ring = ring
        self._loop = loop
        self._due: dict[Reader, _Asked] = {}  # to be looked at now
        self._waiting: dict[Reader, _Asked] = {}  # there was nothing for them yet, or they come too soon
        self._turn: asyncio.Handle | None = None
        self._tick: asyncio.TimerHandle | None = None
        self._next_tick = 0.0
        self._woken = False  # the loop knows that there are new lines

    def read(self, frame: wire.Read, reader: Reader) -> None:
        """Answer with the lines that a frame asks for, once there are some or it has waited long enough."""
        self.forget(reader)
        now = self._loop.time()
        wait_s = min(max(0.0, frame.wait_ms / 1000), WAIT_MOST_S)
        meant = Filter(frame.events, frame.device, frame.request_id, frame.level)
        asked = _Asked(frame.after, meant, max(1, frame.limit), now + wait_s, wait_s > 0)
        if asked.waits and now < self._next_tick:
            self._wait(reader, asked)
        else:
            self._due[reader] = asked
            self._look_soon()

    def forget(self, reader: Reader) -> None:
        """Answer somebody nothing more: another question takes the place of the last, or it has gone."""
        for place in (self._due, self._waiting):
            asked = place.pop(reader, None)
            if asked is not None and asked.timer is not None:
                asked.timer.cancel()

    def on_lines(self) -> None:
        """There are new lines; may be called by any thread."""
        if self._waiting and not self._woken:
            self._woken = True
            with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                self._loop.call_soon_threadsafe(self._tick_soon)

    def _wait(self, reader: Reader, asked: _Asked) -> None:
        self._waiting[reader] = asked
        if asked.timer is None:
            asked.timer = self._loop.call_at(asked.until, self._expire, reader)
        if asked.after < 0 or self._ring.last > asked.after:  # a line came before it was said that somebody waits
            self._tick_soon()

    def _expire(self, reader: Reader) -> None:
        asked = self._waiting.pop(reader, None)
        if asked is not None:
            self._due[reader] = asked
            self._look_soon()

    def _tick_soon(self) -> None:
        if self._tick is None:
            self._tick = self._loop.call_at(max(self._loop.time(), self._next_tick), self._on_tick)

    def _on_tick(self) -> None:
        self._tick, self._woken = None, False
        self._next_tick = self._loop.time() + TICK_S
        self._due |= self._waiting
        self._waiting.clear()
        self._look_soon()

    def _look_soon(self) -> None:
        if self._turn is None and self._due:
            self._turn = self._loop.call_soon(self._look)

    def _look(self) -> None:
        """Look at lines for those who are due, in turn, until others must get theirs."""
        self._turn = None
        over = self._loop.time() + TURN_S
        while self._due and self._loop.time() < over:
            reader = next(iter(self._due))
            self._look_for(reader, self._due.pop(reader))
        self._look_soon()

    def _look_for(self, reader: Reader, asked: _Asked) -> None:
        page = self._ring.page(asked.after, asked.meant, asked.limit)
        asked.left_out += page.left_out
        asked.after = page.last
        if not page.lines and page.more:
            self._due[reader] = asked  # behind the others
        elif not page.lines and self._loop.time() < asked.until:
            self._wait(reader, asked)
        else:
            if asked.timer is not None:
                asked.timer.cancel()
            if asked.waits:
                self._next_tick = max(self._next_tick, self._loop.time() + TICK_S)
            last, left_out = page.last, asked.left_out
            reader.send_body(b"".join(page.lines), lambda value: wire.Lines(value, last, left_out))
