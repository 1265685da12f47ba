"""One end of the SEQPACKET socket between the supervisor and a child, or between the supervisor and its zygote.

Carries whole frames and the descriptors attached to them. Never waits unless its socket does, never judges a frame.
"""

import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from gen_worker.wire.messages import FRAME_LIMIT
from gen_worker.wire.texts import sendable

Incoming = TypeVar("Incoming")

MAX_DESCRIPTORS = 8
STALE_LIMIT = 64  # frames of another generation that are passed over; who sends more holds the loop of who reads them
_ANCILLARY_BYTES = socket.CMSG_SPACE(4 * MAX_DESCRIPTORS)
_CLOEXEC = int(socket.MSG_CMSG_CLOEXEC)  # plain numbers: the enum's operators cost more than the system call's overhead
_NOSIGNAL = int(socket.MSG_NOSIGNAL)
_BYTES_CUT = int(socket.MSG_TRUNC)
_DESCRIPTORS_CUT = int(socket.MSG_CTRUNC)
DECODE_ERRORS = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError, MemoryError)


class ProtocolError(Exception):
    """The peer sent something that is not a frame of this protocol, or that could not be taken over whole."""


def take_descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    """Return the descriptors that came with a message; the caller owns them."""
    found: list[int] = []
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            whole = len(payload) - len(payload) % 4
            found.extend(int.from_bytes(payload[i : i + 4], "little") for i in range(0, whole, 4))
    return found


def close_all(descriptors: Sequence[int]) -> None:
    """Close every descriptor in the list."""
    for fd in descriptors:
        socket.close(fd)


def receive_packet(sock: socket.socket, buffer: memoryview, flags: int = 0) -> tuple[int, list[int]]:
    """Receive one packet into `buffer`; return its length, 0 at the end of the stream, and its descriptors.

    Raise `BlockingIOError` when nothing is there and `ProtocolError` when the packet or its descriptors were cut.
    """
    while True:
        try:
            length, ancillary, told, _ = sock.recvmsg_into([buffer], _ANCILLARY_BYTES, _CLOEXEC | flags)
        except ConnectionResetError:
            continue  # a dead peer is reported once before the frames it left behind: read on until the end
        break
    descriptors = take_descriptors(ancillary) if ancillary else []
    if told & (_BYTES_CUT | _DESCRIPTORS_CUT):
        close_all(descriptors)
        if told & _BYTES_CUT:
            raise ProtocolError(f"a packet was cut: over {len(buffer)} bytes")
        if len(descriptors) < MAX_DESCRIPTORS:
            raise ProtocolError("a packet was cut: this process may open no more files")
        raise ProtocolError(f"a packet was cut: over {MAX_DESCRIPTORS} descriptors")
    return length, descriptors


def send_packet(sock: socket.socket, packet: bytes, descriptors: Sequence[int] = ()) -> None:
    """Send one packet whole; raise `BlockingIOError` when a non-blocking socket has no room."""
    if descriptors:
        socket.send_fds(sock, [packet], list(descriptors), _NOSIGNAL)
    else:
        sock.send(packet, _NOSIGNAL)


_NO_ROOM = memoryview(bytearray())


class Channel(Generic[Incoming]):
    """A socket that speaks numbered frames of one generation. Sending is safe from any thread, receiving from one."""

    def __init__(self, sock: socket.socket, *, generation: int, receives: Any) -> None:
        self.sock = sock
        self.generation = generation
        self._decode: Callable[[memoryview], tuple[int, int, Incoming]]
        self._decode = msgspec.msgpack.Decoder(tuple[int, int, receives]).decode
        self._encode = msgspec.msgpack.Encoder().encode
        self._sending = threading.Lock()
        self._sent = 0
        self._received = 0
        self._view = memoryview(bytearray(FRAME_LIMIT + 1))

    def send(self, message: object, descriptors: Sequence[int] = ()) -> None:
        """Send one frame whole.

        Raise `ProtocolError` when it is too long, `BlockingIOError` when a non-blocking socket has no room (the frame
        was not sent and its number not used), `OSError` when the peer is gone.
        """
        with self._sending:
            frame = (self.generation, self._sent, message)
            try:
                packet = self._encode(frame)
            except UnicodeEncodeError:  # the text of an author's exception may hold anything
                packet = self._encode(sendable(frame))
            if len(packet) > FRAME_LIMIT:
                raise ProtocolError(
                    f"a `{type(message).__name__}` frame of {len(packet)} bytes, the limit is {FRAME_LIMIT}"
                )
            if descriptors:
                send_packet(self.sock, packet, descriptors)
            else:
                self.sock.send(packet, _NOSIGNAL)
            self._sent += 1

    def count_sent(self) -> None:
        """Count a frame that a forked copy of this process sent in its stead."""
        with self._sending:
            self._sent += 1

    def receive(self, *, wait: bool = True) -> tuple[Incoming, list[int]] | None:
        """Return the next frame and its descriptors, None at the end of the stream.

        Raise `BlockingIOError` when none is there and nobody shall `wait`, or the socket does not; `ProtocolError` when
        the peer broke the protocol.
        """
        for _ in range(STALE_LIMIT):
            length, descriptors = receive_packet(self.sock, self._view, 0 if wait else socket.MSG_DONTWAIT)
            if length == 0:
                close_all(descriptors)
                return None
            try:
                generation, number, message = self._decode(self._view[:length])
            except DECODE_ERRORS as error:
                close_all(descriptors)
                raise ProtocolError(f"not a frame: {error}") from error
            if generation != self.generation:
                close_all(descriptors)
                continue
            if number != self._received:
                close_all(descriptors)
                raise ProtocolError(f"frame {number} where {self._received} was due")
            self._received += 1
            return message, descriptors
        raise ProtocolError(f"{STALE_LIMIT} frames of another generation on end")

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self.sock.fileno()

    def close(self) -> None:
        """Close the socket; the peer reads what was sent and then the end."""
        self.sock.close()
        self._view = _NO_ROOM  # who had the channel may be there until the collector looks
