"""The results that may not have arrived yet: kept until they were written to a live stream, and for a while after.

Pure. Runs have no attempts on this wire: a run that was answered may come again, and is another run then. But who asks
again over a new connection for what it misses, in the same words, has asked before the output that crossed with that.
"""

from collections import OrderedDict

from gen_worker.wire.earlier import TaskExecutionResult
from gen_worker_supervisor.earlier_link.answers import refused

DOUBTED_S = 60.0  # a result that was written so shortly before a connection was lost may not have arrived
CROSSING_S = 10.0  # after a connection was lost: how long requests on the next one may cross with outputs
KEPT_BYTES = 256 << 20  # of outputs that were not written; above it the oldest are asked for again


class Results:
    """The results of runs that ended, by run."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept_bytes = kept_bytes
        self._unwritten: OrderedDict[str, TaskExecutionResult] = OrderedDict()
        self._written: OrderedDict[str, tuple[float, TaskExecutionResult]] = OrderedDict()
        self._leaving: set[str] = set()  # those of them that are being written: they may have arrived
        self._requests: dict[str, int] = {}  # what runs were asked whose outputs answer the same once more
        self._crossing_until = 0.0
        self._lost = False  # a connection was, and there is no other one yet
        self._bytes = 0  # of the unwritten
        self._written_bytes = 0

    @property
    def all_written(self) -> bool:
        """Whether nothing waits to be written."""
        return not self._unwritten

    def waits(self, run_id: str, request: int | None, now: float) -> bool:
        """Whether a run's result has yet to leave, so that nobody can have asked for the run again."""
        return run_id in self._unwritten and (run_id not in self._leaving or self._crosses(run_id, request, now))

    def crossed_with(self, run_id: str, request: int | None, now: float) -> TaskExecutionResult | None:
        """Return the output that was written while it was asked for, if there was one."""
        _, result = self._written.get(run_id, (0.0, None))
        return result if self._crosses(run_id, request, now) else None

    def leaving(self, run_id: str) -> None:
        """A result is being written from now on."""
        self._leaving.add(run_id)

    def disconnected(self) -> None:
        """What was being written goes over another connection."""
        self._leaving.clear()
        self._lost = True

    def add(self, result: TaskExecutionResult, request: int | None = None) -> list[TaskExecutionResult]:
        """Keep a result until it is written; return what is to be written in place of those that had to go for it.

        `request` stands for what the run was asked, where its output is all that it says.
        """
        self.forget(result.run_id)
        self._drop(result.run_id)
        if request is not None and result.success:
            self._requests[result.run_id] = request
        self._unwritten[result.run_id] = result
        self._bytes += len(result.output_payload)
        replaced = []
        for run_id, each in list(self._unwritten.items()):
            if self._bytes <= self._kept_bytes:
                break
            if each.output_payload and run_id != result.run_id and run_id not in self._leaving:
                self._bytes -= len(each.output_payload)
                self._unwritten[run_id] = refused(run_id, "retryable", "the output could not be kept for so long")
                self._requests.pop(run_id, None)
                replaced.append(self._unwritten[run_id])
        return replaced

    def written(self, result: TaskExecutionResult, now: float) -> None:
        """A result was written to a live stream."""
        self._leaving.discard(result.run_id)
        if self._unwritten.get(result.run_id, result) != result:
            return  # the run was run again meanwhile: its next result has yet to leave
        self._drop(result.run_id)
        self._take_written(result.run_id)
        self._written[result.run_id] = now, result
        self._written_bytes += len(result.output_payload)
        self.tick(now)

    def doubted(self, now: float) -> list[TaskExecutionResult]:
        """Take back the results that were written only a moment ago; return them, to be written again.

        Until they are, they wait like any other: an orchestrator that missed one asks for its run once more.
        """
        self.tick(now)
        self._crossing_until = now + CROSSING_S if self._lost else 0.0
        self._lost = False
        doubted = {run_id: result for run_id, (_, result) in self._written.items()}
        self._written.clear()
        self._bytes, self._written_bytes = self._bytes + self._written_bytes, 0
        self._unwritten = OrderedDict({**doubted, **self._unwritten})
        return list(doubted.values())

    def forget(self, run_id: str) -> None:
        """A run has come again: what it ended with before is of no interest any more."""
        self._take_written(run_id)
        self._requests.pop(run_id, None)

    def tick(self, now: float) -> None:
        """Keep no output for longer than it may be asked for."""
        while self._written:
            run_id, (at, _) = next(iter(self._written.items()))
            if now - at < DOUBTED_S and self._written_bytes <= self._kept_bytes:
                return
            self.forget(run_id)

    def _take_written(self, run_id: str) -> None:
        _, result = self._written.pop(run_id, (0.0, None))
        if result is not None:
            self._written_bytes -= len(result.output_payload)

    def _crosses(self, run_id: str, request: int | None, now: float) -> bool:
        return request is not None and now < self._crossing_until and self._requests.get(run_id) == request

    def _drop(self, run_id: str) -> None:
        result = self._unwritten.pop(run_id, None)
        if result is not None:
            self._bytes -= len(result.output_payload)
