"""An endpoint whose jobs hang, each in a way of its own; `HANGING_FOLDER` is where it meets the test."""

import ctypes
import os
import re
import signal
import threading
import time
from pathlib import Path

import msgspec

from gen_worker import RequestContext, endpoint

FOLDER = Path(os.environ.get("FAULTY_FOLDER", "."))
LONG_US = 10**9


class Order(msgspec.Struct):
    gate: str = ""


class Answer(msgspec.Struct):
    text: str


def done() -> Answer:
    return Answer("done")


def opened(gate: str) -> bool:
    return (FOLDER / gate).exists()


@endpoint
def sleep_without_the_interpreter(ctx: RequestContext, payload: Order) -> Answer:
    ctypes.CDLL(None).usleep(LONG_US)
    return done()


@endpoint
def sleep_with_the_interpreter(ctx: RequestContext, payload: Order) -> Answer:
    ctypes.PyDLL(None).usleep(LONG_US)
    return done()


@endpoint
def match(ctx: RequestContext, payload: Order) -> Answer:
    re.match("(a+)+$", "a" * 64 + "b")
    return done()


@endpoint
def spin(ctx: RequestContext, payload: Order) -> Answer:
    while not (payload.gate and opened(payload.gate)):
        pass
    return done()


@endpoint
def wait_for_a_lock(ctx: RequestContext, payload: Order) -> Answer:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()
    return done()


@endpoint
def read_a_pipe(ctx: RequestContext, payload: Order) -> Answer:
    read, _ = os.pipe()
    os.read(read, 1)
    return done()


@endpoint
def stop(ctx: RequestContext, payload: Order) -> Answer:
    os.kill(os.getpid(), signal.SIGSTOP)
    while not opened(payload.gate):  # until it is stopped
        time.sleep(0.001)
    return done()


@endpoint
def go_on_slowly(ctx: RequestContext, payload: Order) -> Answer:
    """Wake up now and then, as a handler does that asks another service whether its work is done."""
    while not opened(payload.gate):
        time.sleep(0.2)
    return done()


@endpoint
def work_in_steps(ctx: RequestContext, payload: Order) -> Answer:
    for step in range(4):
        ctx.progress(step / 4)
        time.sleep(0.5)
    return done()


@endpoint
async def wait_on_the_loop(ctx: RequestContext, payload: Order) -> Answer:
    import asyncio

    await asyncio.Event().wait()
    return done()


@endpoint
async def hold_the_loop(ctx: RequestContext, payload: Order) -> Answer:
    time.sleep(10**6)  # noqa: ASYNC251 - what this function is for
    return done()


@endpoint
class Stuck:
    def setup(self) -> None:
        with (FOLDER / "tries").open("ab", buffering=0) as tries:
            tries.write(b".")
        ctypes.CDLL(None).usleep(LONG_US)

    def stuck(self, ctx: RequestContext, payload: Order) -> Answer:
        return done()


if opened("import-hangs"):
    with (FOLDER / "tries").open("ab", buffering=0) as tries:
        tries.write(b".")
    ctypes.CDLL(None).usleep(LONG_US)
