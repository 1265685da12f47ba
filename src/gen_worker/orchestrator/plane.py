"""The control plane as its callers use it: jobs in, their ends out, workers in between."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from gen_worker.orchestrator.tokens import Tokens
from gen_worker.orchestrator.views import JobEvent, JobRequest, JobView, Status, WorkerView
from gen_worker.wire.scheduler import ModelOp, Snapshot


class Files(Protocol):
    """Where jobs' files and models' weights are. Each call returns at once."""

    def snapshot(self, ref: str) -> Snapshot | None:
        """Return a model's files with URLs that are good from now on; None for a ref that is not kept here."""
        ...

    def capability(self, request_id: str, attempt: int, tenant: str) -> str:
        """Return the token with which a worker stores the files of one attempt."""
        ...


class PlaneOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a control plane is started with."""

    state: Path
    """The SQLite file; made where there is none."""

    files: Files
    listen: str = "127.0.0.1:8080"
    """Where workers connect; port 0 takes a free one."""

    file_base_url: str = ""
    tls: tuple[Path, Path] | None = None
    """A certificate chain and its key, both PEM; None: plain text."""

    auth: Tokens | None = None
    """Who checks workers' tokens and renews them; None: whoever comes is a worker."""

    needs: Mapping[str, tuple[str, ...]] = {}
    """Refs of the models that a function runs with; they are fetched ahead and kept."""

    max_attempts: int = 4
    """Failures after which a job is not tried again."""

    max_queued: int = 10_000
    max_queued_bytes: int = 256 << 20
    """Of payloads that wait in memory."""

    grace_s: float = 5.0
    """How long the jobs of a lost worker wait for its return."""

    keep_jobs: int = 100_000
    """Ended jobs that are remembered; the oldest go first."""

    keep_s: float = 7 * 86400.0
    """How long ended jobs are remembered."""


class ControlPlane:
    """Drives workers. Use it on one asyncio loop, between `start` and `close`."""

    def __init__(self, options: PlaneOptions) -> None:
        self._options = options

    @property
    def address(self) -> str:
        """Where workers connect: `host:port`, the port a real one."""
        raise NotImplementedError

    async def start(self) -> None:
        """Read what was accepted before and open the port; raise `OSError` where it cannot be had."""
        raise NotImplementedError

    async def close(self) -> None:
        """End the workers' streams and put everything away; jobs that run stay accepted."""
        raise NotImplementedError

    async def submit(self, request: JobRequest) -> JobView:
        """Accept a job, so that a crash from here on does not lose it; the same request again is the same job.

        Raises `ConflictError` for another request under a known id, and `QueueFullError`.
        """
        raise NotImplementedError

    async def cancel(self, request_id: str) -> JobView | None:
        """End a job; return it as it is now, which while it runs is not canceled yet. None: there is no such job."""
        raise NotImplementedError

    async def job(self, request_id: str) -> JobView | None:
        """Return a job as it is now."""
        raise NotImplementedError

    async def jobs(self, *, status: Status | None = None, limit: int = 100, after: str | None = None) -> list[JobView]:
        """Return jobs, the newest first; `after` is the request id of the last one of the page before."""
        raise NotImplementedError

    def watch(self, request_id: str) -> AsyncIterator[JobEvent]:
        """Yield everything that happened to a job and happens to it, up to its `result`.

        Nothing for an unknown id. Of a long stream that was not watched, the oldest chunks may be gone.
        """
        raise NotImplementedError

    def live_attempt(self, request_id: str) -> int | None:
        """Return the attempt that counts of a job that has not ended."""
        raise NotImplementedError

    async def workers(self) -> list[WorkerView]:
        """Return the workers, in the order of their ids."""
        raise NotImplementedError

    async def drain(self, worker_id: str, deadline_ms: int) -> None:
        """Have a worker end its jobs and leave; raise `UnknownWorkerError`. 0 ms: as long as they take."""
        raise NotImplementedError

    async def model_op(self, worker_id: str, op: ModelOp) -> None:
        """Have a worker do something with a model; raise `UnknownWorkerError`."""
        raise NotImplementedError
