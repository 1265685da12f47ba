"""Probes and metrics over HTTP, of servers that are stopped, killed, drained and flooded."""

import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gen_worker.client.blocking import Client
from gen_worker.http.view import FRESH_S
from gen_worker.wire.status import Status
from tests.served import Server, alive, descriptors, launch, serving, until

pytestmark = pytest.mark.process

CANARY = "hf_canary_0123456789"


class Answer(NamedTuple):
    status: int
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def get(port: int, path: str, method: str = "GET") -> Answer:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request(method, path)
        answer = connection.getresponse()
        return Answer(answer.status, answer.read())


def port_of(server: Server) -> int:
    url = server.status().http
    assert url is not None
    assert url.startswith("http://127.0.0.1:")
    return int(url.rpartition(":")[2])


def front_of(server: Server) -> int:
    """Return the pid of the process that serves HTTP, 0 where there is none."""
    named = (pid for pid in server.processes() if b"gen_worker.http" in Path(f"/proc/{pid}/cmdline").read_bytes())
    return next(named, 0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("http")
    variables = {"GEN_WORKER_READY_FILE": str(folder / "ready"), "HF_TOKEN": CANARY, "GEN_WORKER_HTTP": "0"}
    with serving(folder, variables=variables) as server:
        assert get(port_of(server), "/health").status == 200
        yield server
    assert not (folder / "ready").exists()


def test_every_route_answers(server: Server) -> None:
    port = port_of(server)
    server.ask("echo", text="hi")
    until(lambda: b'genworker_jobs_total{function="echo",outcome="ok"} 1.0' in get(port, "/metrics").body, what="1 job")
    assert get(port, "/ready") == (200, b'{"ready":true}\n')
    assert get(port, "/health-check").status == 200
    assert get(port, "/health", "HEAD") == (200, b"")
    document = get(port, "/status").json()
    assert (document["pid"], document["ready"]) == (server.pid, True)
    assert document["http"] == f"http://127.0.0.1:{port}"
    families = {family.name for family in text_string_to_metric_families(get(port, "/metrics").body.decode())}
    assert {"genworker_jobs", "genworker_job_duration_seconds", "genworker_child_up"} <= families
    assert (get(port, "/nothing").status, get(port, "/health", "POST").status) == (404, 405)
    until(lambda: (server.folder / "ready").exists(), what="the ready file")


def test_what_is_shown_is_fresh_and_has_the_jobs_that_wait(server: Server) -> None:
    port = port_of(server)
    with server.connect() as connection:
        for number in range(4):
            connection.send("gated", f"fresh-{number}", gate="fresh")
        server.until_running("fresh-0")

        def listed() -> list[str]:
            return [job["id"] for job in get(port, "/status").json()["jobs"]]

        until(lambda: len(listed()) == 4, within_s=5, what="the jobs in /status")
        assert len(get(port, "/status?jobs=1").json()["jobs"]) == 2
        server.open("fresh")
        connection.frames(4)


@pytest.mark.promise(39)
def test_no_secret_is_shown_or_reaches_the_process(server: Server) -> None:
    port, front = port_of(server), front_of(server)
    shown = b"".join(get(port, path).body for path in ("/status", "/metrics", "/ready", "/health"))
    process = Path(f"/proc/{front}")
    assert CANARY.encode() not in shown + (process / "environ").read_bytes() + (process / "cmdline").read_bytes()


@pytest.mark.promise(12)
def test_clients_that_send_slowly_or_never_read_hold_nobody_else(server: Server) -> None:
    port = port_of(server)
    clients = [socket.create_connection(("127.0.0.1", port), 20) for _ in range(300)]
    try:
        for number, client in enumerate(clients):
            client.sendall(b"GET /status HTTP/1.1\r\nHost: x\r\n" + (b"\r\n" if number % 2 else b"X-Slow: "))
        assert get(port, "/health").status == 200
        assert server.ask("echo", text="hi")["ok"]
        assert get(port, "/status").status == 200
    finally:
        for client in clients:
            client.close()


@pytest.mark.promise(12)
def test_who_asks_all_the_time_has_no_document_made_for_each_answer(server: Server) -> None:
    port, began = port_of(server), time.monotonic()
    times = {get(port, f"/status?jobs={number}").json()["ts"] for number in range(200)}
    assert len(times) <= (time.monotonic() - began) / FRESH_S + 2


HOST = b"Host: x\r\n"
HOSTILE = [
    b"\0" * 100,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /health HTTP/1.1\r\n\r\n",
    b"GET /health HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"GET /health HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET /health HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999999999\r\n\r\n",
    b"GET /%ff%00%zz?jobs=%ff HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET /metrics HTTP/1.1\r\n" + HOST + b"Accept: text/plain; version=a.b.c; escaping=;;==\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET /health HTTP/1.1\r\n" + HOST + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
]


def test_what_is_no_request_costs_nobody_anything_and_fills_no_log(server: Server) -> None:
    port, front, told = port_of(server), front_of(server), server.log()
    for sent in HOSTILE:
        with socket.create_connection(("127.0.0.1", port), 20) as client:
            client.sendall(sent)
            assert client.recv(32).startswith(b"HTTP/1.1 ")
    assert (get(port, "/health").status, front_of(server), server.log()) == (200, front, told)


def test_a_burst_of_connections_takes_no_descriptor_that_is_not_there_and_fills_no_log(server: Server) -> None:
    port, front = port_of(server), front_of(server)
    resource.prlimit(front, resource.RLIMIT_NOFILE, (640, 640))
    before = server.log().count("[http]")
    with ExitStack() as stack:
        os.kill(front, signal.SIGSTOP)
        for _ in range(800):
            each = stack.enter_context(socket.socket())
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
        os.kill(front, signal.SIGCONT)
        assert get(port, "/health").status == 200
    assert server.log().count("[http]") == before
    assert get(port, "/health").status == 200


def test_a_request_with_an_endless_head_is_refused(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", port_of(server)), 20) as client:
        try:
            for _ in range(64):
                client.sendall(b"X" * 4096)
            answer = client.recv(64)
        except (BrokenPipeError, ConnectionResetError):
            answer = b""
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
    assert get(port_of(server), "/health").status == 200


def test_a_killed_process_is_replaced_on_its_port_and_no_job_notices(tmp_path: Path) -> None:
    with serving(tmp_path, "--http", "0") as server, server.connect() as connection:
        port, front = port_of(server), front_of(server)
        connection.send("gated", "through", gate="through")
        server.until_running("through")
        os.kill(front, signal.SIGKILL)
        until(lambda: not alive(front), what="the end of the process")
        assert get(port, "/health").status == 200  # it waited for the next one
        assert port_of(server) == port
        assert front_of(server) not in (0, front)
        server.open("through")
        assert connection.frame()["ok"]
        assert server.runs()["through"] == 1


def test_who_removes_the_control_socket_fails_no_probe(tmp_path: Path) -> None:
    with serving(tmp_path, variables={"GEN_WORKER_HTTP": "0"}) as server:
        port = port_of(server)
        until(lambda: get(port, "/ready").status == 200, what="ready")
        (control,) = (tmp_path / "run").rglob("control.sock")
        control.unlink()
        until(lambda: get(port, "/status").status == 503, what="nobody to ask")
        asked_before = time.monotonic() + FRESH_S  # until then what was asked for is given once more
        until(
            lambda: get(port, "/ready").status == 200 and time.monotonic() > asked_before, what="what comes by itself"
        )
        assert b"genworker_ready 1.0\n" in get(port, "/metrics").body
        assert get(port, "/status").status == 503


def test_a_supervisor_that_stands_still_is_not_healthy_and_one_that_goes_on_is(server: Server) -> None:
    port = port_of(server)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        until(lambda: get(port, "/health").status == 503, what="/health saying so")
        assert [get(port, path).status for path in ("/ready", "/metrics", "/health-check")] == [503, 503, 200]
        assert get(port, "/status").status == 503
    finally:
        os.kill(server.pid, signal.SIGCONT)
    until(lambda: get(port, "/health").status == 200, what="/health being well again")


@pytest.mark.promise(7)
def test_a_child_that_hangs_is_named_and_fails_no_health_probe(tmp_path: Path) -> None:
    with serving(tmp_path, "--http", "0") as server, server.connect() as connection:
        port = port_of(server)
        until(lambda: get(port, "/ready").status == 200, what="/ready")
        connection.send("hold-the-interpreter", "held")
        server.until_running("held")
        until(lambda: get(port, "/ready").status == 503, what="/ready saying so")
        assert get(port, "/ready").json()["reason"] == "no child takes jobs: cpu:0: hung"
        assert b'genworker_child_up{gpu="cpu:0"} 0.0' in get(port, "/metrics").body
        assert get(port, "/health").status == 200
        server.client.kill("held", now=True)
        until(lambda: get(port, "/ready").status == 200, what="/ready")
        assert b'genworker_child_restarts_total{gpu="cpu:0",reason="kill"} 1.0' in get(port, "/metrics").body


def test_drained_devices_take_no_jobs_until_that_is_undone(server: Server) -> None:
    port = port_of(server)
    until(lambda: get(port, "/ready").status == 200, what="/ready")
    server.client.drain()
    until(lambda: get(port, "/ready").status == 503, what="/ready saying so")
    assert get(port, "/ready").json()["reason"] == "no child takes jobs: cpu:0 is drained"
    until(lambda: not (server.folder / "ready").exists(), what="the end of the ready file")
    server.client.drain(undo=True)
    until(lambda: get(port, "/ready").status == 200, what="/ready")
    until(lambda: (server.folder / "ready").exists(), what="the ready file")


@pytest.mark.needs("grpc_tools")
@pytest.mark.usefixtures("grpc_awake")
def test_a_worker_tells_whether_it_has_its_orchestrator(tmp_path: Path) -> None:
    from tests.scripted.entrypoint import driven

    with driven(tmp_path, {"GEN_WORKER_HTTP": "0"}) as made:
        control = tmp_path / "run" / str(made.worker.pid) / "control.sock"
        with Client(control) as client:
            url = client.list().http
        assert url is not None
        port = int(url.rpartition(":")[2])
        until(lambda: b"genworker_orchestrator_connected 1.0" in get(port, "/metrics").body, what="the connection")
        until(lambda: get(port, "/ready").status == 200, what="/ready")


def test_the_supervisor_opens_nothing_for_its_clients(server: Server) -> None:
    before = len(descriptors(server.pid))
    port = port_of(server)
    for _ in range(20):
        get(port, "/status")
        get(port, "/metrics")
    until(lambda: len(descriptors(server.pid)) <= before, what="the descriptors of before")


def test_a_server_that_drains_is_not_ready_and_its_end_ends_the_process(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    options = {"variables": {"GEN_WORKER_READY_FILE": str(ready)}}
    with serving(tmp_path, "--http", "0", devices="cpu:1", **options) as server:
        port, front = port_of(server), front_of(server)
        until(lambda: get(port, "/ready").status == 200 and ready.exists(), what="being ready")
        with server.connect() as connection:
            connection.send("swallow-everything", "stubborn")
            server.until_running("stubborn")
            server.signal(signal.SIGTERM)
            until(lambda: get(port, "/ready").status == 503, what="/ready saying so")
            assert get(port, "/ready").json()["reason"].startswith("it drains")
            assert get(port, "/health").status == 200
            until(lambda: not ready.exists(), what="the end of the ready file")
            server.signal(signal.SIGINT)
            server.process.wait(20)
        assert not alive(front)
        with pytest.raises(ConnectionRefusedError):
            get(port, "/health")


def test_a_port_in_use_is_a_mistake_that_starts_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = launch(tmp_path, "--http", str(port))
        assert process.wait(20) == 2
    told = (tmp_path / "log").read_text()
    assert told.startswith(f"error: port {port} of `127.0.0.1` is in use\nhint: end the process that listens there")
    assert "child" not in told
    assert not (tmp_path / "gw.sock").exists()


def test_a_ready_file_in_a_folder_of_somebody_else_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    process = launch(tmp_path, variables={"GEN_WORKER_READY_FILE": str(tmp_path / "file" / "ready")})
    assert process.wait(20) == 2
    assert "error: cannot keep the ready file" in (tmp_path / "log").read_text()


def test_the_document_is_the_one_of_ps(server: Server) -> None:
    listed: subprocess.CompletedProcess[str] = server.run("ps", "--json")
    shown = get(port_of(server), "/status").json()
    assert json.loads(listed.stdout).keys() == shown.keys() == set(Status.__struct_fields__)
