"""An endpoint whose functions misbehave on demand: they crash, hang, wait for the test, print, save and count.

`FAULTY_FOLDER` is where it and the test meet: jobs leave what they did there and wait for files to appear.
"""

import asyncio
import contextlib
import ctypes
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec

from gen_worker import Asset, RequestContext, endpoint

FOLDER = Path(os.environ["FAULTY_FOLDER"])
LIBC = ctypes.CDLL(None)
POLL_S = 0.002
STRAYS: list["asyncio.Task[None]"] = []


class Order(msgspec.Struct):
    text: str = ""
    times: int = 0
    gate: str = ""


class Answer(msgspec.Struct):
    text: str
    pid: int


class Blob(msgspec.Struct):
    data: bytes


class Nested(msgspec.Struct):
    inner: list["Nested"] = []


def note(ctx: RequestContext) -> None:
    """Leave a line in `runs`: this request runs in this process."""
    with (FOLDER / "runs").open("ab", buffering=0) as runs:
        runs.write(f"{ctx.request_id} {os.getpid()}\n".encode())


def wait_for(gate: str) -> None:
    while not (FOLDER / gate).exists():
        time.sleep(POLL_S)


async def wait_on_loop_for(gate: str) -> None:
    while not (FOLDER / gate).exists():  # noqa: ASYNC110 - the test that opens it is another process
        await asyncio.sleep(POLL_S * 5)


def answer(payload: Order) -> Answer:
    return Answer(payload.text, os.getpid())


# --- jobs that end well -----------------------------------------------------------------------------------------------


@endpoint
def echo(ctx: RequestContext, payload: Order) -> Answer:
    return answer(payload)


@endpoint
def gated(ctx: RequestContext, payload: Order) -> Answer:
    note(ctx)
    wait_for(payload.gate)
    return answer(payload)


@endpoint
async def gated_async(ctx: RequestContext, payload: Order) -> Answer:
    note(ctx)
    await wait_on_loop_for(payload.gate)
    return answer(payload)


@endpoint
def echo_blob(ctx: RequestContext, payload: Blob) -> Blob:
    return payload


@endpoint
def repeat(ctx: RequestContext, payload: Order) -> Answer:
    return Answer(payload.text * payload.times, os.getpid())


@endpoint
def depth(ctx: RequestContext, payload: Nested) -> Answer:
    return Answer("shallow", os.getpid())


@endpoint
def count(ctx: RequestContext, payload: Order) -> Iterator[Answer]:
    note(ctx)
    with (FOLDER / "counted").open("wb", buffering=0) as counted:
        for number in range(payload.times):
            os.pwrite(counted.fileno(), f"{number}\n".encode(), 0)
            yield Answer(f"{number} {payload.text}", os.getpid())


# --- jobs that end their child ----------------------------------------------------------------------------------------


@endpoint
def die(ctx: RequestContext, payload: Order) -> Answer:
    note(ctx)
    if payload.gate:
        wait_for(payload.gate)
    match payload.text:
        case "SIGSEGV":
            ctypes.string_at(0)
        case "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()
        case "exit":
            os._exit(7)
    return answer(payload)


@endpoint
def start_helper(ctx: RequestContext, payload: Order) -> Answer:
    helper = subprocess.Popen(["sleep", "1000"])
    return Answer(str(helper.pid), os.getpid())


@endpoint
def last_words(ctx: RequestContext, payload: Order) -> Answer:
    print(payload.text)
    os._exit(7)


@endpoint
def count_and_die(ctx: RequestContext, payload: Order) -> Iterator[Answer]:
    note(ctx)
    yield from (Answer(str(number), os.getpid()) for number in range(payload.times))
    if payload.gate:
        wait_for(payload.gate)
    os._exit(7)


@endpoint
def vandalise(ctx: RequestContext, payload: Order) -> Answer:
    """Do to the process's own descriptors and interpreter what no handler should."""
    note(ctx)
    match payload.text:
        case "write to every descriptor":
            for fd in range(3, 64):
                with contextlib.suppress(OSError):
                    os.write(fd, b"garbage")
        case "close every descriptor":
            os.closerange(3, 1024)
        case "close the standard streams":
            os.closerange(0, 3)
        case "close sys.stdout":
            sys.stdout.close()
        case "exit the interpreter":
            sys.exit(3)
        case "interrupt":
            raise KeyboardInterrupt
        case "recurse":
            vandalise_deeper(0)
        case "leave a thread":
            threading.Thread(target=threading.Event().wait).start()
        case "return another type":
            return "not an answer"  # type: ignore[return-value]
    return answer(payload)


def vandalise_deeper(depth: int) -> int:
    return vandalise_deeper(depth + 1) + 1


# --- jobs that do not end ---------------------------------------------------------------------------------------------


@endpoint
def hold_the_interpreter(ctx: RequestContext, payload: Order) -> Answer:
    note(ctx)
    re.match("(a+)+$", "a" * 64 + "b")
    return answer(payload)


@endpoint
def sleep_in_c(ctx: RequestContext, payload: Order) -> Answer:
    note(ctx)
    LIBC.sleep(100_000)
    return answer(payload)


@endpoint
def swallow_everything(ctx: RequestContext, payload: Order) -> Answer:
    note(ctx)
    while True:
        try:
            for _ in itertools.count():
                time.sleep(POLL_S)
        except BaseException:  # noqa: BLE001, S112 - what this function is for
            continue


