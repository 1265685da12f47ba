"""The port that probes and metrics are served on, as the supervisor opens it."""

import socket
import sys

import pytest

from gen_worker.wire.address import AddressError, TcpAddress, parse_port
from gen_worker_supervisor.http_front import front_environment
from gen_worker_supervisor.start import StartError, open_http


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("8082", TcpAddress("127.0.0.1", 8082)),
        ("0", TcpAddress("127.0.0.1", 0)),
        ("0.0.0.0:8082", TcpAddress("0.0.0.0", 8082)),
        ("gpu-host.example:8082", TcpAddress("gpu-host.example", 8082)),
        ("[::1]:8082", TcpAddress("::1", 8082)),
    ],
)
def test_a_port_is_of_this_machine_unless_a_host_is_named(text: str, address: TcpAddress) -> None:
    assert parse_port(text) == address


@pytest.mark.parametrize("text", ["", ":8082", "65536", "-1", "http://localhost:8082", "localhost", "a b:80", "٣:80"])
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(AddressError):
        parse_port(text)


def test_nothing_is_opened_where_nothing_is_asked_for() -> None:
    assert open_http("") is None


def test_any_free_port_may_be_asked_for_and_its_url_is_told() -> None:
    port = open_http("0")
    assert port is not None
    with port.sock, socket.create_connection(port.sock.getsockname(), 5):
        assert port.url == f"http://127.0.0.1:{port.sock.getsockname()[1]}"


def test_a_port_that_is_taken_is_a_mistake_of_the_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=f"port {port} of `127.0.0.1` is in use") as told:
            open_http(str(port))
    assert (told.value.code, told.value.hint.startswith("end the process")) == (2, True)


def test_without_the_extra_the_start_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)  # as where it is not installed
    with pytest.raises(StartError, match="HTTP cannot be served: `uvicorn` is not installed") as told:
        open_http("0")
    assert told.value.hint == "`pip install -e '.[http]'` in the clone of gen-worker"


@pytest.mark.promise(39)
def test_the_process_that_serves_sees_no_secret_and_no_setting() -> None:
    worker = {"PATH": "/bin", "LC_ALL": "C", "HF_TOKEN": "x", "WORKER_JWT": "x", "GEN_WORKER_TOKEN": "x", "HOME": "/r"}
    assert front_environment(worker) == {"PATH": "/bin", "LC_ALL": "C"}
