"""The process that holds the sealed memory of models for its supervisor, by descriptors alone.

It has no secret and runs nobody's code: whoever has the same user may open what it holds by `/proc/<keeper>/fd/N`, and
nothing is lost by that. Nothing is mapped or read here. Imports the standard library alone, as it is started by its
path: `python -I -S keeper.py SOCKET SUPERVISOR`.
"""

import _thread
import ctypes
import fcntl
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterable
from contextlib import suppress

HOLD, DROP, ASK, ANSWER = b"hold", b"drop", b"ask", b"here"
FIRST = 32  # of the numbers that its supervisor chooses; what this process needs for itself is below
_MOST = 1 << 14  # a table of descriptors takes the kernel's memory up to the largest number, in use or not
_MESSAGE_BYTES = 128 << 10  # a number takes 6 at most
_PR_SET_PDEATHSIG = 1  # prctl(2)
_OOM_POINTS = 50  # a fetcher has 100, a zygote 150, a child 300


def capacity() -> int:
    """Return how many descriptors a keeper can hold: half of those it may have, since others are being closed."""
    return max(0, min(_MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[1] // 2) - FIRST)


def main(sock: int, supervisor: int) -> None:
    """Obey a supervisor until it closes its socket or ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != supervisor:
        return  # it died before the kernel was told to end this process with it
    _go_before_the_supervisor()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to everybody; the supervisor decides
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    serve(socket.socket(fileno=sock))


def _go_before_the_supervisor() -> None:
    """Have the kernel end this process rather than its supervisor; see `gen_worker.oom_score`, and proc(5)."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "r+") as own:
        score = int(own.read())
        own.seek(0)
        own.write(str(min(1000, score + _OOM_POINTS)))


def serve(sock: socket.socket) -> None:
    """Do what comes in, in order: each message is a word and the numbers that it is about."""
    while True:
        message, came, _, _ = socket.recv_fds(sock, _MESSAGE_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
        if not message:
            return
        word, *numbers = message.split()
        if word == HOLD:
            os.dup2(came[0], int(numbers[0]), inheritable=False)
            os.close(came[0])
        elif word == DROP:
            _drop(list(map(int, numbers)))
        elif word == ASK:
            sock.send(ANSWER)


def _drop(numbers: list[int]) -> None:
    """Close descriptors in a thread, which takes 40 ms for each GB; their numbers are free at once."""
    aside = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, FIRST + capacity()) for number in numbers]
    _close(numbers)
    _thread.start_new_thread(_close, (aside,))


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
    os._exit(0)  # the kernel closes what is left
