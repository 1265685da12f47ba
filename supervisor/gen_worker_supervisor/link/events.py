"""Which of a job's progress and log lines go to the orchestrator, which must not drown in them. Pure."""

from collections import deque
from math import inf

from gen_worker.wire.messages import Event

EVENTS_A_SECOND = 10  # of one job
LINES_A_SECOND = 8  # of them: progress finds room however much a job logs


class Events:
    """The events of one job: at most so many in any second, and the newest progress in the end.

    Log lines above that are dropped. Progress is held back, and replaced by newer progress.
    """

    __slots__ = ("_lines", "_sent", "_waiting")

    def __init__(self) -> None:
        self._sent = deque([-inf] * EVENTS_A_SECOND, maxlen=EVENTS_A_SECOND)
        self._lines = deque([-inf] * LINES_A_SECOND, maxlen=LINES_A_SECOND)
        self._waiting: bytes | None = None

    @property
    def waiting(self) -> bool:
        """Whether progress is held back."""
        return self._waiting is not None

    def offer(self, event: Event, now: float) -> bytes | None:
        """Return what to send of an event now, if anything."""
        value = b'{"event":"%b","value":%b}' % (event.event.encode(), event.value)
        if event.event == "progress":
            self._waiting = value
            return self.due(now)
        if now - self._lines[0] < 1.0 or now - self._sent[0] < 1.0:
            return None
        self._lines.append(now)
        self._sent.append(now)
        return value

    def due(self, now: float) -> bytes | None:
        """Return the progress that was held back, once there is room for it."""
        if self._waiting is None or now - self._sent[0] < 1.0:
            return None
        self._sent.append(now)
        return self.rest()

    def rest(self) -> bytes | None:
        """Return the progress that was held back: the job is over."""
        value, self._waiting = self._waiting, None
        return value
