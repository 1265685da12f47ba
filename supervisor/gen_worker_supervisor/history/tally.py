"""Count jobs by function: how they ended, how long they ran, how long they waited for that.

Pure, and quick: it is told of every job. Nothing here knows requests, tenants or payloads, so it stays as small as the
endpoint has functions.
"""

from bisect import bisect_left

from gen_worker.job_records import JobRecord
from gen_worker.wire.status import HistogramStatus

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
"""The seconds up to which each bucket of a histogram counts."""


class Histogram:
    """How long something took, by `BOUNDS`."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        """Count one time."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.sum_s += seconds

    def status(self) -> HistogramStatus:
        """Return it as the status document has it."""
        return HistogramStatus(list(BOUNDS), list(self.counts), round(self.sum_s, 6))


class FunctionTally:
    """What became of the jobs of one function."""

    __slots__ = ("ended", "run", "wait")

    def __init__(self) -> None:
        self.ended: dict[str, int] = {}  # by "ok" or the kind of error
        self.run = Histogram()
        self.wait = Histogram()


class Tally:
    """What became of the jobs of each function, and how long models took to load, by where they were loaded from."""

    def __init__(self) -> None:
        self.functions: dict[str, FunctionTally] = {}
        self.loads: dict[str, Histogram] = {}

    def ended(self, record: JobRecord) -> None:
        """Count a job that has its answer; one that never ran has no times."""
        found = self.functions.get(record.function)
        if found is None:
            found = self.functions[record.function] = FunctionTally()
        how, ended = record.outcome, found.ended
        ended[how] = ended.get(how, 0) + 1
        if run_s := record.run_s:
            run, wait, wait_s = found.run, found.wait, record.queue_s
            run.counts[bisect_left(BOUNDS, run_s)] += 1  # `add`, written out: it would be half of what this costs
            run.sum_s += run_s
            wait.counts[bisect_left(BOUNDS, wait_s)] += 1
            wait.sum_s += wait_s

    def loaded(self, source: str, seconds: float) -> None:
        """Count models that a child has loaded: from the host's `ram`, or from its `disk`."""
        found = self.loads.get(source)
        if found is None:
            found = self.loads[source] = Histogram()
        found.add(seconds)
