"""What an orchestrator is told of a job's end: status, a text that is safe to show, what the job took. Pure."""

from collections.abc import Callable

from gen_worker.wire.scheduler import JobMetrics, JobStatus
from gen_worker_supervisor.core.phases import JobState
from gen_worker_supervisor.core.state import Job, Outcome
from gen_worker_supervisor.logs.redaction import redacted

TEXT_CHARS = 1024
_OF_DEATHS = ("child_died", "quarantined")  # what ends otherwise has a text that orchestrators know
STATUS: dict[JobState, JobStatus] = {
    JobState.OK: JobStatus.OK,
    JobState.INVALID: JobStatus.INVALID,
    JobState.RETRYABLE: JobStatus.RETRYABLE,
    JobState.FATAL: JobStatus.FATAL,
    JobState.CANCELED: JobStatus.CANCELED,
}


def safe_message(outcome: Outcome, hide: Callable[[str], str]) -> str:
    """Return what an orchestrator may show of a job's end; nothing of one that ended well.

    `hide` takes secrets out that are known by their value; after that the text is cut, as half a secret is not known.
    """
    if outcome.kind is None:
        return ""
    if outcome.kind == "draining":
        return "worker draining"
    told = f"function unavailable: {outcome.message}" if outcome.kind == "unavailable" else outcome.message
    if outcome.detail is not None and outcome.detail.retry_after_s is not None:
        told += f"; try again in {outcome.detail.retry_after_s:g} s"
    if outcome.detail is not None and outcome.detail.postmortem is not None and outcome.kind in _OF_DEATHS:
        told += f"; post-mortem {outcome.detail.postmortem}"
    return redacted(hide(told.strip()))[:TEXT_CHARS]


def metrics(job: Job, outcome: Outcome, now: float, concurrency: int) -> JobMetrics | None:
    """Return what a job took, as it was measured; None where it never ran."""
    if job.started is None and not outcome.run_s:
        return None
    run_s = outcome.run_s or (now - job.started if job.started is not None else 0.0)
    started = now - run_s  # the child measured it; what is seen of its start from here may be late
    return JobMetrics(
        runtime_ms=round(run_s * 1000),
        queue_ms=max(0, round((started - job.submitted) * 1000)),
        peak_rss_bytes=outcome.peak_rss,
        peak_vram_bytes=outcome.peak_vram,
        concurrency_at_start=concurrency,
    )
