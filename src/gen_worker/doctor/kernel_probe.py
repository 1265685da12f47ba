"""Try what supervisors ask of the kernel; a line on stdout for each try: its name, a tab, what went wrong or nothing.

Run by its path, with the standard library alone. A name is printed before it is tried: where a seccomp profile ends
this process, the last one says at what.
"""

import array
import ctypes
import fcntl
import mmap
import os
import select
import signal
import socket
from collections.abc import Callable
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)
_LIMIT_S = 2.0
_ALARM_S = 10  # ends what should have been ended, and was not


def sealed_memory() -> None:
    """Make shared memory without a name that nobody can shrink."""
    descriptor = os.memfd_create("gen-worker-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.truncate(descriptor, mmap.PAGESIZE)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    try:
        os.truncate(descriptor, 0)
    except PermissionError:
        return
    finally:
        os.close(descriptor)
    raise OSError(0, "a seal does not hold")


def passed_descriptors() -> None:
    """Send a descriptor over a socket of messages, and see who is at its other end."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))])
        _, ancillary, _, _ = other.recvmsg(1, socket.CMSG_LEN(4), socket.MSG_CMSG_CLOEXEC)
        if not ancillary:
            raise OSError(0, "a descriptor got lost on its way")
        os.close(array.array("i", ancillary[0][2])[0])
        other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)


def process_descriptors() -> None:
    """Watch, signal and reap a process by a descriptor."""
    pid = os.fork()
    if pid == 0:
        _wait()
    pidfd = os.pidfd_open(pid)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    ended = select.select([pidfd], [], [], _LIMIT_S)[0]
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    os.close(pidfd)
    if not ended:
        raise OSError(0, "its end was not told")


def death_signal() -> None:
    """Have a process end with its parent."""
    reading, writing = os.pipe()
    middle = os.fork()
    if middle == 0:
        if os.fork() == 0:
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            os.write(writing, b"x")
            _wait()
        os.close(writing)
        _wait()
    os.close(writing)
    os.read(reading, 1)
    os.kill(middle, signal.SIGKILL)
    os.waitpid(middle, 0)
    ended = select.select([reading], [], [], _LIMIT_S)[0]
    os.close(reading)
    if not ended:
        raise OSError(0, "a process outlived its parent")


def subreaper() -> None:
    """Become the parent of descendants whose own parent has ended."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    reading, writing = os.pipe()
    middle = os.fork()
    if middle == 0:
        orphan = os.fork()
        if orphan == 0:
            _wait()
        os.write(writing, str(orphan).encode())
        os._exit(0)
    orphan = int(os.read(reading, 16))
    os.close(reading)
    os.close(writing)
    os.waitpid(middle, 0)
    os.kill(orphan, signal.SIGKILL)
    os.waitpid(orphan, 0)  # fails where it is somebody else's


def listed_children() -> None:
    """Read which children a process has."""
    (Path("/proc/self/task") / str(os.getpid()) / "children").read_text()


def locked_files() -> None:
    """Lock a file without waiting."""
    descriptor = os.memfd_create("gen-worker-doctor", os.MFD_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)


def _wait() -> None:
    signal.alarm(_ALARM_S)
    signal.pause()


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


TRIES: dict[str, Callable[[], None]] = {
    "sealed-memory": sealed_memory,
    "passed-descriptors": passed_descriptors,
    "process-descriptors": process_descriptors,
    "death-signal": death_signal,
    "subreaper": subreaper,
    "listed-children": listed_children,
    "locked-files": locked_files,
}


def main() -> None:
    """Try everything in order."""
    for name, attempt in TRIES.items():
        os.write(1, f"{name}\t".encode())
        told = ""
        try:
            attempt()
        except (OSError, AttributeError) as error:  # the latter: this Python was built for an older kernel
            told = str(getattr(error, "strerror", None) or error).lower()
        os.write(1, f"{told}\n".encode())


if __name__ == "__main__":
    main()
