"""The control socket: SEQPACKET, msgpack frames, big bodies as sealed memfds. What `ps`, `kill` and host programs use.

Results stay here until the client acknowledges them, so that a client that lost its connection can come back for them.
"""

import asyncio
import os
import socket
import struct
import termios
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fcntl import ioctl
from typing import Any

import msgspec

from gen_worker.wire import control as wire
from gen_worker.wire.channel import DECODE_ERRORS, ProtocolError, close_all, receive_packet, send_packet
from gen_worker.wire.messages import (
    FRAME_LIMIT,
    INLINE_LIMIT,
    PRIORITY_LIMIT,
    REQUEST_ID_CHARS,
    TENANT_CHARS,
    WINDOW_BYTES,
    WINDOW_ITEMS,
    Event,
)
from gen_worker.wire.regions import OwnRegion, RegionError, size_class
from gen_worker.wire.survey import only_spoken_with
from gen_worker_supervisor.clients.verbs import Subscription, Verbs
from gen_worker_supervisor.core.bodies import InlinePayload, Output, OutputBody, Payload, RegionPayload
from gen_worker_supervisor.core.ladder import Reason
from gen_worker_supervisor.core.phases import JobState
from gen_worker_supervisor.core.state import Job, Outcome
from gen_worker_supervisor.sockets.listening import Acceptor, peer
from gen_worker_supervisor.sockets.poller import GONE, READABLE, WRITABLE, Poller
from gen_worker_supervisor.supervisor import Supervisor

LINK = "control"
KEPT_RESULTS = 1024
KEPT_BYTES = 256 << 20
KEPT_S = 600.0
STALLED_S = 60.0  # a client that takes nothing for so long is cut off
FRAMES_A_TURN = 64
UNSENT_DESCRIPTORS = 64
UNSENT_LIMIT = 4096  # frames a client may leave unread before it is cut off
_decode = msgspec.msgpack.Decoder(wire.ClientFrame).decode
_encode = msgspec.msgpack.Encoder().encode


@dataclass(slots=True, eq=False)
class Ticket:
    """One job of this link: who listens to it now, and its answer until that is acknowledged."""

    request_id: str
    attempt: int
    desk: "ControlServer"
    listener: "ControlClient | None"
    stream: bool
    events: bool
    link: str = LINK
    job: Job | None = None
    outcome: Outcome | None = None
    body: OutputBody = b""
    answered_at: float = 0.0
    untaken: deque[int] = field(default_factory=deque)  # the lengths of the items of a stream on their way
    stall: asyncio.TimerHandle | None = None  # while so many are on their way that the handler waits

    @property
    def key(self) -> tuple[str, int]:
        """What a client calls it."""
        return (self.request_id, self.attempt)

    def answer(self, job: Job, outcome: Outcome, body: OutputBody) -> None:
        """Keep the answer and tell the listener."""
        self.outcome, self.body = outcome, body
        self._end_stall()
        self.desk.keep(self)
        if self.listener is not None:
            self.tell_answer(self.listener)

    def tell_answer(self, listener: "ControlClient") -> None:
        """Send the answer."""
        listener.expect_no_more(self)
        outcome = self.outcome
        assert outcome is not None
        if outcome.state is JobState.OK:
            listener.send_body(
                self.body,
                lambda value: wire.Result(self.request_id, self.attempt, value, outcome.yielded, outcome.run_s),
                keep=True,
            )
        else:
            assert outcome.kind is not None
            listener.send(
                wire.Error(
                    self.request_id, self.attempt, outcome.kind, outcome.message, outcome.retryable, outcome.detail
                )
            )

    def item(self, job: Job, body: OutputBody, content_type: str) -> None:
        """Send a stream item; the client says with `More` when it took it."""
        self.job = job
        if self.listener is None:
            if isinstance(body, Output):
                body.release()
            if not self.stream:
                self.desk.supervisor.more(job, 1)
            return
        length = body.length if isinstance(body, Output) else len(body)
        self.listener.send_body(body, lambda value: wire.Item(self.request_id, value))
        if not self.stream:
            self.desk.supervisor.more(job, 1)
            return
        self.untaken.append(length)
        if self.stall is None and self._window_is_full():
            self.stall = self.desk.later(self._stalled)

    def taken(self, items: int) -> None:
        """The client took this many items."""
        for _ in range(min(items, len(self.untaken))):
            self.untaken.popleft()
        self._end_stall()
        if self._window_is_full():
            self.stall = self.desk.later(self._stalled)

    def _window_is_full(self) -> bool:
        return len(self.untaken) >= WINDOW_ITEMS or sum(self.untaken) >= WINDOW_BYTES

    def _end_stall(self) -> None:
        if self.stall is not None:
            self.stall.cancel()
            self.stall = None

    def _stalled(self) -> None:
        """The handler waits for a reader that takes nothing: it would hold its device for ever."""
        self.stall = None
        if self.job is None or self.job.ended:
            return
        supervisor = self.desk.supervisor
        text = f"nobody has taken an item of `{self.request_id}` for {self.desk.stalled_s:g} s: it is canceled"
        supervisor.log.event("warning", LINK, text)
        supervisor.end(self.job, Reason.DISCONNECT)

    def event(self, job: Job, event: Event) -> None:
        """Send a progress or log event, unless the client is slow."""
        if self.listener is not None and self.listener.keeps_up:
            self.listener.send(wire.Event(self.request_id, event.event, event.value))

    def rerun(self, job: Job) -> None:
        """Nothing was kept of the first run."""

    def forget(self) -> None:
        """Let go of the answer."""
        if isinstance(self.body, Output):
            self.body.release()
        self.body = b""


