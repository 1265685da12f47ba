"""What waits to be written to the orchestrator: in order, bounded, and with the rules for what goes first. Pure."""

from collections import OrderedDict
from collections.abc import Iterator

from gen_worker.wire.scheduler import (
    EVENT_TYPE,
    JobProgress,
    JobResult,
    ModelEvent,
    ModelState,
    StateDelta,
    WorkerFrame,
)

BOUND = 1024  # messages that wait, results not counted
PROGRESS_BYTES = 256 << 20  # of all progress that waits: 1,024 chunks of a stream could be any size


class Outbox:
    """Messages in the order in which they are written.

    Results are always kept. Where there is no room, the oldest progress goes: what a job says of itself before what it
    makes. A newer state replaces the one that waits, and so does how far a download is; nobody is told of those.
    """

    def __init__(self, bound: int = BOUND, progress_bytes: int = PROGRESS_BYTES) -> None:
        self._bound = bound
        self._progress_bytes = progress_bytes
        self._waiting: OrderedDict[int, WorkerFrame] = OrderedDict()
        self._events: OrderedDict[int, int] = OrderedDict()  # number → bytes
        self._chunks: OrderedDict[int, int] = OrderedDict()
        self._latest: dict[str, int] = {}  # what a newer message replaces → number
        self._results = 0
        self._bytes = 0  # of events and chunks
        self._next = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether so much waits that nothing may be dropped of, that nobody should cause more."""
        return len(self._waiting) - self._results - len(self._events) - len(self._chunks) >= self._bound

    def put(self, frame: WorkerFrame) -> list[WorkerFrame]:
        """Add a message; return those that are dropped for it, or itself."""
        replaces = _replaces(frame)
        if replaces is not None and replaces in self._latest:
            self._take(self._latest[replaces])
        dropped = [] if isinstance(frame, JobResult) else list(self._make_room(frame))
        if dropped and dropped[-1] is frame:
            return dropped
        self._add(frame, replaces)
        return dropped

    def pop(self) -> WorkerFrame | None:
        """Return the message to write next and forget it; None where nothing waits."""
        return self._take(next(iter(self._waiting))) if self._waiting else None

    def clear(self) -> list[WorkerFrame]:
        """Forget everything, and return it."""
        return [self._take(number) for number in list(self._waiting)]

    def _add(self, frame: WorkerFrame, replaces: str | None) -> None:
        number = self._next
        self._next += 1
        self._waiting[number] = frame
        if replaces is not None:
            self._latest[replaces] = number
        if isinstance(frame, JobResult):
            self._results += 1
        elif isinstance(frame, JobProgress):
            size = len(frame.body)
            self._bytes += size
            (self._events if frame.content_type == EVENT_TYPE else self._chunks)[number] = size

    def _take(self, number: int) -> WorkerFrame:
        frame = self._waiting.pop(number)
        replaces = _replaces(frame)
        if replaces is not None:
            del self._latest[replaces]
        if isinstance(frame, JobResult):
            self._results -= 1
        elif isinstance(frame, JobProgress):
            kind = self._events if frame.content_type == EVENT_TYPE else self._chunks
            self._bytes -= kind.pop(number)
        return frame

    def _make_room(self, frame: WorkerFrame) -> Iterator[WorkerFrame]:
        """Drop the oldest progress until there is room, or there is none left; then new progress goes itself."""
        size = len(frame.body) if isinstance(frame, JobProgress) else 0
        while self._lacks_room(size):
            kind = self._events or self._chunks
            if not kind:
                if isinstance(frame, JobProgress):
                    yield frame
                return
            yield self._take(next(iter(kind)))

    def _lacks_room(self, size: int) -> bool:
        too_many = len(self._waiting) - self._results >= self._bound
        return too_many or (bool(self._bytes) and self._bytes + size > self._progress_bytes and size > 0)


def _replaces(frame: WorkerFrame) -> str | None:
    """Return a name for what only the newest message of is of interest."""
    match frame:
        case StateDelta():
            return "state"
        case ModelEvent(state=ModelState.DOWNLOADING):
            return f"model {frame.ref}"
        case _:
            return None
