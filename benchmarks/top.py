"""What it costs to watch: `gen-worker top` on a terminal, and many who follow: `python -m benchmarks.top`."""

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks.figures import Effort, Figure, Target, figure, main
from benchmarks.servers import GONE_WITHIN_S, Served, product
from gen_worker.client import Client, SupervisorUnreachable

SHOWS = "top: what it costs to watch 8 devices at work"
DEVICES = 8
JOBS = 9  # one waits
WATCHERS = 50
WINDOW_S = 20.0
BRIEF_S = 1.0
COLUMNS, ROWS = 120, 40
FIRST = f"Devices {DEVICES}".encode()  # what only a drawn document has
FIRST_WITHIN_S = 30.0
MIB = 1 << 20
GEN_WORKER = str(Path(sys.executable).with_name("gen-worker"))


class Shown(NamedTuple):
    """`gen-worker top` on its terminal, and how long it was until a document was on it."""

    process: psutil.Process
    first_s: float


def measure(effort: Effort) -> list[Figure]:
    """The supervisor by itself, then with one `top`, then with many who follow; one after the other in each round."""
    window_s = BRIEF_S if effort.brief else WINDOW_S
    samples: dict[str, list[float]] = {}

    def keep(name: str, value: float) -> None:
        samples.setdefault(name, []).append(value)

    with product("working", devices=f"cpu:{DEVICES}") as served, at_work(served):
        supervisor = psutil.Process(served.pid)
        with shown(served):  # not counted: the first run of a new checkout compiles
            pass
        for _ in range(effort.rounds):
            (alone,) = shares(window_s, supervisor)
            with shown(served) as top:
                beside, own = shares(window_s, supervisor, top.process)
                keep("first", top.first_s * 1e3)
                keep("own", own)
                keep("resident", top.process.memory_info().rss / MIB)
                keep("one", beside - alone)
            with following(served, WATCHERS):
                keep("many", shares(window_s, supervisor)[0] - alone)
    return figures(samples)


def figures(samples: dict[str, list[float]]) -> list[Figure]:
    """The samples of all rounds, in words."""
    return [
        figure("`gen-worker top`, CPU", "% of a core", samples["own"], target=Target("value", "most", 6.0)),
        figure("`gen-worker top`, first document drawn", "ms", samples["first"], target=Target("value", "most", 600.0)),
        figure("`gen-worker top`, resident", "MiB", samples["resident"]),
        figure("supervisor, added by one `top`", "% of a core", samples["one"], target=Target("value", "most", 1.0)),
        figure(f"supervisor, added by {WATCHERS} who follow", "% of a core", samples["many"]),
    ]


def shares(window_s: float, *processes: psutil.Process) -> list[float]:
    """Return how much of a core each process takes, in percent, in a time so long."""
    before, began = [_cpu_s(process) for process in processes], time.perf_counter()
    time.sleep(window_s)
    after, taken_s = [_cpu_s(process) for process in processes], time.perf_counter() - began
    return [100 * (late - early) / taken_s for early, late in zip(before, after, strict=True)]


def _cpu_s(process: psutil.Process) -> float:
    """Return the time that its threads have been on a core, to the nanosecond."""
    return sum(int(each.read_text().split()[0]) for each in Path(f"/proc/{process.pid}/task").glob("*/schedstat")) / 1e9


@contextlib.contextmanager
def at_work(served: Served) -> Iterator[None]:
    """Every device at a job, and one job that waits."""
    with Client(served.control) as client:
        jobs = [client.submit("work", {"prompt": ""}, request_id=f"job-{number}") for number in range(JOBS)]
        try:
            yield
        finally:
            for job in reversed(jobs):  # the one that waits first
                job.cancel()


@contextlib.contextmanager
def shown(served: Served) -> Iterator[Shown]:
    """Run `gen-worker top` on a terminal of its own until the body ends; a document is on it when that begins."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    begin = time.perf_counter()
    process = subprocess.Popen(
        [GEN_WORKER, "top", "--socket", served.control],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": str(ROWS)},
    )  # fmt: skip
    os.close(theirs)
    drawn = threading.Event()
    reader = threading.Thread(target=_read, args=(ours, drawn.set))
    reader.start()
    try:
        if not drawn.wait(FIRST_WITHIN_S):
            raise TimeoutError("`gen-worker top` shows nothing")
        yield Shown(psutil.Process(process.pid), time.perf_counter() - begin)
    finally:
        process.terminate()
        process.wait(GONE_WITHIN_S)
        reader.join()
        os.close(ours)


def _read(terminal: int, drawn: Callable[[], None]) -> None:
    """Take what is written to a terminal until nobody has it open; call `drawn` once a document is there."""
    last = b""
    with contextlib.suppress(OSError):  # nobody has it open any more
        while data := os.read(terminal, 1 << 16):
            last = (last + data)[-(1 << 16) :]
            if FIRST in last:
                drawn()


@contextlib.contextmanager
def following(served: Served, number: int) -> Iterator[None]:
    """Have so many clients follow the status document, a second apart, until the body ends."""
    clients = [Client(served.control) for _ in range(number)]
    threads = [threading.Thread(target=_follow, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for client in clients:
            client.close()
        for thread in threads:
            thread.join()


def _follow(client: Client) -> None:
    with contextlib.suppress(SupervisorUnreachable):  # it was closed
        for _ in client.watch(1.0):
            pass


if __name__ == "__main__":
    main({SHOWS: measure})
