"""Connections to origins: made through proxies and TLS, read with limits, kept for the next request."""

import base64
import ipaddress
import queue
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPResponse
from io import BufferedReader, RawIOBase
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.config import FetchConfig
from gen_worker.fetch.network.origins import Origin, Proxy, proxy_for
from gen_worker.fetch.network.patience import Patience
from gen_worker.models.errors import ModelError

IDLE_S = 15.0  # a connection without a request for longer is likelier than not closed by the other side
IDLE_AT_MOST = 16  # of one origin
_TICK_S = 1.0  # how often a wait for bytes looks at the clock
T = TypeVar("T")
Address: TypeAlias = tuple[int, int, int, str, tuple[Any, ...]]  # as `getaddrinfo` has them


class Connection:
    """A connection to an origin. Whoever has it, has it alone."""

    def __init__(
        self, sock: socket.socket, patience: Patience, *, absolute: bool = False, credentials: str = ""
    ) -> None:
        self._patience = patience
        self.absolute = absolute
        """Whether requests name the whole URL, as plain proxies want it."""
        self.credentials = credentials
        """For a plain proxy, the value of `Proxy-Authorization`."""
        self.handle = sock.dup()
        """Shutting this down ends every wait on the connection: unlike a TLS socket it may be used by any thread."""
        self._sock = sock
        self._tick_s = tick = min(_TICK_S, patience.quiet_s / 2)
        sock.settimeout(None)  # the kernel's own limit on a wait costs no poll() before each recv()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(tick), int(tick % 1 * 1e6)))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(patience.quiet_s) + 1, 0))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.idle_since = 0.0
        self._deadline: float | None = None
        self._filling: int = socket.MSG_WAITALL
        self._waited = 0.0
        self._moved = 0

    def secure(self, context: ssl.SSLContext, host: str) -> None:
        """Begin TLS."""
        secured = context.wrap_socket(self._sock, server_hostname=host, do_handshake_on_connect=False)
        self._sock = secured
        secured.settimeout(self._tick_s)  # OpenSSL goes on waiting when the kernel's limit is over
        self._filling = 0
        until = self._patience.clock() + self._patience.connect_s
        while True:
            try:
                return secured.do_handshake()
            except TimeoutError:  # a tick without a byte
                if self._patience.clock() >= until:
                    raise TimeoutError("no answer to the handshake") from None

    def send(self, head: bytes) -> None:
        """Send the head of a request."""
        self._sock.sendall(head)

    def write(self, piece: bytes | memoryview) -> None:
        """Send a piece of a body; raise `TimeoutError` when nothing of it is taken for too long, or too little."""
        patience, view = self._patience, memoryview(piece)
        taken_at = patience.clock()
        while view:
            began = patience.clock()
            try:
                taken = self._sock.send(view)
            except (BlockingIOError, TimeoutError):  # a tick in which nothing was taken
                taken = 0
            now = patience.clock()
            if taken:
                view, taken_at = view[taken:], now
            elif now - taken_at >= patience.quiet_s:
                raise TimeoutError(f"nothing was taken for {patience.quiet_s:.0f} seconds")
            self._judge_pace(now - began, taken)

    def answer(self, method: str) -> HTTPResponse:
        """Return the answer to what was sent, as soon as its head has come."""
        self._waited, self._moved = 0.0, 0
        response = HTTPResponse(cast(socket.socket, self), method=method)  # it calls nothing but `makefile`
        self._deadline = self._patience.clock() + self._patience.head_s
        try:
            response.begin()
        except BaseException:
            response.close()
            raise
        self._deadline = None
        return response

    def makefile(self, _mode: str) -> BufferedReader:
        """Return what comes, as a file; closing it leaves the connection open."""
        return BufferedReader(cast(Any, _Incoming(self)))

    def fill(self, view: memoryview) -> int:
        """Fill a buffer with what comes and return how much that was, at least about once a second; 0: the end."""
        return self.receive(view, self._filling)

    def receive(self, view: memoryview, flags: int = 0) -> int:
        """Return as soon as something came; raise `TimeoutError` when nothing does, or too little over long."""
        patience = self._patience
        began = patience.clock()
        while True:
            try:
                count = self._sock.recv_into(view, 0, flags)
            except (BlockingIOError, TimeoutError):  # a tick without a byte
                now = patience.clock()
                if now - began >= patience.quiet_s or (self._deadline is not None and now >= self._deadline):
                    raise TimeoutError(f"no byte for {now - began:.0f} seconds") from None
                continue
            now = patience.clock()
            if self._deadline is not None and now >= self._deadline:
                raise TimeoutError("the head of the answer comes too slowly")
            if self._deadline is None:
                self._judge_pace(now - began, count)
            return count

    def _judge_pace(self, waited: float, moved: int) -> None:
        """Raise `TimeoutError` when too little of a body comes, or is taken."""
        self._waited += waited  # only what was waited for: a slow disk of ours is not the connection's fault
        self._moved += moved
        if self._waited < self._patience.slow_s:
            return
        if self._moved < self._patience.slow_bytes_per_s * self._waited:
            raise TimeoutError(f"only {self._moved} bytes in {self._waited:.0f} seconds")
        self._waited, self._moved = 0.0, 0

    @property
    def stale(self) -> bool:
        """Whether the other side closed it, or sent what nobody asked for."""
        poll = select.poll()
        poll.register(self.handle, select.POLLIN)
        return bool(poll.poll(0))

    def abandon(self) -> None:
        """Close it in the middle of something: the other side is told at once to stop sending."""
        with suppress(OSError):  # it was never connected, or is closed
            self.handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """Close it."""
        self._sock.close()
        self.handle.close()