class ControlServer:
    """Listens on the control socket and keeps unacknowledged results."""

    def __init__(
        self,
        supervisor: Supervisor,
        loop: asyncio.AbstractEventLoop,
        poller: Poller,
        hello: wire.Opened,
        *,
        kept_s: float = KEPT_S,
        stalled_s: float = STALLED_S,
    ) -> None:
        self.supervisor = supervisor
        self.hello = hello
        self.verbs: Verbs
        self.dropped = 0
        self.kept_s = kept_s
        self.stalled_s = stalled_s
        self._acceptor: Acceptor | None = None
        self._loop = loop
        self._poller = poller
        self._clients: set[ControlClient] = set()
        self._tickets: OrderedDict[tuple[str, int], Ticket] = OrderedDict()
        self._kept: OrderedDict[tuple[str, int], int] = OrderedDict()
        self._kept_bytes = 0
        self._tidying: asyncio.TimerHandle | None = None

    def listen(self, sock: socket.socket) -> None:
        """Accept clients on a listening socket."""
        log = self.supervisor.log
        self._acceptor = Acceptor(
            sock, self._loop, self._poller, self._admit, lambda problem: log.event("warning", "control", problem)
        )

    def _admit(self, sock: socket.socket) -> None:
        _, uid = peer(sock)
        if uid in (os.geteuid(), 0):
            self._clients.add(ControlClient(self, sock, self._loop, self._poller))
        else:
            sock.close()

    def later(self, call: Callable[[], None]) -> asyncio.TimerHandle:
        """Have something called when a client has taken nothing for too long."""
        return self._loop.call_later(self.stalled_s, call)

    def ticket(self, key: tuple[str, int]) -> Ticket | None:
        """Return the job of this key, running or waiting for its `Ack`."""
        return self._tickets.get(key)

    def open_ticket(self, ticket: Ticket) -> None:
        """Remember a job."""
        self._tickets[ticket.key] = ticket

    def keep(self, ticket: Ticket) -> None:
        """Keep an answer until it is acknowledged; the oldest go when there are too many, too big or too old."""
        ticket.answered_at = self._loop.time()
        size = ticket.body.length if isinstance(ticket.body, Output) else len(ticket.body)
        self._kept[ticket.key] = size
        self._kept_bytes += size
        while len(self._kept) > 1 and (len(self._kept) > KEPT_RESULTS or self._kept_bytes > KEPT_BYTES):
            self._drop_oldest()
        if self._tidying is None:
            self._tidying = self._loop.call_later(self.kept_s, self._tidy)

    def _drop_oldest(self) -> None:
        self.dropped += 1
        self.acknowledge(next(iter(self._kept)))

    def _tidy(self) -> None:
        """Drop the answers that nobody came back for in time."""
        self._tidying = None
        while self._kept:
            due = self._tickets[next(iter(self._kept))].answered_at + self.kept_s
            if due > self._loop.time():
                self._tidying = self._loop.call_at(due, self._tidy)
                return
            self._drop_oldest()

    def acknowledge(self, key: tuple[str, int]) -> None:
        """The client has the answer."""
        size = self._kept.pop(key, None)
        if size is None:
            return
        self._kept_bytes -= size
        self._tickets.pop(key).forget()

    def gone(self, client: "ControlClient") -> None:
        """A client closed its connection: its streams end, its other jobs go on for its return."""
        self._clients.discard(client)
        listened = [ticket for ticket in client.awaited() if ticket.listener is client]
        for ticket in listened:
            ticket.listener = None
        for ticket in listened:
            if ticket.stream and ticket.job is not None and not ticket.job.ended:
                self.supervisor.end(ticket.job, Reason.DISCONNECT)

    def close(self) -> None:
        """Close the socket and every connection."""
        if self._acceptor is not None:
            self._acceptor.close()
        if self._tidying is not None:
            self._tidying.cancel()
        for client in list(self._clients):
            client.close()
        for key in list(self._kept):
            self.acknowledge(key)


