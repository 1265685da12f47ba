"""Bytes through the product, beside a copy of them: `python -m benchmarks.payload`."""

import asyncio
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
from gen_worker.client import AsyncClient, Client

SHOWS = "payload: how fast bytes come back from an echo"
MIB = 1 << 20
BIG = 256 * MIB
LIMITS = {"WORKER_MAX_INPUT_BYTES": "320M", "WORKER_MAX_OUTPUT_BYTES": "320M"}
REPEAT = 9  # measurements in one round, of which the median counts; of big ones a third


class Blob(msgspec.Struct):
    data: bytes


class Look(msgspec.Struct):
    """An answer whose bytes stay where they came: what a caller takes who does not want a copy of its own."""

    data: memoryview


TAKEN: dict[type, str] = {Look: "looked at where it is", Blob: "taken as bytes"}


def measure(effort: Effort) -> list[Figure]:
    """Speeds of an echo, in bytes of payload per second of the round trip."""
    with product(variables=LIMITS) as served:
        with connection(served.socket) as line:
            figures = compare("1 MiB of text, NDJSON", MIB, over_ndjson(line, MIB), effort)
        with Client(served.control) as client:
            for size, target in ((MIB, None), (32 * MIB, Target("ratio", "least", 0.25))):
                name = f"{size // MIB} MiB of bytes, control socket"
                figures += compare(name, size, over_control(client, size, Look), effort, target)
            for kind in (Look, Blob):
                figures += compare(f"256 MiB, {TAKEN[kind]}", BIG, over_control(client, BIG, kind), effort)
        with asyncio.Runner() as runner:
            asynchronous = runner.run(AsyncClient(served.control).__aenter__())
            for kind in (Look, Blob):
                once = over_asyncio(runner, asynchronous, BIG, kind)
                figures += compare(f"256 MiB, {TAKEN[kind]}, asyncio", BIG, once, effort)
                figures.append(hold(f"256 MiB, {TAKEN[kind]}, the loop held", runner, asynchronous, kind, effort))
            runner.run(asynchronous.close())
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


def over_control(client: Client, size: int, kind: type[Blob] | type[Look]) -> Callable[[], float]:
    """A measurement: seconds of one echo of `size` bytes through the control socket."""
    blob = Blob(os.urandom(MIB) * (size // MIB))

    def once() -> float:
        begin = time.perf_counter()
        answer = client.call("echo-bytes", blob, type=kind)
        taken = time.perf_counter() - begin
        if answer.data != blob.data:
            raise ValueError("the answer is not what was sent")
        return taken

    once()
    return once


def over_asyncio(
    runner: asyncio.Runner, client: AsyncClient, size: int, kind: type[Blob] | type[Look]
) -> Callable[[], float]:
    """A measurement: seconds of one echo of `size` bytes through the control socket, from an event loop."""
    blob = Blob(os.urandom(MIB) * (size // MIB))

    async def call() -> float:
        begin = time.perf_counter()
        answer = await client.call("echo-bytes", blob, type=kind)
        taken = time.perf_counter() - begin
        if answer.data != blob.data:
            raise ValueError("the answer is not what was sent")
        return taken

    runner.run(call())
    return lambda: runner.run(call())


def hold(
    name: str, runner: asyncio.Runner, client: AsyncClient, kind: type[Blob] | type[Look], effort: Effort
) -> Figure:
    """The longest time during an echo in which the event loop did nothing else, beside a copy of the bytes."""
    blob = Blob(bytes(BIG))
    copy = floors.copying(BIG)

    async def longest() -> float:
        waits: list[float] = []

        async def tick() -> None:
            while True:
                begin = time.perf_counter()
                await asyncio.sleep(0.001)
                waits.append(time.perf_counter() - begin - 0.001)

        ticking = asyncio.create_task(tick())
        await client.call("echo-bytes", blob, type=kind)
        await asyncio.sleep(0.002)  # the last wait ends after the call
        ticking.cancel()
        return max(waits)

    runner.run(longest())
    pairs = [(runner.run(longest()) * 1e3, copy() * 1e3) for _ in range(effort.rounds)]
    return figure(
        name, "ms", [held for held, _ in pairs], floors=[copied for _, copied in pairs], floor_name="one warm copy"
    )


def compare(
    name: str, size: int, once: Callable[[], float], effort: Effort, target: Target | None = None
) -> list[Figure]:
    """The speed of `once` beside a copy and beside two raw hops of as many bytes, round by round."""
    speeds: list[list[float]] = [[], [], []]
    copy = floors.copying(size)
    with floors.echoing(size) as hops:
        for _ in range(effort.rounds):
            for measurement, measured in zip((once, copy, hops), speeds, strict=True):
                times = effort.times(REPEAT if size < BIG else REPEAT // 3)
                median = statistics.median(measurement() for _ in range(times))
                measured.append(size / median / 1e6)
    product_speeds, copies, raw = speeds
    return [
        figure(name, "MB/s", product_speeds, floors=copies, floor_name="one warm copy", target=target),
        figure(name, "MB/s", product_speeds, floors=raw, floor_name="two raw socket hops"),
    ]


if __name__ == "__main__":
    main({SHOWS: measure})
