"""Small jobs from an orchestrator, beside a bare gRPC stream: `python -m benchmarks.link`.

For each job the orchestrator sends one message and a worker two: that it is accepted, and its result. The floor sends
the same with nothing behind it; a plain echo, one message for one, shows what the second one costs.
"""

import asyncio
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import msgspec
import psutil

from benchmarks.figures import Effort, Figure, Target, figure, main
from benchmarks.servers import GONE_WITHIN_S, HERE, READY_WITHIN_S
from gen_worker.pb import CONNECT
from gen_worker.pb.convert import decode_worker, encode_scheduler
from gen_worker.wire.scheduler import HelloAck, JobResult, JobStatus, RunJob, StateDelta, WorkerFrame, WorkerPhase

SHOWS = "link: what it costs to send a small job from an orchestrator"
ROUND_TRIPS = 1000
MILLISECONDS = 2000
AT_ONCE = 64  # jobs that the orchestrator keeps on their way
CHILDREN = (1, 4, 16)
WAITING = 1000
WAITING_CHILDREN = 8
ROUND_WITHIN_S = 60.0
MIB = 1 << 20
ECHO, ANSWER = "plain echo", "bare stream"
PAYLOAD = msgspec.msgpack.encode({"prompt": "a lighthouse at dusk, in oil"})
PROJECT = '[project]\nname = "benchmarked"\nversion = "0"\n\n[tool.gen_worker]\nmain = "echoes"\n'


class Peer:
    """Whoever has dialled: a worker, or a floor."""

    def __init__(self, context: Any, hello: bytes, *, echoes: bool) -> None:
        self.context = context
        self.hello = hello
        self.echoes = echoes
        self.over = asyncio.Event()
        self._count = 0

    def job(self, function: str = "echo") -> bytes:
        """Return the next job, the same but for its name."""
        self._count += 1
        run = RunJob(
            request_id=f"{function}-{self._count:09}", attempt=1, function_name=function, input_payload=PAYLOAD
        )
        return encode_scheduler(run)

    async def read(self) -> WorkerFrame | bytes:
        """Return the next message."""
        packet = await self.context.read()
        if not isinstance(packet, bytes):
            raise ConnectionError("the worker has left")
        return packet if self.echoes else decode_worker(packet) or b""

    def ends(self, message: WorkerFrame | bytes) -> bool:
        """Whether a message is what a job ends with; raise if it did not end well."""
        if self.echoes:
            return True
        if isinstance(message, JobResult) and message.status is not JobStatus.OK:
            raise ValueError(f"the worker refused a job: {message}")
        return isinstance(message, JobResult)

    async def answer(self) -> None:
        """Read until a job has ended."""
        while not self.ends(await self.read()):
            pass

    async def latencies(self, rounds: int) -> list[int]:
        """Return the nanoseconds of each round trip of one job at a time, without a cold start."""
        taken = []
        for turn in range(rounds + max(rounds // 10, 5)):
            begin = time.perf_counter_ns()
            await self.context.write(self.job())
            await self.answer()
            if turn >= max(rounds // 10, 5):
                taken.append(time.perf_counter_ns() - begin)
        return taken

    async def throughput(self, seconds: float) -> tuple[int, float]:
        """Return how many jobs ended and in which time, with so many on their way at once."""
        for _ in range(AT_ONCE):
            await self.context.write(self.job())
        done, begin = 0, time.perf_counter()
        while (now := time.perf_counter()) < begin + seconds:
            await self.answer()
            done += 1
            await self.context.write(self.job())
        for _ in range(AT_ONCE):
            await self.answer()
        return done, now - begin

    async def ready(self) -> None:
        """Wait until the worker takes jobs on all its children."""
        while True:
            match await self.read():
                case StateDelta(phase=WorkerPhase.READY, loading_functions=()):
                    return

    async def farewell(self) -> None:
        """Read on until the worker has said all it has to say, then end the stream, too."""
        while await asyncio.wait_for(self.context.read(), GONE_WITHIN_S) is not grpc.aio.EOF:
            pass
        self.over.set()


class Orchestrator:
    """The driving end of the stream, with no state and no store."""

    def __init__(self) -> None:
        self.address = ""
        self.echoes = False  # whether the next peer is an echo
        self._arrived: asyncio.Queue[Peer] = asyncio.Queue()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator["Orchestrator"]:
        """Take connections until the body ends."""
        server = grpc.aio.server()
        method = grpc.stream_stream_rpc_method_handler(self._connect)
        service, name = CONNECT.strip("/").split("/")
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: method}),))
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        try:
            yield self
        finally:
            await server.stop(1.0)

    async def _connect(self, _: Any, context: Any) -> None:
        peer = Peer(context, await context.read(), echoes=self.echoes)
        await context.write(encode_scheduler(HelloAck()))
        self._arrived.put_nowait(peer)
        await peer.over.wait()

    async def peer(self) -> Peer:
        """Return who has dialled."""
        return await asyncio.wait_for(self._arrived.get(), READY_WITHIN_S)

    @contextlib.asynccontextmanager
    async def bare(self, how: str) -> AsyncIterator[Peer]:
        """A floor, connected."""
        self.echoes = how == "echo"
        process = launched(["benchmarks.bare_stream", self.address, how], HERE.parent)
        try:
            peer = await self.peer()
            yield peer
            peer.over.set()
        finally:
            await ended(process)

    @contextlib.asynccontextmanager
    async def worker(self, children: int) -> AsyncIterator[tuple[Peer, int]]:
        """A worker with so many CPU children, connected and ready, and its pid."""
        self.echoes = False
        with project() as folder:
            variables = {
                "ORCHESTRATOR_PUBLIC_ADDR": self.address,
                "ENDPOINT_LOCK_PATH": f"{folder}/endpoint.lock",
                "GEN_WORKER_DEVICES": f"cpu:{children}",
                "GEN_WORKER_RUN_DIR": f"{folder}/run",
                "TENSORHUB_CACHE_DIR": f"{folder}/cache",
                "WORKER_DRAIN_TIMEOUT_SECONDS": "0.1",
            }
            process = launched(["gen_worker.entrypoint"], folder, variables)
            try:
                peer = await self.peer()
                async with asyncio.timeout(READY_WITHIN_S):
                    await peer.ready()
                yield peer, process.pid
                process.terminate()
                await peer.farewell()
            except TimeoutError:
                raise TimeoutError(f"the worker is not ready:\n{(folder / 'log').read_text()}") from None
            finally:
                process.terminate()
                await ended(process)