@dataclass(slots=True)
class _Unsent:
    packet: bytes
    descriptors: list[int] = field(default_factory=list)


def _problem(frame: wire.Submit) -> str:
    """Return what is wrong with who and how a job is asked for; empty when nothing is."""
    if len(frame.request_id) > REQUEST_ID_CHARS:
        return f"a `request_id` of {len(frame.request_id)} characters, the limit is {REQUEST_ID_CHARS}"
    if len(frame.tenant) > TENANT_CHARS or not frame.tenant.isprintable():
        return f"a `tenant` is printable text of at most {TENANT_CHARS} characters"
    if abs(frame.priority) > PRIORITY_LIMIT:
        return f"a `priority` of {frame.priority}, it may be from -{PRIORITY_LIMIT} to {PRIORITY_LIMIT}"
    return ""


class ControlClient:
    """One connection."""

    def __init__(
        self, server: ControlServer, sock: socket.socket, loop: asyncio.AbstractEventLoop, poller: Poller
    ) -> None:
        self._server = server
        self._supervisor = server.supervisor
        self._sock = sock
        self._loop = loop
        self._poller = poller
        self._view = memoryview(bytearray(FRAME_LIMIT + 1))
        self._unsent: deque[_Unsent] = deque()
        self._lent: dict[int, Output] = {}
        self._awaited: dict[str, dict[int, Ticket]] = {}  # the jobs whose answers go here, by id and attempt
        self._opened = False
        self._closed = False
        self._stall: asyncio.TimerHandle | None = None  # while frames wait that it does not take
        self._watching: Subscription | None = None
        poller.watch(sock.fileno(), self._on_events)

    # --- in ---

    def _on_events(self, events: int) -> None:
        if events & WRITABLE:
            self._on_writable()
        if events & (READABLE | GONE) and not self._closed:
            self._on_readable()

    def _on_readable(self) -> None:
        for _ in range(FRAMES_A_TURN):
            if self._closed:
                return
            try:
                length, descriptors = receive_packet(self._sock, self._view)
            except BlockingIOError:
                return
            except (ProtocolError, OSError):
                self.close()
                return
            if length == 0:
                close_all(descriptors)
                self.close()
                return
            self._on_packet(self._view[:length], descriptors)

    def _on_packet(self, packet: memoryview, descriptors: list[int]) -> None:
        try:
            frame = _decode(packet)
        except DECODE_ERRORS as error:
            close_all(descriptors)
            self._refuse("", f"not a frame: {str(error)[:200] or type(error).__name__}")
            self.close()
            return
        if not isinstance(frame, wire.Submit):
            close_all(descriptors)
            descriptors = []
        if not self._opened and not isinstance(frame, wire.Open):
            close_all(descriptors)
            self._refuse("", "the first frame must be `open`")
            self.close()
            return
        self._perform(frame, descriptors)

    def _perform(self, frame: wire.ClientFrame, descriptors: list[int]) -> None:
        match frame:
            case wire.Open():
                self._open(frame)
            case wire.Submit():
                self._submit(frame, descriptors)
            case wire.Ack(request_id, attempt):
                self._server.acknowledge((request_id, attempt))
            case wire.More(request_id, items):
                self._more(request_id, items)
            case wire.Release(region):
                output = self._lent.pop(region, None)
                if output is not None:
                    output.release()
            case wire.Cancel(request_id):
                self._cancel(request_id)
            case wire.Kill(request_id, now):
                self._kill(request_id, now)
            case wire.Watch(every_ms, jobs):
                self._watch(every_ms, jobs)
            case _:
                self._server.verbs.perform(frame, self)

    def _watch(self, every_ms: int, jobs: int) -> None:
        if self._watching is not None:
            self._watching.close()
            self._watching = None
        if every_ms > 0:
            self._watching = self._server.verbs.watch(self, every_ms, jobs)

    def _open(self, frame: wire.Open) -> None:
        if frame.protocol != wire.CONTROL_PROTOCOL:
            ours, version = wire.CONTROL_PROTOCOL, self._server.hello.version
            self._refuse(
                "",
                f"the client speaks control protocol {frame.protocol}, "
                f"this supervisor (gen-worker {version}) speaks {ours}: use the client of gen-worker {version}",
            )
            self.close()
            return
        self._opened = True
        self.send(self._server.hello)

    def _submit(self, frame: wire.Submit, descriptors: list[int]) -> None:
        if problem := _problem(frame):
            close_all(descriptors)
            self._refuse(frame.request_id if len(frame.request_id) <= REQUEST_ID_CHARS else "", problem)
            return
        known = self._server.ticket((frame.request_id, frame.attempt))
        if known is not None:
            close_all(descriptors)
            self._attach_to(known)
            return
        payload = self._payload(frame, descriptors)
        if payload is None:
            return
        name = self._supervisor.routable(frame.function)
        if name is None:
            payload.close()
            names = ", ".join(f"`{name}`" for name in sorted(self._supervisor.fleet.functions))
            self._refuse(frame.request_id, f"no function `{frame.function[:100]}`; there are: {names}", "not_found")
            return
        if self._supervisor.fleet.functions[name].own.realtime:
            payload.close()
            self._refuse(frame.request_id, only_spoken_with(name), "usage")
            return
        ticket = Ticket(frame.request_id, frame.attempt, self._server, self, frame.stream, frame.events)
        self._server.open_ticket(ticket)
        self._expect(ticket)
        self.send(wire.Accepted(frame.request_id, frame.attempt))
        ticket.job = self._supervisor.submit(
            ticket,
            request_id=frame.request_id,
            function=self._supervisor.fleet.functions[name],
            payload=payload,
            encoding=frame.encoding,
            attempt=frame.attempt,
            stream=frame.stream or self._supervisor.fleet.functions[name].surveyed.streams,
            events=frame.events,
            timeout_s=frame.timeout_ms / 1000 if frame.timeout_ms > 0 else None,
            tenant=frame.tenant,
            priority=frame.priority,
            traceparent=frame.traceparent,
        )

    def _attach_to(self, ticket: Ticket) -> None:
        if ticket.listener is not None and ticket.listener is not self and ticket.outcome is None:
            ticket.listener.replaced(ticket)
        ticket.listener = self
        self._expect(ticket)
        self.send(wire.Accepted(ticket.request_id, ticket.attempt))
        if ticket.outcome is not None:
            ticket.tell_answer(self)

    def _expect(self, ticket: Ticket) -> None:
        self._awaited.setdefault(ticket.request_id, {})[ticket.attempt] = ticket

    def expect_no_more(self, ticket: Ticket) -> None:
        """Nothing of this job is to come here after what is sent now."""
        attempts = self._awaited.get(ticket.request_id, {})
        attempts.pop(ticket.attempt, None)
        if not attempts:
            self._awaited.pop(ticket.request_id, None)

    def awaited(self) -> list[Ticket]:
        """Return the jobs whose answers are to come here."""
        return [ticket for attempts in self._awaited.values() for ticket in attempts.values()]

    def _live(self, request_id: str) -> list[Job]:
        """Return the jobs of this name that this connection waits for, every attempt, the newest last."""
        tickets = self._awaited.get(request_id, {}).values()
        return [ticket.job for ticket in tickets if ticket.job is not None and not ticket.job.ended]

    def replaced(self, ticket: Ticket) -> None:
        """Another connection asked for the same job: the answer goes there."""
        self.expect_no_more(ticket)
        text = f"another connection has taken `{ticket.request_id}` over"
        self.send(wire.Error(ticket.request_id, 0, "usage", text, False))  # not the job's end: nothing to acknowledge

    def _payload(self, frame: wire.Submit, descriptors: list[int]) -> Payload | None:
        if isinstance(frame.body, bytes):
            close_all(descriptors)
            return InlinePayload(frame.body)
        if len(descriptors) != 1:
            close_all(descriptors)
            self._refuse(frame.request_id, f"a body came with {len(descriptors)} descriptors instead of 1")
            return None
        try:
            return RegionPayload(descriptors[0], frame.body.length)
        except RegionError as error:
            self._refuse(frame.request_id, str(error))
            return None

    def _more(self, request_id: str, items: int) -> None:
        if items <= 0:
            return
        for ticket in self._awaited.get(request_id, {}).values():
            ticket.taken(items)
        for job in self._live(request_id):
            self._supervisor.more(job, items)

    def _meant(self, request_id: str) -> list[Job]:
        """Return the live jobs that the client may mean: its own newest attempt before anybody else's."""
        return self._live(request_id)[-1:] or self._supervisor.find(request_id)

    def _cancel(self, request_id: str) -> None:
        jobs = self._meant(request_id)
        if len(jobs) != 1:
            self.send(wire.Canceled(request_id, False))
            return
        self._supervisor.watch(
            jobs[0], lambda outcome: self.send(wire.Canceled(request_id, outcome.state is JobState.CANCELED))
        )
        self._supervisor.end(jobs[0], Reason.CANCEL)

    def _kill(self, request_id: str, now: bool) -> None:
        jobs = self._meant(request_id)
        if len(jobs) != 1:
            candidates = [f"{job.client.link}/{job.request_id}" for job in jobs]
            self.send(wire.Killed(request_id, "ambiguous" if jobs else "not_found", candidates=candidates))
            return
        job = jobs[0]
        began = self._loop.time()

        def tell(outcome: Outcome) -> None:
            killed = outcome.kind == "killed"
            detail = outcome.detail if killed else None
            self.send(
                wire.Killed(
                    request_id,
                    "killed" if killed else "finished",
                    detail.rung if detail is not None else None,
                    (detail.stack or []) if detail is not None else [],
                    self._loop.time() - began,
                )
            )

        self._supervisor.watch(job, tell)
        self._supervisor.end(job, Reason.KILL, at_once=now)

    @property
    def closed(self) -> bool:
        """Whether the connection is over: nothing that is sent arrives."""
        return self._closed

    def _refuse(self, request_id: str, message: str, kind: Any = "usage") -> None:
        self.send(wire.Error(request_id, 0, kind, message, False))

    # --- out ---

    @property
    def keeps_up(self) -> bool:
        """Whether the client has taken everything so far."""
        return not self._unsent

    @property
    def caught_up(self) -> bool:
        """Whether the client has read all that was sent, so that nothing of it takes the kernel's memory any more."""
        if self._unsent or self._closed:
            return False
        unread: int = struct.unpack("i", ioctl(self._sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
        return unread == 0

    def send_body(
        self, body: OutputBody, frame_of: Callable[[wire.Value], wire.ServerFrame], *, keep: bool = False
    ) -> None:
        """Send a frame with a body, inline or as a memfd which the client reads until it sends `Release`.

        With `keep` the caller goes on holding the body too. A client that has gone gets nothing and holds nothing.
        """
        if self._closed:
            if isinstance(body, Output) and not keep:
                body.release()
            return
        if isinstance(body, Output):
            if keep and body.name not in self._lent:
                body.hold()
            self._lent[body.name] = body
            self.send(frame_of(wire.Attached(body.length, body.name)), [body.fd])
        elif len(body) <= INLINE_LIMIT:
            self.send(frame_of(body))
        else:
            with OwnRegion.create(size_class(len(body)), shared_with_readers_only=True) as region:
                region.view[: len(body)] = body
                self.send(frame_of(wire.Attached(len(body))), [region.fd])

    def send(self, frame: wire.ServerFrame, descriptors: Sequence[int] = ()) -> None:
        """Send a frame now, or as soon as the client has read earlier ones."""
        if self._closed:
            return
        packet = _encode(frame)
        if not self._unsent:
            try:
                send_packet(self._sock, packet, descriptors)
            except BlockingIOError:
                self._poller.change(self._sock.fileno(), READABLE | WRITABLE)
            except OSError:
                self._loop.call_soon(self.close)
                return
            else:
                return
        held = sum(len(waiting.descriptors) for waiting in self._unsent) if descriptors else 0
        if len(self._unsent) >= UNSENT_LIMIT or held >= UNSENT_DESCRIPTORS:
            self._loop.call_soon(self.close)
            return
        self._unsent.append(_Unsent(packet, [os.dup(fd) for fd in descriptors]))
        self._begin_stall()

    def _stalled(self) -> None:
        text = f"a client has taken nothing for {self._server.stalled_s:g} s, {len(self._unsent)} frames wait: "
        self._supervisor.log.event("warning", LINK, f"{text}it is cut off")
        self.close()

    def _on_writable(self) -> None:
        while self._unsent:
            waiting = self._unsent[0]
            try:
                send_packet(self._sock, waiting.packet, waiting.descriptors)
            except BlockingIOError:
                self._begin_stall()
                return
            except OSError:
                self.close()
                return
            close_all(waiting.descriptors)
            self._unsent.popleft()
            self._end_stall()
        self._poller.change(self._sock.fileno(), READABLE)

    def _begin_stall(self) -> None:
        if self._stall is None:
            self._stall = self._server.later(self._stalled)

    def _end_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def close(self) -> None:
        """Close the connection and give back what the client was reading."""
        if self._closed:
            return
        self._closed = True
        self._watch(0, 0)  # they know each other: else only the cycle collector would free them
        self._server.verbs.forget(self)
        self._end_stall()
        self._poller.forget(self._sock.fileno())
        self._sock.close()
        for waiting in self._unsent:
            close_all(waiting.descriptors)
        for output in self._lent.values():
            output.release()
        self._lent.clear()
        self._server.gone(self)
