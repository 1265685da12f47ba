"""Clients that send anything: the server answers or closes, serves on, and keeps no descriptor of theirs."""

import fcntl
import json
import mmap
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gen_worker.wire import control
from gen_worker.wire.messages import FRAME_LIMIT, WINDOW_ITEMS
from tests.served import Connection, Serve, Server, descriptors, text_of, until

pytestmark = [pytest.mark.process, pytest.mark.quiet]
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
MIB = 1 << 20
LAG_S = 0.05
KINDS = {"usage", "not_found", "invalid", "deadline"}


@contextmanager
def unharmed(server: Server) -> Iterator[None]:
    """The server keeps its children, descriptors, memory, pace and countenance, and serves one who was there before."""
    with server.connect() as witness:
        witness.send("echo", "before", text="before")
        assert text_of(witness.frame()) == "before"
        server.until_idle()
        pids, before, memory = server.pids(), len(descriptors(server.pid)), rss(server.pid)
        yield
        witness.send("echo", "after", text="after")
        assert text_of(witness.frame()) == "after"
        until(lambda: len(descriptors(server.pid)) <= before, what="no descriptor more than before")
    status = server.status()
    assert server.pids() == pids
    assert status.jobs == []
    assert status.loop_lag_p99_s is not None
    assert status.loop_lag_p99_s < LAG_S
    assert rss(server.pid) - memory < 100 * MIB  # one line of 16 MiB is several in the allocator's hands
    assert "Traceback" not in server.log()


LINKS = pytest.mark.parametrize("link", [{}, {"listen": "tcp://127.0.0.1:0"}], ids=["unix", "tcp"])


def said(server: Server, data: bytes) -> list[dict[str, object]]:
    """Send bytes and the end on a connection of its own; return what is answered before the server closes."""
    with server.connect() as connection:
        connection.write(data)
        connection.end()
        answers = []
        while (frame := connection.read()) is not None:
            answers.append(frame)
        return answers


LINES = [
    b"",
    b"\n\n \n",
    b"rubbish\n",
    b"\x00\xff\xfe\n",
    b'{"function":"ech',
    b'{"function":1}\n',
    b'{"function":"echo","payload":{"text":1}}\n',
    b'{"function":"echo","payload":}\n',
    b'{"function":"echo","payload":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    b"[" * 1_000_000 + b"\n",
    b'{"function":"' + b"e" * 300_000 + b'"}\n',
    b'{"function":"echo","request_id":"' + b"r" * 300_000 + b'"}\n',
    b'{"function":"echo","request_id":"\\ud800"}\n',
    b'{"cancel":{"request_id":"100%"}}\n',
    b'{"cancel":{}}\n',
    b'{"cancel":{"request_id":"' + b"r" * 300_000 + b'"}}\n',
    b'{"function":"echo","request_id":""}\n',
]


@pytest.mark.promise(9)
@LINKS
def test_each_line_that_is_no_request_has_its_answer_and_harms_nobody(serve: Serve, link: dict[str, str]) -> None:
    server = serve(module="liar", **link)
    with unharmed(server):
        for line in LINES:
            answers = said(server, line)
            assert len(answers) == (1 if line.strip() else 0), line[:60]
        assert said(server, b'{"cancel":{"request_id":"100%"}}\n') == [
            {"ok": True, "canceled": False, "request_id": "100%"}
        ]
        (answer,) = said(server, b'{"function":"echo","request_id":"' + b"r" * 300 + b'"}\n')
        assert "a `request_id` of 300 characters, the limit is 256" in json.dumps(answer)

        @QUICK
        @given(st.lists(st.binary(max_size=40) | st.sampled_from(LINES[:8]), max_size=8))
        def anything(pieces: list[bytes]) -> None:
            for answer in said(server, b"\n".join(pieces)):
                assert answer["ok"] in (True, False)

        anything()


WHOLE = '{"function":"echo","request_id":"ä€😀","payload":{"text":"ä€😀\\ud83d\\ude00"},"timeout_ms":60000}\n'.encode()


