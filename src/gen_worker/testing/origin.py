"""An HTTP origin on the loopback: a thread per connection, ranges, files by `sendfile`, and what goes wrong on purpose.

It answers what it is told to answer, notes each request, and knows no route.
"""

import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from gen_worker.testing.contents import Content
from gen_worker.testing.faults import (
    BadRange,
    ChangingETag,
    Corrupt,
    Cut,
    Faults,
    NoRange,
    NoSize,
    Oversize,
    Pointer,
    Slow,
    Stall,
    Status,
    Truncate,
)

_SENDFILE_BYTES = 4 << 20
_SLOW_STEPS_PER_S = 20
_LOOK_S = 0.02  # how often who stalls a client looks whether it is still there


@dataclass
class Request:
    """A request and what became of it."""

    method: str
    origin: str
    """`hub` or `cdn`; of a store, `store` or `bucket`."""

    path: str
    """Decoded, without the query."""

    query: str
    headers: dict[str, str]
    """By lower-case name."""

    range: str = ""
    """What its `Range` says."""

    status: int = 0
    """0 while it has no answer."""

    sent: int = 0
    """Bytes of the answer's body that were written, cut or not."""

    target: str = ""
    """What globs mean its answer by: `owner/name/path` where it is a file's content, else `resolve:` or `api:…`."""

    segments: tuple[str, ...] = field(default=(), repr=False)
    """The path's parts, each decoded by itself."""

    body: bytes = field(default=b"", repr=False)
    """What came with it; gone once it has its answer."""

    received: int = 0
    """Bytes of its body that were read, cut or not."""

    @property
    def parameters(self) -> dict[str, str]:
        """The query by name."""
        return dict(parse_qsl(self.query, keep_blank_values=True))

    @property
    def token(self) -> str:
        """The token it shows, in whatever way."""
        bearer = self.headers.get("authorization", "").partition(" ")[2].strip()
        cookies = dict(each.strip().partition("=")[::2] for each in self.headers.get("cookie", "").split(";"))
        return bearer or cookies.get("m_session_id", "") or self.parameters.get("token", "")

    @property
    def carries_credentials(self) -> bool:
        """Whether there is anything in it that only the hub should see."""
        return bool({"authorization", "cookie"} & self.headers.keys() or "token" in self.parameters)


@dataclass
class Answer:
    """What a route answers."""

    status: int
    target: str
    headers: dict[str, str] = field(default_factory=dict)
    body: Content = field(default_factory=lambda: Content(b""))


@dataclass
class _Delivery:
    """How an answer goes out, after its range and its faults are known."""

    status: int
    headers: dict[str, str]
    chunks: Callable[[int, int], Iterator[bytes]]
    file: Path | None = None  # where `sendfile` can take the bytes from
    start: int = 0
    stop: int = 0
    cut: bool = False
    stall: Stall | None = None
    slow: Slow | None = None
    chunked: bool = False


