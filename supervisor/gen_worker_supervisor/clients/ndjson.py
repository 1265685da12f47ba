"""The NDJSON link: one JSON request a line in, answers out.

Payloads and results pass through as bytes: a request is decoded up to its payload, an answer is spliced around the
child's own JSON. Never decides what happens to a job.
"""

import os
import re
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Annotated, NamedTuple

import msgspec

from gen_worker.wire.channel import DECODE_ERRORS
from gen_worker.wire.messages import PRIORITY_LIMIT, REQUEST_ID_CHARS, TENANT_CHARS, ErrorDetail, ErrorKind, Event
from gen_worker.wire.survey import only_spoken_with
from gen_worker_supervisor.core.bodies import InlinePayload, Output, OutputBody
from gen_worker_supervisor.core.ladder import Reason
from gen_worker_supervisor.core.phases import JobState
from gen_worker_supervisor.core.state import Job, Outcome
from gen_worker_supervisor.sockets.gate import SHUT_OUT_S, Gate
from gen_worker_supervisor.sockets.line_socket import Limits, LineSocket, Pool
from gen_worker_supervisor.sockets.listening import peer, tune_tcp
from gen_worker_supervisor.sockets.poller import Poller
from gen_worker_supervisor.supervisor import Supervisor

LINK = "serve"
COPIED_BYTES = 1 << 20  # an output that waits for a slow reader and is not longer gives its shared memory back
AT_ONCE = 64  # requests of standard input that are in the queue at once, so that they never fill it
WAITING_COST = 1024  # bytes that a request takes beside its payload
LONGEST_TIMEOUT_MS = 10**12

_SHUT_OUT = "too many wrong tokens"
_NOT_ONE_LINE = "the child's answer is not one line of JSON"
_PLAIN = b'{"ok":true,"events":[{"event":"result","value":%b}]}\n'
_OK_HEAD = b'{"ok":true,"events":['
_RESULT = b'{"event":"result","value":'
_YIELD = b'{"event":"yield","value":'
_HTTP = re.compile(rb"^[A-Z]+ \S+ HTTP/1\.")


class CancelBody(msgspec.Struct, frozen=True):
    """What a cancel frame names."""

    request_id: str


class Request(msgspec.Struct, gc=False):
    """One line from a client."""

    function: str = ""
    payload: msgspec.Raw = msgspec.Raw(b"{}")
    request_id: str | None = None
    stream: bool = False
    events: bool = False
    timeout_ms: Annotated[int, msgspec.Meta(ge=0, le=LONGEST_TIMEOUT_MS)] = 0
    token: str | None = None
    tenant: Annotated[str, msgspec.Meta(max_length=TENANT_CHARS)] = ""
    priority: Annotated[int, msgspec.Meta(ge=-PRIORITY_LIMIT, le=PRIORITY_LIMIT)] = 0
    traceparent: str = ""
    cancel: CancelBody | None = None


class Heading(msgspec.Struct, gc=False):
    """What a line that is no request may still say of whose it is."""

    request_id: object = None
    token: object = None


_decode = msgspec.json.Decoder(Request).decode
_decode_heading = msgspec.json.Decoder(Heading).decode
_encode = msgspec.json.Encoder().encode


def _is_one_line(body: OutputBody) -> bool:
    """Whether a child's output can stand in a line of ours; its encoder writes no line feed, its job may have."""
    return b"\n" not in body if isinstance(body, bytes) else body.is_one_line()


def heading(line: bytes) -> Request:
    """Return a request with no more than the id and the token of a line that is none, as far as it has them."""
    try:
        found = _decode_heading(line)
    except DECODE_ERRORS:
        return Request()
    request_id, token = found.request_id, found.token
    return Request(
        request_id=request_id if isinstance(request_id, str) and len(request_id) <= REQUEST_ID_CHARS else None,
        token=token if isinstance(token, str) else None,
    )


def error_frame(kind: ErrorKind, message: str, retryable: bool, detail: ErrorDetail | None, id_tail: bytes) -> bytes:
    """Return the line that tells a client of a failure."""
    error: dict[str, object] = {"kind": kind, "message": message, "retryable": retryable}
    if detail is not None:
        error["detail"] = detail
    return b'{"ok":false,"error":' + _encode(error) + id_tail + b"}\n"


