"""Make child processes: by the zygote when there is a fit one, else by a plain spawn.

Everything here runs on the main thread: the kernel ends a child when the thread that made it ends. No `preexec_fn`,
which would run fork handlers of whatever native libraries are loaded.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping

from gen_worker.environment import author_environment
from gen_worker.wire.channel import Channel, ProtocolError, close_all
from gen_worker.wire.messages import Fork, Forked, Unfit, Warm, ZygoteReport
from gen_worker_supervisor.logs.log import Log
from gen_worker_supervisor.processes.environment import child_environment
from gen_worker_supervisor.processes.process import ChildProcess
from gen_worker_supervisor.processes.reaper import Reaper, reap

ZYGOTE_TRIES = 3
FORK_LIMIT_S = 5.0  # measured: 5 to 50 ms
RETRY_S = 10.0  # until a zygote that could not be started is tried again


def _with(imported: list[str]) -> str:
    return f", with {len(imported)} module{'' if len(imported) == 1 else 's'} imported" if imported else ""


def _pidfd_of(made: "subprocess.Popen[bytes]") -> int:
    """Return a pidfd of a new process; where none is to be had, end it and raise `OSError`."""
    try:
        return os.pidfd_open(made.pid)
    except OSError:
        made.kill()
        made.wait()
        raise


class Nursery:
    """Gives `ChildProcess`es their process, in the order they came."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        reaper: Reaper,
        log: Log,
        environment: Mapping[str, str],
        preload: list[str],
        *,
        use_zygote: bool = True,
    ) -> None:
        self._loop = loop
        self._reaper = reaper
        self._log = log
        self._environment = environment
        self._preload = preload
        self._tries = ZYGOTE_TRIES if use_zygote else 0
        self._channel: Channel[ZygoteReport] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._warm = False
        self._closing = False
        self._expected: dict[int, ChildProcess] = {}  # by generation, in order; their forks were asked for or must wait

    def start(self) -> None:
        """Start the zygote; children that are asked for before it is warm wait for it."""
        if self._tries == 0:
            return
        self._tries -= 1
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            self._not_started(error)
            return
        ours.setblocking(False)
        command = [sys.executable, "-P", "-m", "gen_worker_child.zygote", "--socket", str(theirs.fileno())]
        command += ["--supervisor", str(os.getpid()), *self._preload]
        try:
            made = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=[theirs.fileno()],
                env=author_environment(self._environment),
                start_new_session=True,
            )
            self._pidfd = _pidfd_of(made)
        except OSError as error:
            ours.close()
            self._not_started(error)
            return
        finally:
            theirs.close()
        self._process = made
        self._channel = Channel(ours, generation=0, receives=ZygoteReport)
        self._reaper.own(self._process.pid, self._on_zygote_death)
        self._loop.add_reader(self._pidfd, self._on_zygote_death)
        self._loop.add_reader(ours.fileno(), self._on_report)

    def preload(self, modules: list[str]) -> None:
        """Import these modules into the zygote; where it lacks one, another takes its place."""
        if set(modules) <= set(self._preload):
            return
        self._preload = modules
        if self._channel is not None and not self._expected:
            self._tries += 1
            self._log.event("info", "zygote", f"another one starts: the code imports {', '.join(modules)}")
            self._end_zygote()

    def _not_started(self, error: OSError) -> None:
        """Try again in a while: what the system lacks now, memory, descriptors or processes, it may have then."""
        self._log.event("warning", "zygote", f"not started: {error}; children are spawned for {RETRY_S:g} s")
        self._tries += 1
        self._loop.call_later(RETRY_S, self._try_again)

    def _try_again(self) -> None:
        if self._process is None and not self._closing:
            self.start()

    def make(self, process: ChildProcess) -> None:
        """Make the process; `born` is called on it now or later."""
        if self._channel is None:
            self._spawn(process)
            return
        self._expected[process.child.generation] = process
        if self._warm:
            self._fork(process)

    def _fork(self, process: ChildProcess) -> None:
        assert self._channel is not None
        environment = child_environment(self._environment, process.child.device)
        order = Fork(process.child.generation, environment, os.getpid())
        try:
            self._channel.send(order, process.descriptors())
        except (OSError, ProtocolError) as error:  # full, gone, or an environment too big for a frame
            self._log.event("warning", "zygote", f"cannot fork ({error}): the child is spawned")
            del self._expected[process.child.generation]
            self._spawn(process)
        else:
            self._reaper.births += 1
            self._loop.call_later(FORK_LIMIT_S, self._look_for_birth, process.child.generation)

    def _look_for_birth(self, generation: int) -> None:
        if generation in self._expected and self._warm:
            self._lose_zygote(f"it did not fork within {FORK_LIMIT_S:g} s")

    def _spawn(self, process: ChildProcess) -> None:
        sock, out, err, crash, page = process.descriptors()
        command = [sys.executable, "-P", "-m", "gen_worker_child.main", "--socket", str(sock)]
        command += [
            "--crash",
            str(crash),
            "--page",
            str(page),
            "--generation",
            str(process.child.generation),
            "--supervisor",
            str(os.getpid()),
        ]
        try:
            spawned = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                pass_fds=[sock, crash, page],
                env=child_environment(self._environment, process.child.device),
                start_new_session=True,
            )
            pidfd = _pidfd_of(spawned)
        except OSError as error:  # no memory, no descriptor, no process left
            self._loop.call_soon(process.stillborn, str(error))
            return
        spawned.returncode = 0  # it is reaped through its pidfd; `Popen` shall not try
        process.born(spawned.pid, pidfd)

    def _on_report(self) -> None:
        assert self._channel is not None
        try:
            received = self._channel.receive()
        except BlockingIOError:
            return
        except ProtocolError as error:
            self._lose_zygote(f"it sent no frame of ours: {error}")
            return
        if received is None:
            self._loop.remove_reader(self._channel.fileno())  # its death follows
            return
        report, descriptors = received
        match report:
            case Warm(imported, failed):
                self._on_warm(imported, failed)
            case Unfit(reason):
                self._tries = 0
                self._lose_zygote(reason)
            case Forked(generation, pid):
                self._on_forked(generation, pid, descriptors)

    def _on_warm(self, imported: list[str], failed: list[str]) -> None:
        self._warm = True
        for line in failed:
            self._log.event("warning", "zygote", f"left out an import: {line}")
        self._log.event("info", "zygote", f"ready: new children are forked from it{_with(imported)}")
        if imported:
            self._log.say(f"the zygote imported {', '.join(imported)}", "debug")
        for process in list(self._expected.values()):
            self._fork(process)

    def _on_forked(self, generation: int, pid: int, descriptors: list[int]) -> None:
        if generation not in self._expected or len(descriptors) != 1:
            close_all(descriptors)
            self._lose_zygote(f"it answered for generation {generation} with {len(descriptors)} descriptors")
            return
        process = self._expected.pop(generation)
        self._reaper.births -= 1
        process.born(pid, descriptors[0])

    def _lose_zygote(self, reason: str) -> None:
        """Go on without this zygote; children it owes are spawned."""
        self._log.event("warning", "zygote", f"not used: {reason}; children are spawned")
        self._end_zygote()

    def _end_zygote(self) -> None:
        if self._channel is None or self._process is None:
            return
        self._loop.remove_reader(self._channel.fileno())
        self._channel.close()
        self._channel = None
        self._warm = False
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)  # `Popen.kill` would reap it behind the reaper's back
        self._on_zygote_death()

    def _on_zygote_death(self) -> None:
        if self._process is None or reap(self._pidfd) is None:
            return
        process, self._process = self._process, None
        process.returncode = 0
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._reaper.disown(process.pid)
        if self._channel is not None:
            self._log.event("warning", "zygote", "died; children are spawned until another one is ready")
            self._drain_reports()
            self._loop.remove_reader(self._channel.fileno())
            self._channel.close()
            self._channel = None
        self._warm = False
        owed, self._expected = list(self._expected.values()), {}
        self._reaper.births = 0
        for waiting in owed:
            self._spawn(waiting)
        if self._tries and not self._closing:
            self.start()

    def _drain_reports(self) -> None:
        """Take over the children that the zygote made before it died."""
        channel = self._channel
        while channel is not None and self._channel is channel:
            try:
                received = channel.receive()
            except (BlockingIOError, ProtocolError):
                return
            if received is None:
                return
            report, descriptors = received
            if isinstance(report, Forked):
                self._on_forked(report.generation, report.pid, descriptors)

    def close(self) -> None:
        """End the zygote."""
        self._closing = True
        self._expected.clear()
        if self._process is not None:
            self._end_zygote()
        if self._process is not None:  # killed, not reaped yet: nothing can stop a SIGKILL for long
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOWAIT)
            self._on_zygote_death()