class Origin:
    """A listening socket of 127.0.0.1 and all of its connections, until it is closed."""

    def __init__(
        self,
        name: str,
        port: int,
        faults: Faults,
        answer: Callable[[Request], Answer],
        incoming: Callable[[Request], str] = lambda request: "",
    ) -> None:
        self.name = name
        self.incoming = incoming
        """What globs mean a request by before it is answered; nothing where only its answer tells."""
        self.faults = faults
        self.answer = answer
        self.requests: list[Request] = []
        self.closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=256)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._connections: dict[threading.Thread, socket.socket] = {}
        self._acceptor = threading.Thread(target=self._accept, name=f"loopback-{name}", daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        """End every connection and wait for its thread."""
        self.closing.set()
        with suppress(OSError):  # closed before
            self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()
        for thread, connection in list(self._connections.items()):
            with suppress(OSError):  # its thread has closed it
                connection.shutdown(socket.SHUT_RDWR)
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # shut down
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._connections[thread] = connection
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(ConnectionError):  # the client left
            _Exchange(connection, self)
        self._connections.pop(threading.current_thread(), None)


class _Exchange(BaseHTTPRequestHandler):
    """All requests of one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body leave in two writes
    server_version = "loopback"
    sys_version = ""

    def __init__(self, connection: socket.socket, origin: Origin) -> None:
        self.origin = origin
        super().__init__(connection, ("127.0.0.1", 0), origin)  # type: ignore[arg-type] # it only keeps it

    def do_GET(self) -> None:
        self._exchange()

    def do_HEAD(self) -> None:
        self._exchange()

    def do_POST(self) -> None:
        self._exchange()

    def do_PUT(self) -> None:
        self._exchange()

    def do_PATCH(self) -> None:
        self._exchange()

    def do_DELETE(self) -> None:
        self._exchange()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the requests are kept."""

    def _exchange(self) -> None:
        request = self._request()
        self.origin.requests.append(request)
        if not self._receive(request):
            self.close_connection = True
            return
        delivery = self._refusal(request)
        if delivery is None:
            answer = self.origin.answer(request)
            request.target = answer.target
            delivery = self._delivery(request, answer)
        request.body = b""
        request.status = delivery.status
        self.send_response(delivery.status)
        for name, value in delivery.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if request.method != "HEAD":
            self._send(delivery, request)

    def _receive(self, request: Request) -> bool:
        """Read the body of a request, as the faults have it; say whether it came whole."""
        length = int(request.headers.get("content-length", 0))
        if not length:
            return True
        take = self.origin.faults.take
        request.target = target = self.origin.incoming(request)
        slow, stall = take(target, Slow), take(target, Stall, when=lambda fault: fault.after < length)
        cut = take(target, Cut, when=lambda fault: fault.after < length)
        step = max(1, int(slow.bytes_per_s / _SLOW_STEPS_PER_S)) if slow else 1 << 20
        body = bytearray()
        while len(body) < length:
            if cut is not None and len(body) >= cut.after:
                return False
            if stall is not None and len(body) >= stall.after:
                if not self._wait(stall.seconds):
                    return False
                stall = None
            edges = [length] + [fault.after for fault in (cut, stall) if fault and fault.after > len(body)]
            piece = self.rfile.read(min(step, min(edges) - len(body)))
            if not piece:
                return False
            body += piece
            request.received = len(body)
            if slow:
                self.origin.closing.wait(len(piece) / slow.bytes_per_s)
        request.body = bytes(body)
        return True

    def _wait(self, seconds: float) -> bool:
        """Do nothing for a while; say whether the client is still there."""
        poll = select.poll()
        poll.register(self.connection, 0)  # tells of errors and of the end only
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.origin.closing.wait(_LOOK_S):
            if poll.poll(0):
                return False
        return True

    def _request(self) -> Request:
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        segments = tuple(unquote(each) for each in parts.path.split("/")[1:])
        asked = headers.get("range", "")
        return Request(
            self.command, self.origin.name, unquote(parts.path), parts.query, headers, asked, segments=segments
        )

    def _refusal(self, request: Request) -> _Delivery | None:
        """Return the status that hits a request before anything comes of it."""
        target = self.origin.incoming(request)
        status = self.origin.faults.take(target, Status) if target else None
        if status is None:
            return None
        request.target = target
        return _whole(status.code, {"Content-Length": "0", **status.headers}, Content(b""))

    def _delivery(self, request: Request, answer: Answer) -> _Delivery:
        take, target = self.origin.faults.take, answer.target
        if status := take(target, Status):
            return _whole(status.code, {"Content-Length": "0", **status.headers}, Content(b""))
        if request.method == "GET" and answer.status == 200:
            delivery = _ranged(request, answer, self.origin.faults)
        else:
            delivery = _whole(answer.status, answer.headers, answer.body)
            delivery.headers.setdefault("Content-Length", str(answer.body.size))
        if answer.status == 200 and take(target, NoSize):
            del delivery.headers["Content-Length"]
            delivery.chunked = request.method == "GET"
            delivery.headers |= {"Transfer-Encoding": "chunked"} if delivery.chunked else {}
        if request.method == "GET":
            length = delivery.stop - delivery.start
            delivery.slow = take(target, Slow)
            delivery.stall = take(target, Stall, when=lambda fault: fault.after < length)
            cut = take(target, Cut, when=lambda fault: fault.after < length)
            if cut is not None:
                delivery.cut, delivery.stop = True, delivery.start + cut.after
        return delivery

    # --- the body -----------------------------------------------------------------------------------------------------

    def _send(self, delivery: _Delivery, request: Request) -> None:
        start, stop = delivery.start, delivery.stop
        if delivery.stall is not None:
            stalled = min(stop, start + delivery.stall.after)
            self._send_part(delivery, request, start, stalled)
            self.origin.closing.wait(delivery.stall.seconds)
            start = stalled
        self._send_part(delivery, request, start, stop)
        if delivery.cut:
            self.close_connection = True
        elif delivery.chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _send_part(self, delivery: _Delivery, request: Request, start: int, stop: int) -> None:
        if delivery.file is not None and not (delivery.slow or delivery.chunked):
            self._send_file(delivery.file, request, start, stop)
            return
        step = max(1, int(delivery.slow.bytes_per_s / _SLOW_STEPS_PER_S)) if delivery.slow else 1 << 20
        for at in range(start, stop, step):
            for chunk in delivery.chunks(at, min(at + step, stop)):
                request.sent += len(chunk)  # before it is written: who has read it all shall find it counted
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk) if delivery.chunked else chunk)
            if delivery.slow:
                self.origin.closing.wait(min(step, stop - at) / delivery.slow.bytes_per_s)

    def _send_file(self, path: Path, request: Request, start: int, stop: int) -> None:
        with path.open("rb") as file:
            while start < stop:
                count, done = min(_SENDFILE_BYTES, stop - start), 0
                request.sent += count
                try:
                    done = os.sendfile(self.connection.fileno(), file.fileno(), start, count)
                finally:
                    request.sent -= count - done
                if done == 0:
                    raise ConnectionAbortedError(f"{path} became shorter while it was served")
                start += done


