"""Calls that come due together, made a few at a time, so that nothing else waits for all of them."""

import asyncio
from collections.abc import Callable

TURN_S = 0.003  # of such calls, before others get their turn


class Turns:
    """Makes calls in the order in which they came, each once however often it was asked for meanwhile."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: dict[Callable[[], None], None] = {}
        self._turn: asyncio.Handle | None = None

    def soon(self, call: Callable[[], None]) -> None:
        """Make a call, never before this one returns."""
        self._due[call] = None
        if self._turn is None:
            self._turn = self._loop.call_soon(self._go_on)

    def forgo(self, call: Callable[[], None]) -> None:
        """Do not make a call that was not made yet."""
        self._due.pop(call, None)

    def _go_on(self) -> None:
        self._turn = None
        over = self._loop.time() + TURN_S
        while self._due and self._loop.time() < over:
            call = next(iter(self._due))
            del self._due[call]
            call()
        if self._due and self._turn is None:
            self._turn = self._loop.call_soon(self._go_on)
