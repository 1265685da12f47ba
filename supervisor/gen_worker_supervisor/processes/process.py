"""One child process as the supervisor holds it: its socket, its pidfd, its output, its memory.

Carries frames and notices; what they mean is decided elsewhere. Never waits for the child.
"""

import asyncio
import os
import signal
import socket
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Protocol

from gen_worker.scratch import remove_abandoned
from gen_worker.wire.channel import Channel, ProtocolError, close_all
from gen_worker.wire.messages import Order, Report
from gen_worker.wire.page import PageReader, Reading, create_page
from gen_worker_supervisor.core.bodies import InputRegions, OutputRegions
from gen_worker_supervisor.core.deaths import death, read_dump
from gen_worker_supervisor.core.state import Child, Death
from gen_worker_supervisor.processes.leftovers import end_engines_soon
from gen_worker_supervisor.processes.output import TAIL_LINES, OutputPipe
from gen_worker_supervisor.processes.reaper import Reaper, ends_within, reap
from gen_worker_supervisor.sockets.poller import GONE, READABLE, WRITABLE, Poller

DEAF_LIMIT_S = 2.0  # a child may close its socket so long before it ends
LAST_FRAMES = 4096  # far more than fit into a socket; what a descendant goes on sending does not hold the supervisor
FRAMES_A_TURN = 64  # of one child, before the others and the clients get theirs


class Listener(Protocol):
    """Who is told what a child does."""

    def on_frames(self, process: "ChildProcess", frames: list[tuple[Report, list[int]]]) -> None:
        """Frames came, in this order; descriptors are the listener's now."""
        ...

    def on_misbehaviour(self, process: "ChildProcess", what: str) -> None:
        """The child broke the protocol."""
        ...

    def on_line(self, process: "ChildProcess", job: int, line: str) -> None:
        """The child printed a line."""
        ...

    def on_birth(self, process: "ChildProcess") -> None:
        """The process exists."""
        ...

    def on_death(self, process: "ChildProcess", death: Death) -> None:
        """The process has ended and everything it left was read."""
        ...


