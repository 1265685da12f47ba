"""The jobs of functions that take batches: they wait here for others until one call runs them all."""

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from gen_worker.api.batch import Batch
from gen_worker_child.job import Job

WAKING_S = 0.0005  # what it takes from the end of a wait to the call: a lone request loses no more than it may


class Gathering:
    """Jobs that wait for a batch, each kind by itself. Any thread adds and drops; the job thread takes."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: dict[tuple[str, str], deque[Job]] = {}

    def add(self, job: Job) -> None:
        """Have a job wait for others of its function and instance."""
        with self._changed:
            self._waiting.setdefault(_kind(job), deque()).append(job)
            self._changed.notify_all()

    def drop(self, job: Job) -> None:
        """A job is given back: no batch takes it."""
        with self._changed:
            waiting = self._waiting.get(_kind(job))
            if waiting is not None and job in waiting:
                waiting.remove(job)
            self._changed.notify_all()

    def is_full(self, job: Job) -> bool:
        """Whether as many jobs wait with this one as a batch takes."""
        return len(self._waiting.get(_kind(job), ())) >= _batch_of(job).max_size

    def take(self, job: Job) -> "list[Job]":
        """Return the jobs that run together with this one, it among them; wait for others as long as they may.

        The list is empty when an earlier batch has taken it, or it was given back.
        """
        batch = _batch_of(job)
        with self._changed:
            waiting = self._waiting.get(_kind(job))
            if waiting is None or job not in waiting:
                return []
            due = waiting[0].arrived + batch.max_wait_ms / 1000 - WAKING_S
            while 0 < len(waiting) < batch.max_size and (left := due - time.monotonic()) > 0:
                self._changed.wait(left)
            taken = [waiting.popleft() for _ in range(min(len(waiting), batch.max_size))]
            if not waiting:
                self._waiting.pop(_kind(job), None)
            return taken


def _kind(job: Job) -> tuple[str, str]:
    return job.spec.name, job.instance


def _batch_of(job: Job) -> Batch:
    assert job.spec.batch is not None
    return job.spec.batch


@dataclass(slots=True, eq=False)
class Running:
    """A batch that runs: its jobs, and how those have ended that are not reported yet."""

    jobs: "list[Job]"
    endings: "dict[Job, Any]" = field(default_factory=dict)
    tried: bool = False  # together; whoever has no ending after that runs by itself
    together: bool = False  # just now
    called: int = 1  # with how many of them
    peaks: tuple[int, int] | None = None
    left: "list[Job]" = field(default_factory=list)  # answered while the call, which has their payloads, went on

    def others_want(self, job: Job) -> bool:
        """Whether the call goes on for others than this one."""
        return any(each is not job and not each.reported and not each.cancel.is_set() for each in self.jobs)

    def nobody_wants(self) -> bool:
        """Whether all of its jobs were asked to end, or have ended."""
        return all(job.reported or job.cancel.is_set() for job in self.jobs)