class Reply:
    """The way back for one request of one connection."""

    __slots__ = ("_broken", "_held", "_items", "_kept", "_tail", "connection", "finished", "job", "link", "stream")

    def __init__(self, connection: "Connection", request: Request) -> None:
        self.connection = connection
        self.link = LINK
        self.stream = request.stream
        self.job: Job | None = None
        self.finished = False
        self._tail = b"" if request.request_id is None else b',"request_id":' + _encode(request.request_id)
        self._items: list[bytes] = []
        self._kept = 0
        self._broken = ""
        self._held: list[tuple[list[bytes | memoryview], Callable[[], None] | None]] = []

    def answer(self, job: Job, outcome: Outcome, body: OutputBody) -> None:
        """Write the job's end."""
        if outcome.state is JobState.OK and not _is_one_line(body):
            self._break(_NOT_ONE_LINE)
        if outcome.state is not JobState.OK or self._broken:
            self._answer_badly(outcome)
            if isinstance(body, Output):
                body.release()
        elif isinstance(body, bytes) and body and not (self._tail or self._items or self.stream):
            self._write([_PLAIN % body], None, last=True)  # the usual case
        else:
            value, release = self._taken(body)
            if job.function.surveyed.streams:
                value = b'{"yielded":%d}' % outcome.yielded
            tail = self._tail
            if self.stream:
                parts = [_RESULT, value, tail + b'}\n{"ok":true,"done":true' + tail + b"}\n"]
            else:
                parts = [_OK_HEAD + b"".join(self._items) + _RESULT, value, tail + b"}]" + tail + b"}\n"]
            self._write(parts, release, last=True)

    def _taken(self, body: OutputBody) -> tuple[bytes | memoryview, Callable[[], None] | None]:
        """Return an output's bytes, and what gives its shared memory back once they are written."""
        if isinstance(body, bytes):
            return body, None
        if body.length > COPIED_BYTES or (self._may_write() and self.connection.idle):
            return body.view(), body.release
        data = bytes(body.view())
        body.release()
        return data, None

    def _may_write(self) -> bool:
        return bool(self._tail) or self.connection.is_turn_of(self)

    def _answer_badly(self, outcome: Outcome) -> None:
        if self._broken:
            self.fail("invalid", self._broken)
        else:
            assert outcome.kind is not None
            self.fail(outcome.kind, outcome.message, outcome.retryable, outcome.detail)

    def fail(self, kind: ErrorKind, message: str, retryable: bool = False, detail: ErrorDetail | None = None) -> None:
        """Write an error, the end of this request."""
        self._write([error_frame(kind, message, retryable, detail, self._tail)], None, last=True)

    def item(self, job: Job, body: OutputBody, content_type: str) -> None:
        """Write a stream item, or keep it for the buffered answer."""
        more = self.connection.supervisor.more
        if not _is_one_line(body):
            if isinstance(body, Output):
                body.release()
            if not self._broken:
                self._break(_NOT_ONE_LINE)
                self.connection.supervisor.end(job, Reason.CANCEL)
            return
        if not self.stream:
            self._keep(job, body)
            more(job, 1)
            return
        value = body.view() if isinstance(body, Output) else body

        def passed_on() -> None:
            if isinstance(body, Output):
                body.release()
            more(job, 1)

        self._write([_YIELD, value, self._tail + b"}\n"], passed_on)

    def _keep(self, job: Job, body: OutputBody) -> None:
        data = bytes(body.view()) if isinstance(body, Output) else body
        if isinstance(body, Output):
            body.release()
        self._items.append(_YIELD + data + self._tail + b"},")
        self._kept += len(data)
        limit = self.connection.supervisor.fleet.max_output_bytes
        if self._kept > limit and not self._broken:
            self._break(f"the items have over {limit} bytes (`WORKER_MAX_OUTPUT_BYTES`); ask for a stream")
            self.connection.supervisor.end(job, Reason.CANCEL)

    def _break(self, reason: str) -> None:
        """Give nothing of the job's output to the client but this."""
        self._items.clear()
        self._broken = reason

    def event(self, job: Job, event: Event) -> None:
        """Write a progress or log event, unless the client is slow: those are dropped first."""
        if self.connection.idle and not self._held:
            head = b'{"event":"%b","value":' % event.event.encode()
            self._write([head + event.value + self._tail + b"}\n"], None)

    def rerun(self, job: Job) -> None:
        """Forget the items of the first run."""
        self._items.clear()
        self._kept = 0

    def _write(self, parts: list[bytes | memoryview], then: Callable[[], None] | None, *, last: bool = False) -> None:
        self.finished = self.finished or last
        if self._may_write():
            self.connection.write(parts, then)
            if last:
                self.connection.finish(self)
        else:
            self._held.append((parts, then))
            self.connection.set_aside(sum(map(len, parts)))

    def take_turn(self) -> None:
        """Write what was kept back while earlier requests without an id had the turn."""
        held, self._held = self._held, []
        for parts, then in held:
            self.connection.set_aside(-sum(map(len, parts)))
            self.connection.write(parts, then)

    @property
    def named(self) -> bool:
        """Whether the request had an id, so that its answer needs no turn."""
        return bool(self._tail)


