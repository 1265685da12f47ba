"""A control plane as a program: `plane_program.py STATE PORT JOBS` submits jobs and tells what becomes of them."""

import asyncio
import json
import sys
from pathlib import Path

from gen_worker.orchestrator.plane import ControlPlane, PlaneOptions
from gen_worker.orchestrator.views import JobRequest
from gen_worker.wire.scheduler import Snapshot


class NoFiles:
    """A store in which nothing is."""

    def snapshot(self, ref: str) -> Snapshot | None:
        """Know no model."""
        return None

    def capability(self, request_id: str, attempt: int, tenant: str, function: str) -> str:
        """Allow nothing."""
        return ""


def tell(**line: object) -> None:
    """Write one line."""
    print(json.dumps(line), flush=True)


async def main(state: Path, port: int, jobs: int) -> None:
    """Run until killed."""
    listen = f"127.0.0.1:{port}"
    options = PlaneOptions(state=state, files=NoFiles(), listen=listen, restart_grace_s=2.0)
    plane = ControlPlane(options)
    await plane.start()
    watched = await plane.jobs(limit=jobs)
    watching = [asyncio.create_task(watch(plane, view.request_id)) for view in watched]
    for number in range(jobs):
        request = JobRequest(function="echo", request_id=f"r{number}")
        if await plane.job(request.request_id) is None:
            watching.append(asyncio.create_task(submit(plane, request)))
    await asyncio.gather(*watching)
    await asyncio.Event().wait()


async def submit(plane: ControlPlane, request: JobRequest) -> None:
    """Have a job done."""
    await plane.submit(request)
    tell(accepted=request.request_id)
    await watch(plane, request.request_id)


async def watch(plane: ControlPlane, request_id: str) -> None:
    """Tell a job's end."""
    async for event in plane.watch(request_id):
        if event.job is not None:
            tell(ended=request_id, status=event.job.status, attempt=event.job.attempt)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
