"""What a transport does on networks as they are: redirects, proxies, TLS, and origins that keep no rule."""

import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.config import FetchConfig
from gen_worker.fetch.network.patience import HttpError
from gen_worker.fetch.network.transport import Transport
from gen_worker.models.errors import ModelError
from tests.downloading import NOTHING_SET, PIECE, SOON, Downloads, content_of, manifest
from tests.served import until

pytestmark = pytest.mark.process

CONTENT = content_of(3 * PIECE)
TOKEN = "hf_secret"


class Origin:
    """A server on the loopback that answers each path as a test says, and keeps what it was asked."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.redirects: dict[str, str] = {}
        self.bodies: dict[str, bytes] = {"/file": CONTENT}
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.origin = self
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.url = f"{'https' if context else 'http'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def paths_with_token(self) -> list[str]:
        return [path for _, path, headers in self.asked if TOKEN in str(headers)]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # its end waits for theirs
    origin: Origin

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients may leave."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        origin = self.server.origin
        origin.asked.append((self.command, self.path, {name.lower(): value for name, value in self.headers.items()}))
        path = self.path.partition("?")[0]
        if path in origin.redirects:
            self._answer(302, b"moved", {"Location": origin.redirects[path]})
        elif path in origin.bodies:
            self._answer(200, origin.bodies[path], {"ETag": '"e"'})
        else:
            self._answer(404, b"no", {"X-Error-Message": f"nothing at {origin.url}{self.path}"})

    do_HEAD = do_GET

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: the requests are kept."""


