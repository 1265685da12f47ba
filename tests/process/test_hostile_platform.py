"""Thousands of malformed requests, connections and streams at a control plane, and at a worker's own stream."""

import asyncio
import json
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError
from msgspec.msgpack import encode

from gen_worker.pb import CONNECT
from gen_worker.pb.convert import decode_scheduler, encode_scheduler, encode_worker
from gen_worker.wire.scheduler import (
    PROTOCOL_VERSION,
    CancelJob,
    Drain,
    Hello,
    HelloAck,
    InFlightJob,
    JobAccepted,
    JobProgress,
    JobResult,
    JobStatus,
    ModelOp,
    ModelOpKind,
    RunJob,
    StateDelta,
    TokenRefresh,
    WorkerPhase,
)
from gen_worker_supervisor.logs.ring import RING_BYTES
from tests.orchestrated import worker
from tests.scripted.entrypoint import Driven, driven
from tests.scripted.orchestrator import OK
from tests.served import GEN_WORKER, descriptors, resident_bytes, until

pytestmark = [
    pytest.mark.process,
    pytest.mark.needs("grpc_tools", "uvicorn"),
    pytest.mark.usefixtures("grpc_awake"),
    pytest.mark.quiet,
]
PATIENCE_S = 20.0
FRAMES = 10_000
GROWN_BYTES = 2 << 20
STORMS = 4  # the first ones fill what the allocator keeps


class Plane:
    """A control plane that runs."""

    def __init__(self, process: "subprocess.Popen[str]", folder: Path) -> None:
        assert process.stdout is not None
        self.pid = process.pid
        self.folder = folder
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "listening":
                self.http = place(event["http"].removeprefix("http://"))
                self.workers = place(event["workers"])
            if event["event"] == "ready":
                return
        raise AssertionError(f"it ended with {process.wait()}: {self.log()}")

    def log(self) -> str:
        """Return what it complained of."""
        return (self.folder / "log").read_text()

    def healthy(self) -> bool:
        """Whether it answers who asks for its functions."""
        with socket.create_connection(self.http, PATIENCE_S) as sock:
            return status_of(ask(sock, b"GET /v1/functions HTTP/1.1\r\nHost: localhost\r\n\r\n")) == 200


def place(address: str) -> tuple[str, int]:
    """Return a host and a port."""
    host, _, port = address.rpartition(":")
    return host, int(port)


@pytest.fixture(scope="module")
def plane(grpc_awake: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    """A control plane without workers."""
    folder = tmp_path_factory.mktemp("plane")
    ports = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    command = [*GEN_WORKER, "orchestrator", "--json", "--state", str(folder / "state"), *ports]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, text=True) as process,
    ):
        try:
            yield Plane(process, folder)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE_S)


def endure(plane: Plane, storm: Callable[[], None]) -> None:
    """It answers a witness throughout a storm, is afterwards what it was, and grows with a first one at most."""
    until(lambda: still(plane), what="a control plane at rest")
    before = len(descriptors(plane.pid))
    grown: list[int] = []
    with watched(plane):
        while not grown or (grown[-1] >= GROWN_BYTES and len(grown) < STORMS):
            memory = resident_bytes(plane.pid)
            storm()
            grown.append(resident_bytes(plane.pid) - memory)
    assert grown[-1] < GROWN_BYTES, grown
    until(lambda: len(descriptors(plane.pid)) <= before, what="no descriptor more than before")
    assert plane.log() == ""


@contextmanager
def watched(plane: Plane) -> Iterator[None]:
    """Somebody asks it all the time, and is answered."""
    healthy: list[bool] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.01):
            healthy.append(plane.healthy())

    witness = threading.Thread(target=watch)
    witness.start()
    try:
        yield
        until(lambda: len(healthy) >= 5 or not witness.is_alive(), what="answers for the witness")
    finally:
        stop.set()
        witness.join()
    assert len(healthy) >= 5
    assert all(healthy)


def still(plane: Plane) -> bool:
    """Whether nobody is connected."""
    return sum(each.startswith("socket:") for each in descriptors(plane.pid)) < 12


# --- HTTP -------------------------------------------------------------------------------------------------------------


def ask(sock: socket.socket, request: bytes) -> bytes:
    """Send a request; return the head of the answer, empty where there is none."""
    sock.sendall(request)
    answer = b""
    with suppress(ConnectionResetError):
        while b"\r\n\r\n" not in answer and (data := sock.recv(1 << 16)):
            answer += data
        head, _, body = answer.partition(b"\r\n\r\n")
        length = int((head.lower() + b"\r\n").partition(b"content-length:")[2].partition(b"\r\n")[0] or b"0")
        while len(body) < length and (data := sock.recv(1 << 16)):
            body += data
    return answer


