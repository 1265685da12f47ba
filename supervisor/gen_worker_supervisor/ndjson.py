"""The NDJSON link: one JSON request a line in, answers out, on a stream socket.

Payloads and results pass through as bytes: a request is decoded up to its payload, an answer is spliced around the
child's own JSON. Never decides what happens to a job.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from gen_worker.wire.messages import REQUEST_ID_CHARS, ErrorDetail, ErrorKind, Event
from gen_worker_supervisor.bodies import InlinePayload, Output, OutputBody
from gen_worker_supervisor.ladder import Reason
from gen_worker_supervisor.phases import JobState
from gen_worker_supervisor.poller import GONE, READABLE, WRITABLE, Poller
from gen_worker_supervisor.state import Job, Outcome
from gen_worker_supervisor.supervisor import Supervisor

LINK = "serve"
LINE_LIMIT = 16 << 20  # a longer line would hold the loop for over 50 ms while it is decoded
PIECE_BYTES = 256 * 1024
PIECES_A_TURN = 8
LINES_A_TURN = 64
UNREAD_LIMIT = 4096  # pieces a client may leave unread before nothing more is read from it
FIRST_LINE_S = 30.0  # a client that connects and says nothing is closed

_NOT_ONE_LINE = "the child's answer is not one line of JSON"
_PLAIN = b'{"ok":true,"events":[{"event":"result","value":%b}]}\n'
_OK_HEAD = b'{"ok":true,"events":['
_RESULT = b'{"event":"result","value":'
_YIELD = b'{"event":"yield","value":'
_DECODE_ERRORS = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError, MemoryError)


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
    cancel: CancelBody | None = None


_decode = msgspec.json.Decoder(Request).decode
_encode = msgspec.json.Encoder().encode


def _is_one_line(body: OutputBody) -> bool:
    """Whether a child's output can stand in a line of ours; its encoder writes no line feed, its job may have."""
    return b"\n" not in body if isinstance(body, bytes) else body.is_one_line()


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
        if outcome.state is not JobState.OK or self._broken:
            self._answer_badly(outcome)
        elif not _is_one_line(body):
            self._break(_NOT_ONE_LINE)
            self._answer_badly(outcome)
            if isinstance(body, Output):
                body.release()
        elif isinstance(body, bytes) and body and not (self._tail or self._items or self.stream):
            self._write([_PLAIN % body], None, last=True)  # the usual case
        else:
            release = body.release if isinstance(body, Output) else None
            value: bytes | memoryview = body.view() if isinstance(body, Output) else body
            if job.function.surveyed.streams:
                value = b'{"yielded":%d}' % outcome.yielded
            tail = self._tail
            if self.stream:
                parts = [_RESULT, value, tail + b'}\n{"ok":true,"done":true' + tail + b"}\n"]
            else:
                parts = [_OK_HEAD + b"".join(self._items) + _RESULT, value, tail + b"}]" + tail + b"}\n"]
            self._write(parts, release, last=True)

    def _answer_badly(self, outcome: Outcome) -> None:
        if self._broken:
            self.fail("invalid", self._broken)
        else:
            assert outcome.kind is not None
            self.fail(outcome.kind, outcome.message, outcome.retryable, outcome.detail)

    def fail(self, kind: ErrorKind, message: str, retryable: bool = False, detail: ErrorDetail | None = None) -> None:
        """Write an error, the end of this request."""
        self._write([error_frame(kind, message, retryable, detail, self._tail)], None, last=True)

    def item(self, job: Job, body: OutputBody) -> None:
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
        if self._tail or self.connection.is_turn_of(self):
            self.connection.write(parts, then)
            if last:
                self.connection.finish(self)
        else:
            self._held.append((parts, then))

    def take_turn(self) -> None:
        """Write what was kept back while earlier requests without an id had the turn."""
        held, self._held = self._held, []
        for parts, then in held:
            self.connection.write(parts, then)

    @property
    def named(self) -> bool:
        """Whether the request had an id, so that its answer needs no turn."""
        return bool(self._tail)