class NdjsonServer:
    """Turns clients into connections: from a Unix socket, over TCP, and this process's standard streams."""

    def __init__(self, supervisor: Supervisor, poller: Poller, limits: Limits, gate: Gate | None) -> None:
        self.supervisor = supervisor
        self.gate = gate
        self._poller = poller
        self._pool = Pool(limits, lambda problem: supervisor.log.event("warning", LINK, problem))

    def admit_unix(self, sock: socket.socket) -> None:
        """Take a client of the Unix socket, if it is of this user."""
        if peer(sock)[1] in (os.geteuid(), 0):
            Connection(sock, self, self._poller, self._pool)
        else:
            sock.close()

    def admit_tcp(self, sock: socket.socket) -> None:
        """Take a client that came over TCP; one whose address guesses tokens is turned away."""
        try:
            address = sock.getpeername()[0]
            tune_tcp(sock)
        except OSError:  # it has gone already
            sock.close()
            return
        TcpConnection(sock, self, self._poller, self._pool, address).greet()

    def admit_streams(self, sock: socket.socket) -> None:
        """Take the socket that stands for standard input and output."""
        StreamsConnection(sock, self, self._poller, self._pool)

    def close(self) -> None:
        """Close every connection."""
        for connection in list(self._pool.connections):
            connection.close()


