"""A control plane for tests, and workers that speak the wire by hand: what they say is what the test says."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
import msgspec

from gen_worker.orchestrator.plane import ControlPlane, PlaneOptions
from gen_worker.pb import CONNECT
from gen_worker.pb.convert import decode_scheduler, encode_worker
from gen_worker.wire.scheduler import (
    Hello,
    HelloAck,
    InFlightJob,
    JobAccepted,
    JobMetrics,
    JobResult,
    JobStatus,
    RunJob,
    SchedulerFrame,
    Snapshot,
    StateDelta,
    WorkerFrame,
    WorkerPhase,
)

PATIENCE_S = 10.0
OPTIONS = [("grpc.so_reuseport", 0), ("grpc.use_local_subchannel_pool", 1)]

F = TypeVar("F")


class NoFiles:
    """A store in which nothing is."""

    def snapshot(self, ref: str) -> Snapshot | None:
        """Know no model."""
        return None

    def capability(self, request_id: str, attempt: int, tenant: str, function: str) -> str:
        """Return a text that says what it would be for."""
        return f"{request_id}/{attempt}/{tenant}"


def ready(*functions: str) -> StateDelta:
    """Return the state of a worker that offers these functions."""
    return StateDelta(phase=WorkerPhase.READY, available_functions=functions)


class FakeWorker:
    """One worker's stream, spoken by hand."""

    def __init__(self, call: Any, worker_id: str) -> None:
        self.worker_id = worker_id
        self.call = call

    async def say(self, *frames: WorkerFrame) -> None:
        """Write messages."""
        for frame in frames:
            await self.call.write(encode_worker(frame))

    async def hear(self) -> SchedulerFrame | None:
        """Return the next message; None where the stream is over."""
        async with asyncio.timeout(PATIENCE_S):
            packet = await self.call.read()
        return None if packet is grpc.aio.EOF else decode_scheduler(packet)

    async def hear_a(self, kind: type[F]) -> F:
        """Return the next message of a kind; those before it are passed over."""
        while True:
            frame = await self.hear()
            assert frame is not None, f"the stream ended before a {kind.__name__} came"
            if isinstance(frame, kind):
                return frame

    async def take(self) -> RunJob:
        """Accept the next job."""
        run = await self.hear_a(RunJob)
        await self.say(JobAccepted(request_id=run.request_id, attempt=run.attempt))
        return run

    async def answer(self, run: RunJob, status: JobStatus = JobStatus.OK, **fields: Any) -> None:
        """End a job."""
        metrics = JobMetrics(runtime_ms=1)
        given = {"metrics": metrics, **fields}
        await self.say(JobResult(request_id=run.request_id, attempt=run.attempt, status=status, **given))

    def cut(self) -> None:
        """End the stream as a killed worker does."""
        self.call.cancel()

    async def end(self) -> tuple[grpc.StatusCode, str]:
        """Return how the stream ended; what it said before is read first, as gRPC wants it."""
        async with asyncio.timeout(PATIENCE_S):
            with suppress(grpc.aio.AioRpcError):
                while await self.call.read() is not grpc.aio.EOF:
                    pass
            return await self.call.code(), await self.call.details()

    async def serve(self, functions: Callable[[RunJob], bytes]) -> None:
        """Answer every job with what the function makes of it, until the stream is over."""
        with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):  # how a read ends when the stream is cut
            while (packet := await self.call.read()) is not grpc.aio.EOF:
                frame = decode_scheduler(packet)
                if isinstance(frame, RunJob):
                    await self.say(JobAccepted(request_id=frame.request_id, attempt=frame.attempt))
                    await self.answer(frame, inline=functions(frame))


@asynccontextmanager
async def stream(
    address: str, *, token: str = "", credentials: grpc.ChannelCredentials | None = None
) -> AsyncIterator[Any]:
    """Open a stream to the control plane on a connection of its own; it is cut when the body ends."""
    metadata = [("authorization", f"Bearer {token}")] if token else []
    if credentials is None:
        opened = grpc.aio.insecure_channel(address, options=OPTIONS)
    else:
        opened = grpc.aio.secure_channel(address, credentials, options=OPTIONS)
    async with opened as channel:
        call = channel.stream_stream(CONNECT)(metadata=metadata)
        try:
            yield call
        finally:
            call.cancel()


@asynccontextmanager
async def worker(
    address: str,
    worker_id: str = "one",
    *functions: str,
    in_flight: tuple[tuple[str, int], ...] = (),
    token: str = "",
    **hello: Any,
) -> AsyncIterator[FakeWorker]:
    """Connect a worker that offers functions, past its HelloAck."""
    hello.setdefault("state", ready(*functions or ("echo",)))
    held = tuple(InFlightJob(request_id=request_id, attempt=attempt) for request_id, attempt in in_flight)
    async with stream(address, token=token) as call:
        fake = FakeWorker(call, worker_id)
        await fake.say(Hello(worker_id=worker_id, in_flight=held, **hello))
        await fake.hear_a(HelloAck)
        yield fake


@asynccontextmanager
async def control_plane(folder: Path, **options: Any) -> AsyncIterator[ControlPlane]:
    """Run a control plane whose state is in a folder."""
    given = {"state": folder / "state.sqlite", "files": NoFiles(), "listen": "127.0.0.1:0", **options}
    plane = ControlPlane(PlaneOptions(**given))
    await plane.start()
    try:
        yield plane
    finally:
        await plane.close()


async def until(holds: Callable[[], Any]) -> None:
    """Wait until something holds; what it asks may be awaited."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = holds()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return
            await asyncio.sleep(0.005)


def packed(value: object) -> bytes:
    """Return msgpack."""
    return msgspec.msgpack.encode(value)