def status_of(answer: bytes) -> int:
    """Return the status of an answer, 0 where there is none."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


PATHS = [
    b"/v1/jobs/../../etc/passwd",
    b"/v1/jobs/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    b"/v1/files/../../../etc/passwd",
    b"/v1/files/%2e%2e/%2e%2e/etc/passwd",
    b"/v1/files//etc/passwd",
    b"/v1/files/a%00b",
    b"/v1/files/" + b"x" * 300,
    b"/v1/files/%ff%fe",
    b"/v1/outputs/../1/x",
    b"/v1/outputs/r/1/%2e%2e/%2e%2e/state.sqlite",
    b"/v1/outputs/r/99999999999999999999999/x",
    b"/v1/models/../x",
    b"/v1/models/" + b"0" * 64 + b"/%2e%2e/%2e%2e/files.key",
    b"/v1/uploads/%2e%2e/1",
    b"/v1/run/..%2fecho",
    b"/v1/run/" + b"e" * 2000,
    b"/v1/workers/..%2f..%2fx/drain",
    b"/v1/jobs?limit=-1",
    b"/v1/jobs?limit=" + b"9" * 400,
    b"/v1/jobs?status=%00",
    b"/%00",
    b"/api/v1/datasets",
    b"/api/v1/media/..%2f/uploads",
    b"/api/v1/repos/a/%2e%2e/revisions",
    b"/api/v1/repos/a/b/commits",
    b"/api/v1/repos/a/b/revisions/../finalize",
    b"/v1/bucket/uploads/..%2f?uploads",
    b"/v1/worker/capability/renew",
]
BODIES = [
    b"",
    b"{",
    b"[" * 20_000,
    b"NaN",
    b'{"function":1}',
    b'{"function":"echo","payload":' + b"[" * 5000 + b"]" * 5000 + b"}",
    b'{"function":"echo","request_id":"../../x"}',
    b'{"function":"echo","request_id":"' + b"r" * 2000 + b'"}',
    b'{"function":"\\ud800"}',
    b'{"function":"echo","timeout_ms":' + b"9" * 400 + b"}",
    b"\xff\xfe{}",
    b'{"owner":"o","name":"n","schema":{"__cozy_snapshot_manifest__":["x"]}}',
    b'{"operations":[{"path":"a","blake3":"' + b"0" * 64 + b'","size_bytes":' + b"9" * 40 + b"}]}",
]
EXTRA = [
    b"",
    b"Range: bytes=9-1\r\n",
    b"Authorization: Bearer \xff\r\n",
    b"Last-Event-ID: -1\r\n",
    b"Origin: http://[\r\n",
]


def odd_request(chance: random.Random) -> bytes:
    """Return a request that can be read, and that means nothing good."""
    method = chance.choice([b"GET", b"POST", b"PUT", b"DELETE", b"PATCH", b"BREW"])
    body = chance.choice(BODIES) if method in (b"POST", b"PUT") else b""
    path = chance.choice([*PATHS, b"/v1/jobs", b"/v1/models", b"/v1/files/x.bin?ttl_s=x"])
    kind = chance.choice([b"application/json", b"application/msgpack", b"text/plain", b"\xff"])
    host = chance.choice([b"localhost", b"localhost", b"localhost", b"[::1"])
    extra = chance.choice(EXTRA)
    head = b"%b %b HTTP/1.1\r\nHost: %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n%b\r\n"
    return head % (method, path, host, kind, len(body), extra) + body


def pester(plane: Plane, number: int, chance: random.Random) -> set[int]:
    """Send so many odd requests, a hundred on a connection; return the statuses of the answers."""
    statuses = set()
    for _ in range(number // 100):
        with socket.create_connection(plane.http, PATIENCE_S) as sock:
            for _ in range(100):
                request = odd_request(chance)
                statuses.add(status := status_of(ask(sock, request)))
                assert status, request[:200]
    return statuses


@pytest.mark.promise(35, 36, 37)
def test_seven_thousand_odd_requests_are_refused_and_reach_no_file(plane: Plane) -> None:
    statuses: set[int] = set()
    endure(plane, lambda: statuses.update(pester(plane, 7_000, random.Random(2))))
    assert {status // 100 for status in statuses} <= {2, 4}, statuses
    assert {each.name for each in plane.folder.iterdir()} == {"state", "log"}
    assert not [each for each in (plane.folder / "state").rglob("*") if each.name in ("passwd", "x")]


HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
GARBAGE = [
    b"",
    b"\x00" * 100,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    b"GET",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: y\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000,
    b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 3000 + b"\r\n",
    b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999\r\n\r\n{",
    b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
    b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n{",
    b"PUT /v1/files/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999999\r\n\r\nx",
    HTTP2,
    HTTP2 + b"\xff" * 1000,
    HTTP2 + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" * 100,  # settings
    HTTP2 + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" + b"\x00\x00\x04\x03\x00\x00\x00\x00\x01" * 9,
    HTTP2 + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x05\x01\x04\x00\x00\x00\x01\xff\xff\xff\xff\xff",
]


def shout(where: tuple[str, int], number: int, chance: random.Random) -> None:
    """Send so much garbage, each piece on a connection of its own that is left at once or after the answer."""
    for _ in range(number):
        with socket.create_connection(where, PATIENCE_S) as sock, suppress(OSError):  # it may be closed at any moment
            garbage = chance.choice(GARBAGE)
            sock.sendall(garbage if chance.random() < 0.7 else garbage + chance.randbytes(chance.randrange(100)))
            if chance.random() < 0.3:
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(1 << 16):
                    pass


@pytest.mark.promise(10, 11, 36)
@pytest.mark.parametrize("port", ["http", "workers"])
def test_thousands_of_connections_that_speak_no_protocol_of_ours_end(plane: Plane, port: str) -> None:
    where = getattr(plane, port)

    def storm() -> None:
        with ExitStack() as stack:
            for _ in range(200):  # on which a head has begun that never ends
                stack.enter_context(socket.create_connection(where, PATIENCE_S)).sendall(b"P")
            shout(where, {"http": 2_000, "workers": 6_000}[port], random.Random(4))

    endure(plane, storm)


# --- workers' streams -------------------------------------------------------------------------------------------------

SAID = [
    encode_worker(Hello(worker_id="w", in_flight=(InFlightJob(request_id="../../x", attempt=-(1 << 62)),))),
    encode_worker(StateDelta(phase=WorkerPhase.READY, available_functions=("../echo", "", "e" * 1000))),
    encode_worker(JobAccepted(request_id="nobody's", attempt=1 << 62)),
    encode_worker(JobProgress(request_id="nobody's", attempt=1, seq=-1, body=b"\xff", content_type="x/y")),
    encode_worker(JobResult(request_id="nobody's", attempt=1, status=JobStatus.OK, inline=b"\x91" * 1000)),
    encode_worker(JobResult(request_id="../../x", attempt=0, status=JobStatus.FATAL, blob_ref="../../state.sqlite")),
]


def odd(packets: list[bytes], chance: random.Random) -> bytes:
    """Return one of the packets, whole, cut short or with some bytes changed."""
    packet = bytearray(chance.choice(packets))
    match chance.randrange(3):
        case 0:
            del packet[chance.randrange(len(packet)) :]
        case 1:
            for _ in range(chance.randrange(1, 4)):
                packet[chance.randrange(len(packet))] = chance.randrange(256)
    return bytes(packet)


def channel_to(where: tuple[str, int]) -> grpc.Channel:
    """Return a channel with a connection of its own."""
    return grpc.insecure_channel(f"{where[0]}:{where[1]}", [("grpc.use_local_subchannel_pool", 1)])


def pretend(plane: Plane, streams: int, chance: random.Random) -> int:
    """Open so many streams on one channel and say odd things on each until it ends; return how much was said."""
    said = 0

    def packets() -> Iterator[bytes]:
        nonlocal said
        if chance.random() < 0.8:
            yield encode_worker(Hello(worker_id=f"../w{chance.randrange(3)}"))
        for _ in range(40):
            said += 1
            yield odd(SAID, chance)

    with channel_to(plane.workers) as channel:
        connect = channel.stream_stream(CONNECT)
        for _ in range(streams):
            with suppress(grpc.RpcError):
                for _ in connect(packets(), timeout=PATIENCE_S):
                    pass
    return said


@pytest.mark.promise(19)
def test_thousands_of_malformed_messages_end_their_streams_and_no_more(plane: Plane) -> None:
    said: list[int] = []
    endure(plane, lambda: said.append(pretend(plane, 700, random.Random(6))))
    assert min(said) > 4_000


# --- a mock's stream --------------------------------------------------------------------------------------------------


@pytest.mark.promise(19)
def test_a_mock_orchestrator_outlives_garbage_and_still_drives_a_worker() -> None:
    command = [sys.executable, "-m", "gen_worker.testing.mock_orchestrator", "--listen", "127.0.0.1:0", "--run", "echo"]
    with subprocess.Popen(
        command, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.stderr is not None
            where = place(process.stderr.readline().split()[-1])
            shout(where, 2_000, random.Random(7))
            with channel_to(where) as channel:
                connect = channel.stream_stream(CONNECT)
                for seed in range(300):
                    with suppress(grpc.RpcError):
                        next(iter(connect(iter([odd(SAID, random.Random(seed))]), timeout=PATIENCE_S)), None)
            asyncio.run(answered(f"{where[0]}:{where[1]}"))
            assert process.wait(PATIENCE_S) == 0
            assert process.stderr.read() == ""
        finally:
            process.kill()


async def answered(address: str, **fields: Any) -> None:
    """Be the worker that does what is asked."""
    async with worker(address) as fake:
        await fake.answer(await fake.take(), **fields)
        await fake.end()


@pytest.mark.promise(37)
@pytest.mark.parametrize("ref", ["../secret", "a/../../secret", "{folder}/secret", "link/secret"])
def test_an_output_that_is_said_to_lie_elsewhere_is_not_read(tmp_path: Path, ref: str) -> None:
    (tmp_path / "secret").write_bytes(encode("found"))
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "link").symlink_to(tmp_path)
    command = [sys.executable, "-m", "gen_worker.testing.mock_orchestrator", "--listen", "127.0.0.1:0", "--run", "echo"]
    command += ["--serve-files-dir", str(tmp_path / "files"), "--serve-files-listen", "127.0.0.1:0"]
    with subprocess.Popen(
        command, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.stderr is not None
            assert process.stdout is not None
            where = place(process.stderr.readline().split()[-1])
            asyncio.run(answered(f"{where[0]}:{where[1]}", blob_ref=ref.format(folder=tmp_path)))
            assert process.wait(PATIENCE_S) == 0
            assert "found" not in process.stdout.read()
        finally:
            process.kill()


# --- a worker's own stream --------------------------------------------------------------------------------------------

ORDERS = [
    encode_scheduler(HelloAck(file_base_url="\x00", keep=("../../x",))),
    encode_scheduler(RunJob(request_id="r", attempt=-5, function_name="nothing", input_payload=b"\x91" * 200)),
    encode_scheduler(RunJob(request_id="../../x", attempt=1, function_name="../echo", timeout_ms=-(1 << 62))),
    encode_scheduler(RunJob(request_id="", attempt=0, function_name="echo", input_payload=b"\xc1")),
    encode_scheduler(CancelJob(request_id="nobody's", attempt=1 << 62)),
    encode_scheduler(ModelOp(op=ModelOpKind.UNLOAD, ref="../../etc/passwd")),
    encode_scheduler(ModelOp(op=ModelOpKind.UNLOAD, ref="x" * 5000)),
    encode_scheduler(TokenRefresh(token="", expires_at_unix=-1)),
]


def readable(packet: bytes) -> bool:
    """Whether it is a message after which its stream goes on: no Drain, and no HelloAck of another version."""
    try:
        frame = decode_scheduler(packet)
    except DecodeError:
        return False
    return not isinstance(frame, Drain) and getattr(frame, "protocol_version", PROTOCOL_VERSION) == PROTOCOL_VERSION


def order(made: Driven, number: int, chance: random.Random) -> None:
    """Send a worker so many odd messages, and wait until it has taken them."""
    sent = 0
    while sent < number:
        if readable(packet := odd(ORDERS, chance)):
            made.connection.send_raw(packet)
            sent += 1
    made.connection.settle()


@pytest.mark.promise(19, 36, 37)
def test_a_worker_takes_ten_thousand_odd_orders_and_serves_on(grpc_awake: None, tmp_path: Path) -> None:
    with driven(tmp_path) as made, made.worker.explained():
        order(made, 1_000, random.Random(8))
        pid = made.worker.pid
        before, memory = len(descriptors(pid)), resident_bytes(pid)
        running = made.ask("gated", gate="go")
        order(made, FRAMES, random.Random(9))
        made.worker.open("go")
        assert running.result().status == OK
        assert made.ask("echo").result().status == OK
        made.worker.until(lambda: len(descriptors(pid)) <= before, "no descriptor more than before")
        assert resident_bytes(pid) - memory < GROWN_BYTES + RING_BYTES  # its log remembers the last lines
        assert made.worker.process.poll() is None
        assert "Traceback" not in made.worker.log()
