"""The endpoint that the doctor breaks: functions that do to their child what code should not do."""

import ctypes
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from contextlib import suppress

import msgspec

from gen_worker import RequestContext, endpoint

_MIB = 1 << 20
_LEAKED_A_SECOND = 200 * _MIB
_PRINTED_A_SECOND = 100 * _MIB
_STEP_S = 0.02
_FOR_EVER_S = 100_000
_DAEMON = f"import os, time; os.setsid(); os.fork() and os._exit(0); print(os.getpid()); time.sleep({_FOR_EVER_S})"


class Order(msgspec.Struct):
    """What a job is to do, how much of it, and for how long; `text` comes back."""

    text: str = ""
    seconds: float = 0.0
    mib: int = 0


class Answer(msgspec.Struct):
    """What became of it, and in which process."""

    text: str
    pid: int


def _answer(payload: Order) -> Answer:
    return Answer(payload.text, os.getpid())


@endpoint
def echo(ctx: RequestContext, payload: Order) -> Answer:
    """Answer at once."""
    return _answer(payload)


@endpoint
def work(ctx: RequestContext, payload: Order) -> Answer:
    """Take some seconds, as ordinary code does."""
    until = time.monotonic() + payload.seconds
    while (left := until - time.monotonic()) > 0:
        ctx.raise_if_cancelled()
        time.sleep(min(left, _STEP_S))
    return _answer(payload)


@endpoint
def crash(ctx: RequestContext, payload: Order) -> Answer:
    """Read memory that is not there."""
    ctypes.string_at(0)
    return _answer(payload)


@endpoint
def hold_gil(ctx: RequestContext, payload: Order) -> Answer:
    """Compute in C without ever giving another thread its turn."""
    re.match("(a+)+$", "a" * 64 + "b")
    return _answer(payload)


@endpoint
def sleep_in_c(ctx: RequestContext, payload: Order) -> Answer:
    """Wait in a call that nothing of Python's interrupts."""
    ctypes.CDLL(None).sleep(_FOR_EVER_S)
    return _answer(payload)


@endpoint
def stop(ctx: RequestContext, payload: Order) -> Answer:
    """Have the kernel stop the process."""
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(_FOR_EVER_S)
    return _answer(payload)


@endpoint
def leak(ctx: RequestContext, payload: Order) -> Answer:
    """Take memory step by step, `mib` of it and no more, and keep it for some seconds."""
    kept = bytearray()
    while len(kept) < payload.mib * _MIB:
        kept += b"x" * int(_LEAKED_A_SECOND * _STEP_S)
        time.sleep(_STEP_S)
    time.sleep(payload.seconds)
    return _answer(payload)


@endpoint
def flood(ctx: RequestContext, payload: Order) -> Answer:
    """Print 100 MB a second."""
    line = b"x" * 1023 + b"\n"
    ends = time.monotonic() + payload.seconds
    while time.monotonic() < ends:
        written, due = 0, time.monotonic() + _STEP_S
        while written < _PRINTED_A_SECOND * _STEP_S:
            written += os.write(1, line * 64)
        time.sleep(max(0.0, due - time.monotonic()))
    return _answer(payload)


@endpoint
def leave_daemon(ctx: RequestContext, payload: Order) -> Answer:
    """Start a process in a session of its own whose parent ends at once; `text` of the answer is its pid."""
    command = [sys.executable, "-I", "-S", "-u", "-c", _DAEMON]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        return Answer(started.stdout.readline().strip(), os.getpid())


@endpoint
def close_descriptors(ctx: RequestContext, payload: Order) -> Answer:
    """Close everything that the process has open but its standard streams, and go on."""
    os.closerange(3, 1024)
    time.sleep(_FOR_EVER_S)
    return _answer(payload)


@endpoint
def shrink_memory(ctx: RequestContext, payload: Order) -> Answer:
    """Cut off all shared memory that the process has open, while its payload and its answer lie there."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # it is sealed, or was the descriptor of the list
            if "memfd:" in os.readlink(f"/proc/self/fd/{name}"):
                os.ftruncate(int(name), 0)
    return _answer(payload)


@endpoint
def send_garbage(ctx: RequestContext, payload: Order) -> Answer:
    """Write what is no message to every socket that the process has open, and go on."""
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        try:
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                with socket.socket(fileno=os.dup(descriptor)) as sock:
                    sock.send(b"\xc1garbage", socket.MSG_DONTWAIT)
        except OSError:  # it was the descriptor of the list
            continue
    time.sleep(_FOR_EVER_S)
    return _answer(payload)
