"""One end of a socket against whatever the other sends: a frame, the end or a `ProtocolError`; no descriptor stays."""

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gen_worker.wire.channel import MAX_DESCRIPTORS, Channel, ProtocolError
from gen_worker.wire.messages import (
    FRAME_LIMIT,
    Done,
    ErrorDetail,
    Failed,
    Hello,
    Order,
    Report,
    Started,
    Submit,
    Warned,
)

GENERATION = 3


@contextmanager
def channel(receives: object = Report) -> Iterator[tuple[Channel[Report], socket.socket]]:
    """A channel that does not block and the bare socket of its peer."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    made: Channel[Report] = Channel(ours, generation=GENERATION, receives=receives)
    with ours, theirs:
        yield made, theirs


def packet(message: object, *, number: object = 0, generation: object = GENERATION) -> bytes:
    """Return a packet as a peer would make it."""
    return msgspec.msgpack.encode((generation, number, message))


def open_count() -> int:
    """Return how many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


def test_a_text_that_is_not_utf8_arrives_escaped_and_everything_else_as_it_was() -> None:
    detail = ErrorDetail(cause="\ud800", stack=["a", "\udcff.png"])
    failed = Failed(7, "user_exception", "no file `\udcff.png`", False, 0.5, detail)
    with channel() as (ours, theirs):
        ours.send(failed)
        received = msgspec.msgpack.decode(theirs.recv(FRAME_LIMIT), type=tuple[int, int, Report])
    detail = ErrorDetail(cause="\\ud800", stack=["a", "\\udcff.png"])
    assert received == (GENERATION, 0, Failed(7, "user_exception", "no file `\\udcff.png`", False, 0.5, detail))


def test_frames_arrive_whole_in_order_and_with_their_descriptors() -> None:
    with channel() as (ours, theirs), open(os.devnull) as null:
        sender: Channel[Order] = Channel(theirs, generation=GENERATION, receives=Order)
        sender.send(Hello(1))
        sender.send(Done(1, b"x", 0.5), [null.fileno()])
        assert ours.receive() == (Hello(1), [])
        received = ours.receive()
        assert received is not None
        message, descriptors = received
        assert message == Done(1, b"x", 0.5)
        assert len(descriptors) == 1
        os.close(descriptors[0])


def test_nothing_yet_is_not_the_end() -> None:
    with channel() as (ours, theirs):
        with pytest.raises(BlockingIOError):
            ours.receive()
        theirs.close()
        assert ours.receive() is None


@pytest.mark.promise(48)
def test_what_a_dead_peer_had_sent_is_read_before_its_end() -> None:
    with channel() as (ours, theirs):
        ours.send(Hello(9))  # left unread, so that the peer's end is a reset
        theirs.send(packet(Hello(1)))
        theirs.close()
        assert ours.receive() == (Hello(1), [])
        assert ours.receive() is None


def test_frames_of_another_generation_are_dropped_with_their_descriptors() -> None:
    with channel() as (ours, theirs), open(os.devnull) as null:
        before = open_count()
        socket.send_fds(theirs, [packet(Hello(1), generation=GENERATION - 1)], [null.fileno()])
        theirs.send(packet(Hello(2)))
        assert ours.receive() == (Hello(2), [])
        assert open_count() == before


@pytest.mark.parametrize("number", [1, 2**63, -1])
def test_a_frame_out_of_order_is_refused(number: int) -> None:
    with channel() as (ours, theirs):
        theirs.send(packet(Hello(1), number=number))
        with pytest.raises(ProtocolError, match=f"frame {number} where 0 was due"):
            ours.receive()


def test_the_same_frame_twice_is_refused() -> None:
    with channel() as (ours, theirs):
        for _ in range(2):
            theirs.send(packet(Started(1)))
        assert ours.receive() == (Started(1), [])
        with pytest.raises(ProtocolError, match="frame 0 where 1 was due"):
            ours.receive()


@pytest.mark.promise(10)
def test_a_packet_over_the_limit_is_refused() -> None:
    with channel() as (ours, theirs):
        theirs.send(packet(Warned("x" * FRAME_LIMIT)))
        with pytest.raises(ProtocolError, match="cut"):
            ours.receive()


def test_a_frame_over_the_limit_is_not_sent_and_its_number_is_not_used() -> None:
    with channel() as (ours, theirs):
        with pytest.raises(ProtocolError, match="the limit is 65536"):
            ours.send(Warned("x" * FRAME_LIMIT))
        ours.send(Warned("short"))
        assert msgspec.msgpack.decode(theirs.recv(FRAME_LIMIT))[1] == 0


def sent_until_full(ours: Channel[Report]) -> int:
    """Fill the socket; return how many frames that took."""
    for sent in range(10_000):
        try:
            ours.send(Warned("x" * 10_000))
        except BlockingIOError:
            return sent
    raise AssertionError("it never fills")