class Connection(LineSocket):
    """One client that sends requests."""

    remote = False
    """Whether it may be on another machine."""

    def __init__(self, sock: socket.socket, server: NdjsonServer, poller: Poller, pool: Pool) -> None:
        self.supervisor = server.supervisor
        self._replies: set[Reply] = set()
        self._turns: deque[Reply] = deque()
        self._canceling = 0  # cancels whose job has not ended yet
        super().__init__(sock, poller, pool)

    # --- requests ---

    def on_line(self, line: bytes) -> None:
        """Take a request, a cancel, or what is neither."""
        try:
            request = _decode(line)
        except DECODE_ERRORS as error:
            self.on_nonsense(line, f"not a request: {str(error)[:300] or type(error).__name__}")
            return
        if not self.admits(request):
            return
        if request.cancel is not None:
            self._cancel(request.cancel.request_id)
        else:
            self._submit(request)

    def admits(self, request: Request) -> bool:
        """Whether the client may ask for something at all; if not, it was told so."""
        return True

    def on_nonsense(self, line: bytes, reason: str) -> None:
        """Answer a line that is no request, unless it is blank."""
        if line.strip():
            self.refuse(heading(line), reason)

    def on_bad_line(self, reason: str) -> None:
        """Answer what cannot be taken."""
        self.refuse(Request(), reason)

    def refuse(self, request: Request, reason: str) -> None:
        """Answer a request that is none."""
        self._fail(request, "usage", reason)

    @property
    def unanswered(self) -> int:
        """How many requests and cancels have no answer yet."""
        return len(self._replies) + self._canceling

    def _fail(self, request: Request, kind: ErrorKind, message: str) -> None:
        reply = self._begin(request)
        reply.fail(kind, message)

    def _begin(self, request: Request) -> Reply:
        reply = Reply(self, request)
        self._replies.add(reply)
        if not reply.named:
            self._turns.append(reply)
        return reply

    def _submit(self, request: Request) -> None:
        name = self.supervisor.routable(request.function)
        if name is None:
            self._unknown(request)
            return
        if self.supervisor.fleet.functions[name].own.realtime:
            self._fail(request, "usage", only_spoken_with(name))
            return
        if request.request_id is not None and len(request.request_id) > REQUEST_ID_CHARS:
            length = len(request.request_id)
            self._fail(Request(), "usage", f"a `request_id` of {length} characters, the limit is {REQUEST_ID_CHARS}")
            return
        if request.request_id is not None and (LINK, request.request_id, 1) in self.supervisor.fleet.by_identity:
            self._fail(request, "usage", f"a request `{request.request_id}` is running already")
            return
        if not request.tenant.isprintable():
            self._fail(request, "usage", "a `tenant` is printable text")
            return
        reply = self._begin(request)
        reply.job = self.supervisor.submit(
            reply,
            request_id=request.request_id or "",
            function=self.supervisor.fleet.functions[name],
            payload=InlinePayload(bytes(request.payload)),
            encoding="json",
            stream=request.stream,
            events=request.events,
            remote=self.remote,
            timeout_s=request.timeout_ms / 1000 if request.timeout_ms else None,
            tenant=request.tenant,
            priority=request.priority,
            traceparent=request.traceparent,
        )

    def _unknown(self, request: Request) -> None:
        if not request.function:
            self._fail(request, "usage", "the request names no `function`")
            return
        names = ", ".join(f"`{name}`" for name in sorted(self.supervisor.fleet.functions))
        self._fail(request, "not_found", f"no function `{request.function[:100]}`; there are: {names}")

    def _cancel(self, request_id: str) -> None:
        jobs = self.supervisor.find(request_id)
        if not jobs:
            self._tell_canceled(request_id, False)
            return

        def on_end(outcome: Outcome) -> None:
            self._canceling -= 1
            self._tell_canceled(request_id, outcome.state is JobState.CANCELED)
            self.close_if_done()

        self._canceling += 1
        self.supervisor.watch(jobs[0], on_end)
        self.supervisor.end(jobs[0], Reason.CANCEL)

    def _tell_canceled(self, request_id: str, canceled: bool) -> None:
        head = b'{"ok":true,"canceled":%b,"request_id":' % (b"true" if canceled else b"false")
        self.write([head + _encode(request_id) + b"}\n"], None)

    # --- answers ---

    def is_turn_of(self, reply: Reply) -> bool:
        """Whether a request without an id may be answered: all earlier ones are."""
        return self._turns[0] is reply

    def finish(self, reply: Reply) -> None:
        """A request was answered: the next one without an id has its turn."""
        self._replies.discard(reply)
        if self._turns and self._turns[0] is reply and len(self._turns) == 1:
            self._turns.popleft()
        while self._turns and self._turns[0].finished and self._turns[0] not in self._replies:
            self._turns.popleft()
            if self._turns:
                following = self._turns[0]
                following.take_turn()
                if following.finished:
                    self._replies.discard(following)
        if self._backlog:
            self.go_on()
        if self._ended or self._deaf:
            self.close_if_done()

    def on_gone(self) -> None:
        """End the requests of a client that is gone."""
        for reply in list(self._replies):
            reply.take_turn()
            if reply.job is not None and not reply.job.ended:
                self.supervisor.end(reply.job, Reason.DISCONNECT)


