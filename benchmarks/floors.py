"""What no server of this shape can beat: a copy of the same bytes, raw socket hops, a bare fork, a bare interpreter."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

FORKER = """
import os, signal, sys
for name in sys.argv[1:]:
    __import__(name)
os.write(1, b"r")
while os.read(0, 1):
    child = os.fork()
    if child == 0:
        os.write(1, b"%16d" % os.getpid())
        signal.pause()
    os.read(0, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def copying(size: int) -> Callable[[], float]:
    """A measurement: seconds of one warm copy of `size` bytes."""
    source = os.urandom(1) * size
    target = bytearray(size)
    view = memoryview(target)
    view[:] = source

    def once() -> float:
        begin = time.perf_counter()
        view[:] = source
        return time.perf_counter() - begin

    return once


@contextlib.contextmanager
def echoing(size: int) -> Iterator[Callable[[], float]]:
    """A measurement: seconds for `size` bytes to a process and back, two raw hops over a Unix socket."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        _send_back(theirs, size)
        os._exit(0)
    theirs.close()
    sent, received = os.urandom(1) * size, memoryview(bytearray(size))

    def once() -> float:
        begin = time.perf_counter()
        ours.sendall(sent)
        _fill(ours, received)
        return time.perf_counter() - begin

    try:
        once()
        yield once
    finally:
        ours.close()
        os.waitpid(child, 0)


def _send_back(link: socket.socket, size: int) -> None:
    buffer = memoryview(bytearray(size))
    while _fill(link, buffer):
        link.sendall(buffer)


def _fill(link: socket.socket, buffer: memoryview) -> bool:
    """Read until the buffer is full; False at the end of the stream."""
    have = 0
    while have < len(buffer):
        count = link.recv_into(buffer[have:])
        if not count:
            return False
        have += count
    return True


class Forker(NamedTuple):
    """A process with some imports that forks when told, one child at a time."""

    pid: int
    orders: int
    answers: int

    @contextlib.contextmanager
    def child(self) -> Iterator[tuple[int, float]]:
        """A forked child that idles: its pid, and the seconds until its first byte."""
        begin = time.perf_counter()
        os.write(self.orders, b"f")
        said = os.read(self.answers, 16)
        taken = time.perf_counter() - begin
        yield int(said), taken
        os.write(self.orders, b"e")


@contextlib.contextmanager
def forker(*imports: str) -> Iterator[Forker]:
    """A process that has imported `imports` and nothing else."""
    command = [sys.executable, "-c", FORKER, *imports]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.read(1) != b"r":
            raise RuntimeError(f"cannot import {', '.join(imports)}")
        yield Forker(process.pid, process.stdin.fileno(), process.stdout.fileno())


def seconds_of(*command: str, cwd: Path | None = None) -> float:
    """Seconds of one run of a command that must succeed; its modules may be kept compiled, as an installer does."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    begin = time.perf_counter()
    subprocess.run(command, check=True, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin
