"""The order in which the waiting jobs of one function are served.

A higher priority goes first. Within one priority tenants take turns, so that a tenant's thousands delay another's first
job by one job. Within a tenant who came first goes first. No priority waits for ever: see `AGEING_S`.

Pure. Each call takes constant time, taken over many, however many jobs and tenants there are.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

AGEING_S = 10.0  # a priority that was not served for so long counts as one higher, until one of its jobs is served
STALE_KEPT = 64  # ended jobs that a line holds before it is tidied


class Waiter(Protocol):
    """What a queue has to know of a job; `waiting` is the queue's to set."""

    tenant: str
    priority: int
    submitted: float
    waiting: bool


Job = TypeVar("Job", bound=Waiter)


class _Level(Generic[Job]):
    """The jobs of one priority: a line for each tenant, the one whose turn it is first."""

    __slots__ = ("lines", "priority", "since")

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self.lines: OrderedDict[str, _Line[Job]] = OrderedDict()
        self.since = 0.0  # when one of its jobs was last served, or its first one came

    def claim(self, now: float) -> tuple[float, int]:
        return self.priority + (now - self.since) / AGEING_S, self.priority


class _Line(Generic[Job]):
    """The jobs of one tenant and priority, the next one first; those that left from the middle stay until they are."""

    __slots__ = ("jobs", "level", "size", "tenant")

    def __init__(self, level: _Level[Job], tenant: str) -> None:
        self.level = level
        self.tenant = tenant
        self.jobs: deque[Job] = deque()
        self.size = 0

    def first(self) -> Job:
        jobs = self.jobs
        while not jobs[0].waiting:
            jobs.popleft()
        return jobs[0]

    def drop(self, job: Job) -> None:
        job.waiting = False
        self.size -= 1
        jobs = self.jobs
        if jobs[0] is job:
            jobs.popleft()
        if not self.size:
            jobs.clear()
        elif len(jobs) > 2 * self.size + STALE_KEPT:
            self.jobs = deque(each for each in jobs if each.waiting)


class Queue(Generic[Job]):
    """The waiting jobs of one function; iterates over them in the order in which they would be served now."""

    __slots__ = ("_levels", "_only")

    def __init__(self) -> None:
        self._levels: dict[int, _Level[Job]] = {}  # by priority; no line is empty, but for the only one
        self._only: _Line[Job] | None = None  # while there is but one line: the usual case

    def __len__(self) -> int:
        return sum(line.size for level in self._levels.values() for line in level.lines.values())

    def __iter__(self) -> Iterator[Job]:
        for _, level in sorted(self._levels.items(), reverse=True):
            turns = deque(iter(line.jobs) for line in level.lines.values())
            while turns:
                jobs = turns.popleft()
                for job in jobs:
                    if job.waiting:
                        yield job
                        if turns:  # it is the next one's turn
                            turns.append(jobs)
                            break

    def push(self, job: Job, *, front: bool = False) -> None:
        """Add a job as its tenant's last; to the `front` comes one that was first before, and it is its turn again."""
        line = self._only
        if line is None or line.tenant != job.tenant or line.level.priority != job.priority:
            line = self._line_of(job)
        if not line.size and len(line.level.lines) == 1:
            line.level.since = job.submitted
        job.waiting = True
        line.size += 1
        if front:
            line.jobs.appendleft(job)
            line.level.lines.move_to_end(line.tenant, last=False)
        else:
            line.jobs.append(job)

    def first(self, now: float) -> Job:
        """Return the job that is to be served next, of which there must be one."""
        line = self._only
        if line is not None and line.jobs[0].waiting:
            return line.jobs[0]
        if line is None:
            level = max(self._levels.values(), key=lambda level: level.claim(now))
            line = next(iter(level.lines.values()))
        return line.first()

    def serve(self, job: Job, now: float) -> None:
        """Take out a job because it is served: the turn goes to the next tenant."""
        line = self._only
        if line is not None:
            line.level.since = now
            if line.size > 1 and line.jobs[0] is job:  # the usual case
                line.jobs.popleft()
                line.size -= 1
                job.waiting = False
            else:
                line.drop(job)
            return
        line = self._known(job)
        line.level.since = now
        line.level.lines.move_to_end(line.tenant)
        self._drop(line, job)

    def drop(self, job: Job) -> None:
        """Take out a job because it does not wait any more, wherever it stands: nobody's turn passes."""
        self._drop(self._only or self._known(job), job)

    def _known(self, job: Job) -> _Line[Job]:
        return self._levels[job.priority].lines[job.tenant]

    def _line_of(self, job: Job) -> _Line[Job]:
        """Return the line for a job, made where there is none."""
        if self._only is not None and not self._only.size:
            self._levels.clear()
        level = self._levels.get(job.priority)
        if level is None:
            level = self._levels[job.priority] = _Level(job.priority)
        line = level.lines.get(job.tenant)
        if line is None:
            line = level.lines[job.tenant] = _Line(level, job.tenant)
        self._only = line if len(self._levels) == len(level.lines) == 1 else None
        return line

    def _drop(self, line: _Line[Job], job: Job) -> None:
        line.drop(job)
        if line.size or line is self._only:
            return
        level = line.level
        del level.lines[line.tenant]
        if not level.lines:
            del self._levels[level.priority]
        if len(self._levels) == 1:
            (level,) = self._levels.values()
            if len(level.lines) == 1:
                (self._only,) = level.lines.values()