class TcpConnection(Connection):
    """A client that may be on another machine: with a token set, it shows that in every line."""

    remote = True

    def __init__(self, sock: socket.socket, server: NdjsonServer, poller: Poller, pool: Pool, address: str) -> None:
        self._gate = server.gate
        self._address = address
        self.trusted = server.gate is None
        super().__init__(sock, server, poller, pool)

    def greet(self) -> None:
        """Turn the client away before it says anything, if its address is shut out."""
        if self._is_shut():
            self._turn_away(_SHUT_OUT)

    def _is_shut(self) -> bool:
        """Whether its address is shut out, which costs nobody who has shown the token before."""
        return not self.trusted and self._gate is not None and self._gate.is_shut(self._address, time.monotonic())

    def admits(self, request: Request) -> bool:
        """Whether the line shows the token; if not, the client is turned away."""
        if self._gate is None:
            return True
        if self._is_shut():  # not even compared: else each open connection had one guess more
            self._turn_away(_SHUT_OUT, request.request_id)
            return False
        if self._gate.admits(request.token):
            self._trust()
            return True
        self._note_wrong()
        self._turn_away("a line without `token`" if request.token is None else "a wrong `token`", request.request_id)
        return False

    def on_nonsense(self, line: bytes, reason: str) -> None:
        """Turn away who shows no token, and browsers: a page could make one send a request in a form's text."""
        if self._gate is not None:
            if self.admits(heading(line)):
                super().on_nonsense(line, reason)
        elif _HTTP.search(line) is not None:
            self._turn_away("this is no HTTP server: it takes one JSON object a line")
        else:
            super().on_nonsense(line, reason)

    def _trust(self) -> None:
        if not self.trusted:
            self.trusted = True
            self._pool.strangers.hold(self, 0)

    def _note_wrong(self) -> None:
        if self._gate is not None and self._gate.note_wrong(self._address, time.monotonic()):
            problem = f"too many wrong tokens from {self._address}: it is shut out for {SHUT_OUT_S:g} s"
            self.supervisor.log.event("warning", LINK, problem)

    def _turn_away(self, reason: str, request_id: str | None = None) -> None:
        tail = b"" if request_id is None else b',"request_id":' + _encode(request_id)
        self.turn_away(error_frame("usage", reason, False, None, tail))


class StreamsConnection(Connection):
    """Standard input and output: its own user, who may take any time."""

    unlimited = True
    window = 4 << 20  # bytes of requests that wait; behind them nothing is read

    def __init__(self, sock: socket.socket, server: NdjsonServer, poller: Poller, pool: Pool) -> None:
        self._waiting: deque[Waiting] = deque()
        self._waiting_bytes = 0
        self._begins = False
        super().__init__(sock, server, poller, pool)

    @property
    def unanswered(self) -> int:
        """How many requests and cancels have no answer yet, those that wait among them."""
        return super().unanswered + len(self._waiting)

    @property
    def in_hand(self) -> int:
        """How many bytes wait."""
        return self._waiting_bytes

    def refuse(self, request: Request, reason: str) -> None:
        """Answer a request that is none, after those before it."""
        self._wait(Waiting(request, reason))

    def _submit(self, request: Request) -> None:
        self._wait(Waiting(request))

    def _wait(self, waiting: "Waiting") -> None:
        if self._waiting or not self._may_begin():
            self._waiting.append(waiting)
            self._waiting_bytes += waiting.size
        else:
            self._begin_with(waiting)

    def _may_begin(self) -> bool:
        return len(self._replies) < AT_ONCE and self.is_read

    def _begin_with(self, waiting: "Waiting") -> None:
        if waiting.problem:
            super().refuse(waiting.request, waiting.problem)
        else:
            super()._submit(waiting.request)

    def _cancel(self, request_id: str) -> None:
        named = [at for at, each in enumerate(self._waiting) if each.request.request_id == request_id]
        if not named or self.supervisor.find(request_id):
            super()._cancel(request_id)
            return
        waiting = self._waiting[named[0]]
        del self._waiting[named[0]]
        self._waiting_bytes -= waiting.size
        self._fail(waiting.request, "canceled", "canceled")
        self._tell_canceled(request_id, True)

    def finish(self, reply: Reply) -> None:
        """A request was answered: one that waits may begin."""
        super().finish(reply)
        self.go_on()

    def go_on(self) -> None:
        """Begin what waits, and read on, as far as there is room for it."""
        if self._waiting and not self._begins and self._may_begin():
            self._begins = True
            self._loop.call_soon(self._begin_waiting)
        super().go_on()

    def _begin_waiting(self) -> None:
        """Begin what waits, but not more than a few before others have their turn."""
        for _ in range(AT_ONCE):
            if self._gone or not self._waiting or not self._may_begin():
                break
            waiting = self._waiting.popleft()
            self._waiting_bytes -= waiting.size
            self._begin_with(waiting)
        self._begins = False
        if not self._gone:
            self.go_on()

    def on_gone(self) -> None:
        """End the requests of a client that is gone."""
        self._waiting.clear()
        super().on_gone()


class Waiting(NamedTuple):
    """A request of standard input that has not begun, or what is wrong with it."""

    request: Request
    problem: str = ""

    @property
    def size(self) -> int:
        """About as many bytes as it takes."""
        return WAITING_COST + len(self.request.payload) + len(self.problem)
