"""A control plane that is killed in the middle of everything: nothing accepted is lost, nothing ends twice."""

import asyncio
import json
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import grpc.aio
import pytest

from gen_worker.orchestrator.store import Store
from gen_worker.pb.convert import decode_scheduler
from gen_worker.wire.scheduler import CancelJob, JobAccepted, JobResult, JobStatus, RunJob
from tests.orchestrated import packed, until, worker

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("grpc_awake")]

JOBS = 200
PROGRAM = Path(__file__).with_name("plane_program.py")


class Life:
    """One life of a control plane, and what it told."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.accepted: set[str] = set()
        self.ended: list[tuple[str, str, int]] = []

    async def listen(self) -> None:
        """Read what it tells, to its end."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            match json.loads(line):
                case {"accepted": str(request_id)}:
                    self.accepted.add(request_id)
                case {"ended": str(request_id), "status": str(status), "attempt": int(attempt)}:
                    self.ended.append((request_id, status, attempt))


@asynccontextmanager
async def life(state: Path, port: int, jobs: int) -> AsyncIterator[Life]:
    """Run a control plane that submits so many jobs; it is killed with the body."""
    arguments = [str(PROGRAM), str(state), str(port), str(jobs)]
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=PIPE)
    lived = Life(process)
    listening = asyncio.create_task(lived.listen())
    try:
        yield lived
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()
        await listening


class Hand:
    """A worker that outlives its control plane: it keeps its jobs and what it could not say."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.runs = 0
        self.twice: list[tuple[str, int]] = []
        self.seen: set[tuple[str, int]] = set()
        self.unsaid: dict[str, JobResult] = {}

    async def work(self, port: int) -> None:
        """Connect again and again, and answer every job after a moment."""
        while True:
            with suppress(grpc.aio.AioRpcError, grpc.aio.UsageError, AssertionError, asyncio.InvalidStateError):
                await self._connection(port)
            await asyncio.sleep(0.05)  # the wait before another try, as a worker has one

    async def _connection(self, port: int) -> None:
        held = tuple((result.request_id, result.attempt) for result in self.unsaid.values())
        async with worker(f"127.0.0.1:{port}", self.name, in_flight=held) as peer:
            for result in list(self.unsaid.values()):
                await peer.say(result)
                self.unsaid.pop(result.request_id, None)
            while (packet := await peer.call.read()) is not grpc.aio.EOF:
                match decode_scheduler(packet):
                    case RunJob(request_id=request_id, attempt=attempt):
                        if (request_id, attempt) in self.seen:
                            self.twice.append((request_id, attempt))
                        self.seen.add((request_id, attempt))
                        result = JobResult(
                            request_id=request_id, attempt=attempt, status=JobStatus.OK, inline=packed(request_id)
                        )
                        self.unsaid[request_id] = result
                        await peer.say(JobAccepted(request_id=request_id, attempt=attempt))
                        await asyncio.sleep(0.005)  # the run
                        await peer.say(result)
                        self.unsaid.pop(request_id, None)
                    case CancelJob(request_id=request_id):
                        self.unsaid.pop(request_id, None)


def have_ended(lives: list[Life], enough: int) -> bool:
    """Whether so many jobs were told to have ended."""
    return len({request_id for each in lives for request_id, _, _ in each.ended}) >= enough


def free_port() -> int:
    """Return a port that nobody has."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@pytest.mark.promise(15)
def test_killed_twice_amid_two_hundred_jobs_each_accepted_one_ends_once(tmp_path: Path) -> None:
    asyncio.run(asyncio.wait_for(killed_twice(tmp_path / "state.sqlite"), 60))


async def killed_twice(state: Path) -> None:
    port = free_port()
    hands = [Hand("one"), Hand("two")]
    working = [asyncio.create_task(hand.work(port)) for hand in hands]
    lives = []
    try:
        for enough in (30, 80, JOBS):
            async with life(state, port, JOBS) as lived:
                lives.append(lived)
                await until(partial(have_ended, lives, enough))
    finally:
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
    accepted = set().union(*(each.accepted for each in lives))
    ends = {end for each in lives for end in each.ended}
    assert len(ends) == len({request_id for request_id, _, _ in ends}), "a job ended in two ways"
    assert accepted <= {request_id for request_id, _, _ in ends}
    store = Store(state)
    try:
        listed = [view.request_id for view in store.jobs(status=None, limit=10 * JOBS, after=None)]
        kept = {request_id: view for request_id in listed if (view := store.job(request_id)) is not None}
    finally:
        store.close()
    assert set(kept) >= accepted
    assert all(view.status == "ok" and view.output == packed(view.request_id) for view in kept.values())
    attempts = [attempt for hand in hands for attempt in hand.seen]
    assert len(attempts) == len(set(attempts)), "an attempt was given to two workers"
    assert not any(hand.twice for hand in hands)
