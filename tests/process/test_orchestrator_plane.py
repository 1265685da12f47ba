"""The control plane over real gRPC and a real file, with workers that say what the test says."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from functools import wraps
from pathlib import Path
from shutil import copytree
from typing import Any

import grpc
import msgspec
import pytest

from gen_worker.models.wanted import SnapshotFile
from gen_worker.orchestrator.plane import ControlPlane
from gen_worker.orchestrator.service import Service, Session
from gen_worker.orchestrator.state import Job
from gen_worker.orchestrator.store import Store, StoreError
from gen_worker.orchestrator.tokens import TokenError, Tokens
from gen_worker.orchestrator.views import (
    ConflictError,
    InvalidRequestError,
    JobEvent,
    JobRequest,
    JobView,
    QueueFullError,
    UnknownWorkerError,
)
from gen_worker.pb.convert import encode_worker
from gen_worker.wire.scheduler import (
    EVENT_TYPE,
    CancelJob,
    Drain,
    Hello,
    JobAccepted,
    JobProgress,
    JobStatus,
    ModelOp,
    ModelOpKind,
    ModelResidency,
    ResidencyTier,
    RunJob,
    Snapshot,
    StateDelta,
    TokenRefresh,
    WorkerFrame,
    WorkerPhase,
)
from tests.orchestrated import FakeWorker, NoFiles, control_plane, packed, stream, until, worker

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("grpc_awake")]

Test = Callable[[Path], Coroutine[Any, Any, None]]


def on_a_loop(test: Test) -> Callable[[Path], None]:
    """Run a test on a loop of its own, in half a minute at most."""

    @wraps(test)
    def run(tmp_path: Path) -> None:
        asyncio.run(asyncio.wait_for(test(tmp_path), 30))

    return run


def echo(request_id: str = "r", **fields: Any) -> JobRequest:
    return JobRequest(function="echo", request_id=request_id, **fields)


async def events(plane: ControlPlane, request_id: str = "r", after: int = 0) -> list[JobEvent]:
    """What happens to a job, to its end."""
    async with asyncio.timeout(10):
        return [event async for event in plane.watch(request_id, after=after)]


async def end(plane: ControlPlane, request_id: str = "r") -> JobView:
    """How a job ends."""
    view = (await events(plane, request_id))[-1].job
    assert view is not None
    return view


async def chunk(peer: FakeWorker, run: RunJob, seq: int, body: bytes, content_type: str = "text/plain") -> None:
    await peer.say(
        JobProgress(request_id=run.request_id, attempt=run.attempt, seq=seq, body=body, content_type=content_type)
    )


# --- callers ----------------------------------------------------------------------------------------------------------


@on_a_loop
async def test_a_job_goes_to_a_worker_and_its_end_comes_back(tmp_path: Path) -> None:
    async with control_plane(tmp_path, file_base_url="http://files") as plane, worker(plane.address) as peer:
        accepted = await plane.submit(echo(payload=packed({"a": 1}), tenant="t", invoker_id="i", timeout_ms=500))
        assert accepted.status in ("queued", "assigned")
        run = await peer.take()
        assert (run.function_name, run.attempt, run.input_payload) == ("echo", 1, packed({"a": 1}))
        assert (run.tenant, run.invoker_id, run.timeout_ms, run.capability_token) == ("t", "i", 500, "r/1/t")
        await until(lambda: plane.live_attempt("r") == 1)
        await peer.answer(run, inline=packed({"b": 2}))
        view = await end(plane)
        assert (view.status, view.code, view.output, view.worker_id) == ("ok", 200, packed({"b": 2}), "one")
        assert view.started is not None
        assert view.finished is not None
        assert view.created <= view.started <= view.finished
        assert view.metrics is not None
        assert await plane.job("r") == view
        assert plane.live_attempt("r") is None
        assert await plane.job("absent") is None


@on_a_loop
async def test_a_function_is_found_in_either_spelling_and_an_id_is_made(tmp_path: Path) -> None:
    async with control_plane(tmp_path) as plane, worker(plane.address, "one", "make-it") as peer:
        view = await plane.submit(JobRequest(function="Make_it"))
        run = await peer.take()
        assert (run.function_name, run.request_id) == ("make-it", view.request_id)
        assert len(view.request_id) == 32


@on_a_loop
async def test_the_same_request_again_is_the_same_job_before_and_after_its_end_and_a_restart(tmp_path: Path) -> None:
    async with control_plane(tmp_path) as plane:
        await asyncio.gather(*(plane.submit(echo()) for _ in range(10)))
        with pytest.raises(ConflictError, match="`r`"):
            await plane.submit(echo(tenant="other"))
        assert len(await plane.jobs()) == 1
    async with control_plane(tmp_path) as plane, worker(plane.address) as peer:
        await plane.submit(echo())
        run = await peer.take()
        assert run.attempt == 1, "it ended in order: nobody was given the first attempt"
        await peer.answer(run)
        await end(plane)
        assert (await plane.submit(echo())).status == "ok"
        with pytest.raises(ConflictError):
            await plane.submit(echo(tenant="other"))


@on_a_loop
async def test_a_callers_trace_goes_with_its_job_and_another_one_makes_no_other_job_of_it(tmp_path: Path) -> None:
    one, other = (f"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b{end}-01" for end in "67")
    async with control_plane(tmp_path) as plane, worker(plane.address) as peer:
        await plane.submit(echo(traceparent=one))
        await plane.submit(echo(traceparent=other))
        run = await peer.take()
        assert run.traceparent == one
        await peer.answer(run)


@on_a_loop
async def test_what_no_worker_could_be_asked_is_refused(tmp_path: Path) -> None:
    async with control_plane(tmp_path) as plane:
        for request, text in (
            (JobRequest(function=" -- "), "names a function"),
            (echo("a\nb"), "request_id"),
            (echo("\ud800"), "request_id"),
            (echo(tenant="x" * 201), "tenant"),
            (echo(timeout_ms=-1), "timeout_ms"),
            (echo(payload=bytes(61 << 20)), "the limit is"),
        ):
            with pytest.raises(InvalidRequestError, match=text):
                await plane.submit(request)
        assert not await plane.jobs()


@on_a_loop
async def test_more_than_may_wait_is_refused_and_what_is_known_is_not(tmp_path: Path) -> None:
    async with control_plane(tmp_path, max_queued=3, max_queued_bytes=1000) as plane:
        with pytest.raises(QueueFullError, match="bytes"):
            await plane.submit(echo("long", payload=bytes(1001)))
        for number in range(3):
            await plane.submit(echo(f"r{number}"))
        with pytest.raises(QueueFullError, match="3 jobs wait") as refused:
            await plane.submit(echo("more"))
        assert refused.value.retry_after_s > 0
        assert (await plane.submit(echo("r0"))).status == "queued"
        canceled = await plane.cancel("r1")
        assert canceled is not None
        assert (canceled.status, canceled.code) == ("canceled", 499)
        await plane.submit(echo("more"))


@on_a_loop
async def test_jobs_are_listed_newest_first_and_by_status_in_pages(tmp_path: Path) -> None:
    async with control_plane(tmp_path) as plane, worker(plane.address) as peer:
        for number in range(7):
            await plane.submit(echo(f"r{number}"))
        await peer.answer(await peer.take())
        await end(plane, "r0")
        ids = [view.request_id for view in await plane.jobs()]
        assert ids == [f"r{number}" for number in reversed(range(7))]
        page = await plane.jobs(limit=3, after="r5")
        assert [view.request_id for view in page] == ["r4", "r3", "r2"]
        assert [view.request_id for view in await plane.jobs(status="ok")] == ["r0"]
        waiting = await plane.jobs(status="queued", limit=2)
        assert [view.request_id for view in waiting] == ["r6", "r5"]
        assert [view.request_id for view in await plane.jobs(status="queued", limit=1, after="r5")] == ["r4"]
        await plane.cancel("r5")
        assert [view.request_id for view in await plane.jobs(status="queued", limit=1, after="r5")] == ["r4"]


@on_a_loop
async def test_a_list_reads_neither_what_jobs_were_given_nor_what_they_made(tmp_path: Path) -> None:
    async with control_plane(tmp_path) as plane, worker(plane.address) as peer:
        asked = echo(payload=packed("much"), tenant="t")
        await plane.submit(asked)
        await peer.answer(await peer.take(), inline=packed("more"))
        whole = await end(plane)
        (listed,) = await plane.jobs()
        assert (listed.request.payload, listed.output) == (b"", None)
        assert (listed.request_id, listed.request.tenant, listed.finished) == ("r", "t", whole.finished)
        assert (whole.request, whole.output) == (asked, packed("more"))
        assert await plane.known(["r", "absent"]) == {"r"}


@on_a_loop
async def test_ended_jobs_are_kept_up_to_a_number(tmp_path: Path) -> None:
    async with control_plane(tmp_path) as plane, worker(plane.address) as peer:
        for number in range(6):
            await plane.submit(echo(f"r{number}"))
            await peer.answer(await peer.take())
            await end(plane, f"r{number}")
    async with control_plane(tmp_path, keep_jobs=2) as plane:
        await until(lambda: _is_gone(plane, "r3"))
        assert [view.request_id for view in await plane.jobs()] == ["r5", "r4"]
        assert not await events(plane, "r0")


@on_a_loop
async def test_ended_jobs_are_kept_up_to_a_size_and_one_that_waits_is_kept_whatever_it_has(tmp_path: Path) -> None:
    async with control_plane(tmp_path) as plane, worker(plane.address) as peer:
        await plane.submit(JobRequest(function="later", request_id="waits", payload=bytes(1 << 20)))
        for number in range(4):
            await plane.submit(echo(f"r{number}", payload=bytes(1 << 20)))
            await peer.answer(await peer.take())
            await end(plane, f"r{number}")
    async with control_plane(tmp_path, keep_bytes=1 << 20) as plane:
        await until(lambda: _is_gone(plane, "r3"))
        assert [view.request_id for view in await plane.jobs()] == ["waits"]


@on_a_loop
async def test_jobs_that_ended_without_a_worker_s_result_have_a_time_and_are_forgotten_by_it_too(
    tmp_path: Path,
) -> None:
    async with control_plane(tmp_path) as plane:
        for request_id in ("canceled", "waits"):
            await plane.submit(echo(request_id))
        view = await plane.cancel("canceled")
        assert view is not None
        assert view.finished is not None
        assert view.created <= view.finished
        async with worker(plane.address) as peer:
            run = await peer.take()
            await peer.answer(run, JobStatus.RETRYABLE)
            await until(lambda: _failed(plane, "waits"))
        await until(lambda: _is_lost(plane, "one"))
        tried = await plane.cancel("waits")
        assert tried is not None
        assert tried.finished is not None
        assert tried.finished > view.finished
    async with control_plane(tmp_path, keep_s=0.0) as plane:
        await until(lambda: _is_gone(plane, "canceled"))
        await until(lambda: _is_gone(plane, "waits"))


async def _failed(plane: ControlPlane, request_id: str) -> bool:
    job = await plane.job(request_id)
    return job is not None and job.attempt == 2


def test_only_its_owner_can_read_the_state(tmp_path: Path) -> None:
    Store(tmp_path / "state").close()
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0


async def _is_gone(plane: ControlPlane, request_id: str) -> bool:
    return await plane.job(request_id) is None


# --- watching ---------------------------------------------------------------------------------------------------------


@on_a_loop
async def test_watchers_see_everything_from_the_first_chunk_however_late_they_come(tmp_path: Path) -> None:
    async with control_plane(tmp_path) as plane, worker(plane.address) as peer:
        await plane.submit(echo())
        early = asyncio.create_task(events(plane))
        run = await peer.take()
        await anext(plane.watch("r"))  # so has the early one looked at what was before
        await chunk(peer, run, 1, b"one")
        await chunk(peer, run, 2, b'{"event":"log","value":{"message":"hi"}}', EVENT_TYPE)
        await chunk(peer, run, 3, b'{"event":"progress","value":{"fraction":0.5}}', EVENT_TYPE)
        await until(lambda: _progress(plane))
        late = asyncio.create_task(events(plane))
        await chunk(peer, run, 4, b"two")
        await peer.answer(run)
        expected = [("accepted", b""), ("chunk", b"one"), ("log", b'{"message":"hi"}')]
        expected += [("progress", b'{"fraction":0.5}'), ("chunk", b"two"), ("result", b"")]
        assert sorted((event.kind, event.body) for event in await early) == sorted(expected)
        assert sorted((event.kind, event.body) for event in await late) == sorted(expected)
        kept = [event for event in expected if event[0] != "progress"]
        afterwards = await events(plane)
        assert [(event.kind, event.body) for event in afterwards] == kept
        assert [event.number for event in afterwards] == [1, 2, 3, 4, 5]
        assert [event.number for event in await events(plane, after=3)] == [4, 5]
        assert (await early)[-1] == (await late)[-1] == afterwards[-1]


async def _progress(plane: ControlPlane) -> bytes | None:
    view = await plane.job("r")
    return view.progress if view else None


@on_a_loop
async def test_a_watcher_that_does_not_read_misses_nothing(tmp_path: Path) -> None:
    async with control_plane(tmp_path) as plane, worker(plane.address) as peer:
        await plane.submit(echo())
        watch = plane.watch("r")
        run = await peer.take()
        assert (await anext(watch)).kind == "accepted"
        for seq in range(1, 3001):
            await chunk(peer, run, seq, b"x")
        await peer.answer(run)
        await until(lambda: plane.live_attempt("r") is None)
        seqs = [event.seq async for event in watch if event.kind == "chunk"]
        assert seqs == list(range(1, 3001))


@on_a_loop
async def test_a_reader_who_saw_more_than_was_kept_when_the_control_plane_was_killed_goes_on_to_the_end(
    tmp_path: Path,
) -> None:
    killed = tmp_path / "killed"
    async with control_plane(tmp_path / "first") as plane, worker(plane.address) as peer:
        await plane.submit(echo())
        run = await peer.take()
        await chunk(peer, run, 1, b"kept")
        for _ in range(2):  # the second time from the disk
            assert [event.kind async for event in limited(plane.watch("r"), 2)] == ["accepted", "chunk"]
        await asyncio.to_thread(copytree, tmp_path / "first", killed)
    seen = 400  # by the reader, of what the disk had not yet
    async with control_plane(killed) as plane, worker(plane.address, in_flight=(("r", 1),)) as peer:
        await chunk(peer, run, 2, b"later")
        await peer.answer(run)
        later = await events(plane, after=seen)
        assert [event.kind for event in later] == ["chunk", "result"]
        assert all(event.number > seen for event in later)


async def limited(watch: AsyncIterator[JobEvent], count: int) -> AsyncIterator[JobEvent]:
    """The first events of a watch."""
    for _ in range(count):
        yield await anext(watch)


@on_a_loop
async def test_another_attempt_voids_the_chunks_of_the_one_before(tmp_path: Path) -> None:
    async with control_plane(tmp_path) as plane, worker(plane.address) as peer:
        await plane.submit(echo())
        run = await peer.take()
        await chunk(peer, run, 1, b"void")
        await peer.answer(run, JobStatus.RETRYABLE, safe_message="no")
        again = await peer.take()
        assert again.attempt == 2
        await chunk(peer, run, 2, b"stale")
        await peer.answer(run)
        await chunk(peer, again, 1, b"good")
        await peer.answer(again)
        found = [(event.kind, event.attempt, event.body) for event in await events(plane)]
        assert found == [("accepted", 2, b""), ("chunk", 2, b"good"), ("result", 2, b"")]


# --- workers ----------------------------------------------------------------------------------------------------------


@on_a_loop
async def test_a_lost_worker_s_job_goes_to_another_one(tmp_path: Path) -> None:
    async with control_plane(tmp_path, grace_s=0.1) as plane, worker(plane.address, "one") as first:
        await plane.submit(echo())
        await first.take()
        async with worker(plane.address, "two") as second:
            first.cut()
            run = await second.take()
            assert run.attempt == 2
            await second.answer(run)
            assert (await end(plane)).worker_id == "two"


@on_a_loop
async def test_a_worker_that_returns_in_time_goes_on_with_the_same_attempt(tmp_path: Path) -> None:
    async with control_plane(tmp_path) as plane:
        async with worker(plane.address) as peer:
            await plane.submit(echo())
            run = await peer.take()
        async with worker(plane.address, in_flight=(("r", 1), ("other", 3))) as peer:
            cancel = await peer.hear_a(CancelJob)
            assert (cancel.request_id, cancel.attempt) == ("other", 3)
            await peer.answer(run)
            assert (await end(plane)).attempt == 1


@on_a_loop
async def test_a_newer_stream_of_a_worker_ends_the_older_one_and_takes_its_jobs(tmp_path: Path) -> None:
    warnings: list[str] = []
    async with control_plane(tmp_path, warned=warnings.append) as plane, worker(plane.address) as older:
        await plane.submit(echo())
        run = await older.take()
        async with worker(plane.address, in_flight=(("r", 1),)) as newer:
            (warning,) = warnings
            assert warning.startswith("worker `one` connected a second time: its earlier connection is ended")
            assert await older.end() == (grpc.StatusCode.ABORTED, "worker_stream_superseded")
            await newer.answer(run)
            assert (await end(plane)).status == "ok"
            assert [view.connected for view in await plane.workers()] == [True]


@on_a_loop
async def test_what_was_canceled_stays_so_over_a_restart_whether_its_worker_heard_of_it_or_not(tmp_path: Path) -> None:
    async with control_plane(tmp_path) as plane, worker(plane.address) as peer:
        await plane.submit(echo())
        await peer.take()
        canceled = await plane.cancel("r")
        assert canceled is not None
        assert not canceled.ended
    async with control_plane(tmp_path) as plane:
        view = await end(plane)
        assert (view.status, view.code) == ("canceled", 499)
        async with worker(plane.address, in_flight=(("r", 1),)) as peer:
            assert (await peer.hear_a(CancelJob)).request_id == "r"


class ManyFiles(NoFiles):
    """A store that has a model under any ref, the larger the longer its name."""

    def snapshot(self, ref: str) -> Snapshot | None:
        files = (SnapshotFile(f"{ref}-{number}", 1, "00", "http://files") for number in range(len(ref) * 1000))
        return Snapshot(digest=ref, files=tuple(files))


@on_a_loop
async def test_a_job_of_a_function_that_nobody_has_looked_into_is_told_of_every_offered_model(tmp_path: Path) -> None:
    options = {"needs": {"drawn": ("n",), "plain": ()}, "offered": ("m", "n", "toolarge")}
    functions = ("drawn", "plain", "found")
    described = {}
    made = control_plane(tmp_path, files=ManyFiles(), **options)
    async with made as plane, worker(plane.address, "one", *functions) as peer:
        for function in functions:
            await plane.submit(JobRequest(function=function, request_id=function))
            run = await peer.take()
            described[function] = set(run.snapshots)
            await peer.answer(run)
    assert described == {"drawn": {"n"}, "plain": set(), "found": {"m", "n"}}


class OddFiles(NoFiles):
    """A store with a fault."""

    def capability(self, request_id: str, attempt: int, tenant: str, function: str) -> str:
        if request_id == "odd":
            raise OSError("no token for this one")
        return super().capability(request_id, attempt, tenant, function)


@on_a_loop
async def test_what_cannot_be_done_for_one_job_costs_no_other_one_and_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
    async with control_plane(tmp_path, files=OddFiles()) as plane:
        await plane.submit(echo("odd"))
        await plane.submit(echo("even"))
        async with worker(plane.address) as peer:
            run = await peer.take()
            await peer.answer(run)
            assert (await end(plane, "even")).status == "ok"
    assert told == ["the control plane failed at `Run`"]


@on_a_loop
async def test_workers_are_shown_as_they_are(tmp_path: Path) -> None:
    models = (ModelResidency(ref="o/m", tier=ResidencyTier.VRAM, vram_bytes=5),)
    async with control_plane(tmp_path) as plane, worker(plane.address, "b", models=models), worker(plane.address, "a"):
        first, second = await plane.workers()
        assert (first.worker_id, second.worker_id) == ("a", "b")
        assert second.models == models
        assert (second.connected, second.phase, second.available_functions) == (True, "ready", ("echo",))


@on_a_loop
async def test_a_worker_can_be_drained_and_told_what_to_do_with_models(tmp_path: Path) -> None:
    async with control_plane(tmp_path) as plane, worker(plane.address) as peer:
        await plane.model_op("one", ModelOp(op=ModelOpKind.LOAD, ref="o/m"))
        assert (await peer.hear_a(ModelOp)).ref == "o/m"
        await plane.drain("one", 1500)
        assert (await peer.hear_a(Drain)).deadline_ms == 1500
        assert (await plane.workers())[0].draining
        with pytest.raises(UnknownWorkerError, match="`two`"):
            await plane.drain("two", 0)


@on_a_loop
async def test_a_worker_that_does_not_read_loses_its_stream_and_holds_nobody_up(tmp_path: Path) -> None:
    async with (
        control_plane(tmp_path) as plane,
        worker(plane.address, "slow", "other") as slow,
        worker(plane.address, "quick") as quick,
    ):
        for _ in range(5000):
            await plane.model_op("slow", ModelOp(op=ModelOpKind.LOAD, ref="o/" + "m" * 200))
            await asyncio.sleep(0)
            if not [view for view in await plane.workers() if view.worker_id == "slow" and view.connected]:
                break
        await plane.submit(echo())
        await quick.answer(await quick.take())
        assert (await end(plane)).status == "ok"
        await until(lambda: _is_lost(plane, "slow"))
        assert (await slow.end())[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


async def _is_lost(plane: ControlPlane, worker_id: str) -> bool:
    return not any(view.connected for view in await plane.workers() if view.worker_id == worker_id)


@on_a_loop
async def test_two_hundred_jobs_on_two_workers_of_which_one_is_lost_all_end_once(tmp_path: Path) -> None:
    async with (
        control_plane(tmp_path, grace_s=0.1) as plane,
        worker(plane.address, "one") as one,
        worker(plane.address, "two") as two,
    ):
        work = asyncio.create_task(two.serve(lambda run: run.input_payload))
        requests = [echo(f"r{number}", payload=packed({"n": number})) for number in range(200)]
        await asyncio.gather(*map(plane.submit, requests))
        await one.take()
        one.cut()
        ends = await asyncio.gather(*(end(plane, request.request_id) for request in requests))
        assert [view.output for view in ends] == [request.payload for request in requests]
        assert {view.worker_id for view in ends} == {"two"}
        assert {view.attempt for view in ends} == {1, 2}
        two.cut()
        await work


# --- what is said wrongly ---------------------------------------------------------------------------------------------


async def told(plane: ControlPlane, *packets: bytes, token: str = "") -> tuple[grpc.StatusCode, str]:
    """How a stream ends that begins with these; where gRPC itself loses that in the middle of a write, the next one."""
    for last in (False, True):
        async with stream(plane.address, token=token) as call:
            with suppress(grpc.aio.AioRpcError):  # it may have ended before all is said
                for each in packets:
                    await call.write(each)
            end = await FakeWorker(call, "").end()
        if last or end[0] is not grpc.StatusCode.INTERNAL:
            break
    return end


def packet(frame: WorkerFrame) -> bytes:
    return encode_worker(frame)


@on_a_loop
async def test_streams_that_begin_wrongly_are_ended_with_the_reason(tmp_path: Path) -> None:
    precondition = grpc.StatusCode.FAILED_PRECONDITION
    malformed = (grpc.StatusCode.INVALID_ARGUMENT, "malformed_message")
    async with control_plane(tmp_path) as plane:
        hello = Hello(worker_id="one")
        accepted = packet(JobAccepted(request_id="r", attempt=1))
        assert await told(plane, accepted) == (precondition, "hello_expected")
        assert await told(plane, packet(hello), packet(hello)) == (precondition, "hello_expected")
        assert await told(plane, packet(Hello(worker_id=""))) == (precondition, "missing worker identity")
        mismatch = packet(Hello(worker_id="one", protocol_version=1))
        assert await told(plane, mismatch) == (precondition, "protocol_version_mismatch")
        assert await told(plane, b"\xff\xff") == malformed
        assert await told(plane, packet(hello), accepted, b"", b"\xff\xff") == malformed


@on_a_loop
async def test_a_stream_whose_hello_cannot_be_taken_in_is_over_for_whoever_was_told_of_it(tmp_path: Path) -> None:
    told: list[str] = []

    class Odd:
        def joined(self, session: Session, hello: Hello) -> None:
            told.append("joined")
            raise TokenError("not this one")

        def said(self, session: Session, frame: WorkerFrame) -> None:
            raise AssertionError

        def left(self, session: Session) -> None:
            told.append("left")

        async def room(self) -> None:
            raise AssertionError

    service = Service(Odd(), None)
    address = await service.start("127.0.0.1:0", None)
    try:
        async with stream(address) as call:
            peer = FakeWorker(call, "one")
            await peer.say(Hello(worker_id="one"))
            code, _ = await peer.end()
            assert code is grpc.StatusCode.UNAUTHENTICATED
    finally:
        await service.stop()
    assert told == ["joined", "left"]


@on_a_loop
async def test_a_stream_without_a_hello_is_ended_after_a_while(tmp_path: Path) -> None:
    class Nobody:
        def joined(self, session: Session, hello: Hello) -> None:
            raise AssertionError

        def said(self, session: Session, frame: WorkerFrame) -> None:
            raise AssertionError

        def left(self, session: Session) -> None:
            raise AssertionError

        async def room(self) -> None:
            raise AssertionError

    service = Service(Nobody(), None, hello_timeout_s=0.1)
    address = await service.start("127.0.0.1:0", None)
    try:
        async with stream(address) as call:
            await call.write(b"")
            assert await FakeWorker(call, "").end() == (grpc.StatusCode.DEADLINE_EXCEEDED, "hello_timeout")
    finally:
        await service.stop()


@on_a_loop
async def test_with_tokens_only_their_workers_come_in_and_get_the_next_one_in_time(tmp_path: Path) -> None:
    tokens = Tokens.create(tmp_path)
    hello = packet(Hello(worker_id="one", release_id="r1"))
    unauthenticated = grpc.StatusCode.UNAUTHENTICATED
    precondition = grpc.StatusCode.FAILED_PRECONDITION
    async with control_plane(tmp_path, auth=tokens) as plane:
        assert (await told(plane, hello))[0] is unauthenticated
        assert (await told(plane, hello, token="nonsense"))[0] is unauthenticated
        assert (await told(plane, hello, token=tokens.worker_token("one", "r1", -60)))[0] is unauthenticated
        other = tokens.worker_token("two", "r1")
        assert await told(plane, hello, token=other) == (precondition, "worker_id_mismatch")
        older = tokens.worker_token("one", "r0")
        assert await told(plane, hello, token=older) == (precondition, "release_id_mismatch")
        async with worker(plane.address, token=tokens.worker_token("one", lifetime_s=1)) as peer:
            refresh = await peer.hear_a(TokenRefresh)
            assert tokens.verify(refresh.token).expires == refresh.expires_at_unix


# --- starting ---------------------------------------------------------------------------------------------------------


@on_a_loop
async def test_one_control_plane_holds_a_state_and_a_port(tmp_path: Path) -> None:
    async with control_plane(tmp_path) as plane:
        with pytest.raises(StoreError, match="in use by another control plane"):
            async with control_plane(tmp_path):
                pass
        with pytest.raises(OSError, match="cannot listen on"):
            async with control_plane(tmp_path / "other", listen=plane.address):
                pass
    async with control_plane(tmp_path / "other"):
        pass


def test_a_state_of_an_earlier_version_is_taken_over(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "earlier"
    store = Store(path)
    store.restore()
    store.accept(Job(echo(), 1.0), lambda _: None, lambda _: None)
    store.close()
    with sqlite3.connect(path) as earlier:
        request = msgspec.msgpack.encode(echo(payload=packed("before")))
        earlier.execute("UPDATE jobs SET request = ?", (request,))
        earlier.execute("ALTER TABLE jobs DROP COLUMN canceled")
        earlier.execute("ALTER TABLE jobs DROP COLUMN payload")
        earlier.execute("PRAGMA user_version = 1")
    earlier.close()
    for _ in range(2):
        store = Store(path)
        (restored,) = store.restore()
        store.close()
        assert (restored.job.request, restored.canceled) == (echo(payload=packed("before")), False)


def test_a_state_of_a_later_version_and_one_that_is_none_are_refused(tmp_path: Path) -> None:
    import sqlite3

    Store(tmp_path / "later").close()
    with sqlite3.connect(tmp_path / "later") as later:
        later.execute("PRAGMA user_version = 99")
    later.close()
    with pytest.raises(StoreError, match="later version"):
        Store(tmp_path / "later")
    (tmp_path / "none").write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match="cannot be opened"):
        Store(tmp_path / "none")


@on_a_loop
async def test_workers_come_in_over_tls(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    async with control_plane(tmp_path, tls=(certificate, key), listen="localhost:0") as plane:
        credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
        async with stream(plane.address, credentials=credentials) as call:
            peer = FakeWorker(call, "one")
            await peer.say(Hello(worker_id="one", state=StateDelta(phase=WorkerPhase.READY)))
            await until(lambda: plane.workers())


@on_a_loop
async def test_a_certificate_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "none").write_text("no certificate")
    for name in ("absent", "none"):
        with pytest.raises(OSError, match="cannot listen on"):
            async with control_plane(tmp_path, tls=(tmp_path / name, tmp_path / name)):
                pass


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Make a certificate for `localhost`, and its key."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate, secret = folder / "cert.pem", folder / "key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate, secret


@on_a_loop
async def test_workers_that_come_drain_and_go_are_told_of_once_each(tmp_path: Path) -> None:
    told: list[tuple[str, Any]] = []
    async with control_plane(tmp_path, told=lambda event, facts: told.append((event, facts))) as plane:
        async with worker(plane.address, "first", "echo", "shout") as peer:
            assert told.pop() == ("connected", {"worker": "first", "functions": 2})
            await plane.submit(echo())
            await peer.take()
            for _ in range(2):
                await plane.drain("first", 0)
                await peer.hear_a(Drain)
            assert told.pop() == ("draining", {"worker": "first", "jobs": 1})
        await until(lambda: told)
        assert told.pop() == ("left", {"worker": "first", "drained": True, "jobs": 1})
        async with worker(plane.address, "second"):
            assert [event for event, _ in told] == ["connected"]
            async with worker(plane.address, "second"):
                await until(lambda: len(plane._sessions) == 1)
                assert [event for event, _ in told] == ["connected", "connected"]
        await until(lambda: told[-1] == ("left", {"worker": "second", "drained": False, "jobs": 0}))
        assert len(told) == 3
