"""The control plane's file, written by many at once and on a disk that is full."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from queue import Queue

import pytest

from gen_worker.orchestrator.state import Job
from gen_worker.orchestrator.store import Store, StoreError
from gen_worker.orchestrator.views import JobRequest
from tests.orchestrated import control_plane

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("grpc_awake"), pytest.mark.quiet]

# No file may grow beyond the limit, which SQLite takes for a disk that fails.
FULL_DISK = """
import asyncio, resource, sys
from pathlib import Path
from gen_worker.orchestrator.plane import ControlPlane, PlaneOptions
from gen_worker.orchestrator.store import StoreError
from gen_worker.orchestrator.views import JobRequest
from tests.orchestrated import NoFiles

async def main():
    plane = ControlPlane(PlaneOptions(state=Path(sys.argv[1]), files=NoFiles(), listen="127.0.0.1:0"))
    await plane.start()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    await plane.submit(JobRequest(function="echo", request_id="before"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        await plane.submit(JobRequest(function="echo", request_id="during", payload=bytes(4 << 20)))
    except StoreError as error:
        print("refused:", error)
    canceling = asyncio.create_task(plane.cancel("before"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    await plane.submit(JobRequest(function="echo", request_id="after"))
    print((await canceling).status, sorted(view.request_id for view in await plane.jobs()))
    await plane.close()

asyncio.run(main())
"""


def test_a_disk_that_is_full_refuses_what_is_new_and_keeps_what_was_accepted(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "state.sqlite")]
    root = Path(__file__).parents[2]
    told = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=30, check=True).stdout
    refused, kept = told.splitlines()
    assert refused.startswith("refused: the state in ")
    assert "cannot be written" in refused
    assert kept == "canceled ['after', 'before']"


# More than the control plane keeps in memory and what lies in the network.
FLOOD = """
import asyncio, resource, sys
from pathlib import Path
from gen_worker.orchestrator.plane import UNWRITTEN_BYTES
from gen_worker.orchestrator.views import JobRequest
from gen_worker.wire.scheduler import JobProgress
from tests.orchestrated import control_plane, until, worker

MIB = 1 << 20
CHUNKS = 2 * UNWRITTEN_BYTES // MIB

async def stream(peer, run):
    for seq in range(1, CHUNKS + 1):
        await peer.say(JobProgress(request_id="r", attempt=1, seq=seq, content_type="text/plain", body=bytes(MIB)))

async def main():
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    warnings = []
    async with control_plane(Path(sys.argv[1]), warned=warnings.append) as plane, worker(plane.address) as peer:
        await plane.submit(JobRequest(function="echo", request_id="r"))
        run = await peer.take()
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))
        streaming = asyncio.create_task(stream(peer, run))
        await until(lambda: warnings)
        await asyncio.wait([streaming], timeout=1.0)
        print(len(warnings), streaming.done(), warnings[0])
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        await streaming
        await peer.answer(run)
        kept = [event async for event in plane.watch("r") if event.kind == "chunk"]
        print(kept[-1].seq == CHUNKS, kept == sorted(kept, key=lambda event: event.seq))

asyncio.run(main())
"""


def test_a_stream_waits_for_a_disk_that_takes_nothing_and_somebody_is_told(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FLOOD, str(tmp_path)]
    root = Path(__file__).parents[2]
    told = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=30, check=True).stdout
    waiting, kept = told.splitlines()
    assert waiting.startswith(f"1 False the state in {tmp_path}"), "told once, and the stream is held back"
    assert "cannot be written" in waiting
    assert kept == "True True"


def test_what_no_file_can_hold_is_refused_and_what_comes_after_is_kept(tmp_path: Path) -> None:
    troubles: list[str] = []
    answers: Queue[object] = Queue()
    store = Store(tmp_path / "state", lambda trouble: troubles.append(str(trouble)))
    store.restore()
    try:
        for number, attempt in ((1, 1 << 70), (2, 1)):
            job = Job(JobRequest(function="echo", request_id=f"r{number}"), 1.0, attempt=attempt)
            store.accept(job, answers.put, answers.put)
        refused, kept = (answers.get(timeout=10) for _ in range(2))
        assert isinstance(refused, StoreError)
        assert "cannot hold a value" in str(refused)
        assert kept is True
        assert troubles == [str(refused)]
        assert store.known(["r1", "r2"]) == {"r2"}
    finally:
        store.close()


def test_a_crowd_of_submits_shares_its_syncs(tmp_path: Path) -> None:
    async def crowd() -> float:
        async with control_plane(tmp_path) as plane:
            requests = [JobRequest(function="echo", request_id=f"r{number}") for number in range(1000)]
            began = time.perf_counter()
            await asyncio.gather(*map(plane.submit, requests))
            took_s = time.perf_counter() - began
            assert len(await plane.jobs(limit=2000)) == 1000
            return took_s

    assert asyncio.run(crowd()) < 5.0, "fewer than 200 submits in a second"
