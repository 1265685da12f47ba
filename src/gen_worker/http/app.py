"""The routes: `/health`, `/ready`, `/status`, `/metrics`, and Cog's `/health-check`. They tell, and do nothing."""

from typing import Any, Protocol

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gen_worker.http.metrics import exposition
from gen_worker.http.view import MOST_JOBS, STALE_S, Document
from gen_worker.rundir import SupervisorUnreachable
from gen_worker.wire.status import JobStatus, Status

PATHS = ("/health", "/ready", "/status", "/metrics", "/health-check")
SILENT = f"the supervisor has told nothing for {STALE_S:g} s"


class Seen(Protocol):
    """What is known of a supervisor."""

    @property
    def latest(self) -> Document | None:
        """The latest document, None where there is none that counts."""
        ...

    async def fresh(self, jobs: int) -> Document:
        """Return a document made now, with so many waiting jobs of each queue; raise `SupervisorUnreachable`."""
        ...


class Json(Response):
    """A JSON document that nobody keeps."""

    media_type = "application/json"

    def __init__(self, content: object, status: int = 200) -> None:
        super().__init__(content, status, {"Cache-Control": "no-store"})

    def render(self, content: Any) -> bytes:
        """Encode it, unless it is encoded already."""
        return content if isinstance(content, bytes) else msgspec.json.encode(content) + b"\n"


def app_of(seen: Seen) -> Starlette:
    """Return the application over what is known of a supervisor."""
    routes = Routes(seen)
    handlers = (routes.health, routes.ready, routes.status, routes.metrics, routes.health_check)
    app = Starlette(
        routes=[Route(path, handler, methods=["GET"]) for path, handler in zip(PATHS, handlers, strict=True)],
        exception_handlers={HTTPException: _refused, SupervisorUnreachable: _unreachable},
    )
    app.router.redirect_slashes = False
    return app


class Routes:
    """The answers."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen

    async def health(self, _request: Request) -> Response:
        """Answer 200 while the supervisor's loop turns, whatever its GPUs do."""
        return Json({"status": "ok", "age_s": round(self._latest().age_s, 3)})

    async def ready(self, _request: Request) -> Response:
        """Answer 200 while jobs are taken, else 503 with what stands against it."""
        status = (await self._fresh(0)).status()
        return Json({"ready": True}) if status.ready else Json({"ready": False, "reason": unready(status)}, 503)

    async def status(self, request: Request) -> Response:
        """Answer with the status document; `jobs` is how many waiting ones of each queue are listed."""
        wanted = request.query_params.get("jobs")
        if wanted is not None and not (wanted.isascii() and wanted.isdigit() and len(wanted) < 10):
            return _error(400, "usage", "`jobs` is a whole number, 0 or more")
        document = await self._fresh(MOST_JOBS)
        if wanted is None or int(wanted) >= MOST_JOBS:
            return Json(document.json)
        return Json(msgspec.json.encode(shortened(document.status(), int(wanted))))

    async def metrics(self, request: Request) -> Response:
        """Answer with metrics, in the form of Prometheus or of OpenMetrics, as is asked for."""
        document = await self._fresh(0)
        body, content_type = exposition(document.status(), request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": content_type})

    async def health_check(self, _request: Request) -> Response:
        """Answer 200 always, as Cog does; the body says how it is."""
        found = self._seen.latest
        state = "UNHEALTHY" if found is None else "READY" if found.status().ready else "STARTING"
        return Json({"status": state})

    def _latest(self) -> Document:
        found = self._seen.latest
        if found is None:
            raise SupervisorUnreachable(SILENT)
        return found

    async def _fresh(self, jobs: int) -> Document:
        self._latest()  # where there is none, another one would be waited for in vain
        return await self._seen.fresh(jobs)


def unready(status: Status) -> str:
    """Return in words why a supervisor takes no jobs."""
    if status.draining:
        return "it drains: it takes no more jobs"
    devices = [
        f"{device.name} is drained" if device.drained else f"{device.name}: {device.state}" for device in status.gpus
    ]
    return f"no child takes jobs: {', '.join(devices)}"


def shortened(status: Status, jobs: int) -> Status:
    """Return a status document with so many waiting jobs of each queue at most."""
    kept = [job for job in status.jobs if not _waits_behind(job, jobs)]
    left_out = status.jobs_left_out + len(status.jobs) - len(kept)
    return msgspec.structs.replace(status, jobs=kept, jobs_left_out=left_out)


def _waits_behind(job: JobStatus, position: int) -> bool:
    return job.position is not None and job.position > position


def _error(status: int, code: str, message: str) -> Response:
    return Json({"error": {"code": code, "message": message}}, status)


async def _unreachable(_request: Request, error: Exception) -> Response:
    return _error(503, "unavailable", str(error))


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        answer = _error(405, "method_not_allowed", f"`{request.method}` is not for this path, `GET` is")
        answer.headers["Allow"] = "GET, HEAD"
        return answer
    if error.status_code == 404:
        return _error(404, "not_found", f"there is nothing at this path; there are {', '.join(PATHS)}")
    return _error(error.status_code, "usage", error.detail)
