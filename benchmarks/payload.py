"""Bytes through the product, beside a copy of them: `python -m benchmarks.payload`."""

import os
import socket
import statistics
import time
from collections.abc import Callable

import msgspec

from benchmarks import floors
from benchmarks.figures import Effort, Figure, Target, figure, main
from benchmarks.load import ask, checked, connection
from benchmarks.servers import product
from gen_worker.client import Client

SHOWS = "payload: how fast bytes come back from an echo"
MIB = 1 << 20
REPEAT = 9  # measurements in one round, of which the median counts


class Blob(msgspec.Struct):
    data: bytes


class Look(msgspec.Struct):
    """An answer whose bytes stay where they came: what a caller takes who does not want a copy of its own."""

    data: memoryview


def measure(effort: Effort) -> list[Figure]:
    """Speeds of an echo, in bytes of payload per second of the round trip."""
    with product() as served:
        with connection(served.socket) as line:
            figures = compare("1 MiB of text, NDJSON", MIB, over_ndjson(line, MIB), effort)
        with Client(served.control) as client:
            for size, target in ((MIB, None), (32 * MIB, Target("ratio", "least", 0.25))):
                name = f"{size // MIB} MiB of bytes, control socket"
                figures += compare(name, size, over_control(client, size), effort, target)
    return figures


def over_ndjson(line: socket.socket, size: int) -> Callable[[], float]:
    """A measurement: seconds of one echo of `size` bytes of text through the NDJSON socket."""
    request = b'{"function":"echo","payload":{"prompt":"%b"}}\n' % (b"a" * size)
    expected = checked(line, request)
    if len(expected) < size:
        raise ValueError(f"an answer of {len(expected)} bytes to {size} bytes")

    def once() -> float:
        begin = time.perf_counter()
        answer = ask(line, request)
        taken = time.perf_counter() - begin
        if answer != expected:
            raise ValueError("the server changed its mind")
        return taken

    return once


def over_control(client: Client, size: int) -> Callable[[], float]:
    """A measurement: seconds of one echo of `size` bytes through the control socket, bytes in to a view out."""
    blob = Blob(os.urandom(MIB) * (size // MIB))

    def once() -> float:
        begin = time.perf_counter()
        answer = client.call("echo-bytes", blob, type=Look)
        taken = time.perf_counter() - begin
        if answer.data != blob.data:
            raise ValueError("the answer is not what was sent")
        return taken

    once()
    return once


def compare(
    name: str, size: int, once: Callable[[], float], effort: Effort, target: Target | None = None
) -> list[Figure]:
    """The speed of `once` beside a copy and beside two raw hops of as many bytes, round by round."""
    speeds: list[list[float]] = [[], [], []]
    copy = floors.copying(size)
    with floors.echoing(size) as hops:
        for _ in range(effort.rounds):
            for measurement, measured in zip((once, copy, hops), speeds, strict=True):
                median = statistics.median(measurement() for _ in range(effort.times(REPEAT)))
                measured.append(size / median / 1e6)
    product_speeds, copies, raw = speeds
    return [
        figure(name, "MB/s", product_speeds, floors=copies, floor_name="one warm copy", target=target),
        figure(name, "MB/s", product_speeds, floors=raw, floor_name="two raw socket hops"),
    ]


if __name__ == "__main__":
    main({SHOWS: measure})
