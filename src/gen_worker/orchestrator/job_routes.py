"""The routes of jobs: submit, wait, watch, cancel, and what they gave.

An ended job's outcome is the status of the answer that waited for it: 200, 400, 424, 499, 500, 503 or 504.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from difflib import get_close_matches
from fnmatch import fnmatch
from functools import partial
from typing import Any, TypeVar, get_args

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gen_worker.discovery.names import slugify_name
from gen_worker.orchestrator import rendering
from gen_worker.orchestrator.asking import Submission, from_query, preferred_wait, request_of, seconds_of
from gen_worker.orchestrator.files import FileStore
from gen_worker.orchestrator.http import FileContent, Json, Routes, Threads, body_of, document_of
from gen_worker.orchestrator.plane import ControlPlane
from gen_worker.orchestrator.refusal import Refusal
from gen_worker.orchestrator.store import StoreError
from gen_worker.orchestrator.views import (
    ConflictError,
    InvalidRequestError,
    JobEvent,
    JobRequest,
    JobView,
    Presence,
    QueueFullError,
    Status,
)
from gen_worker.orchestrator.waiting import closing, hung_up, until_closed

PAYLOAD_BYTES = 16 << 20  # of JSON; msgpack may be as long as a worker's message
MSGPACK_BYTES = 60 << 20
INLINE_BYTES = 16 << 20  # a longer output is named by a URL
RENDERED_AT_ONCE = 2  # long outputs: each may take some 200 MiB while it is turned into JSON
PAGE = 100
MOST_PAGE = 1000

_MEDIA = re.compile(r"(?:image|audio|video)/[\w.+*-]+", re.ASCII)
_STATUSES: frozenset[str] = frozenset(get_args(Status))

Urls = Callable[[str, int], dict[str, str]]
"""Returns where the files of an attempt of a request are had."""

_Found = TypeVar("_Found")
_Gone = Callable[[str], Awaitable[None]]
_GivenUp = Callable[[], Awaitable[Refusal]]


def _unserved(function: str) -> str:
    return f"no worker that takes jobs has `{function[:100]}` now"


class JobRoutes:
    """The routes of one control plane's jobs; `closed` is set when the server ends, and answers whoever waits."""

    def __init__(
        self, plane: ControlPlane, store: FileStore, urls_of: Urls, threads: Threads, closed: asyncio.Event
    ) -> None:
        self._plane = plane
        self._store = store
        self._threads = threads
        self._urls_of = urls_of
        self._closed = closed
        self._rendering = asyncio.Semaphore(RENDERED_AT_ONCE)
        self.open = False
        """Whether jobs are taken."""

    def routes(self) -> Routes:
        """Return method, path and handler of each."""
        return [
            ("POST", "/v1/jobs", self._submit),
            ("GET", "/v1/jobs", self._list),
            ("GET", "/v1/jobs/{request_id}/events", self._events),
            ("GET", "/v1/jobs/{request_id}", self._job),
            ("DELETE", "/v1/jobs/{request_id}", self._cancel),
            ("POST", "/v1/run/{function}", self._run),
        ]

    # --- asking -------------------------------------------------------------------------------------------------------

    async def _submit(self, request: Request) -> Response:
        asked: Submission = await document_of(request, Submission, PAYLOAD_BYTES)
        payload = rendering.payload_of(bytes(asked.payload))
        wait_s = seconds_of(asked.wait, "wait") or preferred_wait(request)
        job = await self._accept(request_of(asked, payload, request.headers))
        return await self._answer(request, job, wait_s)

    async def _run(self, request: Request) -> Response:
        kind = request.headers.get("content-type", "")
        most = MSGPACK_BYTES if kind.partition(";")[0] in rendering.MSGPACK_TYPES else PAYLOAD_BYTES
        asked = from_query(request)
        self._refuse_closed()
        await self._refuse_unknown(asked.function)
        payload = rendering.payload_of(await body_of(request, most), kind)
        wait_s = asked.wait or preferred_wait(request) or float("inf")
        job = await self._accept(request_of(asked, payload, request.headers))
        leaves = not asked.request_id  # who named it may come back for it
        gone = self._cancel_quietly if leaves else None
        given_up = partial(self._given_up, job, leaves=leaves)
        if "text/event-stream" in request.headers.get("accept", ""):
            return self._stream(job.request_id, 0, gone, given_up if leaves else None)
        ended = await self._until_ended(request, job, wait_s, gone, given_up if wait_s == float("inf") else None)
        if not ended.ended:
            return Json(await self._document(ended), 202, {"Location": f"/v1/jobs/{ended.request_id}"})
        if ended.code != 200:
            return await self._failed(ended)
        wanted = _MEDIA.match(request.headers.get("accept", ""))
        return await self._media(request, ended, wanted[0]) if wanted else await self._output(ended)

    async def _refuse_unknown(self, function: str) -> None:
        """Refuse to wait for what no worker has had, where there are workers: most likely it is written wrongly."""
        if self._plane.presence(function) is Presence.UNKNOWN:
            raise await self._missing(function)

    async def _missing(self, function: str) -> Refusal:
        """Return what is said of a function that no worker has now."""
        if self._plane.presence(function) is not Presence.UNKNOWN:
            hint = "try again in a while; a job of `POST /v1/jobs` waits for a worker"
            return Refusal(503, "no_worker", _unserved(function), hint)
        views = [view for view in await self._plane.workers() if view.connected]
        lists = ((*each.available_functions, *each.loading_functions, *each.unavailable_functions) for each in views)
        near = get_close_matches(slugify_name(function), sorted({name for names in lists for name in names}), n=1)
        hint = f"did you mean `{near[0]}`?" if near else "a job of `POST /v1/jobs` waits for a worker that has it"
        return Refusal(404, "no_function", f"no worker has a function `{function[:100]}`", hint)

    async def _given_up(self, job: JobView, *, leaves: bool) -> Refusal:
        """Return what is said when no worker has come, in the grace that a lost one has, that could take the job.

        A job that its caller leaves ends with it; one that has a name may be asked for again.
        """
        alone, function = False, job.request.function
        while True:
            was_alone, alone = alone, self._plane.lacks_worker(job.request_id)
            if was_alone and alone and (not leaves or self._plane.give_up(job.request_id, _unserved(function))):
                return await self._missing(function)
            await asyncio.sleep(self._plane.grace_s)

    async def _job(self, request: Request) -> Response:
        job = await self._known(request)
        wait_s = seconds_of(request.query_params.get("wait", 0), "wait")
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
        return self._stream(job.request_id, int(last))

    async def _cancel(self, request: Request) -> Response:
        job = await self._known(request)
        canceled = await self._plane.cancel(job.request_id) or job
        return Json(await self._document(canceled), 200 if canceled.ended else 202)

    async def _accept(self, request: JobRequest) -> JobView:
        self._refuse_closed()
        try:
            return await self._plane.submit(request)
        except InvalidRequestError as error:
            raise Refusal(400, "bad_request", str(error)) from None
        except ConflictError as error:
            raise Refusal(409, "conflict", str(error)) from None
        except QueueFullError as error:
            after_s = error.retry_after_s
            raise Refusal(429, "queue_full", str(error), "try again later", retry_after_s=after_s) from None
        except StoreError as error:
            raise Refusal(507, "not_kept", str(error)) from None

    def _refuse_closed(self) -> None:
        if not self.open:
            raise Refusal(503, "not_ready", "the control plane starts or ends: jobs are not taken now")

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
        self,
        request: Request,
        job: JobView,
        wait_s: float,
        gone: _Gone | None = None,
        given_up: _GivenUp | None = None,
    ) -> JobView:
        """Return the job when it has ended, or as it is when the time is over or the caller has gone.

        Raises what `given_up` returns, where that comes first.
        """
        if job.ended:
            return job
        waiting = asyncio.ensure_future(self._end_of(job.request_id))
        leaving = asyncio.ensure_future(hung_up(request.receive))
        refusing = asyncio.ensure_future(given_up()) if given_up is not None else None
        closed = asyncio.ensure_future(self._closed.wait())
        tasks = [each for each in (waiting, leaving, refusing, closed) if each is not None]
        try:
            timeout = None if wait_s == float("inf") else wait_s
            await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if refusing is not None and refusing.done():
                raise refusing.result()
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

    def _stream(
        self, request_id: str, last: int, gone: _Gone | None = None, given_up: _GivenUp | None = None
    ) -> "_EventStream":
        return _EventStream(request_id, self._frames(request_id, last), gone, given_up)

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
        return rendering.whole(job, await self._rendered(len(body), rendering.value_of, body, urls), url)

    async def _output(self, job: JobView) -> Response:
        headers = {"X-Request-Id": job.request_id}
        body, url = await self._output_of(job)
        urls = await self._urls(job.request_id, job.attempt)
        if body is not None:
            return Json(await self._rendered(len(body), rendering.value_of, body, urls), headers=headers)
        if url:
            return Json({"output_url": url}, headers=headers)
        events = [event async for event in closing(self._plane.watch(job.request_id))]
        chunks = [event for event in events if event.kind == "chunk" and event.attempt == job.attempt]
        items = [await self._rendered(len(chunk.body), rendering.item_of, chunk, urls) for chunk in chunks]
        return Json(items, headers=headers)

    async def _media(self, request: Request, job: JobView, wanted: str) -> Response:
        """Return the first file of a kind that the job has stored, as `image/png` or `image/*`."""
        files = await self._threads.run(self._store.of_job, job.request_id, job.attempt)
        for file in files.values():
            if fnmatch(file.mime_type, wanted):
                return FileContent(
                    request,
                    self._threads,
                    await self._threads.run(self._store.open, file),
                    file.size_bytes,
                    file.blake3,
                    file.mime_type,
                )
        raise Refusal(406, "not_acceptable", f"`{job.request.function}` has stored no `{wanted}`", "ask for JSON")

    async def _output_of(self, job: JobView) -> tuple[bytes | None, str]:
        """Return an output's msgpack and where it lies; neither for a stream."""
        if job.blob_ref is None:
            return job.output, ""
        file = await self._threads.run(self._store.find, job.request_id, job.attempt, job.blob_ref)
        if file is None:
            return None, ""
        url = (await self._urls(job.request_id, job.attempt)).get(job.blob_ref, "")
        if file.size_bytes > INLINE_BYTES:
            return None, url
        body = await self._threads.run(self._store.read, file)
        return (body if await self._rendered(len(body), rendering.is_shown, body) else None), url

    async def _rendered(self, length: int, call: Callable[..., _Found], *arguments: Any) -> _Found:
        """Make a call that takes long where it is about many bytes; such ones few at a time, and not on the loop."""
        if length <= rendering.SMALL_BYTES:
            return call(*arguments)
        async with self._rendering:
            return await asyncio.to_thread(call, *arguments)

    async def _urls(self, request_id: str, attempt: int) -> dict[str, str]:
        return await self._threads.run(self._urls_of, request_id, attempt)

    async def _frames(self, request_id: str, last: int) -> AsyncIterator[bytes]:
        """Yield a job's events after the `last` one that the reader has seen, as they come, up to its result."""
        async for event in until_closed(self._plane.watch(request_id, after=last), self._closed):
            if event is None:
                yield b": alive\n\n"
            else:
                yield rendering.sse(event.kind, event.number, await self._told(request_id, event))

    async def _told(self, request_id: str, event: JobEvent) -> object:
        if event.job is not None:
            return await self._document(event.job)
        urls = await self._urls(request_id, event.attempt) if b"ref" in event.body else {}
        return await self._rendered(len(event.body), rendering.event_document, event, urls)


class _EventStream(Response):
    """A job's events, as they come; `gone` is called when the reader has left before the result."""

    def __init__(
        self, request_id: str, frames: AsyncIterator[bytes], gone: _Gone | None, given_up: _GivenUp | None
    ) -> None:
        self._request_id = request_id
        self._frames = frames
        self._gone = gone
        self._given_up = given_up
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "X-Request-Id": request_id}
        super().__init__(headers=headers, media_type="text/event-stream")

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send them until the result has gone out, or nobody reads any more."""
        headers = [header for header in self.raw_headers if header[0] != b"content-length"]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(hung_up(receive))
        beside = [] if self._given_up is None else [asyncio.ensure_future(self._given_up())]  # its end comes as events
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            elif self._gone is not None:
                await self._gone(self._request_id)
        finally:
            for task in (sending, leaving, *beside):
                task.cancel()
            await asyncio.gather(sending, leaving, *beside, return_exceptions=True)

    async def _send(self, send: Send) -> None:
        async for frame in closing(self._frames):
            await send({"type": "http.response.body", "body": frame, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