@pytest.mark.promise(10)
@LINKS
def test_a_request_that_is_cut_anywhere_is_answered_once_or_not_begun(serve: Serve, link: dict[str, str]) -> None:
    server = serve(module="liar", **link)
    with unharmed(server):
        (expected,) = said(server, WHOLE)
        assert text_of(expected) == "ä€😀😀"
        for at in range(1, len(WHOLE)):
            answers = said(server, WHOLE[:at])
            assert len(answers) == 1
            assert answers == [expected] if at == len(WHOLE) - 1 else kinds(answers) <= KINDS, WHOLE[:at]


@LINKS
def test_a_request_in_two_pieces_is_a_request(serve: Serve, link: dict[str, str]) -> None:
    server = serve(module="liar", **link)
    with unharmed(server), server.connect() as connection:
        if link:
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(1, len(WHOLE)):
            connection.write(WHOLE[:at])
            connection.write(WHOLE[at:])
            assert text_of(connection.frame()) == "ä€😀😀"


def kinds(answers: list[dict[str, object]]) -> set[object]:
    """Return how the requests failed."""
    return {error["kind"] if isinstance(error := answer.get("error"), dict) else None for answer in answers}


KEYS = b",".join(b'"k%d":%d' % (number, number) for number in range(1_000_000))
DIGITS = b"9" * 1_000_000
BOMBS = {
    "deep payload": b'{"function":"echo","payload":' + b'{"text":' * 500_000 + b"1" + b"}" * 500_000 + b"}\n",
    "deep neighbour": b'{"function":"echo","x":' + b"[" * 2_000_000 + b"]" * 2_000_000 + b"}\n",
    "keys in the payload": b'{"function":"echo","payload":{' + KEYS + b',"text":"kept"}}\n',
    "keys beside it": b'{"function":"echo","payload":{"text":"kept"},' + KEYS + b"}\n",
    "a long number": b'{"function":"echo","payload":{"text":' + DIGITS + b"}}\n",
    "a long number beside it": b'{"function":"echo","x":' + DIGITS + b',"payload":{"text":"kept"}}\n',
    "a huge number": b'{"function":"echo","payload":{"text":1e999999999}}\n',
    "a huge deadline": b'{"function":"echo","payload":{"text":"kept"},"timeout_ms":' + DIGITS + b"}\n",
    "a deadline beyond time": b'{"function":"echo","payload":{"text":"kept"},"timeout_ms":1e300}\n',
    "the same key again": b'{"function":"echo",' + b'"stream":false,' * 500_000 + b'"payload":{"text":"kept"}}\n',
    "escapes": b'{"function":"echo","payload":{"text":"' + b"\\u0000" * 1_000_000 + b'"}}\n',
    "an unpaired half": b'{"function":"echo","payload":{"text":"\\ud83d"}}\n',
    "nothing": b" " * 10_000_000 + b"\n",
    "many lines": b"[]\n" * 10_000,
}


@pytest.mark.promise(36)
@LINKS
def test_a_bomb_costs_an_answer(serve: Serve, link: dict[str, str]) -> None:
    server = serve(module="liar", **link)
    for name, bomb in BOMBS.items():
        said(server, bomb)  # for a payload that is big there is memory from now on
        with unharmed(server):
            answers = said(server, bomb)
            assert len(answers) == {"nothing": 0, "many lines": 10_000}.get(name, 1), name
            assert kinds(answers) <= {*KINDS, None}, name


def babble(connection: Connection) -> None:
    """Send for ever."""
    while True:
        connection.write(b"x" * (1 << 20))


@pytest.mark.promise(10)
def test_a_line_that_never_ends_is_refused_and_not_kept(serve: Serve) -> None:
    server = serve(module="liar")
    with unharmed(server), server.connect() as connection:
        before = rss(server.pid)
        connection.write(b"x" * (40 << 20))
        assert connection.frame()["error"]["kind"] == "usage"
        assert rss(server.pid) - before < 30 << 20
        with pytest.raises(OSError, match=r"reset|pipe"):  # it is not heard for ever
            babble(connection)
    assert server.status().gpus[0].state == "idle"


