"""One file over the loopback to the disk, verified, beside what curl does to it: `python -m benchmarks.download`."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.figures import Effort, Figure, Target, figure, main
from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.config import FetchConfig
from gen_worker.fetch.network.download import download
from gen_worker.fetch.network.pull import BUFFER_BYTES, NOTE_BYTES
from gen_worker.fetch.network.transport import Transport
from gen_worker.models.manifest import Algorithm, ManifestFile

SHOWS = "download: one file over the loopback to the disk, verified"
FLOOR = "`curl -o`, to the same disk"
VERIFIED = "the same, then `sha256sum`"
BYTES = 2 << 30
BRIEF_BYTES = 64 << 20
CONNECTIONS = 4
ALGORITHMS: tuple[Algorithm, ...] = ("blake3", "sha256")

# A server in a process of its own, so that its work is nobody else's: says what it has, and ends with its input.
SERVER = """
import sys
from pathlib import Path
from gen_worker.testing import LoopbackHub
from gen_worker.testing.contents import Content
with LoopbackHub() as hub:
    folder = Path(sys.argv[1])
    [file] = hub.signed_files("bench/mark", folder)
    content = Content(folder / file.path)
    print(file.url, content.digest("blake3"), content.digest("sha256"), flush=True)
    sys.stdin.read()
"""
# Downloads, and is killed as soon as so many bytes are there.
DYING = """
import os, signal, sys
from pathlib import Path
from benchmarks.download import fetched
there = 0
def count(more):
    global there
    there += more
    if there >= int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
url, digest, size, _, to = sys.argv[1:]
fetched(url, digest, int(size), Path(to), "blake3", count)
"""


class Served(NamedTuple):
    """The file that is downloaded."""

    url: str
    digests: dict[Algorithm, str]
    size: int


class Cost(NamedTuple):
    """What a download took."""

    seconds: float
    cpu_s: float


def measure(effort: Effort) -> list[Figure]:
    """Each way once a round, one right after the other, into a folder that is emptied between them."""
    if shutil.which("curl") is None:
        print("`curl` is not on this machine: nothing to compare with", file=sys.stderr)
        return []
    size = BRIEF_BYTES if effort.brief else BYTES
    costs: dict[str, list[Cost]] = {}
    with tempfile.TemporaryDirectory(prefix="gw-bench-") as place, serving(Path(place), size) as served:
        to = Path(place, "to")
        ways: dict[str, Callable[[], Cost]] = {FLOOR: partial(by_curl, served, to)}
        ways[VERIFIED] = partial(by_curl, served, to, verified=True)
        ways |= {algorithm: partial(by_us, served, algorithm, to) for algorithm in ALGORITHMS}
        for _ in range(effort.rounds):
            for name, way in ways.items():
                os.sync()
                costs.setdefault(name, []).append(way())
                to.unlink()
        again = [killed_and_resumed(served, to) for _ in range(effort.rounds)]
    return [*compared(costs, size), refetched(again)]


def compared(costs: dict[str, list[Cost]], size: int) -> Iterator[Figure]:
    """The figures of each way beside those of what it has to be compared with."""
    floors = {"blake3": FLOOR, "sha256": VERIFIED}  # sha256 alone takes as much of a core as all of curl
    targets = {"blake3": (Target("ratio", "least", 0.8), Target("ratio", "most", 1.6))}
    for name, floor in floors.items():
        throughput, cpu = targets.get(name, (None, None))
        yield figure(
            f"throughput, {name}",
            "GB/s",
            [size / cost.seconds / 1e9 for cost in costs[name]],
            floors=[size / cost.seconds / 1e9 for cost in costs[floor]],
            floor_name=floor,
            target=throughput,
        )
        yield figure(
            f"CPU, {name}",
            "s/GB",
            [cost.cpu_s / size * 1e9 for cost in costs[name]],
            floors=[cost.cpu_s / size * 1e9 for cost in costs[floor]],
            floor_name=floor,
            target=cpu,
        )


def refetched(again: list[int]) -> Figure:
    """What had to come once more after a kill."""
    limit = CONNECTIONS * (NOTE_BYTES + BUFFER_BYTES) / (1 << 20)
    each = [count / (1 << 20) for count in again]
    return figure("fetched again after SIGKILL", "MiB", each, target=Target("value", "most", limit))


# --- the ways ---------------------------------------------------------------------------------------------------------


def by_curl(served: Served, to: Path, *, verified: bool = False) -> Cost:
    """Download with curl, which neither verifies nor flushes; then read it once more where it is to be verified."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    subprocess.run(["curl", "--silent", "--fail", "--output", to, served.url], check=True, timeout=120)
    if verified:
        subprocess.run(
            ["sha256sum", "--status", "--check"], input=f"{served.digests['sha256']}  {to}\n", text=True, check=True
        )
    seconds = time.perf_counter() - begin
    return Cost(seconds, cpu_between(before, resource.getrusage(resource.RUSAGE_CHILDREN)))


def by_us(served: Served, algorithm: Algorithm, to: Path) -> Cost:
    """Download as a fetcher does: in ranges, verified, flushed and renamed."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    begin = time.perf_counter()
    fetched(served.url, served.digests[algorithm], served.size, to, algorithm, lambda count: None)
    seconds = time.perf_counter() - begin
    return Cost(seconds, cpu_between(before, resource.getrusage(resource.RUSAGE_SELF)))


def fetched(url: str, digest: str, size: int, to: Path, algorithm: Algorithm, on_bytes: Callable[[int], None]) -> int:
    """Download a file; return how many bytes came over the network."""
    file = ManifestFile("weights", size, algorithm, digest, url, signed=True)
    with Transport(FetchConfig(root="", hf_cache="")) as transport:
        return download(
            file,
            to,
            ref="bench/mark",
            transport=transport,
            on_bytes=on_bytes,
            on_retry=lambda: None,
            cancel=Cancel(),
            stall_timeout_s=60.0,
            connections=CONNECTIONS,
        )


def cpu_between(before: resource.struct_rusage, after: resource.struct_rusage) -> float:
    """Seconds of a core between two looks, in the program and in the kernel for it."""
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def killed_and_resumed(served: Served, to: Path) -> int:
    """Kill a download when a third of it is there; return how much too many bytes came for it in the end."""
    at = served.size // 3
    arguments = [served.url, served.digests["blake3"], str(served.size), str(at), str(to)]
    dying = subprocess.run([sys.executable, "-c", DYING, *arguments], timeout=120)
    if dying.returncode != -signal.SIGKILL:
        raise ChildProcessError(f"it was to be killed, and ended with {dying.returncode}")
    came = fetched(served.url, served.digests["blake3"], served.size, to, "blake3", lambda count: None)
    to.unlink()
    return at + came - served.size


@contextlib.contextmanager
def serving(place: Path, size: int) -> Iterator[Served]:
    """Serve a file of so many bytes from a process of its own."""
    folder = place / "from"
    folder.mkdir()
    block = os.urandom(1 << 20)
    with (folder / "weights").open("wb") as file:
        for at in range(0, size, len(block)):
            file.write(at.to_bytes(8, "big") + block[8:])
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with server:
        assert server.stdout is not None
        url, blake3, sha256 = server.stdout.readline().split()
        yield Served(url, {"blake3": blake3, "sha256": sha256}, size)
        server.communicate(timeout=10)


if __name__ == "__main__":
    main({SHOWS: measure}, rounds=3)
