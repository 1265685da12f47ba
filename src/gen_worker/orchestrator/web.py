"""The HTTP API of a control plane: submit, wait, watch and cancel jobs; look after workers and models.

An ended job's outcome is the status of the answer that waited for it: 200, 400, 424, 499, 500, 503 or 504.
"""

import asyncio
import hmac
import ipaddress
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from fnmatch import fnmatch
from typing import Any, Literal, TypeVar, get_args
from urllib.parse import urlsplit

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gen_worker.orchestrator import rendering
from gen_worker.orchestrator.files import FileStore
from gen_worker.orchestrator.http import FileContent, Handler, Json, answering, body_of, document_of, refused
from gen_worker.orchestrator.plane import ControlPlane
from gen_worker.orchestrator.refusal import Refusal
from gen_worker.orchestrator.store import StoreError
from gen_worker.orchestrator.transfers import PlaneFiles, Transfers
from gen_worker.orchestrator.views import (
    ConflictError,
    InvalidRequestError,
    JobEvent,
    JobRequest,
    JobView,
    QueueFullError,
    Status,
    UnknownWorkerError,
)
from gen_worker.orchestrator.waiting import closing, hung_up, until_closed
from gen_worker.settings import Secret
from gen_worker.wire.scheduler import ModelBinding, ModelOp, ModelOpKind, OutputMode

PAYLOAD_BYTES = 16 << 20  # of JSON; msgpack may be as long as a worker's message
MSGPACK_BYTES = 60 << 20
INLINE_BYTES = 16 << 20  # a longer output is named by a URL
MOST_WAIT_S = 3600.0
PAGE = 100
MOST_PAGE = 1000

_REQUEST_ID = re.compile(r"[\w.:-]{1,200}", re.ASCII)
_MEDIA = re.compile(r"(?:image|audio|video)/[\w.+*-]+", re.ASCII)
_STATUSES: frozenset[str] = frozenset(get_args(Status))
_OPS = {"download": ModelOpKind.DOWNLOAD, "load": ModelOpKind.LOAD, "unload": ModelOpKind.UNLOAD}
_Found = TypeVar("_Found")


