"""An endpoint whose one function does to its own process, and to what it was given, the worst that it can.

`FAULTY_FOLDER` is where it leaves notes of where it runs.
"""

import ctypes
import fcntl
import mmap
import os
import re
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from gen_worker import RequestContext, endpoint
from gen_worker.wire.messages import Warned

FOLDER = Path(os.environ["FAULTY_FOLDER"])
LIBC = ctypes.CDLL(None)
HOLDING = ctypes.PyDLL(None)  # the interpreter's lock is held during its calls
FLOOD_BYTES = 50 << 20
KEPT: list[Any] = []


class Order(msgspec.Struct):
    """What to do; `data` is there to be long."""

    how: str = ""
    data: str = ""


class Answer(msgspec.Struct):
    """What came of it."""

    text: str
    data: str = ""


@endpoint
def echo(ctx: RequestContext, payload: Order) -> Answer:
    """Return the payload."""
    return Answer(payload.how, payload.data)


@endpoint
def harm(ctx: RequestContext, payload: Order) -> Answer:
    """Do what is asked for."""
    with (FOLDER / "runs").open("ab", buffering=0) as runs:
        runs.write(f"{ctx.request_id} {os.getpid()}\n".encode())
    HARM[payload.how]()
    return Answer(payload.how, payload.data)


# --- what it does -----------------------------------------------------------------------------------------------------


def segfault() -> None:
    ctypes.string_at(0)


def hold_the_interpreter() -> None:
    HOLDING.usleep(10**9)
    HOLDING.sleep(10**6)


def match_for_ever() -> None:
    re.match("(a+)+$", "a" * 64 + "b")


def sleep_in_c() -> None:
    LIBC.sleep(10**6)


def spin() -> None:
    while True:
        pass


def spin_deaf() -> None:
    """Spin with every signal blocked or ignored that can be."""
    LIBC.signal(signal.SIGTERM, 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    spin()


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
    spin()


def flood() -> None:
    """Print as fast as it is read, 64 KiB at a time and without a line's end for long."""
    piece = (b"x" * 8191 + b"\n") * 7 + b"x" * 8192
    for _ in range(FLOOD_BYTES // len(piece)):
        os.write(1, piece)


def close_everything() -> None:
    os.closerange(0, 4096)


def close_the_socket() -> None:
    os.close(link().sock.fileno())
    time.sleep(60)


def close_the_standard_streams() -> None:
    os.closerange(0, 3)


def take_every_descriptor() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    with suppress(OSError):
        while True:
            KEPT.append(os.open("/dev/null", os.O_RDONLY))


def leave_a_daemon() -> None:
    """Leave a process in a session of its own, with all the child's descriptors, and die."""
    daemon(lambda: time.sleep(10**6))
    os._exit(7)


def leave_a_daemon_that_talks() -> None:
    """Leave a process that says to the supervisor what a child may say, as fast as it can, and die."""
    channel = link()

    def talk() -> None:
        while True:
            channel.send(Warned("still here"))

    daemon(talk)
    os._exit(7)


def daemon(life: Callable[[], object]) -> None:
    """Fork twice; the one that is left lives its life and notes its pid."""
    ready, told = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            with (FOLDER / "daemons").open("a") as daemons:
                daemons.write(f"{os.getpid()}\n")
            os.close(told)
            with suppress(BaseException):
                life()
        os._exit(0)
    os.close(told)
    os.read(ready, 1)
    os.close(ready)


def truncate_every_memory() -> None:
    """Shrink, grow and unseal what it was given and gave: each is refused."""
    for fd in memories():
        size = os.fstat(fd).st_size
        for length in (0, size - 1, size + 4096, 1 << 30):
            with suppress(OSError):
                os.ftruncate(fd, length)
        with suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def scribble_over_every_memory() -> None:
    """Write anything into all memory that it shares, its status page among it, for a while."""
    found = memories()
    ends = time.monotonic() + 0.5
    while time.monotonic() < ends:
        for fd in found:
            with suppress(OSError):
                os.pwrite(fd, os.urandom(4096), 0)


def map_and_punch() -> None:
    """Take the pages away from under whoever maps them."""
    for fd in memories():
        LIBC.fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(os.fstat(fd).st_size))
        with suppress(OSError, ValueError):
            mmap.mmap(fd, 0).close()


def memories() -> list[int]:
    """Return the descriptors of memory without a name that this process has, but its fault handler's."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if target.startswith("/memfd:") and "crash" not in target:
                found.append(int(name))
    return found


def half_a_frame() -> None:
    whole = msgspec.msgpack.encode((link().generation, 99, Warned("cut")))
    link().sock.send(whole[:-3])
    time.sleep(60)


def another_generation() -> None:
    link().sock.send(msgspec.msgpack.encode((link().generation + 1, 0, Warned("from the future"))))


def flood_with_another_generation() -> None:
    """Say what is not heard, as fast as it can."""
    packet = msgspec.msgpack.encode((link().generation + 1, 0, Warned("from the future")))
    while True:
        with suppress(BlockingIOError):
            link().sock.send(packet)


def link() -> Any:
    """Return the channel to the supervisor, from the runtime's frames below this one."""
    frame = sys._getframe()
    while frame is not None:
        found = getattr(frame.f_locals.get("self"), "_channel", None)
        if found is not None:
            return found
        frame = frame.f_back  # type: ignore[assignment]
    raise RuntimeError("no channel")


def flood_the_socket() -> None:
    """Say nothing that matters, as fast as it is heard, for a while."""
    channel, ends = link(), time.monotonic() + 1.0
    while time.monotonic() < ends:
        with suppress(BlockingIOError, socket.timeout):
            channel.send(Warned("x" * 1000))


HARM: dict[str, Callable[[], None]] = {
    each.__name__: each
    for each in (
        segfault,
        hold_the_interpreter,
        match_for_ever,
        sleep_in_c,
        spin,
        spin_deaf,
        stop,
        flood,
        flood_the_socket,
        close_everything,
        close_the_socket,
        close_the_standard_streams,
        take_every_descriptor,
        leave_a_daemon,
        leave_a_daemon_that_talks,
        truncate_every_memory,
        scribble_over_every_memory,
        map_and_punch,
        half_a_frame,
        another_generation,
        flood_with_another_generation,
    )
}
