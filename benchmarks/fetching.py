"""How late a supervisor's loop is while its fetcher brings a model: `python -m benchmarks.fetching`."""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks.figures import Effort, Figure, Target, figure, main
from gen_worker.fetch.config import FetchConfig
from gen_worker.models.wanted import Wanted
from gen_worker.wire.channel import close_all
from gen_worker.wire.fetching import Fetch, Fetched, FetchFailed, FetchReport
from gen_worker_supervisor.files.fetching import FetcherProcess
from gen_worker_supervisor.logs.log import Log
from gen_worker_supervisor.processes.reaper import Reaper
from gen_worker_supervisor.sockets.poller import Poller

SHOWS = "fetching: the supervisor's loop while its fetcher brings a model over the loopback"
FLOOR = "the same loop with nothing to do"
BYTES = 1 << 30
BRIEF_BYTES = 32 << 20
TICK_S = 0.001

# A hub in a process of its own, so that its work is nobody else's: says where it is, and ends with its input.
HUB = """
import sys
from pathlib import Path
from gen_worker.testing import LoopbackHub
with LoopbackHub() as hub:
    hub.add_repo("bench/mark", Path(sys.argv[1]))
    print(hub.url, flush=True)
    sys.stdin.read()
"""


class Lateness(NamedTuple):
    """How late a loop came to what was due, in milliseconds."""

    p99: float
    most: float


def measure(effort: Effort) -> list[Figure]:
    """A loop that is due a thousand times a second: idle, then with a model on its way to an empty cache."""
    size = BRIEF_BYTES if effort.brief else BYTES
    idle, beside, paces = [], [], []
    with tempfile.TemporaryDirectory(prefix="gw-bench-") as place, serving(Path(place), size) as url:
        for number in range(effort.rounds):
            config = FetchConfig(root=f"{place}/{number}", hf_cache=f"{place}/{number}/hub", hf_endpoint=url)
            with supervising(config) as (loop, ordered):
                idle.append(loop.run_until_complete(late_while(asyncio.sleep(0.2 if effort.brief else 2.0)))[0])
                lateness, seconds = loop.run_until_complete(late_while(ordered()))
            beside.append(lateness)
            paces.append(size / seconds / 1e9)
            shutil.rmtree(config.root)
    return [
        figure(
            "the loop is late, p99",
            "ms",
            [each.p99 for each in beside],
            floors=[each.p99 for each in idle],
            floor_name=FLOOR,
            target=Target("value", "most", 5.0),
        ),
        figure(
            "the loop is late, at most",
            "ms",
            [each.most for each in beside],
            floors=[each.most for each in idle],
            floor_name=FLOOR,
        ),
        figure("from the order to the lease", "GB/s", paces),
    ]


async def late_while(work: Awaitable[None]) -> tuple[Lateness, float]:
    """Return how late the loop was until the work was done, and how many seconds that took."""
    begin = time.perf_counter()
    done = asyncio.ensure_future(work)
    late: list[float] = []
    while not done.done():
        due = time.perf_counter() + TICK_S
        await asyncio.sleep(TICK_S)
        late.append((time.perf_counter() - due) * 1e3)
    await done
    late.sort()
    return Lateness(late[int(len(late) * 0.99)], late[-1]), time.perf_counter() - begin


@contextlib.contextmanager
def supervising(config: FetchConfig) -> Iterator[tuple[asyncio.AbstractEventLoop, Callable[[], Awaitable[None]]]]:
    """A loop with a fetcher, and what orders the model from it and ends when it is there."""
    loop = asyncio.new_event_loop()
    poller, reaper, log = Poller(loop), Reaper(loop), Log()
    ended: asyncio.Future[FetchReport] = loop.create_future()

    def on_report(report: FetchReport, descriptors: list[int]) -> None:
        close_all(descriptors)
        if isinstance(report, Fetched | FetchFailed):
            ended.set_result(report)

    def on_lost() -> None:
        ended.set_exception(ChildProcessError("the fetcher died"))

    encoded = msgspec.msgpack.encode(config)
    fetcher = FetcherProcess(loop, poller, reaper, log, encoded, on_report, on_lost)

    async def ordered() -> None:
        fetcher.send(Fetch(1, Wanted("hf", "bench/mark")))
        report = await ended
        if isinstance(report, FetchFailed):
            raise ValueError(report.message)

    fetcher.start()
    try:
        yield loop, ordered
    finally:
        fetcher.close()
        reaper.close()
        poller.close()
        log.close()
        loop.close()


@contextlib.contextmanager
def serving(place: Path, size: int) -> Iterator[str]:
    """Serve a model of so many bytes from a process of its own."""
    folder = place / "from"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    header = json.dumps({"weight": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
    block = os.urandom(1 << 20)
    with (folder / "model.bf16.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _ in range(size // len(block)):
            file.write(block)
    command = [sys.executable, "-c", HUB, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as hub:
        assert hub.stdout is not None
        yield hub.stdout.readline().strip()
        hub.communicate(timeout=10)


if __name__ == "__main__":
    main({SHOWS: measure}, rounds=3)
