"""Weights into memory, beside the disk and a copy: `python -m benchmarks.loading`."""

import asyncio
import contextlib
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import floors
from benchmarks.figures import Effort, Figure, Target, figure, main, skipped
from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.holding import hold
from gen_worker.models.snapshot import Snapshot, SnapshotEntry
from gen_worker.models.wanted import Wanted
from gen_worker_supervisor.memory.host_memory import HostMemory
from gen_worker_supervisor.memory.keeping import Keeper
from gen_worker_supervisor.processes.reaper import Reaper

SHOWS = "loading: how soon weights are where they are used"
ROUNDS = 3  # of 2 GB each
COPIED = 512 << 20
FREED_WITHIN_S = 10.0

READY_FORKER = """
import os, signal, torch
os.write(1, b"r")
while os.read(0, 1):
    child = os.fork()
    if child == 0:
        held = torch.zeros(1 << 30, dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        os.write(1, b"%16d" % os.getpid())
        signal.pause()
    os.waitpid(child, 0)
"""


class Loader:
    """The process that loads, at the other end of a pipe."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.device = str(self._answer()["device"])

    def do(self, what: str, **order: Any) -> Any:
        """Give an order and return its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, **order}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the loader has ended, its last words are above")
        return json.loads(line)


@contextlib.contextmanager
def loader() -> Iterator[Loader]:
    """A process that has imported what loading needs."""
    command = [sys.executable, "-m", "benchmarks.loader"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield Loader(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(30)


class Place(NamedTuple):
    """One model, on disk and in the host's memory."""

    folder: str
    weights: str
    size: int
    view: str


def measure(effort: Effort) -> list[Figure]:
    """Loads from the disk and from the host's memory, on the CPU and, where there is one, on a GPU."""
    if importlib.util.find_spec("diffusers") is None:
        return unmeasured([COLD, HELD, BESIDE], "no diffusers") + without_gpu()
    rounds = min(effort.rounds, ROUNDS)
    with tempfile.TemporaryDirectory(prefix="gw-bench-", dir=Path.cwd()) as folder, loader() as loads:
        loop = asyncio.new_event_loop()
        reaper = Reaper(loop)
        memory = HostMemory(Path(folder, "run", "memory"), 16 << 30, Keeper(reaper, lambda cause: memory.void()))
        try:
            first = made(loads, Path(folder, "first"), memory, brief=effort.brief)
            figures = on_cpu(loads, first, rounds)
            if loads.device == "cpu":
                return figures + without_gpu()
            second = made(loads, Path(folder, "second"), memory, brief=effort.brief)
            return figures + on_gpu(loads, first, second, rounds)
        finally:
            memory.close()
            reaper.close()
            loop.close()


def made(loads: Loader, folder: Path, memory: HostMemory, *, brief: bool) -> Place:
    """Make a model and hold it as the supervisor and its fetcher do."""
    folder.mkdir()
    answer = loads.do("make", folder=str(folder), brief=brief)
    entries = tuple(SnapshotEntry(path.name, path.stat().st_size) for path in sorted(folder.iterdir()))
    snapshot = Snapshot(Wanted("hf", "bench/weights"), folder.name, "c0ffee", str(folder), entries)
    if not memory.wants(snapshot):
        raise RuntimeError("the host's memory has no room for the model")
    held = hold(snapshot, Cancel(), lambda count: None)
    memory.add(snapshot, [path for path, _ in held], [descriptor for _, descriptor in held])
    memory.complete(snapshot.key)
    view = memory.view(snapshot.key)
    assert view is not None
    return Place(str(folder), answer["weights"], answer["size"], view)


# --- on a CPU ---------------------------------------------------------------------------------------------------------

COLD = ("cold from the disk", "GB/s")
HELD = ("from the host's memory", "GB/s")
BESIDE = ("memory beside the files, at most", "GB")


def on_cpu(loads: Loader, model: Place, rounds: int) -> list[Figure]:
    """Cold from the disk, and from the host's memory."""
    copy = floors.copying(min(COPIED, model.size))
    held_weights = f"{model.view}/{Path(model.weights).name}"
    loads.do("load", folder=model.folder, device="cpu")  # what is imported with the first model
    disk, cold, copies, held, anonymous, touches = [], [], [], [], [], []
    for _ in range(rounds):
        disk.append(gb(model.size) / read_past_the_cache(model.weights))
        drop_from_cache(model.weights)
        answer = loads.do("load", folder=model.folder, device="cpu")
        cold.append(gb(model.size) / answer["seconds"])
        anonymous.append(gb(answer["anonymous"]))
        copies.append(gb(min(COPIED, model.size)) / copy())
        answer = loads.do("load", folder=model.view, device="cpu")
        held.append(gb(model.size) / answer["seconds"])
        anonymous.append(gb(answer["anonymous"]))
        touches.append(gb(model.size) / loads.do("touch", path=held_weights)["seconds"])
    floor = "dd iflag=direct"
    return [
        figure(*COLD, cold, floors=disk, floor_name=floor, target=least_ratio(0.85)),
        figure(*HELD, held, floors=copies, floor_name="one copy", target=least_ratio(0.5)),
        figure(
            *HELD,
            held,
            floors=touches,
            floor_name="one look at each page",
            target=least_ratio(0.7),
        ),
        figure(*BESIDE, [max(anonymous)], target=Target("value", "most", 0.3)),
    ]


def read_past_the_cache(path: str) -> float:
    """Seconds that the disk itself takes for a file."""
    command = ("dd", f"if={path}", "of=/dev/null", "bs=1M", "iflag=direct", "status=none")
    return floors.seconds_of(*command)


def drop_from_cache(path: str) -> None:
    """Let the system forget what it has read of a file."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def gb(size: int) -> float:
    return size / 1e9


def least_ratio(limit: float) -> Target:
    return Target("ratio", "least", limit)


# --- on a GPU ---------------------------------------------------------------------------------------------------------

PINNED = ("host to device, pinned", "GB/s")
PAGEABLE = ("host to device, pageable", "GB/s")
TO_DEVICE = ("from the host's memory to the device", "GB/s")
SWAP = ("one model for another", "GB/s")
READY = ("fork to a GPU that works", "ms")
FREED = ("a killed child's memory is free", "ms")


def without_gpu() -> list[Figure]:
    """What would be measured."""
    return unmeasured([PINNED, PAGEABLE, TO_DEVICE, SWAP, READY, FREED], "no GPU")


def unmeasured(figures: Sequence[tuple[str, str]], why: str) -> list[Figure]:
    """The figures of what cannot be measured here."""
    return [skipped(name, unit, why) for name, unit in figures]


def on_gpu(loads: Loader, first: Place, second: Place, rounds: int) -> list[Figure]:
    """Loads and swaps beside what the link gives, and how soon a child has the GPU and gives it back."""
    loads.do("load", folder=first.view, device=loads.device)  # what is set up with the first model
    pinned, pageable, loaded, swapped = [], [], [], []
    for _ in range(rounds):
        pinned.append(gb(loads.do("copy", pinned=True)["bytes_per_s"]))
        pageable.append(gb(loads.do("copy", pinned=False)["bytes_per_s"]))
        loaded.append(gb(first.size) / loads.do("load", folder=first.view, device=loads.device)["seconds"])
        answer = loads.do("swap", first=first.view, second=second.view, size=first.size)
        swapped.append(gb(second.size) / answer["seconds"])
    ready, freed = [], []
    with forks_with_gpu() as fork:
        for _ in range(rounds):
            seconds_to_ready, seconds_to_free = fork_and_kill(fork)
            ready.append(seconds_to_ready * 1e3)
            freed.append(seconds_to_free * 1e3)
    return [
        figure(*PINNED, pinned),
        figure(*PAGEABLE, pageable),
        figure(*TO_DEVICE, loaded, floors=pinned, floor_name="pinned", target=least_ratio(0.8)),
        figure(*SWAP, swapped, floors=pinned, floor_name="pinned", target=least_ratio(0.9)),
        figure(*READY, ready),
        figure(*FREED, freed),
    ]


@contextlib.contextmanager
def forks_with_gpu() -> Iterator["subprocess.Popen[bytes]"]:
    """A process with torch imported, whose forks take 1 GiB of the GPU."""
    command = [sys.executable, "-c", READY_FORKER]
    environment = {**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, bufsize=0, env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.read(1) != b"r":
            raise RuntimeError("torch cannot be imported")
        try:
            yield process
        finally:
            process.stdin.close()
            process.wait(30)


def fork_and_kill(forker: "subprocess.Popen[bytes]") -> tuple[float, float]:
    """Seconds until a fork has its memory on the GPU, and after its SIGKILL until the GPU has it back."""
    import pynvml

    assert forker.stdin is not None
    assert forker.stdout is not None
    pynvml.nvmlInit()
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    before = pynvml.nvmlDeviceGetMemoryInfo(device).used
    begin = time.perf_counter()
    forker.stdin.write(b"f")
    if not select.select([forker.stdout], [], [], 60.0)[0]:
        raise TimeoutError("the fork has no GPU after 60 s")
    pid = int(forker.stdout.read(16) or b"0")
    ready = time.perf_counter() - begin
    begin = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    while pynvml.nvmlDeviceGetMemoryInfo(device).used > before + (64 << 20):
        if time.perf_counter() - begin > FREED_WITHIN_S:
            raise TimeoutError(f"the GPU has not got its memory back after {FREED_WITHIN_S:.0f} s")
    return ready, time.perf_counter() - begin


if __name__ == "__main__":
    main({SHOWS: measure}, rounds=ROUNDS)
