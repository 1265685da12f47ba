"""How late the supervisor's loop is: the promise that no peer holds it up, measured all the time.

A timer that should come every `INTERVAL_S` comes late by as long as something held the loop.
"""

import asyncio
from collections import deque

INTERVAL_S = 0.05
KEPT = 1200  # a minute of them


class Pulse:
    """Measures the loop's lag from its making to its close."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lags: deque[float] = deque(maxlen=KEPT)
        self._due = loop.time() + INTERVAL_S
        self._timer = loop.call_at(self._due, self._beat)

    def _beat(self) -> None:
        now = self._loop.time()
        self._lags.append(max(0.0, now - self._due))
        self._due = now + INTERVAL_S
        self._timer = self._loop.call_at(self._due, self._beat)

    def p99_s(self) -> float | None:
        """Return the lag in seconds that 99 of 100 beats of the last minute stayed below; None before the first."""
        ordered = sorted(self._lags)
        return round(ordered[int(0.99 * (len(ordered) - 1))], 6) if ordered else None

    def max_s(self) -> float | None:
        """Return the longest lag of the last minute in seconds; None before the first beat."""
        return round(max(self._lags), 6) if self._lags else None

    def close(self) -> None:
        """Measure no more."""
        self._timer.cancel()
