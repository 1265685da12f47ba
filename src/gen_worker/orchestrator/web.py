"""The HTTP API of a control plane: its routes put together, and who may ask for what."""

import asyncio
import hmac
import ipaddress
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from typing import Any
from urllib.parse import SplitResult, urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from gen_worker.orchestrator.bucket import Bucket
from gen_worker.orchestrator.files import FileStore
from gen_worker.orchestrator.fleet_routes import FleetRoutes
from gen_worker.orchestrator.http import Handler, Json, Routes, Threads, answering, refused
from gen_worker.orchestrator.job_routes import JobRoutes
from gen_worker.orchestrator.plane import ControlPlane
from gen_worker.orchestrator.refusal import Refusal
from gen_worker.orchestrator.renewing import ROUTE as RENEW
from gen_worker.orchestrator.renewing import Renewing
from gen_worker.orchestrator.repositories import Repositories
from gen_worker.orchestrator.repository_routes import RepositoryRoutes
from gen_worker.orchestrator.signing import JobClaims
from gen_worker.orchestrator.tokens import Tokens
from gen_worker.orchestrator.transfers import PlaneFiles, Transfers
from gen_worker.settings import Secret


class Web:
    """The API over one control plane and one store.

    `token` is what callers must show, None: nothing; `auth` makes the tokens by which workers are known.
    """

    def __init__(
        self,
        plane: ControlPlane,
        store: FileStore,
        files: PlaneFiles,
        threads: Threads,
        *,
        base_url: str,
        repositories: Repositories,
        schemas: Callable[[str], dict[str, Any]],
        token: Secret | None = None,
        auth: Tokens | None = None,
    ) -> None:
        self._token = token
        self._keys = auth.jwks() if auth is not None else None
        self._host = urlsplit(base_url).hostname or ""
        self._closed = asyncio.Event()
        self._transfers = Transfers(
            store,
            files.models,
            files.signer,
            threads,
            base_url=base_url,
            live_attempt=plane.live_attempt,
            whose=self._claims,
        )
        self._bucket = Bucket(store, files.signer, threads, base_url=base_url)
        self._repositories = RepositoryRoutes(
            repositories,
            store,
            files.models,
            files.signer,
            threads,
            self._bucket,
            base_url=base_url,
            claims=self._claims,
        )
        files.published = self._repositories.snapshot
        self._renewing = Renewing(files, auth, plane.holding)
        self._jobs = JobRoutes(plane, store, self._transfers.urls, threads, self._closed)
        self._fleet = FleetRoutes(plane, files, schemas)

    def open(self) -> None:
        """Take jobs from now on."""
        self._jobs.open = True

    def refuse(self) -> None:
        """Take no more jobs; those that are there are answered when they end."""
        self._jobs.open = False

    def close(self) -> None:
        """Take no more jobs, and answer whoever waits."""
        self._jobs.open = False
        self._closed.set()

    def app(self) -> Starlette:
        """Return the application."""
        guarded: Routes = [
            *self._jobs.routes(),
            *self._fleet.routes(),
            ("PUT", "/v1/files/{name:path}", self._transfers.receive),
            ("DELETE", "/v1/files/{name:path}", self._transfers.remove),
            ("GET", "/", self._what_there_is),
        ]
        unnamed = [(method, path, _no_name) for method in ("PUT", "POST") for path in ("/v1/files", "/v1/files/")]
        self._shown = [f"{method} {path.replace(':path', '')}" for method, path, _ in guarded]
        guarded[:0] = unnamed
        routes = [Route(path, answering(self._guarded(handler)), methods=[method]) for method, path, handler in guarded]
        open_to_all = [("/health", self._health), ("/ready", self._is_ready), ("/.well-known/jwks.json", self._jwks)]
        routes += [Route(path, answering(handler)) for path, handler in open_to_all]
        routes.append(Route(RENEW, answering(self._renewing.renew), methods=["POST"]))
        routes += self._transfers.routes()
        routes += self._repositories.routes()
        routes += self._bucket.routes()
        app = Starlette(routes=routes, exception_handlers={HTTPException: _no_route, Exception: _broken})
        app.router.redirect_slashes = False  # a redirect would lose what was sent
        return app

    # --- who may ask --------------------------------------------------------------------------------------------------

    def _guarded(self, handler: Handler) -> Handler:
        async def handle(request: Request) -> Response:
            if self._token is None:
                self._refuse_browsers(request)
            else:
                self._refuse_strangers(request, self._token)
            return await handler(request)

        return handle

    def _claims(self, request: Request, *, over: bool = False) -> JobClaims:
        """Return what a job's token allows, or what a caller of the API may do; raise `Refusal` for anybody else."""
        token = request.headers.get("authorization", "").partition(" ")[2].strip()
        if token.count(".") == 2:  # a job's, which counts for as long as its attempt does
            return self._transfers.claims(request, over=over)
        if self._token is None:
            self._refuse_browsers(request)
        else:
            self._refuse_strangers(request, self._token)
        return JobClaims(request_id="", attempt=0, exp=0)

    def _refuse_strangers(self, request: Request, token: Secret) -> None:
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(shown.strip().encode("utf-8", "replace"), token.encode())
        if scheme.lower() != "bearer" or not right:
            what = "a wrong token" if shown else "a request without a token"
            raise Refusal(401, "unauthorized", what, "send `Authorization: Bearer …` with the API's token")

    def _refuse_browsers(self, request: Request) -> None:
        """Refuse what a page of another site makes a browser send: without a token, being on this machine is enough."""
        host = _split(f"//{request.headers.get('host', '')}").hostname or ""
        origin = request.headers.get("origin")
        if not (host in ("localhost", self._host) or _is_number(host)):
            raise Refusal(403, "wrong_host", f"this is not `{host[:100]}`", "name the API by its address")
        if origin is not None and _split(origin).netloc != request.headers.get("host"):
            raise Refusal(403, "wrong_origin", "a page of another site asks", "pages need the API's token")

    async def _what_there_is(self, _request: Request) -> Response:
        shown = [*self._shown, "GET /v1/files/{name}", "GET /health", "GET /ready"]
        return Json({"gen_worker": version("gen-worker"), "requests": shown})

    # --- probes -------------------------------------------------------------------------------------------------------

    async def _health(self, _request: Request) -> Response:
        return Json({"status": "ok"})

    async def _is_ready(self, _request: Request) -> Response:
        return Json({"ready": self._jobs.open}, 200 if self._jobs.open else 503)

    async def _jwks(self, _request: Request) -> Response:
        if self._keys is None:
            raise Refusal(404, "not_found", "workers need no token here")
        return Json(self._keys)