class Submission(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of `POST /v1/jobs`."""

    function: str
    payload: msgspec.Raw = msgspec.Raw(b"{}")
    request_id: str = ""
    tenant: str = ""
    invoker_id: str = ""
    timeout_ms: int = 0
    output: Literal["url", "inline"] = "url"
    models: dict[str, str] = {}
    priority: int = 0
    wait: float = 0.0


class _Drain(msgspec.Struct):
    deadline_ms: int = 0


class _ModelOrder(msgspec.Struct):
    op: Literal["download", "load", "unload"]
    ref: str
    worker_id: str


class Web:
    """The API over one control plane and one store.

    `token` is what callers must show, None: nothing; `keys` the JWKS that workers check their own tokens by.
    """

    def __init__(
        self,
        plane: ControlPlane,
        store: FileStore,
        files: PlaneFiles,
        *,
        base_url: str,
        token: Secret | None = None,
        keys: Mapping[str, object] | None = None,
    ) -> None:
        self._plane = plane
        self._store = store
        self._files = files
        self._token = token
        self._keys = keys
        self._host = urlsplit(base_url).hostname or ""
        self._transfers = Transfers(
            store, files.models, files.signer, base_url=base_url, live_attempt=plane.live_attempt
        )
        self.ready = False
        """Whether jobs are taken."""
        self.closing = asyncio.Event()
        """Set when the server ends: whoever waits is answered."""

    def app(self) -> Starlette:
        """Return the application."""
        own: list[tuple[str, str, Handler]] = [
            ("POST", "/v1/jobs", self._submit),
            ("GET", "/v1/jobs", self._list),
            ("GET", "/v1/jobs/{request_id}/events", self._events),
            ("GET", "/v1/jobs/{request_id}", self._job),
            ("DELETE", "/v1/jobs/{request_id}", self._cancel),
            ("POST", "/v1/run/{function}", self._run),
            ("GET", "/v1/functions", self._functions),
            ("GET", "/v1/workers", self._workers),
            ("POST", "/v1/workers/{worker_id}/drain", self._drain),
            ("GET", "/v1/models", self._models),
            ("POST", "/v1/models", self._model_op),
            ("PUT", "/v1/files/{name:path}", self._transfers.receive),
        ]
        routes = [Route(path, answering(self._guarded(handler)), methods=[method]) for method, path, handler in own]
        open_to_all = [("/health", self._health), ("/ready", self._is_ready), ("/.well-known/jwks.json", self._jwks)]
        routes += [Route(path, answering(handler)) for path, handler in open_to_all]
        routes += self._transfers.routes()
        return Starlette(routes=routes, exception_handlers={HTTPException: _no_route, Exception: _broken})

    # --- who may ask --------------------------------------------------------------------------------------------------

    def _guarded(self, handler: Handler) -> Handler:
        async def handle(request: Request) -> Response:
            if self._token is None:
                self._refuse_browsers(request)
            else:
                self._refuse_strangers(request, self._token)
            return await handler(request)

        return handle

    def _refuse_strangers(self, request: Request, token: Secret) -> None:
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(shown.strip().encode("utf-8", "replace"), token.encode())
        if scheme.lower() != "bearer" or not right:
            what = "a wrong token" if shown else "a request without a token"
            raise Refusal(401, "unauthorized", what, "send `Authorization: Bearer …` with the API's token")

    def _refuse_browsers(self, request: Request) -> None:
        """Refuse what a page of another site makes a browser send: without a token, being on this machine is enough."""
        host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
        origin = request.headers.get("origin")
        if not (host in ("localhost", self._host) or _is_number(host)):
            raise Refusal(403, "wrong_host", f"this is not `{host[:100]}`", "name the API by its address")
        if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
            raise Refusal(403, "wrong_origin", "a page of another site asks", "pages need the API's token")

    # --- jobs ---------------------------------------------------------------------------------------------------------

    async def _submit(self, request: Request) -> Response:
        asked: Submission = await document_of(request, Submission, PAYLOAD_BYTES)
        payload = rendering.payload_of(bytes(asked.payload))
        wait_s = _seconds(asked.wait, "wait") or _preferred(request)
        job = await self._accept(_request(asked, payload))
        return await self._answer(request, job, wait_s)

    async def _run(self, request: Request) -> Response:
        kind = request.headers.get("content-type", "")
        most = MSGPACK_BYTES if kind.partition(";")[0] in rendering.MSGPACK_TYPES else PAYLOAD_BYTES
        asked = _from_query(request)
        payload = rendering.payload_of(await body_of(request, most), kind)
        wait_s = asked.wait or _preferred(request) or float("inf")
        job = await self._accept(_request(asked, payload))
        leaves = not asked.request_id  # who named it may come back for it
        if "text/event-stream" in request.headers.get("accept", ""):
            return _EventStream(self, job.request_id, 0, cancels=leaves)
        gone = self._cancel_quietly if leaves else None
        ended = await self._until_ended(request, job, wait_s, gone)
        if not ended.ended:
            return Json(await self._document(ended), 202, {"Location": f"/v1/jobs/{ended.request_id}"})
        if ended.code != 200:
            return await self._failed(ended)
        wanted = _MEDIA.match(request.headers.get("accept", ""))
        return await self._media(request, ended, wanted[0]) if wanted else await self._output(ended)

    async def _job(self, request: Request) -> Response:
        job = await self._known(request)
        wait_s = _seconds(request.query_params.get("wait", 0), "wait")
        if wait_s and not job.ended:
            job = await self._until_ended(request, job, wait_s, None)
        return Json(await self._document(job))

    async def _list(self, request: Request) -> Response:
        asked = request.query_params
        status, limit = asked.get("status"), asked.get("limit", str(PAGE))
        if status is not None and status not in _STATUSES:
            raise Refusal(400, "bad_request", f"there is no status `{status[:40]}`", ", ".join(sorted(_STATUSES)))
        if not limit.isascii() or not limit.isdigit() or not 0 < int(limit[:9]) <= MOST_PAGE:
            raise Refusal(400, "bad_request", f"`limit` is a number from 1 to {MOST_PAGE}")
        found = await self._plane.jobs(status=status, limit=int(limit), after=asked.get("after"))  # type: ignore[arg-type]
        document: dict[str, Any] = {"jobs": [rendering.brief(job) for job in found]}
        if len(found) == int(limit):
            document["next"] = found[-1].request_id
        return Json(document)

    async def _events(self, request: Request) -> Response:
        job = await self._known(request)
        last = request.headers.get("last-event-id") or request.query_params.get("after", "0")
        if not last.isascii() or not last.isdigit() or len(last) > 18:
            raise Refusal(400, "bad_request", "`Last-Event-ID` is a number of an event of this job")
        return _EventStream(self, job.request_id, int(last), cancels=False)

    async def _cancel(self, request: Request) -> Response:
        job = await self._known(request)
        canceled = await self._plane.cancel(job.request_id) or job
        return Json(await self._document(canceled), 200 if canceled.ended else 202)

    async def _accept(self, request: JobRequest) -> JobView:
        if not self.ready:
            raise Refusal(503, "not_ready", "jobs are not taken now")
        try:
            return await self._plane.submit(request)
        except InvalidRequestError as error:
            raise Refusal(400, "bad_request", str(error)) from None
        except ConflictError as error:
            raise Refusal(409, "conflict", str(error)) from None
        except QueueFullError as error:
            raise Refusal(429, "queue_full", str(error), "try again in a while") from None
        except StoreError as error:
            raise Refusal(507, "not_kept", str(error)) from None

    async def _known(self, request: Request) -> JobView:
        request_id = request.path_params["request_id"]
        job = await self._plane.job(request_id)
        if job is None:
            raise Refusal(404, "not_found", f"there is no job `{request_id[:100]}`")
        return job

    async def _answer(self, request: Request, job: JobView, wait_s: float) -> Response:
        if wait_s:
            job = await self._until_ended(request, job, wait_s, None)
        if not wait_s or not job.ended:
            return Json(await self._document(job), 202, {"Location": f"/v1/jobs/{job.request_id}"})
        return Json(await self._document(job)) if job.code == 200 else await self._failed(job)

    async def _failed(self, job: JobView) -> Response:
        headers = {"Retry-After": "1"} if job.code == 503 else {}
        return Json({"error": rendering.failure(job)}, job.code or 500, headers)

    async def _until_ended(
        self, request: Request, job: JobView, wait_s: float, gone: Callable[[str], Awaitable[None]] | None
    ) -> JobView:
        """Return the job when it has ended, or as it is when the time is over or the caller has gone."""
        if job.ended:
            return job
        waiting = asyncio.ensure_future(self._end_of(job.request_id))
        leaving = asyncio.ensure_future(hung_up(request.receive))
        tasks = (waiting, leaving, asyncio.ensure_future(self.closing.wait()))
        try:
            timeout = None if wait_s == float("inf") else wait_s
            await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return waiting.result() or job
            if leaving.done() and gone is not None:
                await gone(job.request_id)
            return await self._plane.job(job.request_id) or job
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _end_of(self, request_id: str) -> JobView | None:
        async for event in closing(self._plane.watch(request_id)):
            if event.kind == "result":
                return event.job
        return None

    async def _cancel_quietly(self, request_id: str) -> None:
        await self._plane.cancel(request_id)

    # --- what a job gave ----------------------------------------------------------------------------------------------

    async def _document(self, job: JobView) -> dict[str, Any]:
        if not job.ended or job.code != 200:
            return rendering.whole(job)
        body, url = await self._output_of(job)
        if body is None:
            return rendering.whole(job, output_url=url)
        urls = await self._urls(job.request_id, job.attempt)
        return rendering.whole(job, rendering.value_of(body, urls), url)

    async def _output(self, job: JobView) -> Response:
        headers = {"X-Request-Id": job.request_id}
        body, url = await self._output_of(job)
        urls = await self._urls(job.request_id, job.attempt)
        if body is not None:
            return Json(rendering.value_of(body, urls), headers=headers)
        if url:
            return Json({"output_url": url}, headers=headers)
        events = [event async for event in closing(self._plane.watch(job.request_id))]
        chunks = [event for event in events if event.kind == "chunk" and event.attempt == job.attempt]
        return Json([rendering.item_of(chunk, urls) for chunk in chunks], headers=headers)

    async def _media(self, request: Request, job: JobView, wanted: str) -> Response:
        """Return the first file of a kind that the job has stored, as `image/png` or `image/*`."""
        files = await asyncio.to_thread(self._store.of_job, job.request_id, job.attempt)
        for file in files.values():
            if fnmatch(file.mime_type, wanted):
                return FileContent(
                    request,
                    await asyncio.to_thread(self._store.open, file),
                    file.size_bytes,
                    file.blake3,
                    file.mime_type,
                )
        raise Refusal(406, "not_acceptable", f"`{job.request.function}` has stored no `{wanted}`", "ask for JSON")

    async def _output_of(self, job: JobView) -> tuple[bytes | None, str]:
        """Return an output's msgpack and where it lies; neither for a stream."""
        if job.blob_ref is None:
            return job.output, ""
        file = await asyncio.to_thread(self._store.find, job.request_id, job.attempt, job.blob_ref)
        if file is None:
            return None, ""
        url = (await self._urls(job.request_id, job.attempt)).get(job.blob_ref, "")
        if file.size_bytes > INLINE_BYTES:
            return None, url
        return await asyncio.to_thread(self._store.read, file), url

    async def _urls(self, request_id: str, attempt: int) -> dict[str, str]:
        return await asyncio.to_thread(self._transfers.urls, request_id, attempt)

    async def frames(self, request_id: str, last: int) -> AsyncIterator[bytes]:
        """Yield a job's events after the `last` one that the reader has seen, as they come, up to its result."""
        async for event in until_closed(self._plane.watch(request_id, after=last), self.closing):
            if event is None:
                yield b": alive\n\n"
            else:
                yield rendering.sse(event.kind, event.number, await self._told(request_id, event))

    async def _told(self, request_id: str, event: JobEvent) -> object:
        if event.job is not None:
            return await self._document(event.job)
        urls = await self._urls(request_id, event.attempt) if b"ref" in event.body else {}
        return rendering.event_document(event, urls)

    # --- workers and models -------------------------------------------------------------------------------------------

    async def _functions(self, _request: Request) -> Response:
        return Json({"functions": rendering.functions(await self._plane.workers())})

    async def _workers(self, _request: Request) -> Response:
        return Json({"workers": [rendering.worker(each) for each in await self._plane.workers()]})

    async def _drain(self, request: Request) -> Response:
        asked: _Drain = await document_of(request, _Drain)
        worker_id = request.path_params["worker_id"]
        await _of_worker(self._plane.drain(worker_id, max(asked.deadline_ms, 0)))
        return Json({"worker_id": worker_id, "draining": True}, 202)

    async def _models(self, _request: Request) -> Response:
        workers = await self._plane.workers()
        document = []
        for model in self._files.models.all():
            held = {
                view.worker_id: each.tier.name.lower()
                for view in workers
                for each in view.models
                if each.ref == model.ref
            }
            facts = {"digest": model.digest, "files": len(model.files), "size_bytes": model.size_bytes}
            document.append({"ref": model.ref, **facts, "workers": held})
        return Json({"models": document})

    async def _model_op(self, request: Request) -> Response:
        asked: _ModelOrder = await document_of(request, _ModelOrder)
        snapshot = None if asked.op == "unload" else self._files.snapshot(asked.ref)
        order = ModelOp(op=_OPS[asked.op], ref=asked.ref, snapshot=snapshot)
        await _of_worker(self._plane.model_op(asked.worker_id, order))
        return Json({"op": asked.op, "ref": asked.ref, "worker_id": asked.worker_id}, 202)

    # --- probes -------------------------------------------------------------------------------------------------------

    async def _health(self, _request: Request) -> Response:
        return Json({"status": "ok"})

    async def _is_ready(self, _request: Request) -> Response:
        return Json({"ready": self.ready}, 200 if self.ready else 503)

    async def _jwks(self, _request: Request) -> Response:
        if self._keys is None:
            raise Refusal(404, "not_found", "workers need no token here")
        return Json(self._keys)


class _EventStream(Response):
    """A job's events, as they come. Where it `cancels`, the job ends when its reader has gone before its result."""

    def __init__(self, web: Web, request_id: str, last: int, *, cancels: bool) -> None:
        self._web = web
        self._request_id = request_id
        self._last = last
        self._cancels = cancels
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "X-Request-Id": request_id}
        super().__init__(headers=headers, media_type="text/event-stream")

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send them until the result has gone out, or nobody reads any more."""
        headers = [header for header in self.raw_headers if header[0] != b"content-length"]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(hung_up(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not sending.done() and self._cancels:
                await self._web._plane.cancel(self._request_id)
        finally:
            for task in (sending, leaving):
                task.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)

    async def _send(self, send: Send) -> None:
        async for frame in closing(self._web.frames(self._request_id, self._last)):
            await send({"type": "http.response.body", "body": frame, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


# --- requests ---------------------------------------------------------------------------------------------------------


def _request(asked: Submission, payload: bytes) -> JobRequest:
    if asked.request_id and not _REQUEST_ID.fullmatch(asked.request_id):
        text = "`request_id` has 1 to 200 letters, digits, `.`, `:`, `_` and `-`"
        raise Refusal(400, "bad_request", text)
    if asked.timeout_ms < 0 or not asked.function or len(asked.function) > 200 or abs(asked.priority) > 1 << 31:
        raise Refusal(
            400, "bad_request", "`function` is a name; `timeout_ms` is 0 or more; `priority` is a small number"
        )
    if any(len(text) > 200 or not text.isprintable() for text in (asked.tenant, asked.invoker_id)):
        raise Refusal(400, "bad_request", "`tenant` and `invoker_id` have at most 200 characters")
    return JobRequest(
        function=asked.function,
        payload=payload,
        request_id=asked.request_id,
        tenant=asked.tenant,
        invoker_id=asked.invoker_id,
        timeout_ms=asked.timeout_ms,
        output_mode=OutputMode.INLINE if asked.output == "inline" else OutputMode.URL,
        models=tuple(ModelBinding(slot=slot, ref=ref) for slot, ref in asked.models.items()),
        priority=asked.priority,
    )


def _from_query(request: Request) -> Submission:
    """Return what the path and the query of `POST /v1/run/<function>` say."""
    given: dict[str, Any] = dict(request.query_params)
    if "x-request-id" in request.headers:
        given.setdefault("request_id", request.headers["x-request-id"])
    given |= {"function": request.path_params["function"]}
    given.pop("payload", None)
    try:
        asked = msgspec.convert(given, Submission, strict=False)
    except msgspec.ValidationError as error:
        raise Refusal(400, "bad_request", f"the query says what is not known here: {error}") from None
    _seconds(asked.wait, "wait")
    return asked


def _seconds(value: object, name: str) -> float:
    try:
        seconds = float(str(value))
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MOST_WAIT_S:
        raise Refusal(400, "bad_request", f"`{name}` is a number of seconds from 0 to {MOST_WAIT_S:.0f}")
    return seconds


def _preferred(request: Request) -> float:
    """Return the seconds of `Prefer: wait=N`; 0 without it."""
    found = re.search(r"(?:^|[,;\s])wait=(\d{1,4})\b", request.headers.get("prefer", ""))
    return min(float(found[1]), MOST_WAIT_S) if found else 0.0


async def _of_worker(asking: Awaitable[_Found]) -> _Found:
    try:
        return await asking
    except UnknownWorkerError as error:
        raise Refusal(404, "not_found", str(error)) from None


def _is_number(host: str) -> bool:
    with suppress(ValueError):
        ipaddress.ip_address(host)
        return True
    return False


# --- what goes wrong --------------------------------------------------------------------------------------------------


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        return refused(Refusal(405, "method_not_allowed", f"`{request.method}` is not for this path"))
    if error.status_code == 404:
        return refused(Refusal(404, "not_found", "there is nothing at this path"))
    return refused(Refusal(error.status_code, "bad_request", error.detail))


async def _broken(_request: Request, _error: Exception) -> Response:
    return refused(Refusal(500, "internal", "the control plane has failed to answer, its log says more"))
