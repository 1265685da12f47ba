"""Callers of functions whose workers leave, are lost or never come: what the HTTP API tells them, and when."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import Message

from gen_worker.orchestrator.files import FileLimits, FileStore
from gen_worker.orchestrator.http import Threads, answering
from gen_worker.orchestrator.job_routes import JobRoutes
from gen_worker.orchestrator.plane import ControlPlane
from gen_worker.orchestrator.views import JobRequest, Presence
from gen_worker.wire.scheduler import Drain
from tests.orchestrated import control_plane, packed, until, worker

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("grpc_awake")]

GRACE_S = 0.1
Test = Callable[[Path], Coroutine[Any, Any, None]]


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.document["error"]


class Api:
    """The routes of jobs of a control plane, without a network."""

    def __init__(self, plane: ControlPlane, routes: JobRoutes) -> None:
        self.plane = plane
        self.routes = routes
        self._app = Starlette(
            routes=[Route(path, answering(handler), methods=[method]) for method, path, handler in routes.routes()]
        )

    async def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        path, _, query = path.partition("?")
        sent: list[Message] = []
        given = iter([{"type": "http.request", "body": body, "more_body": False}])
        stays = asyncio.Event()

        async def receive() -> Message:
            for message in given:
                return message
            await stays.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "scheme": "http",
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
        await self._app(scope, receive, send)
        names = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return Answer(sent[0]["status"], names, b"".join(each.get("body", b"") for each in sent[1:]))

    async def run(self, function: str, query: str = "", **headers: str) -> Answer:
        return await self.ask("POST", f"/v1/run/{function}{query}", b"{}", **headers)


@asynccontextmanager
async def api(folder: Path, **options: Any) -> AsyncIterator[Api]:
    store, threads = FileStore(folder / "files", FileLimits()), Threads()
    try:
        async with control_plane(folder, **{"grace_s": GRACE_S, **options}) as plane:
            routes = JobRoutes(plane, store, lambda *_: {}, threads, asyncio.Event())
            routes.open = True
            yield Api(plane, routes)
    finally:
        threads.close()
        store.close()


def on_a_loop(test: Test) -> Callable[[Path], None]:
    """Run a test on a loop of its own, in half a minute at most."""

    @wraps(test)
    def run(tmp_path: Path) -> None:
        asyncio.run(asyncio.wait_for(test(tmp_path), 30))

    return run


@on_a_loop
async def test_a_caller_whose_only_worker_is_lost_is_told_to_come_back_and_the_job_ends(tmp_path: Path) -> None:
    async with api(tmp_path) as here:
        async with worker(here.plane.address) as peer:
            calling = asyncio.ensure_future(here.run("echo"))
            await peer.take()
        answer = await calling
        assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "no_worker", "1")
        assert answer.error["message"] == "no worker that takes jobs has `echo` now"
        [view] = await here.plane.jobs()
        async for event in here.plane.watch(view.request_id):
            view = event.job or view
        assert (view.status, view.code, view.waiting_for) == ("retryable", 503, "")
        assert (await here.run("Echo")).status == 503


@on_a_loop
async def test_a_function_whose_only_worker_drains_is_no_unknown_one(tmp_path: Path) -> None:
    async with api(tmp_path) as here, worker(here.plane.address) as peer:
        running = asyncio.ensure_future(here.run("echo"))
        run = await peer.take()
        await here.plane.drain("one", 0)
        await peer.hear_a(Drain)
        answer = await here.run("echo")
        assert (answer.status, answer.error["code"]) == (503, "no_worker")
        assert (await here.run("ecko")).status == 404
        await peer.answer(run, inline=packed({"ended": True}))
        assert (await running).document == {"ended": True}


@on_a_loop
async def test_a_worker_that_comes_back_in_the_grace_takes_the_jobs_of_callers_that_waited(tmp_path: Path) -> None:
    async with api(tmp_path, grace_s=5.0) as here:
        async with worker(here.plane.address):
            pass
        await until(lambda: here.plane.presence("echo") is Presence.ABSENT)
        calling = asyncio.ensure_future(here.run("echo"))
        await until(here.plane.jobs)
        async with worker(here.plane.address) as peer:
            await peer.answer(await peer.take(), inline=packed({"a": 1}))
            assert (await calling).document == {"a": 1}


@on_a_loop
async def test_callers_wait_longer_for_a_worker_that_is_started_again(tmp_path: Path) -> None:
    async with api(tmp_path) as here:
        async with worker(here.plane.address) as peer:
            calling = asyncio.ensure_future(here.run("echo"))
            await peer.take()
            here.plane.expect_back(30.0)
        await until(lambda: here.plane.presence("echo") is Presence.EXPECTED)
        later = asyncio.ensure_future(here.run("echo"))
        await asyncio.wait((calling, later), timeout=4 * GRACE_S)
        assert not calling.done()
        assert not later.done()
        async with worker(here.plane.address) as peer:
            for _ in range(2):
                await peer.answer(await peer.take(), inline=packed({"a": 1}))
            assert [(await each).document for each in (calling, later)] == [{"a": 1}, {"a": 1}]


@on_a_loop
async def test_callers_are_told_when_a_worker_that_was_expected_does_not_come(tmp_path: Path) -> None:
    async with api(tmp_path) as here:
        async with worker(here.plane.address):
            here.plane.expect_back(2 * GRACE_S)
        assert (await here.run("echo")).status == 503


@on_a_loop
async def test_a_named_job_that_no_worker_takes_stays_and_the_same_call_again_has_its_end(tmp_path: Path) -> None:
    async with api(tmp_path) as here:
        async with worker(here.plane.address):
            pass
        await until(lambda: here.plane.presence("echo") is Presence.ABSENT)
        assert (await here.run("echo", "?request_id=mine")).status == 503
        waiting = (await here.ask("GET", "/v1/jobs/mine")).document
        assert (waiting["status"], waiting["waiting_for"]) == ("queued", "a worker that has `echo`")
        async with worker(here.plane.address) as peer:
            await peer.answer(await peer.take(), inline=packed({"a": 1}))
            assert (await here.run("echo", "?request_id=mine")).document == {"a": 1}


@on_a_loop
async def test_a_caller_that_says_how_long_it_waits_has_the_job_and_what_it_waits_for(tmp_path: Path) -> None:
    async with api(tmp_path) as here:
        async with worker(here.plane.address):
            pass
        await until(lambda: here.plane.presence("echo") is Presence.ABSENT)
        answer = await here.run("echo", "?wait=0.3")
        assert (answer.status, answer.document["waiting_for"]) == (202, "a worker that has `echo`")


@on_a_loop
async def test_a_stream_of_events_ends_with_503_when_no_worker_comes(tmp_path: Path) -> None:
    async with api(tmp_path) as here:
        async with worker(here.plane.address) as peer:
            calling = asyncio.ensure_future(here.run("echo", accept="text/event-stream"))
            await peer.take()
        last = (await calling).body.decode().split("\n\n")[-2]
        assert last.startswith("event: result\n")
        document = json.loads(last.partition("data: ")[2])
        assert (document["status"], document["error"]["message"]) == (
            "retryable",
            "no worker that takes jobs has `echo` now",
        )


@on_a_loop
async def test_after_a_restart_nothing_is_unknown_before_workers_had_the_time_to_come(tmp_path: Path) -> None:
    async with api(tmp_path):
        pass
    async with api(tmp_path, restart_grace_s=0.5) as here, worker(here.plane.address, "other", "shout"):
        assert here.plane.presence("echo") is Presence.EXPECTED
        calling = asyncio.ensure_future(here.run("echo"))
        await until(here.plane.jobs)
        async with worker(here.plane.address, "one", "echo") as peer:
            await peer.answer(await peer.take(), inline=packed({"a": 1}))
            assert (await calling).document == {"a": 1}
        answer = await here.run("shuot")
        assert (answer.status, answer.error["code"]) == (404, "no_function")
        assert answer.error["hint"] == "did you mean `shout`?"


@on_a_loop
async def test_before_any_worker_has_come_callers_wait_and_then_are_told_to_come_back(tmp_path: Path) -> None:
    async with api(tmp_path, restart_grace_s=0.3) as here:
        assert here.plane.presence("echo") is Presence.EXPECTED
        answer = await here.run("echo")
        assert (answer.status, answer.error["code"]) == (503, "no_worker")


@on_a_loop
async def test_a_job_says_what_it_waits_for(tmp_path: Path) -> None:
    async with api(tmp_path, grace_s=30.0) as here:
        submitted = await here.ask("POST", "/v1/jobs", b'{"function": "nope", "request_id": "n"}')
        unknown = "a worker that has `nope`, which no worker has had since the start"
        assert submitted.document["waiting_for"] == unknown
        assert (await here.ask("GET", "/v1/jobs")).document["jobs"][0]["waiting_for"] == unknown
        async with worker(here.plane.address) as peer:
            for request_id in ("a", "b", "c"):
                await here.plane.submit(JobRequest(function="echo", request_id=request_id))
            await peer.take()
            await peer.take()
            third = await here.plane.job("c")
            assert third is not None
            assert third.waiting_for == "room on a worker"
            first = await here.plane.job("a")
            assert first is not None
            assert first.waiting_for == ""

        async def awaits_return() -> bool:
            view = await here.plane.job("a")
            return view is not None and view.waiting_for == "the return of its worker, `one`"

        await until(awaits_return)


@on_a_loop
async def test_a_control_plane_that_ends_says_so_and_not_that_there_is_no_such_function(tmp_path: Path) -> None:
    async with api(tmp_path) as here, worker(here.plane.address):
        here.routes.open = False
        for answer in (await here.run("absent"), await here.ask("POST", "/v1/jobs", b'{"function": "echo"}')):
            assert (answer.status, answer.error["code"]) == (503, "not_ready")
            assert answer.headers["retry-after"] == "1"
