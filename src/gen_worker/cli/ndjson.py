"""The client's side of the request socket: JSON, one object a line."""

import errno
import os
import socket
import time

import msgspec

from gen_worker.cli.failure import Failure
from gen_worker.cli.json_texts import NOT_JSON
from gen_worker.rundir import connect, live_supervisors, other_owner
from gen_worker.settings import Settings
from gen_worker.wire.address import Address, AddressError, TcpAddress, parse_address
from gen_worker.wire.messages import ErrorDetail

CONNECT_TIMEOUT_S = 10.0
_PIECE_BYTES = 1 << 20
_LOOK_S = 3600.0  # a socket takes no timeout of any length


class WireError(msgspec.Struct):
    """Why a request failed, as the server says it."""

    kind: str
    message: str
    retryable: bool = False
    detail: ErrorDetail | None = None


class WireEvent(msgspec.Struct):
    """Something that a request gave: an item, its output, progress or a line of its log."""

    event: str = ""
    value: msgspec.Raw = msgspec.Raw(b"null")


class Line(WireEvent):
    """Any line of a server: an event, an answer, an error."""

    ok: bool | None = None
    events: list[WireEvent] = []
    error: WireError | None = None


class NoAnswerInTime(Exception):
    """The deadline passed before a line came."""


def address_of(text: str) -> Address:
    """Read `tcp://host:port`, `unix:///path` or a path; raise `Failure` for anything that cannot be connected to."""
    try:
        address = parse_address(text)
    except AddressError as error:
        raise Failure(str(error), error.hint) from None
    if isinstance(address, TcpAddress) and not address.port:
        raise Failure(f"`{text}` is not an address: port 0 is no port to connect to", "the server says its port")
    return address


def open_connection(address: Address) -> socket.socket:
    """Return a connection to a server; raise `Failure` when none is there."""
    try:
        if isinstance(address, TcpAddress):
            return socket.create_connection((address.host, address.port), CONNECT_TIMEOUT_S)
        return connect(address.path, socket.SOCK_STREAM, CONNECT_TIMEOUT_S)
    except OSError as error:
        if error.errno == errno.EPROTOTYPE:
            raise Failure(f"`{address}` is a control socket, not one for requests", _elsewhere()) from None
        reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise Failure(f"no server at `{address}`: {reason.lower()}", _ending(address) or _elsewhere()) from None
    except AttributeError:
        raise Failure("this system has no Unix sockets", "name the server as `tcp://host:port`") from None


def _ending(address: Address) -> str:
    """Return what to know of a supervisor that is alive and does not listen at its address any more."""
    if isinstance(address, TcpAddress):
        return ""
    served = {file.serve: file.pid for file in live_supervisors(Settings.load().run_dir) if file.serve}
    pids = [pid for serve, pid in served.items() if os.path.realpath(serve) == os.path.realpath(address.path)]
    return f"its supervisor, {pids[0]}, takes nothing new any more: it is ending" if pids else ""


def _elsewhere() -> str:
    served = [file.serve for file in live_supervisors(Settings.load().run_dir) if file.serve]
    if not served:
        return "start one with `gen-worker serve`"
    return "there are servers at " + ", ".join(f"`{address}`" for address in served) + ": name one with `--socket`"


class Lines:
    """A connection, line by line."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = bytearray()
        self._searched = 0
        self._decode = msgspec.json.Decoder(Line).decode

    def send(self, line: bytes) -> None:
        """Send one line; raise `Failure` when the server is gone."""
        self._connection.settimeout(None)
        try:
            self._connection.sendall(line)
        except OSError as error:
            self.refuse_others()
            raise Failure(f"the server is gone: {(error.strerror or str(error)).lower()}") from None

    def refuse_others(self) -> None:
        """Raise `Failure` where it was hung up because the server is another user's."""
        if owner := other_owner(self._connection):
            raise Failure(f"the server is another user's, {owner}: it hung up", "be that user, or root")

    def receive(self, deadline: float | None) -> Line | None:
        """Return the next line, None at the end; raise `NoAnswerInTime` when none comes before the deadline."""
        while (end := self._buffer.find(b"\n", self._searched)) < 0:
            self._searched = len(self._buffer)
            left = None if deadline is None else deadline - time.monotonic()
            self._connection.settimeout(None if left is None else min(max(left, 0.001), _LOOK_S))
            try:
                piece = self._connection.recv(_PIECE_BYTES)
            except TimeoutError:
                if deadline is not None and time.monotonic() < deadline:
                    continue
                raise NoAnswerInTime from None
            except ConnectionResetError:
                return None
            if not piece:
                return None
            self._buffer += piece
        line = bytes(memoryview(self._buffer)[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        try:
            return self._decode(line)
        except NOT_JSON as error:
            raise no_answer(error) from None


def no_answer(error: Exception) -> Failure:
    """Return what to raise for what a server said and cannot be read."""
    return Failure(f"the server said what is no answer: {error}", "is another program listening there?")
