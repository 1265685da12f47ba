"""Bodies on their way to a server that takes its time, hangs up early, or speaks TLS."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.config import FetchConfig
from gen_worker.fetch.network.patience import Patience
from gen_worker.fetch.network.transport import Transport
from gen_worker.fetch.uploading.asking import Answer, ask
from gen_worker.fetch.uploading.failure import UploadError
from gen_worker.fetch.uploading.source import Text
from tests.scripted.certificates import Certificate, certificate

pytestmark = pytest.mark.process
BODY = Text(bytes(8 << 20))  # more than any buffer between the two takes
IMPATIENT = Patience(connect_s=5.0, head_s=5.0, quiet_s=0.8)
Conversation = Callable[[socket.socket, threading.Event], None]


@contextmanager
def server(converse: Conversation, shown: Certificate | None = None, folder: Path = Path()) -> Iterator[str]:
    """A server that has one conversation, and where it is."""
    over = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            if shown is None:
                converse(connection, over)
                return
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(_written(folder / "certificate.pem", shown.certificate + shown.key))
            try:
                with context.wrap_socket(connection, server_side=True) as secured:
                    converse(secured, over)
            except ssl.SSLError:
                return  # the client does not trust it

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"{'http' if shown is None else 'https'}://127.0.0.1:{listener.getsockname()[1]}/part?X-Signature=secret"
    finally:
        over.set()
        thread.join(10.0)
        listener.close()


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def put(url: str, *, bundle: str = "", body: Text = BODY, patience: Patience = IMPATIENT) -> Answer:
    with Transport(FetchConfig(root="", hf_cache="", ca_bundle=bundle), patience) as transport:
        return ask(transport, "PUT", url, body=body, cancel=Cancel())


def takes_it_late(connection: socket.socket, over: threading.Event) -> None:
    over.wait(0.6)  # longer than the client's tick
    reader = connection.makefile("rb")
    length = 0
    while (line := reader.readline()) not in (b"\r\n", b""):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    assert len(reader.read(length)) == length
    connection.sendall(b'HTTP/1.1 200 OK\r\nETag: "kept"\r\nContent-Length: 0\r\n\r\n')
    reader.close()


def takes_nothing(connection: socket.socket, over: threading.Event) -> None:
    over.wait(20.0)


def takes_a_little_now_and_then(connection: socket.socket, over: threading.Event) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with suppress(ConnectionResetError):  # the client gives up with bytes on their way
        while not over.wait(0.05) and connection.recv(2048):
            pass


def thinks(connection: socket.socket, over: threading.Event) -> None:
    connection.recv(1000)
    over.wait(0.6)
    connection.sendall(b'HTTP/1.1 200 OK\r\nETag: "kept"\r\nContent-Length: 0\r\n\r\n')


def refuses_early(connection: socket.socket, over: threading.Event) -> None:
    connection.recv(1000)
    connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    connection.shutdown(socket.SHUT_WR)
    while connection.recv(1 << 20):
        pass


def hangs_up(connection: socket.socket, over: threading.Event) -> None:
    connection.recv(1000)


def test_a_server_that_takes_a_body_late_still_gets_all_of_it() -> None:
    with server(takes_it_late) as url:
        assert put(url).headers["etag"] == '"kept"'


def test_over_tls_too(tmp_path: Path) -> None:
    shown = certificate()
    with server(takes_it_late, shown, tmp_path) as url:
        assert put(url, bundle=str(shown.bundle(tmp_path))).headers["etag"] == '"kept"'


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_a_server_that_takes_nothing_is_given_up_and_may_take_it_later(secure: bool, tmp_path: Path) -> None:
    shown = certificate() if secure else None
    bundle = "" if shown is None else str(shown.bundle(tmp_path))
    with server(takes_nothing, shown, tmp_path) as url, pytest.raises(UploadError, match="nothing was taken") as raised:
        put(url, bundle=bundle)
    assert raised.value.retryable
    assert "secret" not in str(raised.value)


def test_a_server_that_takes_too_little_is_given_up_and_may_take_it_later() -> None:
    patience = msgspec.structs.replace(IMPATIENT, slow_s=0.5, slow_bytes_per_s=64 << 20)
    with (
        server(takes_a_little_now_and_then) as url,
        pytest.raises(UploadError, match=r"only \d+ bytes in \d+ seconds") as raised,
    ):
        put(url, patience=patience)
    assert raised.value.retryable


def test_a_server_that_thinks_before_it_answers_is_not_slow() -> None:
    patience = msgspec.structs.replace(IMPATIENT, slow_s=0.3)
    with server(thinks) as url:
        assert put(url, body=Text(b"short"), patience=patience).headers["etag"] == '"kept"'


def test_a_certificate_that_nobody_vouches_for_is_said_so_at_once(tmp_path: Path) -> None:
    shown = certificate()
    with server(takes_it_late, shown, tmp_path) as url, pytest.raises(UploadError, match="is not trusted") as raised:
        put(url)
    assert not raised.value.retryable
    assert "GEN_WORKER_CA_BUNDLE" in str(raised.value)


def test_what_a_server_says_before_it_has_everything_counts() -> None:
    with server(refuses_early) as url:
        assert put(url).status == 403


def test_a_server_that_hangs_up_may_take_it_later() -> None:
    with server(hangs_up) as url, pytest.raises(UploadError, match="cannot be reached") as raised:
        put(url)
    assert raised.value.retryable