def _split(address: str) -> SplitResult:
    """Return the parts of an address; one that is none has none."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def _is_number(host: str) -> bool:
    with suppress(ValueError):
        ipaddress.ip_address(host)
        return True
    return False


# --- what goes wrong --------------------------------------------------------------------------------------------------


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        methods = sorted(_methods(request) - {"HEAD"})
        named = f"`{'`, `'.join(methods)}` {'is' if len(methods) == 1 else 'are'}"
        answer = refused(Refusal(405, "method_not_allowed", f"`{request.method}` is not for this path, {named}"))
        answer.headers["Allow"] = ", ".join(methods)
        return answer
    if error.status_code == 404:
        return refused(Refusal(404, "not_found", "there is nothing at this path", "`GET /` says what there is"))
    return refused(Refusal(error.status_code, "bad_request", error.detail))


def _methods(request: Request) -> set[str]:
    """Return the methods that there are for a request's path."""
    app: Starlette = request.app
    found = (route for route in app.routes if isinstance(route, Route))
    there = (route for route in found if route.matches(request.scope)[0] is not Match.NONE)
    return {method for route in there for method in route.methods or ()}


async def _no_name(_request: Request) -> Response:
    raise Refusal(
        400, "bad_name", "a file has a name", "`PUT /v1/files/NAME`, as `curl -T cat.png URL/v1/files/cat.png`"
    )


async def _broken(_request: Request, _error: Exception) -> Response:
    return refused(Refusal(500, "internal", "the control plane has failed to answer, its log says more"))