def test_a_full_socket_uses_no_number() -> None:
    with channel() as (ours, theirs):
        sent = sent_until_full(ours)
        theirs.recv(FRAME_LIMIT)
        ours.send(Hello(1))
        for number in range(1, sent):
            assert msgspec.msgpack.decode(theirs.recv(FRAME_LIMIT))[1] == number
        assert msgspec.msgpack.decode(theirs.recv(FRAME_LIMIT))[1] == sent


@pytest.mark.parametrize("count", [1, MAX_DESCRIPTORS, MAX_DESCRIPTORS + 1, 100])
def test_descriptors_on_a_packet_that_is_refused_are_closed(count: int) -> None:
    with channel() as (ours, theirs), open(os.devnull) as null:
        before = open_count()
        socket.send_fds(theirs, [b"no frame"], [null.fileno()] * count)
        with pytest.raises(ProtocolError):
            ours.receive()
        assert open_count() == before


@pytest.mark.promise(10)
@pytest.mark.parametrize(
    ("size", "count", "why"),
    [(FRAME_LIMIT + 2, 0, f"over {FRAME_LIMIT + 1} bytes"), (9, MAX_DESCRIPTORS + 1, f"over {MAX_DESCRIPTORS} desc")],
)
def test_what_was_cut_of_a_packet_is_said(size: int, count: int, why: str) -> None:
    with channel() as (ours, theirs), open(os.devnull) as null:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * size)
        socket.send_fds(theirs, [bytes(size)], [null.fileno()] * count)
        with pytest.raises(ProtocolError, match=why):
            ours.receive()


def test_who_has_no_descriptors_left_does_not_blame_the_sender() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with channel() as (ours, theirs), open(os.devnull) as null:
        before = open_count()
        socket.send_fds(theirs, [b"a frame"], [null.fileno()] * 2)
        resource.setrlimit(resource.RLIMIT_NOFILE, (null.fileno() + 1, hard))
        try:
            with pytest.raises(ProtocolError, match="this process may open no more files"):
                ours.receive()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert open_count() == before


def test_a_packet_without_bytes_but_with_a_descriptor_leaves_none() -> None:
    with channel() as (ours, theirs), open(os.devnull) as null:
        before = open_count()
        socket.send_fds(theirs, [b""], [null.fileno()])
        assert ours.receive() is None
        assert open_count() == before


BOMBS = [
    b"\x93\x03\x00" + b"\x91" * 60_000,  # a thousand nested arrays and more
    b"\x93\x03\x00" + b"\x81\xa1a" * 20_000,
    b"\xdd\xff\xff\xff\xff",  # an array of 2^32-1 things
    b"\x93\x03\x00\x92\xa4done\xc6\xff\xff\xff\xff",  # bytes of that length
    b"\x93\x03\x00\x92\xa6warned\xa2\xff\xfe",  # no UTF-8
    b"\xc1",
]


@pytest.mark.promise(9, 36)
@pytest.mark.parametrize("bomb", BOMBS, ids=range(len(BOMBS)))
def test_bombs_are_refused(bomb: bytes) -> None:
    for receives in (Report, Order):
        with channel(receives) as (ours, theirs):
            theirs.send(bomb)
            with pytest.raises(ProtocolError, match="not a frame"):
                ours.receive()


TAGS = st.sampled_from(["hello", "ready", "done", "failed", "item", "event", "need", "save", "submit", "grant", "boot"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.binary(max_size=9)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
NEARLY = st.builds(
    lambda generation, number, tag, fields: packet([tag, *fields], number=number, generation=generation),
    st.sampled_from([GENERATION, GENERATION, 2, None]),
    st.sampled_from([0, 0, 1, "0"]),
    TAGS,
    st.lists(VALUES, max_size=8),
)
WHOLE = st.sampled_from([packet(Done(1, b"abc", 0.5)), packet(Submit(1, "f", "r", b"{}", "json"))])
CUT = st.builds(lambda whole, at: whole[: max(1, at % len(whole))], WHOLE, st.integers(0, 200))


@pytest.mark.promise(9)
@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.binary(min_size=1, max_size=80) | NEARLY | CUT, st.integers(0, 12)), max_size=6))
def test_whatever_comes_is_a_frame_or_a_protocol_error_and_leaves_no_descriptor(
    packets: list[tuple[bytes, int]],
) -> None:
    for receives in (Report, Order):
        before = open_count()
        with channel(receives) as (ours, theirs), open(os.devnull) as null:
            for data, count in packets:
                socket.send_fds(theirs, [data], [null.fileno()] * count)
            theirs.close()
            for _ in range(len(packets) + 1):
                try:
                    received = ours.receive()
                except ProtocolError:
                    continue
                if received is None:
                    break
                for fd in received[1]:
                    os.close(fd)
        assert open_count() == before
