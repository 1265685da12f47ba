"""Which attempts of which requests this worker holds or has answered: what makes a job run once and answered once.

Pure: it is told what came and what ended, and says what that means. Only the orchestrator raises attempts; of one
request at most one runs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from math import inf

from gen_worker.wire.scheduler import InFlightJob, JobResult, RunJob

REMEMBERED = 1024  # ended pairs whose retransmits are known
REMEMBERED_BYTES = 32 << 20  # of their outputs; a pair without its output is known all the same
DOUBTED_S = 60.0  # a result that was written so shortly before a connection was lost may not have arrived


class Coming(Enum):
    """What a `RunJob` is to this worker."""

    NEW = "new"
    HELD = "held"  # it runs or waits already
    ENDED = "ended"  # it was answered
    STALE = "stale"  # a later attempt is known
    FENCES = "fences"  # an earlier attempt is held, which must end first


@dataclass(slots=True, eq=False)
class Held:
    """One attempt of a request that was accepted and has no result yet."""

    run: RunJob
    accepted: float
    silent: bool = False  # a later attempt has come: nobody waits for its result


@dataclass(slots=True, eq=False)
class _Ended:
    result: JobResult | None  # None: its output was too much to remember
    written: float = inf  # when; inf: not yet


@dataclass(slots=True, eq=False)
class Ledger:
    """Everything that was accepted and is not forgotten."""

    held: dict[str, Held] = field(default_factory=dict)  # by request; the newest attempt that is running
    waiting: dict[str, Held] = field(default_factory=dict)  # by request; the attempt that comes after it
    _ended: dict[tuple[str, int], _Ended] = field(default_factory=dict)
    _unwritten: dict[tuple[str, int], None] = field(default_factory=dict)
    _written: dict[tuple[str, int], None] = field(default_factory=dict)  # the one written first at the front
    _heavy: dict[tuple[str, int], None] = field(default_factory=dict)  # of them, those whose outputs are remembered
    _newest: dict[str, int] = field(default_factory=dict)  # the newest ended attempt of each remembered request
    _bytes: int = 0

    @property
    def count(self) -> int:
        """How many attempts are held."""
        return len(self.held) + len(self.waiting)

    def coming(self, request_id: str, attempt: int) -> Coming:
        """Say what an attempt of a request is."""
        if (request_id, attempt) in self._ended:
            return Coming.ENDED
        known = self.waiting.get(request_id) or self.held.get(request_id)
        if known is not None and attempt == known.run.attempt and not known.silent:
            return Coming.HELD
        newest = self._newest.get(request_id, attempt - 1)
        if attempt <= max(newest, attempt - 1 if known is None else known.run.attempt):
            return Coming.STALE
        return Coming.NEW if known is None else Coming.FENCES

    def accept(self, run: RunJob, now: float) -> Held:
        """Hold a new attempt."""
        held = self.held[run.request_id] = Held(run, now)
        return held

    def fence(self, run: RunJob, now: float) -> Held:
        """Hold an attempt that begins once the earlier one has ended; return the earlier one, which ends silently."""
        earlier = self.held[run.request_id]
        earlier.silent = True
        self.waiting[run.request_id] = Held(run, now)
        return earlier

    def find(self, request_id: str, attempt: int) -> Held | None:
        """Return a held attempt, whether it runs or waits for an earlier one."""
        for held in (self.held.get(request_id), self.waiting.get(request_id)):
            if held is not None and held.run.attempt == attempt and not held.silent:
                return held
        return None

    def leave(self, held: Held) -> Held | None:
        """Hold an attempt no longer that ended; return the one that waited for this, which is held from now on."""
        request_id = held.run.request_id
        if self.waiting.get(request_id) is held:
            del self.waiting[request_id]
            return None
        if self.held.get(request_id) is not held:
            return None
        del self.held[request_id]
        following = self.waiting.pop(request_id, None)
        if following is not None:
            self.held[request_id] = following
        return following

    def end(self, result: JobResult) -> None:
        """Remember a result until it is shipped, and for retransmits after that."""
        key = (result.request_id, result.attempt)
        if (before := self._ended.pop(key, None)) is not None:
            self._bytes -= _output_bytes(before)
            for order in (self._unwritten, self._written, self._heavy):
                order.pop(key, None)
        self._ended[key] = _Ended(result)
        self._unwritten[key] = None
        self._bytes += len(result.inline or b"")
        self._newest[result.request_id] = max(result.attempt, self._newest.get(result.request_id, 0))

    def written(self, result: JobResult, now: float) -> None:
        """A result was written to a live stream."""
        key = (result.request_id, result.attempt)
        ended = self._ended.get(key)
        if ended is None:
            return
        ended.written = now
        self._unwritten.pop(key, None)
        for order in (self._written, self._heavy):
            order.pop(key, None)
        self._written[key] = None
        if _output_bytes(ended):
            self._heavy[key] = None
        self._forget_the_oldest()

    def result(self, request_id: str, attempt: int) -> JobResult | None:
        """Return the result of an ended attempt; None where its output is not remembered."""
        ended = self._ended.get((request_id, attempt))
        return None if ended is None else ended.result

    def unshipped(self, now: float) -> Iterator[JobResult]:
        """Return the results that may not have arrived: those not written, and those written only a moment ago."""
        for key in (*self._unwritten, *self._written):
            ended = self._ended[key]
            if ended.result is not None and (ended.written == inf or now - ended.written < DOUBTED_S):
                yield ended.result

    def all_shipped(self) -> bool:
        """Whether every result was written to a live stream."""
        return not self._unwritten

    def in_flight(self, now: float) -> list[InFlightJob]:
        """Return what an orchestrator must not give to another worker: what is held, and what may not have arrived."""
        runs = [held.run for held in (*self.held.values(), *self.waiting.values()) if not held.silent]
        pairs = [(run.request_id, run.attempt) for run in runs]
        pairs += [(result.request_id, result.attempt) for result in self.unshipped(now)]
        return [InFlightJob(request_id=request_id, attempt=attempt) for request_id, attempt in pairs]

    def _forget_the_oldest(self) -> None:
        """Forget pairs, and before that outputs, beyond what is remembered; never one that was not shipped."""
        while len(self._written) > REMEMBERED:
            key = next(iter(self._written))
            del self._written[key]
            self._heavy.pop(key, None)
            self._bytes -= _output_bytes(self._ended.pop(key))
            if self._newest.get(key[0]) == key[1]:
                del self._newest[key[0]]
        while self._bytes > REMEMBERED_BYTES and self._heavy:
            key = next(iter(self._heavy))
            del self._heavy[key]
            ended = self._ended[key]
            self._bytes -= _output_bytes(ended)
            ended.result = None


def _output_bytes(ended: _Ended) -> int:
    return 0 if ended.result is None else len(ended.result.inline or b"")
