"""Ten thousand malformed frames on every socket of a server: each costs an answer or a connection, and nobody else."""

import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from gen_worker.wire import control
from tests.served import Connection, Server, connected, descriptors, resident_bytes, serving, until
from tests.witness import Witness

pytestmark = [pytest.mark.process, pytest.mark.quiet]
TOKEN = "a secret of 24 characters"
LOOPBACK = "tcp://127.0.0.1:0"
FRAMES = 10_000
WARM_UP = 1_000
LAG_S = 0.05
GROWN_BYTES = 2 << 20
CLOSED_S = 0.1


@contextmanager
def unmoved(server: Server) -> Iterator[None]:
    """The server serves a witness throughout, and is afterwards what it was: descriptors, memory, pace, words."""
    with Witness(server) as first:  # what is kept of jobs has its file from the first one on
        first.until_served(1)
    server.until_idle()
    pids, before, memory = server.pids(), len(descriptors(server.pid)), resident_bytes(server.pid)
    with Witness(server) as witness:
        yield
        witness.until_served()
    assert witness.wrong == []
    until(lambda: len(descriptors(server.pid)) <= before, what="no descriptor more than before")
    status = server.status()
    assert (server.pids(), status.jobs) == (pids, [])
    assert status.loop_lag_p99_s is not None
    assert status.loop_lag_p99_s < LAG_S
    assert resident_bytes(server.pid) - memory < GROWN_BYTES
    assert "Traceback" not in server.log()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on a Unix socket."""
    with serving(tmp_path_factory.mktemp("hostile"), module="liar") as made:
        yield made


@pytest.fixture(scope="module")
def over_tcp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on a port of loopback that anyone may use."""
    with serving(tmp_path_factory.mktemp("hostile"), module="liar", listen=LOOPBACK) as made:
        yield made


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on a port that asks for a token."""
    with serving(tmp_path_factory.mktemp("hostile"), module="liar", listen=LOOPBACK, token=TOKEN) as made:
        yield made


# --- lines ------------------------------------------------------------------------------------------------------------

GOOD_LINE = b'{"function":"echo","request_id":"r","payload":{"text":"\xc3\xa4"},"timeout_ms":60000}'
ODD_LINES = [
    b"\x00\xff\xfe",
    b"null",
    b"[" * 200,
    b"9" * 400,
    b"NaN",
    b'"\\ud800"',
    b'{"function":"echo","payload":{"text":NaN}}',
    b'{"function":"echo","payload":{"text":"a"},"payload":[]}',
    b'{"function":"echo","request_id":"../../../../etc/cron.d/x","payload":[]}',
    b'{"function":"../../echo","payload":{}}',
    b'{"function":"echo","timeout_ms":-1}',
    b'{"function":"echo","timeout_ms":1e400}',
    b'{"cancel":{"request_id":1}}',
    b'{"cancel":{"request_id":"nobody"}}',
    b'{"cancel":"everybody","function":"echo"}',
]


def odd_line(chance: random.Random) -> bytes:
    """Return a line that is no good request: one of the odd ones, or a good one cut short or with a byte changed."""
    match chance.randrange(3):
        case 0:
            return chance.choice(ODD_LINES)
        case 1:
            return GOOD_LINE[: chance.randrange(1, len(GOOD_LINE))]
        case _:
            at = chance.randrange(len(GOOD_LINE))
            return (GOOD_LINE[:at] + chance.randbytes(1) + GOOD_LINE[at + 1 :]).replace(b"\n", b"?")


def babble(server: Server, number: int, chance: random.Random) -> None:
    """Send so many odd lines, 200 on a connection; each is answered."""
    for _ in range(number // 200):
        with server.connect() as connection:
            for number in range(200):
                connection.write(odd_line(chance).replace(b'"r"', b'"r%d"' % number) + b"\n")
            connection.end()
            answers = 0
            while connection.read() is not None:
                answers += 1
            assert answers == 200


@pytest.mark.promise(9, 36)
def test_ten_thousand_odd_lines_have_an_answer_each(server: Server, over_tcp: Server) -> None:
    for each in (server, over_tcp):
        babble(each, WARM_UP, random.Random(1))
        with unmoved(each):
            babble(each, FRAMES, random.Random(2))


def knock(where: Path | str, number: int, chance: random.Random) -> None:
    """Connect so often, each time to leave at once or in the middle of a line, with or without a goodbye."""
    for _ in range(number):
        with connected(where) as sock:
            sock.sendall(odd_line(chance)[: chance.randrange(3)])
            if chance.random() < 0.5:
                sock.shutdown(socket.SHUT_WR)


@pytest.mark.promise(10, 32)
def test_thousands_of_connections_that_say_next_to_nothing_leave_nothing(server: Server) -> None:
    knock(server.socket, WARM_UP, random.Random(3))
    with unmoved(server):
        knock(server.socket, 5_000, random.Random(4))


def guess(server: Server, number: int, chance: random.Random) -> set[str]:
    """Show a wrong token or none so often, each time on a connection of its own; return what is said to that."""
    told = set()
    for _ in range(number):
        with Connection(server.address) as stranger:
            with suppress(BrokenPipeError, ConnectionResetError):
                stranger.write(odd_line(chance)[:-1] + b',"token":"guess"}\n' * 3)
            if (frame := stranger.read()) is not None:
                told.add(frame["error"]["message"])
    return told


@pytest.mark.promise(41)
def test_thousands_of_guesses_at_the_token_reach_nothing_and_cost_nobody_who_has_it(guarded: Server) -> None:
    guess(guarded, 300, random.Random(5))
    with unmoved(guarded):
        told = guess(guarded, FRAMES // 3, random.Random(6))
    assert told <= {"too many wrong tokens", "a wrong `token`", "a line without `token`"}
    assert TOKEN not in guarded.log()


@pytest.mark.promise(41)
@pytest.mark.parametrize("goes_on", [False, True])
def test_a_wrong_token_closes_its_connection_within_a_tenth_of_a_second(guarded: Server, goes_on: bool) -> None:
    with Connection(guarded.address) as stranger:
        began = time.monotonic()
        stranger.write(b'{"function":"echo","token":"guess"}\n')
        assert stranger.frame()["error"]["kind"] == "usage"
        with suppress(ConnectionResetError, BrokenPipeError):
            if goes_on:
                babbles = threading.Thread(target=send_for_ever, args=(stranger.sock,))
                babbles.start()
                assert stranger.read() is None
                babbles.join()
            else:
                assert stranger.read() is None
        assert time.monotonic() - began < CLOSED_S


def send_for_ever(sock: socket.socket) -> None:
    """Send until the other end is gone."""
    with suppress(OSError):
        while True:
            sock.sendall(b"x" * 1000)


# --- the control socket -----------------------------------------------------------------------------------------------

encode = msgspec.msgpack.encode
GOOD_FRAMES = [
    encode(control.Open(control.CONTROL_PROTOCOL, "a client")),
    encode(control.Submit("r", "echo", b"\x81\xa4text\xa1x", timeout_ms=1000, tenant="../x", priority=9)),
    encode(control.Submit("r", "echo", control.Attached(1 << 62))),
    encode(control.Kill("nobody", True)),
    encode(control.Restart("cuda:99", True)),
    encode(control.Pardon("nothing", "../../x")),
    encode(control.More("nobody", 1 << 62)),
    encode(control.Watch(1 << 62, -(1 << 62))),
    encode(control.Read(-(1 << 62), 1 << 62, True, "../x", "r" * 40_000, "error", -1)),
    encode(control.Drain("cuda:99")),
    encode(control.Stack("../x")),
    encode(control.Model("unload", "nobody/nothing:" + "x" * 40_000, "cuda:99")),
]
ODD_FRAMES = [
    b"\xc1",
    b"\x91" * 60_000,
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff" * 4,
    b"\x92\xa4open\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",
    b"\x92\xa4list\xc9\xff\xff\xff\xff\x01",
    encode(["submit", "r", "echo", b"", "json", 2**64 - 1]),
    encode(["submit", "r" * 60_000, "echo", b""]),
    encode(["quarantine", []]),
    encode(["watch", -1.5]),
    encode(["watch", 2**64 - 1]),
    encode(["read", 0, 0, False, "", "", "loud"]),
    encode(["read", 2**64 - 1, 2**64 - 1]),
    encode(["model", "format", "x"]),
    encode(["stack"]),
    encode(["drain", ["cpu:0"], 1]),
    encode({"open": 1}),
    b"x" * 70_000,
]


def odd_frame(chance: random.Random) -> bytes:
    """Return a packet that is no good frame: one of the odd ones, or a good one cut short or with a byte changed."""
    good = chance.choice(GOOD_FRAMES)
    match chance.randrange(3):
        case 0:
            return chance.choice(ODD_FRAMES)
        case 1:
            return good[: chance.randrange(1, len(good))]
        case _:
            at = chance.randrange(len(good))
            return good[:at] + chance.randbytes(1) + good[at + 1 :]


def intrude(server: Server, number: int, chance: random.Random, null: int) -> int:
    """Send so many odd packets, with up to forty descriptors that are no memory; return how many were answered."""
    answered = 0
    for _ in range(number):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.settimeout(20)
            sock.connect(str(server.control))
            if chance.random() < 0.5:
                sock.send(GOOD_FRAMES[0])
                sock.recv(1 << 17)
            socket.send_fds(sock, [odd_frame(chance)], [null] * chance.choice((0, 0, 0, 1, 3, 40)))
            sock.shutdown(socket.SHUT_WR)
            with suppress(ConnectionResetError):
                answered += bool(sock.recv(1 << 17))
                while sock.recv(1 << 17):
                    pass
    return answered


@pytest.mark.promise(9, 10, 11)
def test_ten_thousand_odd_packets_at_the_control_socket_cost_their_connections(server: Server) -> None:
    with open("/dev/null") as null:
        intrude(server, WARM_UP, random.Random(7), null.fileno())
        until(lambda: server.status().jobs == [], what="the end of what happened to be a request")
        with unmoved(server):
            answered = intrude(server, FRAMES, random.Random(8), null.fileno())
            assert answered > FRAMES // 2  # others brought more than one packet may have
            until(lambda: server.status().jobs == [], what="the end of what happened to be a request")


def open_often(server: Server, number: int) -> None:
    """Open one connection so often, and read none of the answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(20)
        sock.connect(str(server.control))
        with suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(number):
                sock.send(GOOD_FRAMES[0])


@pytest.mark.promise(12)
def test_a_client_that_opens_for_ever_and_reads_nothing_is_cut_off(server: Server) -> None:
    open_often(server, FRAMES)
    with unmoved(server):
        open_often(server, FRAMES)


STRANGER = """
import socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
    sock.settimeout(20)
    sock.connect(sys.argv[1])
    try:
        sock.send(b"\\x92\\xa4open\\x01")
        sys.exit(1 if sock.recv(1) else 0)
    except (BrokenPipeError, ConnectionResetError):
        sys.exit(0)
"""


@pytest.mark.root
@pytest.mark.promise(40)
def test_another_user_reaches_no_control_socket_even_where_its_file_and_folders_would_let_it() -> None:
    with tempfile.TemporaryDirectory(prefix="gw-") as made, serving(Path(made), module="liar") as server:
        place = server.control
        assert place.stat().st_mode & 0o777 == 0o600
        for folder in (place.parent, place.parent.parent, server.folder):
            folder.chmod(0o711)
        place.chmod(0o777)
        as_another = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
        command = [*as_another, sys.executable, "-I", "-c", STRANGER, str(place)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd="/")
        assert (done.returncode, done.stderr) == (0, "")
        assert server.status().gpus
