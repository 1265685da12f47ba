"""A process beside the supervisor that has nothing to lose: one that dies is replaced, what it prints is logged."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence

from gen_worker_supervisor.core.deaths import death
from gen_worker_supervisor.logs.log import Log
from gen_worker_supervisor.processes.output import OutputPipe
from gen_worker_supervisor.processes.reaper import Reaper, ends_within, reap
from gen_worker_supervisor.sockets.poller import Poller

LONGEST_PAUSE_S = 60.0
STEADY_S = 60.0  # one that lived so long is replaced at once when it dies


def pause_before(start: int) -> float:
    """Return the seconds before the n-th start in a row that follows a death: 0, 1, 2, 4 up to `LONGEST_PAUSE_S`."""
    return 0.0 if start <= 1 else min(LONGEST_PAUSE_S, 2.0 ** min(start - 2, 10))


class Companion:
    """The process, through all its lives."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        poller: Poller,
        reaper: Reaper,
        log: Log,
        source: str,
        run: Callable[[int], "subprocess.Popen[bytes]"],
        *,
        on_death: Callable[[], None] = lambda: None,
        meanwhile: str = "",
    ) -> None:
        """`run` starts it, with its output into a descriptor; `meanwhile` is what the log says of the time without."""
        self._loop = loop
        self._poller = poller
        self._reaper = reaper
        self._log = log
        self._source = source
        self._run = run
        self._on_death = on_death
        self._meanwhile = meanwhile
        self._deaths = 0  # in a row
        self._born = 0.0
        self._restart: asyncio.TimerHandle | None = None
        self._pipe: OutputPipe | None = None
        self._pidfd = -1
        self._closed = False
        self.pid = 0
        """The process, 0 while there is none."""

    def start(self) -> None:
        """Start the process; where that fails it is tried again, later and later."""
        self._restart = None
        try:
            out = self._spawn()
        except OSError as error:  # no memory, no descriptor, no process left
            self._on_death()
            self._log.event("error", self._source, f"not started: {error}")
            self._start_later()
            return
        self._born = self._loop.time()
        self._pipe = OutputPipe(out, lambda _, line: self._log.printed(self._source, None, line))
        self._poller.watch(out, self._on_output)
        self._loop.add_reader(self._pidfd, self._look_for_death)
        self._reaper.own(self.pid, self._look_for_death)

    def _spawn(self) -> int:
        """Start it; return where its output comes out."""
        out, printed = os.pipe2(os.O_CLOEXEC)
        try:
            self.pid, self._pidfd = held(self._run(printed))
        except OSError:
            os.close(out)
            raise
        finally:
            os.close(printed)
        return out

    def close(self, within_s: float = 0.0) -> None:
        """End the process, which has so long to do that by itself, and wait for its end."""
        self._closed = True
        if self._restart is not None:
            self._restart.cancel()
        if self._pidfd >= 0:
            if not ends_within(self._pidfd, within_s):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
                ends_within(self._pidfd, None)  # nothing can stop a SIGKILL for long
            self._look_for_death()

    def _on_output(self, _events: int) -> None:
        if self._pipe is not None and not self._pipe.read():
            self._poller.forget(self._pipe.fd)

    def _look_for_death(self) -> None:
        if self._pidfd < 0:
            return
        status = reap(self._pidfd)
        if status is None:
            return
        self._loop.remove_reader(self._pidfd)
        self._reaper.disown(self.pid)
        if self._pipe is not None:
            self._poller.forget(self._pipe.fd)
            self._pipe.close()
        os.close(self._pidfd)
        self.pid, self._pidfd, self._pipe = 0, -1, None
        self._on_death()
        if self._closed:
            return
        if self._loop.time() - self._born >= STEADY_S:
            self._deaths = 0
        pause = self._start_later()
        when = f"in {pause:g} s" if pause else "now"
        cause = death(status, "", 0, ()).cause
        self._log.event("warning", self._source, f"died ({cause}); another one starts {when}{self._meanwhile}")

    def _start_later(self) -> float:
        self._deaths += 1
        pause = pause_before(self._deaths)
        self._restart = self._loop.call_later(pause, self.start)
        return pause


def spawned(
    command: Sequence[str], out: int, descriptors: Sequence[int], environment: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    """Start a companion: in a session of its own, with these descriptors and nothing to read."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=out,
        pass_fds=descriptors,
        env=environment,
        start_new_session=True,
    )


def held(process: "subprocess.Popen[bytes]") -> tuple[int, int]:
    """Return the pid and a pidfd of a process that was started; without a descriptor for it there is no process."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:
        process.kill()
        process.wait()
        raise
    process.returncode = 0  # it is reaped through its pidfd; `Popen` shall not try
    return process.pid, pidfd
