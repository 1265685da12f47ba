"""An endpoint that waits at every moment of a job's life, so that a test can break something right then.

`FAULTY_FOLDER` is where it and the test meet: jobs leave what they did there and wait for files to appear. SIGUSR1 has
a child leave through `exit`.
"""

import asyncio
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from gen_worker import Asset, RequestContext, endpoint

FOLDER = Path(os.environ["FAULTY_FOLDER"])
POLL_S = 0.002

signal.signal(signal.SIGUSR1, lambda number, frame: os._exit(7))


class Order(msgspec.Struct):
    text: str = ""
    times: int = 0
    gate: str = ""


class Source(msgspec.Struct):
    asset: Asset


class Answer(msgspec.Struct):
    text: str
    pid: int


def note(ctx: RequestContext) -> None:
    """Leave a line in `runs`: this request runs in this process."""
    with (FOLDER / "runs").open("ab", buffering=0) as runs:
        runs.write(f"{ctx.request_id} {os.getpid()}\n".encode())


def wait_for(gate: str, ctx: RequestContext | None = None) -> None:
    while gate and not (FOLDER / gate).exists():
        time.sleep(POLL_S)
        if ctx is not None:
            ctx.raise_if_cancelled()


def answer(payload: Order) -> Answer:
    return Answer(payload.text, os.getpid())


@endpoint
async def quick(ctx: RequestContext, payload: Order) -> Answer:
    note(ctx)
    await asyncio.sleep(POLL_S)
    return answer(payload)


@endpoint
def echo(ctx: RequestContext, payload: Order) -> Answer:
    note(ctx)
    return answer(payload)


@endpoint
def gated(ctx: RequestContext, payload: Order) -> Answer:
    note(ctx)
    wait_for(payload.gate, ctx)
    return answer(payload)


@endpoint
def held(ctx: RequestContext, payload: Order) -> Answer:
    """Be quick as a rule, so that others are leased behind it, and wait where a gate is named."""
    note(ctx)
    wait_for(payload.gate, ctx)
    return answer(payload)


@endpoint
def items(ctx: RequestContext, payload: Order) -> Iterator[Answer]:
    note(ctx)
    for _ in range(payload.times):
        yield answer(payload)
    wait_for(payload.gate, ctx)


@endpoint
class Heavy:
    def setup(self) -> None:
        (FOLDER / f"loading-{os.getpid()}").touch()
        wait_for("weights")

    def heavy(self, ctx: RequestContext, payload: Order) -> Answer:
        note(ctx)
        return answer(payload)


@endpoint
def saving(ctx: RequestContext, payload: Order) -> Asset:
    """Save the same file again and again until the gate is open."""
    note(ctx)
    while True:
        saved = ctx.save_bytes(payload.text, b"x" * payload.times)
        if (FOLDER / payload.gate).exists():
            return saved


@endpoint
def fetched(ctx: RequestContext, payload: Source) -> Answer:
    note(ctx)
    return Answer(Path(payload.asset).read_text(), os.getpid())


@endpoint
def large(ctx: RequestContext, payload: Order) -> Answer:
    note(ctx)
    return Answer("x" * payload.times, os.getpid())


# --- jobs that misbehave ----------------------------------------------------------------------------------------------


@endpoint
def hold_the_interpreter(ctx: RequestContext, payload: Order) -> Answer:
    note(ctx)
    re.match("(a+)+$", "a" * 64 + "b")
    return answer(payload)


@endpoint
def flood(ctx: RequestContext, payload: Order) -> Answer:
    """Write to standard output as fast as it is taken, until the gate is open."""
    note(ctx)
    lines = b"x" * 1023 + b"\n"
    written = 0
    while not (FOLDER / payload.gate).exists():
        written += os.write(1, lines * 64)
    return Answer(str(written), os.getpid())
