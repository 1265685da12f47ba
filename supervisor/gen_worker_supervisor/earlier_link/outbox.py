"""What waits to be written to an earlier orchestrator, in order, whether there is a connection or not. Pure.

Items of streams wait as they are few: their handlers go on once some were written. What jobs say of themselves is
dropped above a bound.
"""

from collections import deque

from gen_worker.wire.earlier import (
    RealtimeCloseCommand,
    RealtimeFrame,
    Report,
    TaskExecutionResult,
    WorkerEvent,
    WorkerRegistration,
)

BOUND = 1024  # messages that wait


class EarlierOutbox:
    """Messages in the order in which they are written."""

    def __init__(self, bound: int = BOUND) -> None:
        self._bound = bound
        self._waiting: deque[Report] = deque()
        self._results: set[str] = set()  # runs whose results wait

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, message: Report) -> bool:
        """Add a message; return whether it was taken."""
        told = isinstance(message, WorkerEvent) and not message.event_type.startswith("output.")
        if told and len(self._waiting) >= self._bound:
            return False
        if isinstance(message, WorkerRegistration):  # a newer one replaces the one that waits
            self._waiting = deque(each for each in self._waiting if not isinstance(each, WorkerRegistration))
        if isinstance(message, TaskExecutionResult):
            if message.run_id in self._results:  # it stands for the one that waits
                self._waiting = deque(message if _is_of(each, message.run_id) else each for each in self._waiting)
                return True
            self._results.add(message.run_id)
        self._waiting.append(message)
        return True

    def put_back(self, message: Report) -> None:
        """Have a message that was not written go first."""
        if isinstance(message, TaskExecutionResult):
            self._results.add(message.run_id)
        self._waiting.appendleft(message)

    def pop(self) -> Report | None:
        """Return the message to write next and forget it; None where nothing waits."""
        message = self._waiting.popleft() if self._waiting else None
        if isinstance(message, TaskExecutionResult):
            self._results.discard(message.run_id)
        return message

    def disconnected(self) -> None:
        """Forget what is of no use on another connection."""
        gone = (WorkerRegistration, RealtimeFrame, RealtimeCloseCommand)
        self._waiting = deque(each for each in self._waiting if not isinstance(each, gone))


def _is_of(message: Report, run_id: str) -> bool:
    return isinstance(message, TaskExecutionResult) and message.run_id == run_id
