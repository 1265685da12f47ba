"""Payloads made to be expensive: each is its caller's mistake, told at once, and costs nobody anything."""

import time
from statistics import median

import msgspec
import pytest

from gen_worker.client import JobError
from tests.served import Serve, Server, resident_bytes, text_of
from tests.witness import Witness

pytestmark = [pytest.mark.process, pytest.mark.quiet]
SOON_S = 0.05
GROWN_BYTES = 16 << 20
N = 1_000_000


JSON = {
    "lists a million deep": ("echo", b'{"text":' + b"[" * N + b"]" * N + b"}"),
    "objects a hundred thousand deep": ("echo", b'{"text":' * (N // 10) + b"1" + b"}" * (N // 10)),
    "what the type allows, very deep": ("depth", b'{"inner":[' * 100_000 + b"]}" * 100_000),
    "a million empty lists": ("echo", b'{"text":[' + b"[]," * N + b"[]]}"),
    "a million empty lists of what the type allows": ("depth", b'{"inner":[' + b"[]," * N + b"[]]}"),
    "a million digits": ("echo", b'{"times":' + b"9" * N + b"}"),
    "a million digits behind the point": ("echo", b'{"times":0.' + b"9" * N + b"}"),
    "an exponent": ("echo", b'{"times":1e999999999}'),
    "no number": ("echo", b'{"times":NaN}'),
    "infinity": ("echo", b'{"times":-Infinity}'),
    "no UTF-8": ("echo", b'{"text":"\xff\xfe\xc0\x80"}'),
    "half a character": ("echo", b'{"text":"\\ud83d"}'),
    "a key a hundred thousand times, at last wrong": ("echo", b"{" + b'"times":1,' * (N // 10) + b'"times":"x"}'),
    "cut": ("echo", b'{"text":"'),
    "two values": ("echo", b"{}{}"),
    "nothing": ("echo", b""),
}


def pack(head: bytes, body: bytes = b"") -> bytes:
    """Return a map of one key, `text`, and what is said to be its value."""
    return b"\x81\xa4text" + head + body


MSGPACK = {
    "lists a million deep": ("echo", pack(b"\x91" * N + b"\xc0")),
    "maps a hundred thousand deep": ("echo", pack(b"\x81\xa1x" * (N // 10) + b"\xc0")),
    "what the type allows, very deep": ("depth", b"\x81\xa5inner\x91" * 100_000 + b"\x80"),
    "four billion items": ("echo", pack(b"\xdd\xff\xff\xff\xff")),
    "four billion pairs": ("echo", b"\xdf\xff\xff\xff\xff"),
    "a text of four gigabytes": ("echo", pack(b"\xdb\xff\xff\xff\xff")),
    "bytes of four gigabytes": ("echo-blob", b"\x81\xa4data\xc6\xff\xff\xff\xff"),
    "four billion children": ("depth", b"\x81\xa5inner\xdd\xff\xff\xff\xff"),
    "an extension of four gigabytes": ("echo", pack(b"\xc9\xff\xff\xff\xff\x01")),
    "a time that is none": ("echo", pack(b"\xc7\x0c\xff" + b"\xff" * 12)),
    "a million empty lists": ("echo", pack(b"\xdd" + N.to_bytes(4, "big"), b"\x90" * N)),
    "no UTF-8": ("echo", pack(b"\xa4\xff\xfe\xc0\x80")),
    "an unused byte": ("echo", pack(b"\xc1")),
    "no number": ("echo", b"\x81\xa5times\xcb\x7f\xf8" + bytes(6)),
    "cut": ("echo", pack(b"\xa9ab")),
    "nothing": ("echo", b""),
}


@pytest.fixture
def server(serve: Serve) -> Server:
    """A server with two children, one for a witness."""
    return serve(devices="cpu:2")


@pytest.mark.promise(36)
def test_bombs_of_json_are_told_at_once_and_cost_nothing(server: Server) -> None:
    with Witness(server) as witness:
        pids, before = server.pids(), memory(server)
        for name, (function, bomb) in JSON.items():
            took = []
            for _ in range(3):
                with server.connect() as connection:
                    began = time.monotonic()
                    connection.write(b'{"function":"%b","payload":%b}\n' % (function.encode(), bomb))
                    frame = connection.frame()
                    took.append(time.monotonic() - began)
                assert frame["error"]["kind"] == "usage", (name, frame)
            assert median(took) < SOON_S, name
    unharmed(server, witness, pids, before)


@pytest.mark.promise(36)
def test_bombs_of_msgpack_are_told_at_once_and_cost_nothing(server: Server) -> None:
    server.client.list()
    with Witness(server) as witness:
        pids, before = server.pids(), memory(server)
        for name, (function, bomb) in MSGPACK.items():
            took = []
            for _ in range(3):
                began = time.monotonic()
                with pytest.raises(JobError) as raised:
                    server.client.call(function, msgspec.Raw(bomb))
                took.append(time.monotonic() - began)
                assert raised.value.kind == "usage", (name, raised.value)
            assert median(took) < SOON_S, name
    unharmed(server, witness, pids, before)


def memory(server: Server) -> dict[int, int]:
    """Return what the supervisor and its children have in RAM."""
    return {pid: resident_bytes(pid) for pid in (server.pid, *server.pids().values())}


def unharmed(server: Server, witness: Witness, pids: dict[str, int], before: dict[int, int]) -> None:
    """The children are those that they were, nobody has grown, and the witness was served."""
    assert witness.wrong == []
    assert server.pids() == pids
    assert text_of(server.ask("echo", text="on")) == "on"
    grown = {pid: now - before[pid] for pid, now in memory(server).items()}
    assert max(grown.values()) < GROWN_BYTES, grown
    lag = server.status().loop_lag_p99_s
    assert lag is not None
    assert lag < SOON_S
    assert "Traceback" not in server.log()
