"""Requests over TCP: the same answers, and nobody's but those who show the token."""

import json
import signal
import socket
import struct
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.served import PATIENCE_S, Connection, Serve, Server, launch, text_of, until

pytestmark = pytest.mark.process
LOOPBACK = "tcp://127.0.0.1:0"
TOKEN = "a secret of 24 characters"


SOON_S = 2.0  # a tenth of a second is promised, and busy cores may take more


def ends_within(connection: Connection, seconds: float) -> bool:
    """Whether the server closes the connection so soon; what it still says is read."""
    began = time.monotonic()
    try:
        while connection.sock.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    return time.monotonic() - began < seconds


def has_ipv6() -> bool:
    """Whether loopback has an IPv6 address here."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


# --- where it listens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listen", [LOOPBACK, "tcp://localhost:0", "tcp://[::1]:0"])
def test_a_free_port_of_loopback_is_taken_and_told(serve: Serve, listen: str) -> None:
    if "::1" in listen and not has_ipv6():
        pytest.skip("no IPv6 here")
    server = serve(listen=listen)
    assert f"listening on {server.address} (functions: " in server.log()
    assert int(server.address.rpartition(":")[2]) > 0
    assert text_of(server.ask("echo", text="over tcp")) == "over tcp"
    assert server.status().serve == server.address
    assert not server.socket.exists()
    sidecar = json.loads(server.sidecar.read_bytes())
    assert (sidecar["pid"], sidecar["listen"]) == (server.pid, server.address)
    server.signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE_S) == 0
    assert not server.sidecar.exists()


@pytest.mark.promise(41)
@pytest.mark.parametrize(
    ("listen", "told"),
    [
        (
            "tcp://0.0.0.0:0",
            "error: `tcp://0.0.0.0:0` can be reached from other machines (0.0.0.0)\nhint: set GEN_WORKER_TOKEN",
        ),
        ("tcp://[::]:0", "can be reached from other machines (::)\nhint: set GEN_WORKER_TOKEN"),
        ("tcp://192.0.2.1:0", "can be reached from other machines (192.0.2.1)\nhint: set GEN_WORKER_TOKEN"),
        ("tcp://no-such-host.invalid:0", "error: cannot listen on `tcp://no-such-host.invalid:0`: "),
    ],
)
def test_where_anyone_could_ask_nothing_is_served_without_a_token(tmp_path: Path, listen: str, told: str) -> None:
    with launch(tmp_path, listen=listen) as process:
        assert process.wait(PATIENCE_S) == 2
    assert told in (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_an_address_of_another_machine_is_refused_even_with_a_token(tmp_path: Path) -> None:
    with launch(tmp_path, listen="tcp://192.0.2.1:0", token=TOKEN) as process:
        assert process.wait(PATIENCE_S) == 2
    assert "error: `192.0.2.1` is no address of this machine\nhint: " in (tmp_path / "log").read_text()


def test_a_port_in_use_is_refused_and_its_owner_goes_on(serve: Serve, tmp_path: Path) -> None:
    server = serve(listen=LOOPBACK)
    with launch(tmp_path, listen=server.address, log=tmp_path / "second") as second:
        assert second.wait(PATIENCE_S) == 2
    port = server.address.rpartition(":")[2]
    assert f"error: port {port} of `127.0.0.1` is in use\nhint: " in (tmp_path / "second").read_text()
    assert server.sidecar.exists()
    assert text_of(server.ask("echo", text="unharmed")) == "unharmed"


def test_with_a_token_it_serves_every_interface(serve: Serve) -> None:
    server = serve(listen="tcp://0.0.0.0:0", token=TOKEN)
    assert server.address.startswith("tcp://0.0.0.0:")
    assert text_of(server.ask("echo", text="shown")) == "shown"
    assert TOKEN not in server.log()
    assert TOKEN not in server.sidecar.read_text()
    for child in server.processes():
        assert TOKEN.encode() not in Path(f"/proc/{child}/environ").read_bytes()


# --- who may ask ------------------------------------------------------------------------------------------------------


@pytest.mark.promise(41)
@pytest.mark.parametrize(
    "line",
    [
        b'{"function":"echo","payload":{"text":"let me in"}}',
        b'{"function":"echo","payload":{"text":"let me in"},"token":"a secret of 24 characterz"}',
        b'{"function":"echo","payload":{"text":"let me in"},"token":""}',
        b'{"cancel":{"request_id":"running"}}',
        b'{"cancel":{"request_id":"running"},"token":"guess"}',
        b"rubbish",
        b"",
    ],
)
def test_a_line_without_the_token_is_refused_and_its_connection_closed(serve: Serve, line: bytes) -> None:
    server = serve(listen=LOOPBACK, token=TOKEN)
    with server.connect() as trusted, Connection(server.address) as stranger:
        trusted.send("gated", "running", text="undisturbed", gate="go")
        server.until_running("running")
        stranger.write(line + b"\n" + line + b"\n")
        frame = stranger.frame()
        assert frame["error"]["kind"] == "usage"
        assert "`token`" in frame["error"]["message"]
        assert ends_within(stranger, SOON_S)
        server.open("go")
        assert text_of(trusted.frame()) == "undisturbed"
    assert server.runs() == {"running": 1}


@pytest.mark.promise(41)
def test_a_wrong_token_ends_what_its_connection_has_asked_for_before(serve: Serve) -> None:
    server = serve(listen=LOOPBACK, token=TOKEN)
    with server.connect() as connection:
        connection.send("poll", "early")
        server.until_running("early")
        connection.write(b'{"function":"echo","request_id":"late","token":"wrong"}\n')
        frame = connection.frame()
        assert (frame["request_id"], frame["error"]["kind"]) == ("late", "usage")
        assert ends_within(connection, SOON_S)
    until(lambda: server.job("early") is None, what="the end of the early request")


@pytest.mark.promise(41)
def test_an_address_that_guesses_is_shut_out_for_a_second(serve: Serve) -> None:
    server = serve(listen=LOOPBACK, token=TOKEN)
    with server.connect() as trusted:
        trusted.send("echo", text="known")
        assert text_of(trusted.frame()) == "known"
        for _ in range(6):
            with Connection(server.address) as guesser:
                guesser.write(b'{"function":"echo","token":"guess"}\n')
                assert guesser.frame()["error"]["kind"] == "usage"
        shut_out = time.monotonic()
        with Connection(server.address, token=TOKEN) as late:
            assert late.frame()["error"]["message"] == "too many wrong tokens"
            assert ends_within(late, SOON_S)
        trusted.send("echo", text="still here")
        assert text_of(trusted.frame()) == "still here"  # it has shown the token before

    def is_let_in() -> bool:
        with Connection(server.address, token=TOKEN) as again:
            again.send("echo", text="back")
            try:
                return bool(again.frame()["ok"])
            except ConnectionResetError:
                return False

    until(is_let_in, what="being let in again")
    assert 0.5 < time.monotonic() - shut_out < 3


def test_connections_that_were_open_before_a_shut_out_have_no_guess_of_their_own(serve: Serve) -> None:
    server = serve(listen=LOOPBACK, token=TOKEN)
    with ExitStack() as stack:
        guessers = [stack.enter_context(Connection(server.address)) for _ in range(20)]
        told = []
        for guesser in guessers:
            guesser.write(b'{"function":"echo","token":"guess"}\n')
            told.append(guesser.frame()["error"]["message"])
    assert told == ["a wrong `token`"] * 6 + ["too many wrong tokens"] * 14
    assert server.log().count("warning: too many wrong tokens from 127.0.0.1: it is shut out for 1 s") == 1


def test_a_browser_cannot_be_made_to_ask(serve: Serve) -> None:
    server = serve(listen=LOOPBACK)
    with server.connect() as browser:
        browser.write(b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/plain\r\n\r\n")
        browser.write(b'{"function":"gated","request_id":"forged","payload":{"gate":"never"}}\n')
        assert "no HTTP server" in browser.frame()["error"]["message"]
        assert ends_within(browser, SOON_S)
    assert server.job("forged") is None
    assert server.runs() == {}


@pytest.mark.parametrize("token", [None, TOKEN])
def test_a_line_that_is_no_request_but_names_one_is_answered_by_that_name(serve: Serve, token: str | None) -> None:
    server = serve(listen=LOOPBACK, token=token)
    with server.connect() as connection:
        for wrong in ({"function": 1}, {"function": "echo", "timeout_ms": -1}):
            connection.line({"request_id": "r1", **wrong})
            frame = connection.frame()
            assert (frame["request_id"], frame["error"]["kind"]) == ("r1", "usage")
        connection.line({"request_id": 1})
        assert "request_id" not in connection.frame()
        connection.send("echo", text="on")
        assert text_of(connection.frame()) == "on"


# --- how a client leaves ----------------------------------------------------------------------------------------------


def test_a_client_that_closes_its_sending_half_gets_its_answers(serve: Serve) -> None:
    server = serve(listen=LOOPBACK)
    with server.connect() as connection:
        connection.send("gated", "patient", text="answered", gate="go")
        connection.end()
        server.until_running("patient")
        server.open("go")
        assert text_of(connection.frame()) == "answered"
        assert connection.read() is None


def test_a_client_that_is_gone_costs_its_stream_at_the_next_write(serve: Serve) -> None:
    server = serve(listen=LOOPBACK)
    with server.connect() as connection:
        connection.send("count", "left", times=1_000_000, stream=True)
        assert connection.frame()["event"] == "yield"
    until(lambda: server.job("left") is None, what="the end of the stream")
    assert text_of(server.ask("echo", text="on")) == "on"


def test_a_client_whose_connection_breaks_costs_its_request(serve: Serve) -> None:
    server = serve(listen=LOOPBACK)
    connection = server.connect()
    connection.send("poll", "broken")
    server.until_running("broken")
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, no goodbye
    connection.close()
    until(lambda: server.job("broken") is None, what="the end of the request")


def test_two_servers_of_one_folder_leave_each_others_sidecar_alone(serve: Serve, tmp_path: Path) -> None:
    first = serve(listen=LOOPBACK)
    with launch(tmp_path, listen=LOOPBACK, log=tmp_path / "second") as process:
        second = Server(process, tmp_path, listen=LOOPBACK)
        until(lambda: json.loads(first.sidecar.read_bytes())["pid"] == process.pid, what="the second sidecar")
        first.signal(signal.SIGTERM)
        assert first.process.wait(PATIENCE_S) == 0
        assert second.sidecar.exists()
        assert text_of(second.ask("echo", text="on")) == "on"
        second.close()
    assert not second.sidecar.exists()
