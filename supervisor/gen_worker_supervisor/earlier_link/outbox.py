"""What waits to be written to an earlier orchestrator, in order, whether there is a connection or not. Pure.

Items of streams wait as they are few: their handlers go on once some were written. What jobs say of themselves is
dropped above a bound.
"""

from collections import deque

from gen_worker.wire.earlier import RealtimeCloseCommand, RealtimeFrame, Report, WorkerEvent, WorkerRegistration

BOUND = 1024  # messages that wait
TOLD = ("job.progress", "job.log")


class EarlierOutbox:
    """Messages in the order in which they are written."""

    def __init__(self, bound: int = BOUND) -> None:
        self._bound = bound
        self._waiting: deque[Report] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, message: Report) -> bool:
        """Add a message; return whether it was taken."""
        if isinstance(message, WorkerEvent) and message.event_type in TOLD and len(self._waiting) >= self._bound:
            return False
        if isinstance(message, WorkerRegistration):  # a newer one replaces the one that waits
            self._waiting = deque(each for each in self._waiting if not isinstance(each, WorkerRegistration))
        self._waiting.append(message)
        return True

    def put_back(self, message: Report) -> None:
        """Have a message that was not written go first."""
        self._waiting.appendleft(message)

    def pop(self) -> Report | None:
        """Return the message to write next and forget it; None where nothing waits."""
        return self._waiting.popleft() if self._waiting else None

    def disconnected(self) -> None:
        """Forget what is of no use on another connection."""
        gone = (WorkerRegistration, RealtimeFrame, RealtimeCloseCommand)
        self._waiting = deque(each for each in self._waiting if not isinstance(each, gone))
