"""Payloads, outputs and saved files of every size come through whole, and what is too big or malformed is said so."""

import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gen_worker.client import Client, JobError
from gen_worker.rundir import connect
from gen_worker.wire import control
from gen_worker.wire.channel import send_packet
from gen_worker.wire.messages import FRAME_LIMIT, Encoding
from gen_worker.wire.regions import OwnRegion, size_class
from tests.served import PATIENCE_S, Connection, Serve, Server, descriptors, serving, text_of, until

pytestmark = pytest.mark.process

MIB = 1 << 20


class Blob(msgspec.Struct):
    data: bytes


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that the tests of this module use in turn: none may cost it a child."""
    with serving(tmp_path_factory.mktemp("shared")) as server:
        yield server


@pytest.fixture
def server(shared: Server) -> Iterator[Server]:
    before = shared.pids()
    yield shared
    assert shared.pids() == before


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["save-bytes", "save-file"])
@pytest.mark.parametrize("size", [0, 10, 100 * 1024, 5 * MIB])
def test_a_file_that_a_job_saves_lies_in_the_outputs_folder(server: Server, function: str, size: int) -> None:
    frame = server.ask(function, text=f"{function}/{size}.bin", times=size)
    asset = frame["events"][0]["value"]
    path = Path(asset["local_path"])
    assert path == server.folder / "outputs" / function / f"{size}.bin"
    content = (b"x" if function == "save-bytes" else b"y") * size
    assert path.read_bytes() == content
    assert asset["size_bytes"] == size
    assert asset["sha256"] == hashlib.sha256(content).hexdigest()


@pytest.mark.promise(37)
@pytest.mark.parametrize("name", ["../../outside.bin", "/outside.bin", "a/../../outside.bin"])
def test_a_saved_file_cannot_leave_the_outputs_folder(server: Server, name: str) -> None:
    frame = server.ask("save-bytes", text=name, times=3)
    if frame["ok"]:
        saved = Path(frame["events"][0]["value"]["local_path"]).resolve()
        assert saved.is_relative_to((server.folder / "outputs").resolve())
    assert not list(server.folder.glob("outside*"))
    assert not list(server.folder.parent.glob("outside*"))


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [40_000, 100 * 1024, 5 * MIB, 15 * MIB])
def test_a_big_line_comes_back_as_it_went(server: Server, size: int) -> None:
    text = ("0123456789abcdef" * (size // 16 + 1))[:size]
    assert text_of(server.ask("echo", text=text)) == text


@pytest.mark.parametrize("size", [1 * MIB, 32 * MIB])
def test_a_big_value_comes_back_as_it_went(server: Server, size: int) -> None:
    data = bytes(range(256)) * (size // 256)
    with Client(server.control) as client:
        assert client.call("echo-blob", Blob(data), type=Blob).data == data


@pytest.mark.promise(35)
def test_a_payload_over_the_limit_is_refused_and_the_limit_is_named(serve: Serve) -> None:
    server = serve(variables={"WORKER_MAX_INPUT_BYTES": "100000"})
    error = server.ask("echo", text="x" * 100_000)["error"]
    assert error["kind"] == "invalid"
    assert "the limit is 100000" in error["message"]
    assert "`WORKER_MAX_INPUT_BYTES`" in error["message"]
    with Client(server.control) as client, pytest.raises(JobError, match="WORKER_MAX_INPUT_BYTES") as caught:
        client.call("echo-blob", Blob(bytes(MIB)))
    assert caught.value.kind == "invalid"
    assert text_of(server.ask("echo", text="small")) == "small"


def test_an_output_over_the_limit_is_refused_and_the_limit_is_named(serve: Serve) -> None:
    server = serve(variables={"WORKER_MAX_OUTPUT_BYTES": "100000"})
    for size in (100_000, 2 * MIB):
        error = server.ask("echo", text="x" * size)["error"]
        assert error["kind"] == "invalid"
        assert "`WORKER_MAX_OUTPUT_BYTES`" in error["message"]
    assert text_of(server.ask("echo", text="small")) == "small"


# --- lines that are no requests ---------------------------------------------------------------------------------------


def test_a_line_over_16_mib_is_refused_and_its_connection_closed(server: Server) -> None:
    with server.connect() as connection:
        send_until_refused(connection, b"x" * MIB, 18)
        error = connection.frame()["error"]
        assert error["kind"] == "usage"
        assert str(16 * MIB) in error["message"]
        assert until_closed(connection)
    assert text_of(server.ask("echo", text="others")) == "others"


def send_until_refused(connection: Connection, piece: bytes, times: int) -> None:
    try:
        for _ in range(times):
            connection.write(piece)
    except (BrokenPipeError, ConnectionResetError):
        return  # it has refused already


def until_closed(connection: Connection) -> bool:
    try:
        return connection.read() is None
    except ConnectionResetError:
        return True  # closed while more was on its way


@pytest.mark.parametrize(
    "line",
    [
        b"not json",
        b"[]",
        b"3",
        b'"echo"',
        b"{",
        b'{"function": 3}',
        b"{}",
        b'{"function": ""}',
        b'{"function": "echo", "stream": "yes"}',
        b"\xff\xfe\x00",
        b'{"cancel": {}}',
        b'{"function": "echo", "payload": ' + b"[" * 200_000,
        b'{"function": "echo", "payload": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"function": "depth", "payload": ' + b'{"inner":[' * 100_000 + b"]}" * 100_000 + b"}",
    ],
    ids=lambda line: line[:34].decode("latin-1"),
)
def test_a_line_that_is_no_request_is_refused_and_the_next_one_served(server: Server, line: bytes) -> None:
    with server.connect() as connection:
        connection.write(line + b"\n")
        assert connection.frame()["error"]["kind"] == "usage"
        connection.send("echo", text="next")
        assert text_of(connection.frame()) == "next"


@pytest.mark.parametrize("payload", [{"text": 5}, {"times": "many"}, [], "text", None, {"text": None}])
def test_a_payload_of_another_type_is_refused(server: Server, payload: Any) -> None:
    with server.connect() as connection:
        connection.write(json.dumps({"function": "echo", "payload": payload}).encode() + b"\n")
        error = connection.frame()["error"]
    assert error["kind"] == "usage"
    assert "`echo`" in error["message"]


@pytest.mark.promise(36)
@pytest.mark.parametrize(
    ("encoding", "bomb"),
    [
        ("json", b'{"inner":[' * 200_000 + b"]}" * 200_000),
        ("json", b'{"inner":' + b"[" * 1_000_000),
        ("json", b"\xff" * 1000),
        ("msgpack", b"\x81\xa5inner\x91" * 200_000 + b"\x80"),
        ("msgpack", b"\x81\xa5inner\xdd\xff\xff\xff\xff"),
        ("msgpack", b"\xdf\xff\xff\xff\xff"),
    ],
    ids=["deep json", "unclosed json", "not utf-8", "deep msgpack", "a list of 2^32", "a map of 2^32"],
)
def test_a_bomb_is_defused_in_the_child_and_costs_it_nothing(server: Server, encoding: Any, bomb: bytes) -> None:
    assert submitted(server, "depth", bomb, encoding).kind == "usage"
    assert text_of(server.ask("echo", text="next")) == "next"


def submitted(server: Server, function: str, body: bytes, encoding: Encoding) -> control.Error:
    """Submit bytes that no client would encode, and return the error they end with."""
    with (
        connect(server.control, socket.SOCK_SEQPACKET, PATIENCE_S) as sock,
        OwnRegion.create(size_class(len(body)), shared_with_readers_only=True) as region,
    ):
        region.view[: len(body)] = body
        send_packet(sock, msgspec.msgpack.encode(control.Open(control.CONTROL_PROTOCOL)))
        frame = control.Submit("bomb", function, control.Attached(len(body)), encoding)
        send_packet(sock, msgspec.msgpack.encode(frame), [region.fd])
        while packet := sock.recv(FRAME_LIMIT):
            answer = msgspec.msgpack.decode(packet, type=control.ServerFrame)
            if isinstance(answer, control.Error):
                return answer
    raise AssertionError("the server closed the connection")


def test_results_that_a_client_keeps_and_never_acknowledges_cost_their_child_nothing(serve: Serve) -> None:
    server = serve()
    pids = server.pids()
    with Client(server.control) as hoarder:
        for number in range(400):
            hoarder.submit("repeat", {"text": "x", "times": 100_000}, request_id=f"kept-{number}")
        until(lambda: server.status().jobs_done >= 400, what="every answer")
        assert server.pids() == pids
        assert text_of(server.ask("echo", text="served")) == "served"


def test_a_burst_of_big_results_that_are_read_late_leaves_little_memory_behind(serve: Serve) -> None:
    server = serve()
    (child,) = server.pids().values()
    before = memfds(server)
    size = 8 << 20
    with Client(server.control) as client:
        jobs = [client.submit("repeat", {"text": "x", "times": size}) for _ in range(30)]
        until(lambda: server.status().jobs_done >= len(jobs), what="every result")
        assert mapped(child) >= len(jobs)
        for job in jobs:
            assert len(job.result()["text"]) == size
    few = 8  # 4 of 16 MiB, which 8 MiB and their envelope take, are kept
    until(lambda: mapped(child) <= few, what="the child keeping little")
    until(lambda: memfds(server) <= before + few, what="the supervisor keeping little")
    assert text_of(server.ask("repeat", text="x", times=size)) == "x" * size


def mapped(pid: int) -> int:
    """Return how many regions a process has mapped."""
    return Path(f"/proc/{pid}/maps").read_text().count("memfd:gen-worker")


def memfds(server: Server) -> int:
    """Return how many regions a supervisor has open."""
    return sum("memfd:" in each for each in descriptors(server.pid))