# --- which bytes ------------------------------------------------------------------------------------------------------


def _whole(status: int, headers: dict[str, str], body: Content) -> _Delivery:
    file = body.source if isinstance(body.source, Path) else None
    return _Delivery(status, dict(headers), body.chunks, file, 0, body.size)


def _ranged(request: Request, answer: Answer, faults: Faults) -> _Delivery:
    """Return the delivery of what a request asks for of a file, as the faults have it."""
    take, target = faults.take, answer.target
    delivery, size = _edited(answer, faults)
    etag = f'"{os.urandom(20).hex()}"' if take(target, ChangingETag) else answer.headers.get("ETag", "")
    delivery.headers |= {"ETag": etag} if etag else {}
    delivery.headers |= {"Content-Length": str(size), "Accept-Ranges": "bytes"}
    asked = _asked(request.range, size)
    if asked is None or request.headers.get("if-range", etag) != etag:
        return delivery
    if take(target, NoRange):
        del delivery.headers["Accept-Ranges"]
        return delivery
    start, stop = asked
    if start >= size:
        delivery.status, delivery.stop = 416, 0
        delivery.headers |= {"Content-Range": f"bytes */{size}", "Content-Length": "0"}
        return delivery
    if take(target, BadRange):
        start, stop = min(start + 1, size - 1), min(stop + 1, size)
    delivery.status, delivery.start, delivery.stop = 206, start, stop
    delivery.headers |= {"Content-Range": f"bytes {start}-{stop - 1}/{size}", "Content-Length": str(stop - start)}
    return delivery


def _edited(answer: Answer, faults: Faults) -> tuple[_Delivery, int]:
    """Return the delivery of the whole file and how long the file seems to be."""
    body = answer.body
    if faults.take(answer.target, Pointer):
        body = Content(body.pointer)
    delivery = _whole(200, answer.headers, body)
    truncate, oversize = faults.take(answer.target, Truncate), faults.take(answer.target, Oversize)
    corrupt = faults.take(answer.target, Corrupt)
    size = min(body.size, truncate.to) if truncate else body.size + (oversize.by if oversize else 0)
    delivery.stop = size
    if corrupt or size > body.size:
        delivery.file = None
        delivery.chunks = lambda start, stop: _altered(body, start, stop, corrupt.at if corrupt else -1)
    return delivery, size


def _altered(body: Content, start: int, stop: int, flipped: int) -> Iterator[bytes]:
    """Yield a file's bytes with one of them inverted, and zeros beyond its end."""
    for chunk in body.chunks(start, min(stop, body.size)):
        if start <= flipped < start + len(chunk):
            changed = bytearray(chunk)
            changed[flipped - start] ^= 0xFF
            chunk = bytes(changed)
        yield chunk
        start += len(chunk)
    if start < stop:
        yield bytes(stop - start)


def _asked(header: str, size: int) -> tuple[int, int] | None:
    """Return what a `Range` asks for of so many bytes, from the first up to the end; None: nothing that counts."""
    unit, _, span = header.partition("=")
    first, dash, last = span.strip().partition("-")
    if unit.strip() != "bytes" or not dash or not (first + last).isdigit():
        return None
    if not first:
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None
    return int(first), min(int(last) + 1, size) if last else size
