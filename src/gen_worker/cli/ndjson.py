"""The client's side of the request socket: JSON, one object a line."""

import errno
import socket
import time
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from gen_worker.cli.failure import Failure
from gen_worker.rundir import connect, live_supervisors
from gen_worker.settings import Settings
from gen_worker.wire.messages import ErrorDetail

CONNECT_TIMEOUT_S = 10.0
_PIECE_BYTES = 1 << 20


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


class Address(NamedTuple):
    """Where a server listens: a Unix socket's path, or a host and a port."""

    text: str
    host: str = ""
    port: int = 0

    @property
    def sidecar(self) -> Path:
        """The file that a server keeps beside its socket while it is ready."""
        return Path("./.gen-worker.serve.json") if self.host else Path(f"{self.text}.json")

    def connect(self) -> socket.socket:
        """Return a connection; raise `Failure` when no server is there."""
        try:
            if self.host:
                return socket.create_connection((self.host, self.port), CONNECT_TIMEOUT_S)
            return connect(self.text, socket.SOCK_STREAM, CONNECT_TIMEOUT_S)
        except OSError as error:
            if error.errno == errno.EPROTOTYPE:
                raise Failure(f"`{self.text}` is a control socket, not one for requests", _elsewhere()) from None
            reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
            raise Failure(f"no server at `{self.text}`: {reason.lower()}", _elsewhere()) from None
        except AttributeError:
            raise Failure("this system has no Unix sockets", "name the server as `tcp://host:port`") from None


def _elsewhere() -> str:
    served = [file.serve for file in live_supervisors(Settings.load().run_dir) if file.serve]
    if not served:
        return "start one with `gen-worker serve`"
    return "there are servers at " + ", ".join(f"`{address}`" for address in served) + ": name one with `--socket`"


def parse_address(text: str) -> Address:
    """Read `tcp://host:port`, `unix:///path` or a path; raise `Failure` for anything else."""
    if "://" not in text:
        return Address(text)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port or 0
    except ValueError:
        host, port, parts = "", 0, urlsplit("")
    if parts.scheme == "unix" and not parts.netloc and parts.path:
        return Address(parts.path)
    if parts.scheme == "tcp" and host and port and not parts.path:
        return Address(text, host, port)
    raise Failure(f"`{text}` is not an address", "write a path, `unix:///path` or `tcp://host:port`")


class Lines:
    """A connection, line by line."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = bytearray()
        self._searched = 0
        self._decode = msgspec.json.Decoder(Line).decode

    def send(self, message: object) -> None:
        """Send one line; raise `Failure` when the server is gone."""
        self._connection.settimeout(None)
        try:
            self._connection.sendall(msgspec.json.encode(message) + b"\n")
        except OSError as error:
            raise Failure(f"the server is gone: {(error.strerror or str(error)).lower()}") from None

    def receive(self, deadline: float | None) -> Line | None:
        """Return the next line, None at the end; raise `NoAnswerInTime` when none comes before the deadline."""
        while (end := self._buffer.find(b"\n", self._searched)) < 0:
            self._searched = len(self._buffer)
            self._connection.settimeout(None if deadline is None else max(deadline - time.monotonic(), 0.001))
            try:
                piece = self._connection.recv(_PIECE_BYTES)
            except TimeoutError:
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
        except msgspec.DecodeError as error:
            raise Failure(
                f"the server said what is no answer: {error}", "is another program listening there?"
            ) from None