class Proxy:
    """A proxy on the loopback: CONNECT, and nothing else but noting what it was asked."""

    def __init__(self, status: int = 200) -> None:
        self.heads: list[str] = []
        self._status = status
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._stack = ExitStack()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                self._stack.callback(client.close)
                self._start(self._serve, client)

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _serve(self, client: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            piece = client.recv(1)
            if not piece:
                return
            head += piece
        self.heads.append(head.decode())
        first = head.split()
        if first[0] != b"CONNECT" or self._status != 200:
            status = self._status if self._status != 200 else 418
            client.sendall(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status)
            with suppress(OSError):  # the client was faster
                client.shutdown(socket.SHUT_RDWR)
            return
        host, _, port = first[1].decode().rpartition(":")
        origin = socket.create_connection((host, int(port)))
        self._stack.callback(origin.close)
        client.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
        self._start(_pipe, client, origin)
        _pipe(origin, client)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        for thread in self._threads[1:]:
            thread.join(5)
        self._stack.close()


def _pipe(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):  # either end left
        while piece := source.recv(65536):
            sink.sendall(piece)
    for sock in (source, sink):
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


@contextmanager
def raw_origin(*answers: Callable[[socket.socket], None]) -> Iterator[str]:
    """Yield the URL of a server that answers its first connection with the first function, and so on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken: list[socket.socket] = []

        def serve() -> None:
            with suppress(OSError):  # the test is over
                for answer in answers:
                    client, _ = listener.accept()
                    taken.append(client)
                    client.recv(65536)
                    with suppress(OSError):  # the client left
                        answer(client)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/file"
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            for client in taken:
                client.close()
            thread.join()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def origin(stack: ExitStack) -> Origin:
    origin = Origin()
    stack.callback(origin.close)
    return origin


@pytest.fixture
def other(stack: ExitStack) -> Origin:
    other = Origin()
    stack.callback(other.close)
    return other


def got(url: str, config: FetchConfig = NOTHING_SET, **options: Any) -> bytes:
    with (
        Transport(config, SOON) as transport,
        transport.open(url, cancel=Cancel(), **options) as response,
    ):
        return response.read()


def refused(url: str, config: FetchConfig = NOTHING_SET, **options: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        got(url, config, **options)
    return caught.value


# --- redirects and credentials ----------------------------------------------------------------------------------------


def test_a_token_goes_to_its_own_origin_and_never_along_a_redirect(origin: Origin, other: Origin) -> None:
    origin.redirects["/here"] = "/file"
    origin.redirects["/there"] = f"{other.url}/file?signature=1"
    for path in ("/here", "/there"):
        headers = {"Cookie": f"session={TOKEN}", "Range": "bytes=0-"}
        assert got(f"{origin.url}{path}", token=TOKEN, headers=headers) == CONTENT
    assert origin.paths_with_token() == ["/here", "/file", "/there"]
    assert other.paths_with_token() == []
    assert "range" in other.asked[0][2]


def test_a_token_does_not_come_back_to_an_origin_that_sent_it_away(origin: Origin, other: Origin) -> None:
    other.redirects["/away"] = f"{origin.url}/file"
    got(f"{other.url}/away", token=TOKEN, token_for=other.url)
    assert origin.paths_with_token() == []


@pytest.mark.parametrize("of", ["http://127.0.0.1:1", "https://127.0.0.1", "http://localhost"])
def test_a_token_of_another_origin_is_not_shown(origin: Origin, of: str) -> None:
    got(f"{origin.url}/file", token=TOKEN, token_for=of)
    assert origin.paths_with_token() == []


def test_redirects_in_a_circle_end(origin: Origin) -> None:
    origin.redirects["/a"] = "/b?secret=1"
    origin.redirects["/b"] = "/a?secret=2"
    error = refused(f"{origin.url}/a")
    assert "redirects more than 5 times" in str(error)
    assert "secret" not in str(error)
    assert len(origin.asked) == 6


@pytest.mark.parametrize("location", ["ftp://x/y", "http://user:pass@x/y", "file:///etc/passwd"])
def test_a_redirect_to_what_cannot_be_asked_is_refused(origin: Origin, location: str) -> None:
    origin.redirects["/a"] = location
    assert refused(f"{origin.url}/a").kind == "bad_manifest"


def test_what_a_server_says_of_an_error_is_told_without_queries(origin: Origin) -> None:
    with pytest.raises(HttpError) as caught:
        got(f"{origin.url}/nothing?signature=secret")
    assert caught.value.status == 404
    assert "nothing at" in str(caught.value)
    assert "secret" not in str(caught.value)


# --- bodies, connections ----------------------------------------------------------------------------------------------


def test_a_body_beyond_the_limit_is_refused(origin: Origin) -> None:
    with Transport(NOTHING_SET, SOON) as transport:
        with (
            transport.open(f"{origin.url}/file", cancel=Cancel()) as response,
            pytest.raises(ModelError, match="more than 100 bytes"),
        ):
            response.read(100)
        with transport.open(f"{origin.url}/file", cancel=Cancel(), method="HEAD") as response:
            assert response.headers["content-length"] == str(len(CONTENT))
            assert response.read() == b""


def test_a_kept_connection_that_was_closed_meanwhile_is_no_failure() -> None:
    def once(client: socket.socket) -> None:
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        client.shutdown(socket.SHUT_RDWR)

    with raw_origin(once, once, once) as url, Transport(NOTHING_SET, SOON) as transport:
        for _ in range(3):
            with transport.once(url, cancel=Cancel()) as response:
                assert response.read() == b"ok"


def drip(client: socket.socket) -> None:
    """Send a head, a byte at a time."""
    for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: " + b"x" * 10_000:
        client.sendall(bytes((byte,)))
        time.sleep(0.01)  # the pace is the fault


def well(client: socket.socket) -> None:
    head = b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: %d\r\n\r\n' % len(CONTENT)
    client.sendall(head + CONTENT)


@pytest.mark.parametrize(
    "answer",
    [
        drip,
        lambda client: client.sendall(b"HTTP/1.1 200 OK\r\nContent-Len"),
        lambda client: client.sendall(b"SSH-2.0-OpenSSH\r\n"),
        lambda client: client.shutdown(socket.SHUT_RDWR),
        lambda client: client.sendall(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500 + b"\r\n"),
        lambda client: client.sendall(b"HTTP/1.1 206 OK\r\nContent-Length: 5\r\n\r\nhello"),
        lambda client: client.sendall(
            b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-4/*\r\nContent-Length: 5\r\n\r\nhello"
        ),
        lambda client: client.sendall(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello"),
        lambda client: client.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        lambda client: client.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel"),
        lambda client: client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nhello"),
    ],
    ids=[
        "drip",
        "half a head",
        "no http",
        "nothing",
        "endless head",
        "no range",
        "range of what",
        "encoded",
        "chunks",
        "half a chunk",
        "huge",
    ],
)
def test_nonsense_is_met_with_another_try(tmp_path: Path, answer: Callable[[socket.socket], None]) -> None:
    def then_leave(client: socket.socket) -> None:
        answer(client)
        client.close()

    patience = msgspec.structs.replace(SOON, head_s=0.3, quiet_s=0.5)
    with raw_origin(then_leave, well, well, well) as url:
        downloads = Downloads(tmp_path, patience=patience)
        downloads.run(manifest(CONTENT, url, sized=False), connections=1)
    assert downloads.to.read_bytes() == CONTENT


def test_a_body_without_a_length_that_ends_too_soon_is_no_whole_file(tmp_path: Path) -> None:
    def end_early(client: socket.socket) -> None:
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + CONTENT[:5])
        client.close()

    with raw_origin(end_early, well, well) as url:
        Downloads(tmp_path).run(manifest(CONTENT, url, algorithm=""), connections=1)
    assert (tmp_path / "blob").read_bytes() == CONTENT


def test_bodies_that_never_bring_anything_are_given_up(tmp_path: Path) -> None:
    def bring_nothing(client: socket.socket) -> None:
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        client.close()

    with raw_origin(*[bring_nothing] * 30) as url, pytest.raises(ModelError) as caught:
        Downloads(tmp_path).run(manifest(CONTENT, url, algorithm=""), connections=1)
    assert caught.value.kind == "unreachable"
    assert "too soon" in str(caught.value)


# --- cancel -----------------------------------------------------------------------------------------------------------


def test_a_wait_for_an_answer_ends_when_it_is_canceled() -> None:
    asked = threading.Event()
    cancel = Cancel()
    ended: list[tuple[str, float]] = []

    def run(url: str) -> None:
        with Transport(NOTHING_SET, SOON) as transport, pytest.raises(ModelError) as caught:
            transport.open(url, cancel=cancel)
        ended.append((caught.value.kind, time.monotonic()))

    with raw_origin(lambda client: asked.set()) as url:
        thread = threading.Thread(target=run, args=(url,))
        thread.start()
        assert asked.wait(5)
        began = time.monotonic()
        cancel.set()
        thread.join()
    assert ended[0][0] == "canceled"
    assert ended[0][1] - began < 0.2


def test_a_wait_for_a_connection_ends_when_it_is_canceled() -> None:
    cancel = Cancel()
    ended: list[str] = []

    def run(url: str) -> None:
        with Transport(NOTHING_SET, SOON) as transport, pytest.raises(ModelError) as caught:
            transport.open(url, cancel=cancel)
        ended.append(caught.value.kind)

    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port = listener.getsockname()[1]
        for _ in range(8):  # fill its queue: the next one waits for an answer to its SYN
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        thread = threading.Thread(target=run, args=(f"http://127.0.0.1:{port}/",))
        thread.start()
        until(lambda: _connecting_to(port) > 0, what="a connection that waits")
        began = time.monotonic()
        cancel.set()
        thread.join()
    assert time.monotonic() - began < 0.2
    assert ended == ["canceled"]


def _connecting_to(port: int) -> int:
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(line[2].endswith(f":{port:04X}") and line[3] == "02" for line in lines)


# --- proxies and TLS --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `ca.pem`, and a certificate and key for 127.0.0.1 that it signed."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("authority")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=30)

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=tests", "-days", "30")
    openssl("req", *new_key, "-keyout", "key.pem", "-out", "request.pem", "-subj", "/CN=127.0.0.1")
    signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
    openssl("x509", "-req", "-in", "request.pem", *signing, "-out", "cert.pem", "-days", "30")
    return folder


@pytest.fixture
def secured(stack: ExitStack, authority: Path) -> Origin:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "cert.pem", authority / "key.pem")
    origin = Origin(context)
    stack.callback(origin.close)
    return origin


def trusting(authority: Path, **proxies: str) -> FetchConfig:
    return msgspec.structs.replace(NOTHING_SET, ca_bundle=str(authority / "ca.pem"), proxies=proxies)


def test_a_further_authority_is_trusted(secured: Origin, authority: Path, tmp_path: Path) -> None:
    downloads = Downloads(tmp_path, config=trusting(authority))
    assert downloads.run(manifest(CONTENT, f"{secured.url}/file")) == len(CONTENT)
    assert downloads.to.read_bytes() == CONTENT


def test_an_authority_that_nobody_trusts_is_told_at_once(secured: Origin) -> None:
    error = refused(f"{secured.url}/file")
    assert error.kind == "unreachable"
    assert "is not trusted" in str(error)
    assert "GEN_WORKER_CA_BUNDLE" in error.hint
    assert secured.asked == []


def test_a_bundle_that_is_none_is_told(secured: Origin, tmp_path: Path) -> None:
    for path in (tmp_path / "missing.pem", tmp_path / "empty.pem"):
        (tmp_path / "empty.pem").write_text("nothing")
        error = refused(f"{secured.url}/file", msgspec.structs.replace(NOTHING_SET, ca_bundle=str(path)))
        assert error.kind == "not_configured"
        assert str(path) in str(error)


def test_a_redirect_from_https_to_http_is_refused(secured: Origin, origin: Origin, authority: Path) -> None:
    secured.redirects["/down"] = f"{origin.url}/file?secret=1"
    error = refused(f"{secured.url}/down", trusting(authority))
    assert "not encrypted" in str(error)
    assert "secret" not in str(error)
    assert origin.asked == []


def test_a_cut_in_the_middle_of_tls_is_told_from_the_end(secured: Origin, authority: Path, tmp_path: Path) -> None:
    cancel = Cancel()
    downloads = Downloads(tmp_path, config=trusting(authority))
    secured.bodies["/file"] = content_of(64 * PIECE)
    downloads.told.at_bytes, downloads.told.then = PIECE, cancel.set
    with pytest.raises(ModelError) as caught:
        downloads.run(manifest(secured.bodies["/file"], f"{secured.url}/file"), cancel=cancel)
    assert caught.value.kind == "canceled"
    assert not downloads.to.exists()


def test_https_goes_through_a_proxy_with_its_password(
    secured: Origin, authority: Path, tmp_path: Path, stack: ExitStack
) -> None:
    proxy = Proxy()
    stack.callback(proxy.close)
    config = trusting(authority, https=f"http://user:p%40ss@127.0.0.1:{proxy.port}", no="example.com")
    downloads = Downloads(tmp_path, config=config)
    downloads.run(manifest(CONTENT, f"{secured.url}/file?secret=1"), token=TOKEN)
    assert downloads.to.read_bytes() == CONTENT
    assert proxy.heads[0].startswith(f"CONNECT 127.0.0.1:{secured.port} ")
    assert "Proxy-Authorization: Basic dXNlcjpwQHNz" in proxy.heads[0]
    assert TOKEN not in str(proxy.heads)
    assert secured.paths_with_token()
    assert "proxy-authorization" not in secured.asked[0][2]


def test_no_proxy_is_asked_for_an_origin_that_is_excepted(secured: Origin, authority: Path, stack: ExitStack) -> None:
    proxy = Proxy()
    stack.callback(proxy.close)
    config = trusting(authority, https=f"127.0.0.1:{proxy.port}", no=f"10.0.0.0/8, 127.0.0.1:{secured.port}")
    assert got(f"{secured.url}/file", config) == CONTENT
    assert proxy.heads == []


@pytest.mark.parametrize(("status", "times"), [(403, 1), (407, 1), (503, 30)])
def test_a_proxy_that_refuses_is_named(
    secured: Origin, authority: Path, stack: ExitStack, status: int, times: int
) -> None:
    proxy = Proxy(status)
    stack.callback(proxy.close)
    error = refused(f"{secured.url}/file", trusting(authority, https=f"http://u:secret@127.0.0.1:{proxy.port}"))
    assert error.kind == "unreachable"
    assert f"the proxy `127.0.0.1:{proxy.port}`" in str(error)
    assert "secret" not in f"{error}{error.hint}"
    assert len(proxy.heads) == times


def test_http_asks_a_proxy_for_the_whole_url(origin: Origin) -> None:
    origin.bodies["http://example.com/file"] = b"through a proxy"
    proxies = {"http": f"http://user:pass@127.0.0.1:{origin.port}"}
    config = msgspec.structs.replace(NOTHING_SET, proxies=proxies)
    assert got("http://example.com/file?a=1", config) == b"through a proxy"
    _, path, headers = origin.asked[0]
    assert path == "http://example.com/file?a=1"
    assert headers["host"] == "example.com"
    assert headers["proxy-authorization"] == "Basic dXNlcjpwYXNz"


def test_a_proxy_that_cannot_be_used_is_told(origin: Origin) -> None:
    config = msgspec.structs.replace(NOTHING_SET, proxies={"http": "socks5://user:secret@127.0.0.1:1"})
    error = refused(f"{origin.url}/file", config)
    assert error.kind == "not_configured"
    assert "secret" not in f"{error}{error.hint}"