class ChildProcess:
    """A child's descriptors and buffers, from before its process exists until after its death."""

    def __init__(
        self,
        child: Child,
        loop: asyncio.AbstractEventLoop,
        poller: Poller,
        listener: Listener,
        reaper: Reaper,
    ) -> None:
        self.child = child
        self._loop = loop
        self._poller = poller
        self._listener = listener
        self._reaper = reaper
        with ExitStack() as made:  # what was made is closed again when the rest cannot be
            ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            made.callback(ours.close)
            made.callback(self.theirs.close)
            out_read, self.out_write = os.pipe2(os.O_CLOEXEC)
            made.callback(close_all, [out_read, self.out_write])
            err_read, self.err_write = os.pipe2(os.O_CLOEXEC)
            made.callback(close_all, [err_read, self.err_write])
            self.crash_fd = os.memfd_create("gen-worker-crash", os.MFD_CLOEXEC)
            made.callback(os.close, self.crash_fd)
            self.page_fd = create_page()
            made.pop_all()
        ours.setblocking(False)
        self.channel: Channel[Report] = Channel(ours, generation=child.generation, receives=Report)
        self.tail: deque[tuple[int, str]] = deque(maxlen=TAIL_LINES)  # the job that printed it, 0 when unknown
        self._pipes = [OutputPipe(fd, self._on_line) for fd in (out_read, err_read)]
        self._page = PageReader(self.page_fd)
        self._reading: Reading | None = None
        self.inputs = InputRegions()
        self.outputs = OutputRegions(child.generation, self.send)
        self.pid = 0
        self._pidfd = -1
        self._burst = 1
        self._signal_at_birth = 0
        self._breach = ""  # how it broke the protocol
        self._unsent: deque[tuple[object, list[int]]] = deque()
        self._deaf = False
        self._closed = False

    # --- birth ---

    def descriptors(self) -> list[int]:
        """Return what the new process must be given, in the order a `Fork` names."""
        return [self.theirs.fileno(), self.out_write, self.err_write, self.crash_fd, self.page_fd]

    def born(self, pid: int, pidfd: int) -> None:
        """The process exists: close the child's ends and begin to listen."""
        self.pid = pid
        self._pidfd = pidfd
        self._close_theirs()
        self._reaper.own(pid, self.look_for_death)
        self._loop.add_reader(pidfd, self.look_for_death)
        waits = WRITABLE if self._unsent else 0
        self._poller.watch(self.channel.fileno(), self._on_events, READABLE | waits)
        for pipe in self._pipes:
            self._poller.watch(pipe.fd, partial(self._on_output, pipe))  # before its frames: see `Poller`
        self._listener.on_birth(self)
        if self._signal_at_birth:
            self.signal(self._signal_at_birth)

    def _close_theirs(self) -> None:
        self.theirs.close()
        close_all([self.out_write, self.err_write])
        self.out_write = self.err_write = -1

    # --- frames ---

    def send(self, message: Order, descriptors: Sequence[int] = ()) -> None:
        """Send a frame now, or as soon as the child's socket has room; never wait, keep nothing for the dead."""
        if self._deaf:
            return
        if self._unsent:
            self._unsent.append((message, [os.dup(fd) for fd in descriptors]))
            return
        try:
            self.channel.send(message, descriptors)
        except BlockingIOError:
            self._unsent.append((message, [os.dup(fd) for fd in descriptors]))
            self._watch(READABLE | WRITABLE)
        except (BrokenPipeError, ConnectionResetError):
            self._deaf = True

    def _on_writable(self) -> None:
        while self._unsent:
            message, descriptors = self._unsent[0]
            try:
                self.channel.send(message, descriptors)
            except BlockingIOError:
                return
            except (BrokenPipeError, ConnectionResetError):
                self._deaf = True
                break
            except ProtocolError as error:  # nobody is there any more who could take it back
                self._listener.on_misbehaviour(self, f"it cannot be told of a {type(message).__name__}: {error}")
            close_all(descriptors)
            self._unsent.popleft()
        self._watch(READABLE)

    def _watch(self, events: int) -> None:
        if self._pidfd >= 0:  # before the birth nobody reads; what waits is sent with the first event
            self._poller.change(self.channel.fileno(), events)

    def _on_events(self, events: int) -> None:
        if events & WRITABLE and self._unsent:
            self._on_writable()
        if events & (READABLE | GONE):
            self._on_readable()

    def _on_readable(self) -> None:
        # As many frames as came last time: asking for one more costs a call and an exception, and epoll tells of it.
        frames, problem = self._read_frames(self._burst)
        self._burst = min(2 * self._burst, FRAMES_A_TURN) if len(frames) == self._burst else len(frames) or 1
        if frames:
            self._listener.on_frames(self, frames)
        if problem is not None:
            self._poller.forget(self.channel.fileno())
            self._deaf = True
            if problem:
                self._breach = problem
                self._listener.on_misbehaviour(self, problem)
            else:
                self._loop.call_later(DEAF_LIMIT_S, self._look_for_life)

    def _look_for_life(self) -> None:
        """A child that has closed its socket is about to end; one that is still there can never be told anything."""
        if not self._closed:
            self._breach = "its socket is closed and it lives on"
            self._listener.on_misbehaviour(self, self._breach)

    def _read_frames(self, limit: int) -> tuple[list[tuple[Report, list[int]]], str | None]:
        """Read what is there; the second value is None while more may come, "" at the end, else what was wrong."""
        frames: list[tuple[Report, list[int]]] = []
        receive = self.channel.receive
        while len(frames) < limit:
            try:
                received = receive()
            except BlockingIOError:
                return frames, None
            except ProtocolError as error:
                return frames, str(error)
            if received is None:
                return frames, ""
            frames.append(received)
        return frames, None

    # --- output ---

    def _on_output(self, pipe: OutputPipe, _: int) -> None:
        if not pipe.read():
            self._poller.forget(pipe.fd)

    def _on_line(self, job: int, line: str) -> None:
        self._listener.on_line(self, job, line)

    # --- looking at it ---

    def reading(self) -> Reading | None:
        """Return the latest consistent reading of the status page."""
        self._reading = (self._page.read() or self._reading) if not self._closed else self._reading
        return self._reading

    def signal(self, number: int) -> None:
        """Send the process a signal; SIGKILL goes to its whole session."""
        if self._pidfd < 0:
            self._signal_at_birth = number
            return
        try:
            signal.pidfd_send_signal(self._pidfd, number)
            if number == signal.SIGKILL:
                os.killpg(self.pid, signal.SIGKILL)  # its own session: it called setsid, so its pid is the group
        except ProcessLookupError:
            return  # it was already gone, which is what we wanted

    # --- death ---

    def look_for_death(self) -> None:
        """Take note of the process's death, if it has ended."""
        if self._closed:
            return
        status = reap(self._pidfd)
        if status is None:
            return  # not our child yet: the zygote's middle process has still to end, and SIGCHLD brings us back
        self._loop.remove_reader(self._pidfd)
        self._reaper.disown(self.pid)
        # A dead child's socket is read to its end before it is judged; one that broke the protocol is not believed.
        frames, problem = ([], self._breach) if self._breach else self._read_frames(LAST_FRAMES)
        if frames:
            self._listener.on_frames(self, frames)
        self._sweep()
        if self.child.engines:
            end_engines_soon(self._loop, self.pid)
        self._close_io()
        what = death(status, read_dump(self.crash_fd), self.child.job_thread, tuple(self.tail))
        self.close()
        if problem:
            what = Death(f"protocol: {problem}", what.signal, what.exit_code, what.stack, what.printed)
        self._listener.on_death(self, what)
        remove_abandoned()  # the last of all: whatever a disk makes of it, the death is known

    def wait_for_death(self, seconds: float) -> None:
        """Wait a little for a process that was killed, and take note of its death."""
        if self._pidfd >= 0 and ends_within(self._pidfd, seconds):
            self.look_for_death()

    def _sweep(self) -> None:
        """End what the child left behind in its session."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return  # nobody was left

    def _close_io(self) -> None:
        self._poller.forget(self.channel.fileno())
        for pipe in self._pipes:
            self._poller.forget(pipe.fd)
            pipe.close()

    def close(self) -> None:
        """Let go of every descriptor; outputs somebody still reads stay until they are released."""
        if self._closed:
            return
        self.reading()
        self._closed = self._deaf = True
        for _, descriptors in self._unsent:
            close_all(descriptors)
        self._unsent.clear()
        self._pipes.clear()  # they hold this, and this them: only the cycle collector would free a dead child
        self.channel.close()
        self.inputs.close()
        self.outputs.close()
        self._page.close()
        close_all([self.crash_fd, self.page_fd, *([self._pidfd] if self._pidfd >= 0 else [])])
        self._pidfd = -1

    def stillborn(self, reason: str) -> None:
        """The process could not be made: let go of everything."""
        self._close_theirs()
        for pipe in self._pipes:
            pipe.close()
        self.close()
        self._listener.on_death(self, Death(f"not started: {reason}", unborn=True))
