"""The keeper of models' memory as the supervisor holds it: its process, its socket, the numbers of what it holds.

One that dies takes all that it held with it; the next one is started when there is something to hold again.
"""

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gen_worker_supervisor.core.deaths import death
from gen_worker_supervisor.memory import keeper
from gen_worker_supervisor.processes.reaper import Reaper, ends_within, reap

ANSWER_S = 1.0  # takes less than a millisecond
START_S = 5.0  # to the first answer: an interpreter starts in 40 ms, and waits for a busy host's cores
_PASSED = ("LD_LIBRARY_PATH",)  # what an interpreter may need to start at all


class Keeper:
    """The process that holds models' memory, through all its lives.

    A death is told by `on_death` with its cause, while nobody else can have got the pid: no link leads to a stranger.
    """

    def __init__(self, reaper: Reaper, on_death: Callable[[str], None]) -> None:
        self._reaper = reaper
        self._on_death = on_death
        self._life: _Life | None = None

    @property
    def pid(self) -> int:
        """The process, 0 while there is none."""
        return 0 if self._life is None else self._life.pid

    def start(self) -> None:
        """Start the process unless there is one; raise `OSError` where none can be had."""
        if self._life is None:
            self._life = _born()
            self._reaper.own(self._life.pid, self._look_for_death)

    def hold(self, descriptor: int) -> int:
        """Have a descriptor held, which stays the caller's too; return its number there. Raise `OSError` if it dies."""
        self.start()
        assert self._life is not None
        number = self._life.number()
        self._life.send(b"%b %d" % (keeper.HOLD, number), [descriptor])
        return number

    def place(self, number: int) -> str:
        """Return the path by which everyone of this user can open what is held under a number."""
        return f"/proc/{self.pid}/fd/{number}"

    def holds(self, number: int) -> bool:
        """Whether it is there: it goes before the death of the process is told."""
        return os.path.exists(self.place(number))

    def confirm(self) -> None:
        """Return when everything can be opened that was to be held, after one round trip; raise `OSError` if not."""
        self.start()
        assert self._life is not None
        self._life.ask()

    def drop(self, numbers: Sequence[int]) -> None:
        """Have what is held under these numbers closed; they may be given to others at once."""
        if numbers and self._life is not None:
            self._life.drop(numbers)

    def close(self) -> None:
        """End the process, and with it all that it holds; tells nobody."""
        if self._life is not None:
            self._life.kill()
            ends_within(self._life.pidfd, None)  # nothing stops a SIGKILL; freeing takes 40 ms for each GB
            life, self._life = self._life, None
            self._bury(life)

    def _look_for_death(self) -> None:
        life = self._life
        if life is None:
            return
        status = os.waitid(os.P_PIDFD, life.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if status is not None:
            self._life = None
            self._on_death(life.fault or death(status, "", 0, ()).cause)
            self._bury(life)

    def _bury(self, life: "_Life") -> None:
        reap(life.pidfd)
        self._reaper.disown(life.pid)
        os.close(life.pidfd)
        life.sock.close()


@dataclass(slots=True, eq=False)
class _Life:
    """One process, from its start until its death was noted."""

    pid: int
    pidfd: int
    sock: socket.socket
    fault: str = ""  # for which it was killed
    _free: list[int] = field(default_factory=list)  # numbers that were in use
    _next: int = keeper.FIRST

    def number(self) -> int:
        """Return a number that nothing is held under."""
        if self._free:
            return self._free.pop()
        self._next += 1
        return self._next - 1

    def send(self, message: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send a message; raise `OSError`, and kill the process, where that is not possible in time."""
        if self.fault:
            raise OSError(errno.EPIPE, self.fault)
        try:
            socket.send_fds(self.sock, [message], descriptors)
        except OSError as error:
            raise self._failed(error) from None

    def ask(self) -> None:
        """Wait until all that was sent is done; raises as `send` does."""
        self.send(keeper.ASK)
        try:
            answered = self.sock.recv(len(keeper.ANSWER))
        except OSError as error:
            raise self._failed(error) from None
        if not answered:
            raise self._failed(ConnectionResetError())
        self.sock.settimeout(ANSWER_S)

    def drop(self, numbers: Sequence[int]) -> None:
        """Have these closed; a process that cannot be told is killed, which does that too."""
        if self.fault:
            return
        try:
            socket.send_fds(self.sock, [b" ".join((keeper.DROP, *(b"%d" % number for number in numbers)))], ())
        except OSError as error:
            self._failed(error)
        self._free += numbers

    def kill(self) -> None:
        """Kill the process; its death is noted later."""
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return  # it was already gone, which is what we wanted

    def _failed(self, error: OSError) -> OSError:
        """Kill a process that does not do as it should; return what to tell."""
        late = isinstance(error, TimeoutError)
        self.fault = "the keeper of models' memory does not answer" if late else "the keeper of models' memory died"
        self.kill()
        return OSError(errno.ETIMEDOUT if late else errno.EPIPE, self.fault)


def _born() -> _Life:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(START_S)
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", keeper.__file__, str(theirs.fileno()), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env={name: os.environ[name] for name in _PASSED if name in os.environ},
            start_new_session=True,
        )
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:
        ours.close()
        process.kill()
        process.wait()
        raise
    process.returncode = 0  # it is reaped through its pidfd; `Popen` shall not try
    return _Life(process.pid, pidfd, ours)
