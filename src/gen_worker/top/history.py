"""What status documents said over the last minute. Pure: keeps what it is shown."""

from collections import deque

from gen_worker.wire.status import JobStatus, Status

KEPT = 60  # documents, one a second


class History:
    """The last minute of each device, how fast jobs are done, and how long those that run were given."""

    def __init__(self) -> None:
        self._util: dict[str, deque[float | None]] = {}
        self._vram: dict[str, deque[float | None]] = {}
        self._done: deque[tuple[float, int]] = deque(maxlen=KEPT)  # when, and how many so far
        self._limits: dict[tuple[str, int], float] = {}

    def note(self, status: Status) -> None:
        """Remember a document, unless it is the last one again; another supervisor's makes it forget."""
        began = status.ts - status.uptime_s
        if self._done and began > self._done[-1][0]:
            for kept in (self._util, self._vram, self._done, self._limits):
                kept.clear()
        if self._done and status.ts <= self._done[-1][0]:
            return
        self._done.append((status.ts, status.jobs_done))
        for device in status.gpus:
            self._util.setdefault(device.name, deque(maxlen=KEPT)).append(device.util)
            used, total = device.vram_used, device.vram_total
            share = None if used is None or not total else used / total
            self._vram.setdefault(device.name, deque(maxlen=KEPT)).append(share)
        limits = {(job.id, job.attempt): self._limit(job) for job in status.jobs}
        self._limits = {key: limit for key, limit in limits.items() if limit is not None}

    def _limit(self, job: JobStatus) -> float | None:
        if job.deadline_s:
            return spent_s(job) + job.deadline_s
        return self._limits.get((job.id, job.attempt))

    def util(self, device: str) -> list[float | None]:
        """Return how busy a device was, each a share of one second, the latest last."""
        return list(self._util.get(device, ()))

    def vram(self, device: str) -> list[float | None]:
        """Return how full a device's memory was, as shares, the latest last."""
        return list(self._vram.get(device, ()))

    def limit_s(self, job: JobStatus) -> float | None:
        """Return within how long a job has to end, counted as `spent_s` is; None: it may take what it takes.

        A document says how long is left. Once nothing is, what earlier ones said is remembered.
        """
        return self._limit(job)

    def done_per_minute(self) -> float | None:
        """Return how many jobs end well in a minute; None before two documents."""
        if len(self._done) < 2:
            return None
        (first, before), (last, now) = self._done[0], self._done[-1]
        return max(0, now - before) * 60 / (last - first)


def spent_s(job: JobStatus) -> float:
    """Return how long a job has run, or how long it has waited so far."""
    return job.elapsed_s if job.status != "queued" or job.queued_s is None else job.queued_s