def test_a_client_that_sends_for_ever_and_reads_nothing_is_read_no_more(serve: Serve) -> None:
    server = serve(module="liar")
    with unharmed(server), server.connect() as connection:
        connection.sock.settimeout(1.0)
        before = rss(server.pid)
        with pytest.raises(TimeoutError):
            connection.write(b"x\n" * 50_000_000)
        assert rss(server.pid) - before < 100 << 20


def rss(pid: int) -> int:
    """Return the resident bytes of a process."""
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# --- the control socket -----------------------------------------------------------------------------------------------


@contextmanager
def control_socket(server: Server, *, opened: bool = True) -> Iterator[socket.socket]:
    """A bare socket to the control socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(20)
        sock.connect(str(server.control))
        if opened:
            sock.send(msgspec.msgpack.encode(control.Open(control.CONTROL_PROTOCOL)))
            assert isinstance(answer(sock), control.Opened)
        yield sock


def answer(sock: socket.socket) -> control.ServerFrame | None:
    """Return the next frame, None at the end of the connection."""
    try:
        data, fds, _, _ = socket.recv_fds(sock, FRAME_LIMIT + 1, 8)
    except ConnectionResetError:
        return answer(sock)
    for fd in fds:
        os.close(fd)
    return msgspec.msgpack.decode(data, type=control.ServerFrame) if data else None


RUBBISH = [
    b"x",
    b"\x91" * 60_000,
    b"\xdd\xff\xff\xff\xff",
    msgspec.msgpack.encode(["submit"]),
    msgspec.msgpack.encode(["submit", "r", "echo", -1]),
    msgspec.msgpack.encode(["open", "1"]),
    msgspec.msgpack.encode(control.Open(99)),
    msgspec.msgpack.encode(control.List()) + b"more",
]


@pytest.mark.promise(9)
@pytest.mark.parametrize("opened", [True, False])
def test_a_client_that_speaks_rubbish_is_told_so_and_cut_off(serve: Serve, opened: bool) -> None:
    server = serve(module="liar")
    frames = RUBBISH if opened else [*RUBBISH, *map(msgspec.msgpack.encode, (control.List(), control.Kill("x")))]
    with unharmed(server), open(os.devnull) as null:
        for frame in frames:
            with control_socket(server, opened=opened) as sock:
                socket.send_fds(sock, [frame], [null.fileno()] * 3)
                refusal = answer(sock)
                assert isinstance(refusal, control.Error), frame[:40]
                assert (refusal.kind, refusal.attempt) == ("usage", 0)
                assert answer(sock) is None
        for count, data in ((20, b"x"), (1, b"x" * 70_000), (2, b"")):
            with control_socket(server, opened=opened) as sock:
                socket.send_fds(sock, [data], [null.fileno()] * count)
                assert answer(sock) is None


def memfd(size: int, seals: int = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW) -> int:
    """Return a memfd of this size with these seals."""
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


@pytest.mark.promise(11, 31)
def test_bodies_in_memory_that_cannot_be_trusted_are_refused_and_the_client_goes_on(serve: Serve) -> None:
    server = serve(module="liar")
    with unharmed(server), control_socket(server) as sock, tempfile.TemporaryFile() as file, open(os.devnull) as null:
        file.write(b"x" * 5000)
        file.flush()
        cases = [
            ([memfd(4096, 0)], 100, "not sealed"),
            ([memfd(4096, fcntl.F_SEAL_GROW)], 100, "not sealed"),
            ([memfd(4096)], 4097, "does not fit"),
            ([memfd(4096)], -1, "at most"),
            ([memfd(4096)], 2**63, "at most"),
            ([memfd(0)], 0, "1 to"),
            ([os.dup(file.fileno())], 100, "sealed|not a memfd"),
            ([os.dup(null.fileno())], 100, "not a memfd"),
            ([], 100, "0 descriptors"),
            ([memfd(4096), memfd(4096)], 100, "2 descriptors"),
        ]
        for number, (fds, length, reason) in enumerate(cases):
            frame = control.Submit(f"r{number}", "echo", control.Attached(length))
            socket.send_fds(sock, [msgspec.msgpack.encode(frame)], fds)
            for fd in fds:
                os.close(fd)
            refusal = answer(sock)
            assert isinstance(refusal, control.Error)
            assert refusal.request_id == f"r{number}"
            assert any(part in refusal.message for part in reason.split("|")), refusal
        sock.send(msgspec.msgpack.encode(control.List()))
        assert isinstance(answer(sock), control.Listed)


def test_frames_that_mean_nothing_change_nothing(serve: Serve) -> None:
    server = serve(module="liar")
    with unharmed(server), control_socket(server) as sock:
        frames = [
            control.Ack("nobody"),
            control.More("nobody", 2**62),
            control.More("nobody", -5),
            control.Release(2**60),
            control.Submit("r" * 300, "echo", b"\x80"),
            control.Submit("r1", "e" * 50_000, b"\x80"),
            control.Submit("r2", "echo", b"\x91" * 40_000, attempt=-7, timeout_ms=2**62),
            control.Submit("r3", "echo", b"\xc1"),
            control.Submit("r4", "echo", b"{}", encoding="json", timeout_ms=-3),
            control.Cancel("nobody%s"),
            control.Kill("nobody", True),
        ]
        for frame in frames:
            sock.send(msgspec.msgpack.encode(frame))
        ends: dict[str, str] = {}
        while len(ends) < 7:
            told = answer(sock)
            assert told is not None
            if not isinstance(told, control.Accepted):
                ends[getattr(told, "request_id", "")] = type(told).__name__
        assert ends == {
            "": "Error",
            "r1": "Error",
            "r2": "Error",
            "r3": "Error",
            "r4": "Result",
            "nobody%s": "Canceled",
            "nobody": "Killed",
        }


GOOD = [
    control.Open(control.CONTROL_PROTOCOL, "a client"),
    control.Submit("r", "echo", b"\x81\xa4text\xa1x", timeout_ms=1000),
    control.Submit("r", "echo", control.Attached(100)),
    control.Kill("nobody", True),
    control.More("nobody", 3),
    control.List(),
]


@pytest.mark.promise(10)
def test_a_frame_that_is_cut_anywhere_is_refused(serve: Serve) -> None:
    server = serve(module="liar")
    with unharmed(server):
        for frame in map(msgspec.msgpack.encode, GOOD):
            for at in range(1, len(frame)):
                with control_socket(server) as sock:
                    sock.send(frame[:at])
                    refusal = answer(sock)
                    assert isinstance(refusal, control.Error)
                    assert refusal.kind == "usage"
                    assert answer(sock) is None


def test_nobody_else_can_say_that_a_clients_items_were_taken(serve: Serve) -> None:
    server = serve(devices="cpu:2")
    counted = server.folder / "counted"
    with unharmed(server), control_socket(server) as reader, control_socket(server) as stranger:
        payload = msgspec.msgpack.encode({"times": 10_000})
        reader.send(msgspec.msgpack.encode(control.Submit("mine", "count", payload, stream=True)))
        until(lambda: counted.exists() and int(counted.read_text() or 0) >= WINDOW_ITEMS, what="a full window")
        for _ in range(20):
            stranger.send(msgspec.msgpack.encode(control.More("mine", 1000)))
        stranger.send(msgspec.msgpack.encode(control.List()))
        assert isinstance(answer(stranger), control.Listed)
        for _ in range(20):
            assert text_of(server.ask("echo", text="in the meantime")) == "in the meantime"
        assert int(counted.read_text()) == WINDOW_ITEMS
        reader.send(msgspec.msgpack.encode(control.More("mine", 5)))
        until(lambda: int(counted.read_text()) == WINDOW_ITEMS + 5, what="five items more")
        reader.send(msgspec.msgpack.encode(control.Cancel("mine")))
        while not isinstance(answer(reader), control.Canceled):
            pass


def test_memory_that_is_given_back_twice_or_by_others_is_not_written_to_while_it_is_read(serve: Serve) -> None:
    server = serve()
    read_while_others_give_back(server)  # for values that are big there is memory from now on
    with unharmed(server):
        read_while_others_give_back(server)


def read_while_others_give_back(server: Server) -> None:
    with control_socket(server) as reader, control_socket(server) as stranger:
        first, first_memory = big_echo(reader, "first", b"a")
        for _ in range(3):
            stranger.send(msgspec.msgpack.encode(control.Release(first.region)))
            stranger.send(msgspec.msgpack.encode(control.Ack("first")))  # it was the reader's to say
        second, second_memory = big_echo(reader, "second", b"b")
        assert set(first_memory[-1000:]) == set(b"a")
        first_memory.close()
        for sock in (reader, reader, stranger):
            sock.send(msgspec.msgpack.encode(control.Release(first.region)))
        third, third_memory = big_echo(reader, "third", b"c")
        fourth, fourth_memory = big_echo(reader, "fourth", b"d")
        assert len({second.region, third.region, fourth.region}) == 3
        for memory, byte in ((second_memory, b"b"), (third_memory, b"c"), (fourth_memory, b"d")):
            assert set(memory[-1000:]) == set(byte)
            memory.close()
        for name in ("second", "third", "fourth"):
            reader.send(msgspec.msgpack.encode(control.Ack(name)))


def big_echo(sock: socket.socket, request_id: str, byte: bytes) -> tuple[control.Attached, mmap.mmap]:
    """Have a long value come back in shared memory; return where it is, and the memory."""
    data = msgspec.msgpack.encode({"data": byte * 200_000})
    with open(memfd(len(data)), "r+b") as file:
        file.write(data)
        file.flush()
        submit = control.Submit(request_id, "echo-blob", control.Attached(len(data)))
        socket.send_fds(sock, [msgspec.msgpack.encode(submit)], [file.fileno()])
    while True:
        packet, fds, _, _ = socket.recv_fds(sock, FRAME_LIMIT + 1, 8)
        frame = msgspec.msgpack.decode(packet, type=control.ServerFrame)
        if isinstance(frame, control.Result):
            assert isinstance(frame.body, control.Attached)
            with open(fds[0], "rb") as file:
                return frame.body, mmap.mmap(file.fileno(), frame.body.length, prot=mmap.PROT_READ)


FRAMES = st.lists(
    st.one_of(
        st.binary(min_size=1, max_size=60),
        st.sampled_from(RUBBISH),
        st.builds(
            lambda tag, fields: msgspec.msgpack.encode([tag, *fields]),
            st.sampled_from(["open", "submit", "cancel", "kill", "list", "ack", "more", "release"]),
            st.lists(
                st.sampled_from(["r", "echo", b"\x80", 0, 1, -1, 2**64 - 1, None, True, [5, 1], [], {}]), max_size=8
            ),
        ),
    ),
    max_size=6,
)


def test_any_frames_in_any_order_leave_a_server_that_serves(serve: Serve) -> None:
    server = serve(module="liar")
    with unharmed(server), open(os.devnull) as null:

        @QUICK
        @given(FRAMES, st.booleans(), st.integers(0, 3))
        def anything(frames: list[bytes], opened: bool, attached: int) -> None:
            with control_socket(server, opened=opened) as sock:
                try:
                    for frame in frames:
                        socket.send_fds(sock, [frame], [null.fileno()] * attached)
                except (BrokenPipeError, ConnectionResetError):
                    return  # it was cut off

        anything()