class Connection:
    """One client on a non-blocking stream socket."""

    def __init__(self, sock: socket.socket, supervisor: Supervisor, poller: Poller, others: "set[Connection]") -> None:
        self.supervisor = supervisor
        self._sock = sock
        self._poller = poller
        self._others = others
        self._buffer = bytearray()
        self._scanned = 0
        self._backlog = False  # whole lines that wait for their turn
        self._turn_comes = False
        self._replies: set[Reply] = set()
        self._turns: deque[Reply] = deque()
        self._outbox: deque[tuple[memoryview, Callable[[], None] | None]] = deque()
        self._ended = False
        self._gone = False
        self._silent: asyncio.TimerHandle | None
        self._silent = asyncio.get_running_loop().call_later(FIRST_LINE_S, self._hang_up)
        others.add(self)
        poller.watch(sock.fileno(), self._on_events)

    # --- the socket ---

    def _on_events(self, events: int) -> None:
        if events & READABLE:
            self._read()
        if events & WRITABLE and not self._gone:
            self._pump()
        if events & GONE and (self._ended or not events & READABLE):
            self._hang_up()  # only after everything it sent was read

    def _read(self) -> None:
        try:
            data = self._sock.recv(PIECE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._hang_up()
            return
        if not data:
            self._on_end()
        elif not self._buffer and data.find(b"\n") == len(data) - 1:  # the usual case: one line, whole
            self._line(data)
        else:
            self._split(data)

    def _split(self, data: bytes) -> None:
        """Take the whole lines, but not more than a few before others have their turn."""
        self._buffer += data
        for _ in range(LINES_A_TURN):
            end = self._buffer.find(b"\n", self._scanned)
            if end < 0 or self._gone:
                break
            line = bytes(memoryview(self._buffer)[:end])
            del self._buffer[: end + 1]
            self._scanned = 0
            self._line(line)
        else:
            self._backlog = True
            self._watch()
            self._split_soon()
            return
        self._scanned = len(self._buffer)
        if self._scanned > LINE_LIMIT:
            self._buffer.clear()
            self._refuse(f"a line of over {LINE_LIMIT} bytes; bigger values travel over the control socket")
            self._on_end()

    def _split_soon(self) -> None:
        if self._backlog and not self._turn_comes and len(self._outbox) <= UNREAD_LIMIT:
            self._turn_comes = True
            asyncio.get_running_loop().call_soon(self._split_on)

    def _split_on(self) -> None:
        self._turn_comes = self._backlog = False
        if not self._gone:
            self._split(b"")
        if not self._gone and not self._backlog:
            self._watch()

    def _on_end(self) -> None:
        """The client sends no more, or shall not be read any more; it may still wait for answers."""
        self._ended = True
        self._poller.change(self._sock.fileno(), WRITABLE if self._outbox else 0)
        if self._buffer:
            line, self._buffer = bytes(self._buffer), bytearray()
            self._line(line)
        self._close_if_done()

    def _hang_up(self) -> None:
        """Close the socket; what was asked for through it is asked for no more."""
        if self._gone:
            return
        self._gone = True
        if self._silent is not None:
            self._silent.cancel()
        self._poller.forget(self._sock.fileno())
        self._sock.close()
        self._others.discard(self)
        outbox, self._outbox = self._outbox, deque()
        for _, then in outbox:
            if then is not None:
                then()
        for reply in list(self._replies):
            reply.take_turn()
            if reply.job is not None and not reply.job.ended:
                self.supervisor.end(reply.job, Reason.DISCONNECT)

    # --- requests ---

    def _line(self, line: bytes) -> None:
        if self._silent is not None:
            self._silent.cancel()
            self._silent = None
        if len(line) > LINE_LIMIT:
            self._refuse(f"a line of {len(line)} bytes, the limit is {LINE_LIMIT}")
            return
        try:
            request = _decode(line)
        except _DECODE_ERRORS as error:
            if line.strip():
                self._refuse(f"not a request: {str(error)[:300] or type(error).__name__}")
            return
        if request.cancel is not None:
            self._cancel(request.cancel.request_id)
        else:
            self._submit(request)

    def _refuse(self, message: str) -> None:
        self._fail(Request(), "usage", message)

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
        if request.request_id is not None and len(request.request_id) > REQUEST_ID_CHARS:
            length = len(request.request_id)
            self._refuse(f"a `request_id` of {length} characters, the limit is {REQUEST_ID_CHARS}")
            return
        if request.request_id is not None and (LINK, request.request_id, 1) in self.supervisor.fleet.by_identity:
            self._fail(request, "usage", f"a request `{request.request_id}` is running already")
            return
        reply = self._begin(request)
        reply.job = self.supervisor.submit(
            reply,
            request_id=request.request_id or "",
            function=name,
            payload=InlinePayload(bytes(request.payload)),
            encoding="json",
            stream=request.stream,
            events=request.events,
        )

    def _unknown(self, request: Request) -> None:
        if not request.function:
            self._fail(request, "usage", "the request names no `function`")
            return
        names = ", ".join(f"`{name}`" for name in sorted(self.supervisor.fleet.functions))
        self._fail(request, "not_found", f"no function `{request.function[:100]}`; there are: {names}")

    def _cancel(self, request_id: str) -> None:
        jobs = self.supervisor.find(request_id)
        tail = b',"request_id":' + _encode(request_id) + b"}\n"

        def tell(canceled: bool) -> None:
            self.write([b'{"ok":true,"canceled":%b' % (b"true" if canceled else b"false") + tail], None)

        if not jobs:
            tell(False)
            return
        self.supervisor.watch(jobs[0], lambda outcome: tell(outcome.state is JobState.CANCELED))
        self.supervisor.end(jobs[0], Reason.CANCEL)

    # --- answers ---

    @property
    def idle(self) -> bool:
        """Whether the client has taken everything so far."""
        return not self._outbox

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
        if self._ended:
            self._close_if_done()

    def write(self, parts: list[Any], then: Callable[[], None] | None) -> None:
        """Write the parts one after the other as the client takes them, then call `then`."""
        if self._gone:
            if then is not None:
                then()
            return
        if not self._outbox and sum(map(len, parts)) <= PIECE_BYTES:
            whole = b"".join(parts) if len(parts) > 1 else parts[0]
            sent = self._send(whole)
            if sent == len(whole):
                if then is not None:
                    then()
                return
            parts = [memoryview(whole)[sent:]]
        for part in parts[:-1]:
            self._outbox.append((memoryview(part), None))
        self._outbox.append((memoryview(parts[-1]), then))
        self._watch()

    def _send(self, data: bytes | memoryview) -> int:
        try:
            return self._sock.send(data)
        except OSError:  # full, or gone: the poller tells which
            return 0

    def _pump(self) -> None:
        """Write as much as the client takes, but not more than a few pieces before others have their turn."""
        for _ in range(PIECES_A_TURN):
            if not self._outbox or self._gone:
                break
            part, then = self._outbox[0]
            sent = self._send(part[:PIECE_BYTES])
            if sent < len(part):
                self._outbox[0] = (part[sent:], then)
                if sent == 0:
                    return
                continue
            self._outbox.popleft()
            if then is not None:
                then()
        if not self._gone:
            self._watch()
            self._split_soon()
            self._close_if_done()

    def _watch(self) -> None:
        full = self._ended or self._backlog or len(self._outbox) > UNREAD_LIMIT
        reading = 0 if full else READABLE
        self._poller.change(self._sock.fileno(), reading | (WRITABLE if self._outbox else 0))

    def _close_if_done(self) -> None:
        if self._ended and not self._replies and not self._outbox:
            self._hang_up()

    def close(self) -> None:
        """Close the connection after what its socket still takes."""
        self._pump()
        self._hang_up()
