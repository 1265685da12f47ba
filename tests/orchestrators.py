"""A real gRPC server that plays the orchestrator as a test tells it to, and a session that notes what it hears."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from gen_worker.pb import SERVICE
from gen_worker.pb.convert import decode_worker, encode_scheduler
from gen_worker.settings import Secret
from gen_worker.wire.scheduler import (
    CancelJob,
    Drain,
    Hello,
    HelloAck,
    ModelOp,
    RunJob,
    SchedulerFrame,
    WorkerFrame,
)
from gen_worker_supervisor.link.config import LinkConfig
from gen_worker_supervisor.link.connection import Pace
from gen_worker_supervisor.link.stream import Link
from gen_worker_supervisor.logs.log import Log

PATIENCE_S = 10.0
PACE = Pace()


class Stream:
    """The orchestrator's end of one stream."""

    def __init__(self, context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
        self.context = context
        self.metadata = dict(context.invocation_metadata() or ())

    async def read(self) -> WorkerFrame | None:
        """Return the next message, None at the end."""
        packet = await asyncio.wait_for(self.context.read(), PATIENCE_S)
        return None if packet is grpc.aio.EOF else decode_worker(packet)

    async def take(self, kind: type[WorkerFrame]) -> WorkerFrame:
        """Return the next message, which must be of this kind."""
        frame = await self.read()
        assert isinstance(frame, kind), frame
        return frame

    async def write(self, *frames: SchedulerFrame) -> None:
        """Send messages."""
        for frame in frames:
            await self.context.write(encode_scheduler(frame))

    async def greet(self) -> Hello:
        """Take the Hello and acknowledge it."""
        hello = await self.take(Hello)
        await self.write(HelloAck(file_base_url="http://files", keep=("a/b",)))
        assert isinstance(hello, Hello)
        return hello

    async def refuse(self, status: grpc.StatusCode, details: str) -> None:
        """End the stream with this status."""
        await self.context.abort(status, details)


Play = Callable[[Stream], Awaitable[None]]


class Orchestrator:
    """A server whose n-th stream goes as the n-th play says; later ones as the last."""

    def __init__(self, *plays: Play) -> None:
        self.plays = plays
        self.streams: list[Stream] = []
        self.failures: list[BaseException] = []
        self.port = 0

    @property
    def address(self) -> str:
        """Where it listens, without TLS."""
        return f"grpc://127.0.0.1:{self.port}"

    async def connect(self, _request: object, context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
        """Serve one stream."""
        stream = Stream(context)
        self.streams.append(stream)
        play = self.plays[min(len(self.streams), len(self.plays)) - 1]
        try:
            await play(stream)
        except (AssertionError, TimeoutError) as error:
            self.failures.append(error)
            raise


@asynccontextmanager
async def orchestrator(
    *plays: Play, credentials: grpc.ServerCredentials | None = None, port: int = 0
) -> AsyncIterator[Orchestrator]:
    """Serve until the body ends; a play that failed fails the body."""
    served = Orchestrator(*plays)
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 64 << 20), ("grpc.so_reuseport", 0)])
    handler = grpc.stream_stream_rpc_method_handler(served.connect)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Connect": handler}),))
    address = f"127.0.0.1:{port}"
    served.port = (
        server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
    )
    await server.start()
    try:
        yield served
    finally:
        await server.stop(None)
    if served.failures:
        raise served.failures[0]


class Noted:
    """A session that notes what it hears, and says nothing by itself."""

    def __init__(self) -> None:
        self.heard: list[object] = []
        self.left_frames: list[tuple[WorkerFrame, bool]] = []
        self.name = "w1"
        self.on_received: Callable[[RunJob | CancelJob | ModelOp | Drain], None] = lambda frame: None
        self.on_acknowledged: Callable[[], None] = lambda: None

    def hello(self) -> Hello:
        """Name the worker."""
        return Hello(worker_id=self.name)

    def acknowledged(self, ack: HelloAck) -> None:
        """Note it."""
        self.heard.append(ack)
        self.on_acknowledged()

    def received(self, frame: RunJob | CancelJob | ModelOp | Drain) -> None:
        """Note it."""
        self.heard.append(frame)
        self.on_received(frame)

    def left(self, frame: WorkerFrame, *, written: bool) -> None:
        """Note it."""
        self.left_frames.append((frame, written))

    def disconnected(self) -> None:
        """Note it."""
        self.heard.append("disconnected")

    def runs(self) -> list[int]:
        """The attempts that it was to run."""
        return [frame.attempt for frame in self.heard if isinstance(frame, RunJob)]


class Linked:
    """A link that runs, its session, and what its log says."""

    def __init__(self, link: Link, session: Noted, log: Log, running: "asyncio.Task[None]") -> None:
        self.link = link
        self.session = session
        self.log = log
        self.running = running

    def events(self) -> list[str]:
        """What the log remembers."""
        return [event.message for event in self.log.events]


def soon(_low: float, _high: float) -> float:
    """Draw a short pause, so that a test that is about what follows it does not wait."""
    return 0.01


@asynccontextmanager
async def linked(
    *targets: str, session: Noted | None = None, token: str = "", pace: Pace = PACE, **config: Any
) -> AsyncIterator[Linked]:
    """Run a link until the body ends."""
    session = session or Noted()
    log = Log(fd=2)
    settings = LinkConfig(targets=targets, token=Secret(token), **config)
    link = Link(settings, session, log, asyncio.get_running_loop(), pace, soon)
    running = asyncio.create_task(link.run())
    try:
        yield Linked(link, session, log, running)
    finally:
        await link.close(1.0)
        log.close()
        if running.done() and not running.cancelled():
            running.exception()


async def stay(stream: Stream) -> None:
    """Greet, and take whatever comes until the worker ends the stream."""
    await stream.greet()
    while await stream.read() is not None:
        pass


def begin_grpc() -> None:
    """Let gRPC open, before anything is counted, what it keeps open from its first use on."""

    async def talk() -> None:
        async with orchestrator(stay) as served, linked("grpc://127.0.0.1:1", served.address) as worker:
            await eventually(lambda: worker.link.status().connected)

    asyncio.run(talk())


async def eventually(condition: Callable[[], object], what: str = "it") -> None:
    """Wait until the condition is true."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"{what} did not come true"
        await asyncio.sleep(0.005)