class _Incoming(RawIOBase):
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._connection.receive(memoryview(buffer))


def _look_up(host: str, port: int) -> list[Any]:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:  # a part of it is too long for a name
        raise socket.gaierror(socket.EAI_NONAME, "no name of a host") from None


def _connect(sock: socket.socket, address: tuple[Any, ...]) -> None:
    sock.connect(address)


def _allow(origin: Origin, address: str) -> None:
    """Every address of every origin may be connected to."""


class Dialing(NamedTuple):
    """How the name of an origin becomes a connection: looked up once, each address checked, then one of them tried."""

    look_up: Callable[[str, int], list[Address]] = _look_up
    check: Callable[[Origin, str], None] = _allow
    """Raises for an address that must not be connected to; sees all of them before the first is tried."""

    connect: Callable[[socket.socket, tuple[Any, ...]], None] = _connect


DIALING = Dialing()


class Connections:
    """Where connections come from and go back to. For any number of threads."""

    def __init__(self, config: FetchConfig, patience: Patience, dialing: Dialing = DIALING) -> None:
        self._config = config
        self._patience = patience
        self._dialing = dialing
        self._lock = threading.Lock()
        self._idle: dict[Origin, list[Connection]] = {}
        self._context: ssl.SSLContext | None = None

    def take(self, origin: Origin) -> Connection | None:
        """Return an idle connection to an origin, if there is a good one."""
        while True:
            with self._lock:
                idle = self._idle.get(origin)
                if not idle:
                    return None
                connection = idle.pop()
            if self._patience.clock() - connection.idle_since < IDLE_S and not connection.stale:
                return connection
            connection.close()

    def give(self, origin: Origin, connection: Connection) -> None:
        """Keep a connection for the next request."""
        connection.idle_since = self._patience.clock()
        with self._lock:
            idle = self._idle.setdefault(origin, [])
            if len(idle) < IDLE_AT_MOST:
                idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close all that are idle."""
        with self._lock:
            idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection in connections:
                connection.close()

    def make(self, origin: Origin, cancel: Cancel) -> Connection:
        """Return a new connection to an origin; raise `OSError`, or `ModelError` where another try would not help."""
        proxy = proxy_for(origin, self._config.proxies)
        peer = Origin("http", proxy.host, proxy.port) if proxy else origin
        sock = _connected(peer, self._dialing, self._patience, cancel)
        plain = origin.scheme == "http"
        connection = Connection(
            sock, self._patience, absolute=plain and proxy is not None, credentials=_basic(proxy) if proxy else ""
        )
        try:
            with cancel.watching(connection.handle):
                if proxy and not plain:
                    _tunnel(connection, origin, proxy)
                if not plain:
                    connection.secure(self._authorities(), origin.host)
        except BaseException:
            connection.abandon()
            raise
        return connection

    def _authorities(self) -> ssl.SSLContext:
        with self._lock:
            if self._context is None:
                context = ssl.create_default_context()
                if self._config.ca_bundle:
                    _add_authorities(context, self._config.ca_bundle)
                self._context = context
            return self._context


def _add_authorities(context: ssl.SSLContext, path: str) -> None:
    try:
        context.load_verify_locations(cafile=path)
    except (OSError, ssl.SSLError) as error:
        raise ModelError(
            "not_configured",
            f"`{path}` holds no authorities: {error.strerror or error}",
            "set `GEN_WORKER_CA_BUNDLE` to a PEM file",
        ) from error


def _connected(peer: Origin, dialing: Dialing, patience: Patience, cancel: Cancel) -> socket.socket:
    failure: OSError = socket.gaierror(socket.EAI_NONAME, f"`{peer.host}` has no address")
    addresses = _addresses(peer, dialing, patience, cancel)
    for *_, address in addresses:
        dialing.check(peer, address[0])
    for family, kind, protocol, _, address in addresses:
        sock = socket.socket(family, kind, protocol)
        try:
            with cancel.watching(sock):
                sock.settimeout(patience.connect_s)
                dialing.connect(sock, address)
            cancel.raise_if_set()
            return sock
        except OSError as error:
            sock.close()
            cancel.raise_if_set()
            failure = error
        except BaseException:
            sock.close()
            raise
    raise failure


def _addresses(peer: Origin, dialing: Dialing, patience: Patience, cancel: Cancel) -> list[Address]:
    def look_up() -> list[Address]:
        return dialing.look_up(peer.host, peer.port)

    try:
        ipaddress.ip_address(peer.host)
    except ValueError:
        return _aside(look_up, patience.connect_s, cancel)
    return look_up()


def _aside(call: Callable[[], T], seconds: float, cancel: Cancel) -> T:
    """Return what a call returns that nothing can interrupt; leave it alone after so long, or when canceled."""
    ended: queue.SimpleQueue[tuple[T | None, OSError | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            ended.put((call(), None))
        except OSError as error:
            ended.put((None, error))

    threading.Thread(target=run, daemon=True, name="look-up").start()
    for _ in range(max(1, int(seconds / 0.05))):
        cancel.raise_if_set()
        try:
            result, error = ended.get(timeout=0.05)
        except queue.Empty:
            continue
        if error is not None:
            raise error
        return cast(T, result)
    raise TimeoutError("the name server does not answer")


def _tunnel(connection: Connection, origin: Origin, proxy: Proxy) -> None:
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    head = f"CONNECT {host}:{origin.port} HTTP/1.1\r\nHost: {host}:{origin.port}\r\n"
    if connection.credentials:
        head += f"Proxy-Authorization: {connection.credentials}\r\n"
    connection.send(f"{head}\r\n".encode("ascii"))
    with connection.answer("CONNECT") as response:
        status = response.status
    if status == 200:
        return
    message = f"the proxy `{proxy.host}:{proxy.port}` does not let `{origin}` through: it answers {status}"
    if status >= 500:
        raise ConnectionError(message)
    raise ModelError("unreachable", message, "check `HTTPS_PROXY` and `NO_PROXY`")


def _basic(proxy: Proxy) -> str:
    return f"Basic {base64.b64encode(proxy.credentials.encode()).decode()}" if proxy.credentials else ""