@contextlib.contextmanager
def project() -> Iterator[Path]:
    """A folder with the endpoint and its lock, as an image has them."""
    with tempfile.TemporaryDirectory(prefix="gw-bench-") as made:
        folder = Path(made)
        shutil.copy(HERE / "endpoint" / "echoes.py", folder)
        (folder / "pyproject.toml").write_text(PROJECT)
        with (folder / "endpoint.lock").open("wb") as lock:
            subprocess.run([sys.executable, "-m", "gen_worker.discovery"], cwd=folder, stdout=lock, check=True)
        yield folder


def launched(module: list[str], folder: Path, variables: Mapping[str, str] = {}) -> "subprocess.Popen[bytes]":
    """Start a module of Python in a folder, which gets its log."""
    log = subprocess.DEVNULL if not variables else (folder / "log").open("wb")
    command, env = [sys.executable, "-m", *module], {**os.environ, **variables}
    try:
        return subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log if variables else None)
    finally:
        if not isinstance(log, int):
            log.close()


async def ended(process: "subprocess.Popen[bytes]") -> None:
    """Wait for the end of a process that was told, while the loop goes on."""
    try:
        await asyncio.to_thread(process.wait, GONE_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()


def measure(effort: Effort) -> list[Figure]:
    """Latency of one job at a time, jobs per second at many, what the supervisor spends and holds."""
    return asyncio.run(_measure(effort))


async def _measure(effort: Effort) -> list[Figure]:
    samples: dict[str, list[float]] = {}

    def keep(name: str, value: float) -> None:
        samples.setdefault(name, []).append(value)

    async with (
        Orchestrator().listening() as orchestrator,
        orchestrator.bare("echo") as echo,
        orchestrator.bare("answer") as answer,
    ):
        for children in CHILDREN:
            async with orchestrator.worker(children) as (worker, pid):
                for _ in range(effort.rounds):
                    for name, peer in ((ECHO, echo), (ANSWER, answer), ("echo", worker)):
                        if children == 1:
                            async with asyncio.timeout(ROUND_WITHIN_S):
                                taken = await peer.latencies(effort.times(ROUND_TRIPS))
                            keep(f"{name} p50", statistics.median(taken) / 1e3)
                        spent = cpu_s(pid)
                        async with asyncio.timeout(ROUND_WITHIN_S):
                            done, seconds = await peer.throughput(effort.times(MILLISECONDS) / 1000)
                        keep(f"{name} {children}", done / seconds)
                        if peer is worker:
                            keep(f"cpu {children}", (cpu_s(pid) - spent) / (done + AT_ONCE) * 1e6)
        for _ in range(effort.rounds):
            async with orchestrator.worker(WAITING_CHILDREN) as (worker, pid):
                async with asyncio.timeout(ROUND_WITHIN_S):
                    keep("resident", await resident(worker, pid, effort.times(WAITING)))
    return figures(samples)


def figures(samples: dict[str, list[float]]) -> list[Figure]:
    """The samples of all rounds, in words."""
    at_once = f"{AT_ONCE} at once"
    return [
        figure(
            "`echo`, round trip p50, 1 at a time",
            "µs",
            samples["echo p50"],
            floors=samples[f"{ANSWER} p50"],
            floor_name=ANSWER,
        ),
        *(
            figure(
                f"`echo`, {at_once}, {count(children)}",
                "jobs/s",
                samples[f"echo {children}"],
                floors=samples[f"{ANSWER} {children}"],
                floor_name=ANSWER,
            )
            for children in CHILDREN
        ),
        *(
            figure(
                f"`echo`, {at_once}, {count(children)}, beside an echo",
                "jobs/s",
                samples[f"echo {children}"],
                floors=samples[f"{ECHO} {children}"],
                floor_name=ECHO,
                target=Target("ratio", "least", 0.5),
            )
            for children in CHILDREN
        ),
        figure(f"{ANSWER}, {at_once}", "jobs/s", samples[f"{ANSWER} 1"], floors=samples[f"{ECHO} 1"], floor_name=ECHO),
        *(figure(f"supervisor, CPU of a job, {count(each)}", "µs", samples[f"cpu {each}"]) for each in CHILDREN),
        figure(
            f"supervisor, resident, {WAITING_CHILDREN} children, {WAITING:,} jobs waiting",
            "MiB",
            samples["resident"],
            target=Target("value", "most", 120.0),
        ),
    ]


def count(children: int) -> str:
    """The number of children for a person."""
    return f"{children} {'child' if children == 1 else 'children'}"


async def resident(worker: Peer, pid: int, waiting: int) -> float:
    """Return the MiB that the supervisor has resident with all children busy and so many jobs waiting."""
    for _ in range(WAITING_CHILDREN + waiting):
        await worker.context.write(worker.job("hold"))
    for _ in range(WAITING_CHILDREN + waiting):
        await worker.read()  # that it is accepted
    return float(psutil.Process(pid).memory_info().rss / MIB)


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has taken, without its children's."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    main({SHOWS: measure})
