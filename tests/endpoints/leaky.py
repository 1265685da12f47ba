"""Functions that take memory, at the speed and up to the size that they are told."""

import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from gen_worker import RequestContext, endpoint

FOLDER = Path(os.environ["FAULTY_FOLDER"])
STEP_BYTES = 8 << 20
TAKEN: list[object] = []
STARVED = """
import sys, time
taken = [bytearray(b"x") * (8 << 20) for _ in range(int(sys.argv[1]) >> 23)]
time.sleep(1000)
"""


class Appetite(msgspec.Struct):
    most_bytes: int = 400 << 20
    """What is taken at last: a leak that nobody stops goes no further."""

    bytes_s: float = 1 << 30
    shared: bool = False
    by_a_process: bool = False
    gate: str = ""
    """A file to wait for, with what was taken."""


class Answer(msgspec.Struct):
    text: str
    pid: int


def note(ctx: RequestContext) -> None:
    """Leave a line in `runs`: this request runs in this process."""
    with (FOLDER / "runs").open("ab", buffering=0) as runs:
        runs.write(f"{ctx.request_id} {os.getpid()}\n".encode())


def taken(shared: bool) -> object:
    if not shared:
        return bytearray(b"x") * STEP_BYTES
    page = mmap.mmap(-1, STEP_BYTES)  # anonymous and shared: the kernel counts it as a file's
    page.write(b"x" * STEP_BYTES)
    return page


@endpoint
def leak(ctx: RequestContext, payload: Appetite) -> Answer:
    note(ctx)
    if payload.by_a_process:
        TAKEN.append(subprocess.Popen([sys.executable, "-c", STARVED, str(payload.most_bytes)]))
    began, steps = time.monotonic(), 0
    while not payload.by_a_process and steps * STEP_BYTES < payload.most_bytes:
        TAKEN.append(taken(payload.shared))
        steps += 1
        time.sleep(max(0.0, began + steps * STEP_BYTES / payload.bytes_s - time.monotonic()))
    while payload.gate and not (FOLDER / payload.gate).exists():
        time.sleep(0.002)
    TAKEN.clear()
    return Answer("full", os.getpid())


@endpoint
async def idle(ctx: RequestContext, payload: Appetite) -> Answer:
    note(ctx)
    return Answer("idle", os.getpid())


class OutOfMemoryError(RuntimeError):
    """As torch's: known by its name."""


@endpoint
def full_device(ctx: RequestContext, payload: Appetite) -> Answer:
    note(ctx)
    raise OutOfMemoryError("CUDA error: out of memory. Tried to allocate 20.00 GiB")


@endpoint
def too_much(ctx: RequestContext, payload: Appetite) -> Answer:
    """Ask for more than any address space has."""
    note(ctx)
    return Answer(str(len(bytearray(1 << 62))), os.getpid())