@endpoint
def poll(ctx: RequestContext, payload: Order) -> Answer:
    note(ctx)
    while not (ctx.cancelled and (not payload.gate or (FOLDER / payload.gate).exists())):
        time.sleep(POLL_S)
    (FOLDER / "ended").write_text(ctx.request_id)
    ctx.raise_if_cancelled()
    return answer(payload)


@endpoint
async def poll_async(ctx: RequestContext, payload: Order) -> Answer:
    note(ctx)
    try:
        await asyncio.Event().wait()
    finally:
        (FOLDER / "ended").write_text(ctx.request_id)
    return answer(payload)


@endpoint
def tick(ctx: RequestContext, payload: Order) -> Iterator[Answer]:
    note(ctx)
    try:
        for number in itertools.count():
            yield Answer(str(number), os.getpid())
            time.sleep(POLL_S)
    finally:
        (FOLDER / "ended").write_text(ctx.request_id)


@endpoint
async def tick_async(ctx: RequestContext, payload: Order) -> AsyncIterator[Answer]:
    note(ctx)
    try:
        for number in itertools.count():
            yield Answer(str(number), os.getpid())
            await asyncio.sleep(POLL_S)
    finally:
        (FOLDER / "ended").write_text(ctx.request_id)


# --- what authors print and save --------------------------------------------------------------------------------------


@endpoint
def talk(ctx: RequestContext, payload: Order) -> Answer:
    print(f"{payload.text} printed")
    print(f"{payload.text} to stderr", file=sys.stderr)
    os.write(1, f"{payload.text} os.write 1\n".encode())
    os.write(2, f"{payload.text} os.write 2\n".encode())
    LIBC.write(1, f"{payload.text} native\n".encode(), len(payload.text) + 8)
    print('{"ok":true,"events":[]}')
    print(f"{payload.text} without newline", end="")
    if payload.gate:
        wait_for(payload.gate)
    return answer(payload)


@endpoint
def chatter(ctx: RequestContext, payload: Order) -> Answer:
    for _ in range(payload.times):
        print("x" * 200)
    return answer(payload)


@endpoint
async def talk_async(ctx: RequestContext, payload: Order) -> Answer:
    note(ctx)
    for number in range(payload.times):
        print(f"{payload.text} says", end=" ")
        await asyncio.sleep(POLL_S)
        print(number)
    return answer(payload)


@endpoint
def save_bytes(ctx: RequestContext, payload: Order) -> Asset:
    return ctx.save_bytes(payload.text, b"x" * payload.times)


@endpoint
def save_file(ctx: RequestContext, payload: Order) -> Asset:
    file = FOLDER / "to-save"
    file.write_bytes(b"y" * payload.times)
    return ctx.save_file(payload.text, file)


@endpoint
def save_too_late(ctx: RequestContext, payload: Order) -> Answer:
    """Leave a thread that saves a file when the test lets it, long after the job has ended."""

    def save() -> None:
        wait_for(payload.gate)
        try:
            ctx.save_bytes("late.txt", b"late")
        except OSError as error:
            (FOLDER / "late").write_text(str(error))

    threading.Thread(target=save, daemon=True).start()
    return answer(payload)


# --- what authors leave behind ----------------------------------------------------------------------------------------


@endpoint
async def leave_a_task_that_exits(ctx: RequestContext, payload: Order) -> Answer:
    note(ctx)

    async def leave() -> None:
        await wait_on_loop_for(payload.gate)
        raise SystemExit(3)

    STRAYS.append(asyncio.get_running_loop().create_task(leave()))
    return answer(payload)


@endpoint
def start_a_daemon(ctx: RequestContext, payload: Order) -> Answer:
    """Start a process in a session of its own whose parent ends at once."""
    script = "sleep 1000 >/dev/null 2>&1 & echo $!"
    done = subprocess.run(["setsid", "sh", "-c", script], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, check=True)
    return Answer(done.stdout.decode().strip(), os.getpid())


@endpoint
def leave_orphans(ctx: RequestContext, payload: Order) -> Answer:
    """Start processes that end when nobody is there any more to wait for them."""
    script = f"for each in $(seq {payload.times}); do sleep 0.0$each & done"
    subprocess.run(["sh", "-c", script], check=True)
    return answer(payload)


# --- classes ----------------------------------------------------------------------------------------------------------


@endpoint
class Tidy:
    def setup(self) -> None:
        (FOLDER / f"set-up-{os.getpid()}").touch()

    def tidy(self, ctx: RequestContext, payload: Order) -> Answer:
        return answer(payload)

    def shutdown(self) -> None:
        (FOLDER / f"shut-down-{os.getpid()}").touch()


@endpoint
class Unprepared:
    def setup(self) -> None:
        with (FOLDER / "tries").open("ab", buffering=0) as tries:
            tries.write(b".")
        raise LookupError("no weights today")

    def unprepared(self, ctx: RequestContext, payload: Order) -> Answer:
        return answer(payload)


@endpoint
class Deadly:
    def setup(self) -> None:
        with (FOLDER / "tries").open("ab", buffering=0) as tries:
            tries.write(b".")
        os._exit(9)

    def deadly(self, ctx: RequestContext, payload: Order) -> Answer:
        return answer(payload)


if (FOLDER / "import-dies").exists():
    os._exit(11)
if (FOLDER / "import-raises").exists():
    raise RuntimeError("no luck today")
