"""A file that a stranger names by a URL: had when it may be, refused at the first thing that is not allowed."""

import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.config import FetchConfig
from gen_worker.fetch.inputs.fetch import FOR_INPUTS, FileApi, InputError, Limits, fetch_input, spare_bytes
from gen_worker.fetch.network.connections import Dialing
from gen_worker.testing.contents import Content
from gen_worker.testing.faults import Cut, Fault, Faults, NoSize, Slow, Stall, Status
from gen_worker.testing.origin import Answer, Origin, Request
from gen_worker.wire.fetching import Destination
from gen_worker.wire.messages import InputAsset, InputFile
from tests.scripted.certificates import certificate
from tests.served import until

pytestmark = pytest.mark.process

PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII9xI4s", 13, b"IHDR", 640, 480, 1980, b"IDAT") + bytes(1984)
TEXT = b"just words " * 100
CONFIG = FetchConfig(root="/nowhere", hf_cache="/nowhere/hub", proxies={"http": "http://127.0.0.1:1"})
HASTY = msgspec.structs.replace(FOR_INPUTS, first_delay_s=0.0, longest_delay_s=0.0)
PRIVATE = Limits(allow_private=True)
ODD_LOOPBACKS = (
    "127.1",
    "0x7f000001",
    "2130706433",
    "0177.0.0.1",
    "[::1]",
    "[::ffff:7f00:1]",
    "localhost",
)


class Site:
    """An origin whose answers are set by their path."""

    def __init__(self, name: str = "site") -> None:
        self.faults = Faults()
        self.answers: dict[str, Answer] = {}
        self.origin = Origin(name, 0, self.faults, self._answer)
        self.url = self.origin.url

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def put(self, path: str, body: bytes, **headers: str) -> str:
        """Serve a file; return its URL."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers[path] = Answer(200, path.lstrip("/"), named, Content(body))
        return self.url + path

    def redirect(self, path: str, location: str) -> str:
        """Serve a redirect; return its URL."""
        self.answers[path] = Answer(302, path.lstrip("/"), {"Location": location})
        return self.url + path

    def plan(self, fault: Fault, times: int | None = None) -> None:
        """Have a fault hit every answer, or so many."""
        self.faults.plan("*", fault, times)

    def _answer(self, request: Request) -> Answer:
        return self.answers.get(request.path, Answer(404, request.path.lstrip("/")))


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.origin.close()


@pytest.fixture
def other() -> Iterator[Site]:
    made = Site("other")
    yield made
    made.origin.close()


Get = Callable[..., InputFile]


@pytest.fixture
def get(tmp_path: Path) -> Get:
    def get(
        url: str,
        limits: Limits = PRIVATE,
        cancel: Cancel | None = None,
        *,
        how: Mapping[str, Any] | None = None,
        **asset: Any,
    ) -> InputFile:
        options = {"patience": HASTY, **(how or {})}
        path = str(tmp_path / "input-0")
        return fetch_input(InputAsset(url, **asset), path, limits, CONFIG, cancel or Cancel(), **options)

    return get


@contextmanager
def refused(folder: Path, text: str, *, retryable: bool = False) -> Iterator[None]:
    """The body is refused with these words, shows no query and leaves no file."""
    with pytest.raises(InputError) as raised:
        yield
    assert text in str(raised.value)
    assert "secret" not in str(raised.value)
    assert raised.value.kind == ("unreachable" if retryable else "invalid")
    assert raised.value.retryable is retryable
    assert list(folder.iterdir()) == []


def test_a_file_comes_with_its_size_and_type_and_is_its_owners_only(site: Site, get: Get, tmp_path: Path) -> None:
    file = get(site.put("/cat", PNG) + "?secret=1")
    path = Path(file.local_path)
    assert file == InputFile(str(tmp_path / "input-0.png"), len(PNG), "image/png")
    assert path.read_bytes() == PNG
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_a_proxy_or_a_token_is_for_is_not_sent(site: Site, get: Get) -> None:
    get(site.put("/cat", PNG))
    (request,) = site.origin.requests
    assert request.headers.keys() == {"host", "user-agent", "accept-encoding", "origin"}
    assert request.headers["host"] == site.url.removeprefix("http://")


def test_a_file_that_is_empty_is_a_file(site: Site, get: Get) -> None:
    assert get(site.put("/nothing.txt", b"")).size_bytes == 0


# --- where from -------------------------------------------------------------------------------------------------------


@pytest.mark.promise(38)
@pytest.mark.parametrize("host", ODD_LOOPBACKS)
def test_loopback_is_refused_in_every_spelling(site: Site, get: Get, tmp_path: Path, host: str) -> None:
    with refused(tmp_path, "its address is loopback"):
        get(f"http://{host}:{site.port}/cat?secret=1", Limits())
    assert site.origin.requests == []


@pytest.mark.promise(38)
@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("http://169.254.169.254/latest/meta-data", "link-local"),
        ("http://10.1.2.3/", "private"),
        ("http://[fe80::1]/", "link-local"),
        ("https://[64:ff9b::a00:1]/", "private"),
        ("http://[2002:7f00:1::]/", "loopback"),
        ("http://0/", "unspecified"),
        ("http://224.0.0.251/", "multicast"),
    ],
)
def test_no_address_that_is_not_public_is_connected_to(get: Get, tmp_path: Path, url: str, kind: str) -> None:
    with refused(tmp_path, f"its address is {kind}"):
        get(url, Limits(), how={"dialing": Dialing(connect=never)})


def never(sock: socket.socket, address: tuple[Any, ...]) -> None:
    raise AssertionError(f"connected to {address}")


@pytest.mark.parametrize(
    "url", ["ftp://1.1.1.1/cat", "http://user:secret@1.1.1.1/cat", "http:///cat", "http://1.1.1.1:99999/"]
)
def test_what_is_no_plain_url_is_refused(get: Get, tmp_path: Path, url: str) -> None:
    with refused(tmp_path, "a URL of the payload is none that can be fetched"):
        get(url, how={"dialing": Dialing(connect=never)})


def names(*answers: str, asked: list[str] | None = None) -> Callable[[str, int], list[Any]]:
    """Return a name server that answers with one address after the other, the last one for ever."""
    left = list(answers)

    def look_up(host: str, port: int) -> list[Any]:
        if asked is not None:
            asked.append(host)
        address = left.pop(0) if len(left) > 1 else left[0]
        found = [address] if isinstance(address, str) else address
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (each, port)) for each in found]

    return look_up


@pytest.mark.promise(38)
def test_the_address_that_was_checked_is_the_one_that_is_connected_to(site: Site, get: Get) -> None:
    site.put("/cat", PNG)
    asked: list[str] = []
    met: list[Any] = []

    def connect(sock: socket.socket, address: tuple[Any, ...]) -> None:
        met.append(address)
        sock.connect(("127.0.0.1", site.port))

    dialing = Dialing(names("93.184.215.14", "127.0.0.1", asked=asked), connect=connect)
    assert get("http://example.org/cat", Limits(), how={"dialing": dialing}).size_bytes == len(PNG)
    assert asked == ["example.org"]
    assert met == [("93.184.215.14", 80)]
    assert site.origin.requests[0].headers["host"] == "example.org"
    assert "origin" not in site.origin.requests[0].headers  # some public hosts answer it with 403


@pytest.mark.promise(38)
def test_a_name_that_changes_its_address_between_tries_is_checked_again(site: Site, get: Get, tmp_path: Path) -> None:
    site.put("/cat", PNG)
    site.plan(Cut(10), 1)
    met: list[Any] = []

    def connect(sock: socket.socket, address: tuple[Any, ...]) -> None:
        met.append(address)
        sock.connect(("127.0.0.1", site.port))

    dialing = Dialing(names("93.184.215.14", "127.0.0.1"), connect=connect)
    with refused(tmp_path, "`example.org` is not asked for a file: its address is loopback"):
        get("http://example.org/cat?secret", Limits(), how={"dialing": dialing})
    assert met == [("93.184.215.14", 80)]


def test_one_address_of_a_name_that_is_not_public_is_enough(get: Get, tmp_path: Path) -> None:
    def look_up(host: str, port: int) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (each, port)) for each in ("93.184.215.14", "10.0.0.1")]

    with refused(tmp_path, "its address is private"):
        get("http://example.org/", Limits(), how={"dialing": Dialing(look_up, connect=never)})


@pytest.mark.promise(38)
def test_a_redirect_is_checked_like_the_first_url(site: Site, get: Get, tmp_path: Path) -> None:
    start = site.redirect("/start", "http://169.254.169.254/latest?secret=2")
    with refused(tmp_path, "`169.254.169.254` is not asked for a file: its address is link-local"):
        get(f"{start}?secret=1", Limits(trusted_origin=site.url))


def test_the_orchestrators_own_store_may_have_any_address_but_no_other_port_of_it(
    site: Site, other: Site, get: Get, tmp_path: Path
) -> None:
    trusting = Limits(trusted_origin=site.url)
    with refused(tmp_path, "its address is loopback"):
        get(other.put("/cat", PNG), trusting)
    with refused(tmp_path, "its address is loopback"):
        get(site.redirect("/start", other.put("/cat", PNG)), trusting)
    assert other.origin.requests == []
    assert get(site.put("/cat", PNG), trusting).size_bytes == len(PNG)


def test_nobody_is_redirected_to_what_only_the_orchestrators_own_urls_may_reach(
    site: Site, other: Site, get: Get, tmp_path: Path
) -> None:
    """Only loopback sockets exist here: a public name leads to one of them all the same."""
    start = site.redirect("/start", other.put("/v1/jobs", PNG))

    def look_up(host: str, port: int) -> list[Any]:
        address = "93.184.215.14" if host == "example.org" else host
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, port))]

    def connect(sock: socket.socket, address: tuple[Any, ...]) -> None:
        sock.connect(("127.0.0.1", address[1]))

    dialing = Dialing(look_up, connect=connect)
    with refused(tmp_path, "its address is loopback"):
        get(start.replace("127.0.0.1", "example.org"), Limits(trusted_origin=other.url), how={"dialing": dialing})
    assert len(site.origin.requests) == 1
    assert other.origin.requests == []


@pytest.mark.parametrize("allowed", ["trusted", "private"])
def test_who_may_have_any_address_is_told_that_a_stranger_asks(site: Site, other: Site, get: Get, allowed: str) -> None:
    limits = PRIVATE if allowed == "private" else Limits(trusted_origin=site.url)
    get(site.put("/cat", PNG), limits)
    assert site.origin.requests[0].headers["origin"] == "null"
    get(site.redirect("/start", other.put("/cat", PNG)))
    assert other.origin.requests[0].headers["origin"] == "null"


def test_redirects_are_followed_five_times(site: Site, get: Get, tmp_path: Path) -> None:
    site.put("/0", PNG)
    for number in range(1, 7):
        site.redirect(f"/{number}", f"/{number - 1}")
    with refused(tmp_path, "redirects more than 5 times"):
        get(f"{site.url}/6?secret=1")
    assert get(f"{site.url}/5").size_bytes == len(PNG)


# --- how much ---------------------------------------------------------------------------------------------------------


@pytest.mark.promise(38)
def test_a_file_that_says_it_is_too_long_is_not_read(site: Site, get: Get, tmp_path: Path) -> None:
    size = 1 << 26  # more than sockets take that nobody reads
    url = site.put("/cat", PNG + bytes(size))
    with refused(tmp_path, f"has {len(PNG) + size} bytes, the limit is 1000"):
        get(url, max_bytes=1000)
    assert site.origin.requests[0].sent < size


@pytest.mark.promise(38)
def test_a_file_that_does_not_say_it_is_too_long_is_read_up_to_the_limit(site: Site, get: Get, tmp_path: Path) -> None:
    url = site.put("/cat", PNG + bytes(32 << 20))
    site.plan(NoSize())
    with refused(tmp_path, "has more bytes than it may: the limit is 1000000"):
        get(url, max_bytes=1_000_000)
    assert site.origin.requests[0].sent < 32 << 20


@pytest.mark.parametrize(
    ("of_asset", "of_worker", "limit"), [(0, 0, 50 << 20), (0, 1000, 1000), (500, 1000, 500), (5000, 1000, 1000)]
)
def test_the_smaller_of_the_assets_limit_and_the_workers_counts(
    site: Site, get: Get, tmp_path: Path, of_asset: int, of_worker: int, limit: int
) -> None:
    limits = Limits(max_bytes=of_worker, allow_private=True)
    site.answers["/cat"] = Answer(200, "cat", {"Content-Length": str(limit + 1)}, Content(PNG + bytes(limit)))
    with refused(tmp_path, f"the limit is {limit}"):
        get(f"{site.url}/cat", limits, max_bytes=of_asset)


# --- how long ---------------------------------------------------------------------------------------------------------


@pytest.mark.promise(38)
def test_a_server_that_trickles_is_left_when_the_time_is_over(site: Site, get: Get, tmp_path: Path) -> None:
    url = site.put("/cat", PNG)
    site.plan(Slow(200))
    began = time.monotonic()
    with refused(tmp_path, "is too slow: its file has not come within 0.5 seconds", retryable=True):
        get(url, how={"limit_s": 0.5})
    assert time.monotonic() - began < 3


def test_a_head_that_trickles_is_left_when_the_time_is_over(get: Get, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"  # the kernel takes the connection, nobody answers
        began = time.monotonic()
        with refused(tmp_path, "is too slow", retryable=True):
            get(url, how={"limit_s": 0.3})
        assert time.monotonic() - began < 3


def test_a_server_that_says_nothing_for_too_long_is_tried_again(site: Site, get: Get) -> None:
    url = site.put("/cat", PNG)
    site.plan(Stall(10, 5.0), 1)
    patience = msgspec.structs.replace(HASTY, quiet_s=0.2)
    assert get(url, how={"patience": patience}).size_bytes == len(PNG)
    assert len(site.origin.requests) == 2


def test_a_cancel_ends_a_download_at_once(site: Site, get: Get, tmp_path: Path) -> None:
    url = site.put("/cat", PNG)
    site.plan(Stall(10, 30.0))
    cancel = Cancel()
    ended: list[InputError] = []

    def run() -> None:
        with pytest.raises(InputError) as raised:
            get(url, PRIVATE, cancel)
        ended.append(raised.value)

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: site.origin.requests, what="the request")
    cancel.set()
    thread.join(3)
    assert [error.kind for error in ended] == ["canceled"]
    assert list(tmp_path.iterdir()) == []


# --- what -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "declared", "kind", "suffix"),
    [
        ("/cat.txt", PNG, "text/plain", "image/png", ".png"),
        ("/words.txt", TEXT, "image/png", "text/plain", ".txt"),
        ("/words", TEXT, "text/plain; charset=utf-8", "text/plain", ".txt"),
        ("/table.csv", TEXT, "text/csv", "text/csv", ".csv"),
        ("/thing", TEXT, "", "application/octet-stream", ".bin"),
        ("/thing", TEXT, "not a type", "application/octet-stream", ".bin"),
        ("/a.b/c.d..e%2f..%2fx", TEXT, "", "application/octet-stream", ".bin"),
    ],
)
def test_the_type_is_that_of_the_bytes_else_of_the_name_else_what_the_server_says(
    site: Site, get: Get, path: str, body: bytes, declared: str, kind: str, suffix: str
) -> None:
    site.put(path.replace("%2f", "/"), body, Content_Type=declared)
    file = get(site.url + path)
    assert file.mime_type == kind
    assert Path(file.local_path).name == f"input-0{suffix}"


def test_a_type_that_the_asset_does_not_allow_is_refused(site: Site, get: Get, tmp_path: Path) -> None:
    url = site.put("/cat.png", TEXT, Content_Type="image/png").replace("cat.png", "cat.png?secret=1")
    site.put("/words", TEXT, Content_Type="text/plain")
    with refused(tmp_path, "is `text/plain`, allowed is `image/*`, `audio/wav`"):
        get(f"{site.url}/words?secret=1", mime_types=("image/*", "audio/wav"))
    assert get(site.put("/cat", PNG), mime_types=("IMAGE/*",)).mime_type == "image/png"
    assert get(site.put("/me", b"\xff\xd8\xff" + bytes(99)), mime_types=("image/jpg",)).mime_type == "image/jpeg"
    assert get(url, mime_types=("image/png",)).mime_type == "image/png"


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        ({"max_width": 639}, "has 640x480, the limit of its width is 639"),
        ({"max_height": 479}, "has 640x480, the limit of its height is 479"),
        ({"max_pixels": 300_000}, "has 640x480, the limit of its pixels is 300000"),
    ],
)
def test_a_picture_that_is_too_large_is_refused_by_its_head(
    site: Site, get: Get, tmp_path: Path, limit: dict[str, int], text: str
) -> None:
    with refused(tmp_path, text):
        get(site.put("/cat", PNG), **limit)
    assert get(site.url + "/cat", max_width=640, max_height=480, max_pixels=640 * 480).size_bytes == len(PNG)


def test_where_dimensions_are_limited_a_file_must_say_them(site: Site, get: Get, tmp_path: Path) -> None:
    with refused(tmp_path, "does not say how large it is as a picture: `text/plain`"):
        get(site.put("/words.txt", TEXT), max_pixels=10)


def test_a_file_in_another_encoding_is_refused(site: Site, get: Get, tmp_path: Path) -> None:
    with refused(tmp_path, "comes in an encoding that was not asked for"):
        get(site.put("/cat", PNG, Content_Encoding="gzip"))


# --- and if not -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_url_that_leads_nowhere_is_its_callers_fault(site: Site, get: Get, tmp_path: Path, status: int) -> None:
    site.put("/cat", PNG)
    site.plan(Status(status))
    with refused(tmp_path, f"does not give the file of the payload: it answers {status}"):
        get(f"{site.url}/cat?secret=1")
    assert len(site.origin.requests) == 1


@pytest.mark.parametrize("fault", [Status(500), Status(503), Status(429), Cut(100)])
def test_what_may_pass_is_tried_three_times_and_may_be_asked_for_again(
    site: Site, get: Get, tmp_path: Path, fault: Fault
) -> None:
    url = site.put("/cat", PNG)
    site.plan(fault, 2)
    assert get(url).size_bytes == len(PNG)
    (tmp_path / "input-0.png").unlink()
    site.plan(fault)
    with refused(tmp_path, site.url.removeprefix("http://"), retryable=True):
        get(f"{url}?secret=1")
    assert len(site.origin.requests) == 6


def test_where_nobody_listens_it_may_be_asked_for_again(get: Get, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with refused(tmp_path, f"`127.0.0.1:{port}` cannot be reached", retryable=True):
        get(f"http://127.0.0.1:{port}/?secret=1")


def test_who_redirects_to_where_nobody_listens_is_named_as_that(site: Site, get: Get, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = site.redirect("/cat", f"http://127.0.0.1:{port}/?secret=2")
    who = site.url.removeprefix("http://")
    with refused(tmp_path, f"whoever `{who}` redirects to cannot be reached", retryable=True):
        get(f"{url}?secret=1")
    assert len(site.origin.requests) == 3


def test_a_redirect_to_what_is_no_url_is_the_callers_fault(site: Site, get: Get, tmp_path: Path) -> None:
    with refused(tmp_path, "redirects to what is no URL"):
        get(site.redirect("/cat", "http://[") + "?secret=1")


def test_a_length_that_is_no_number_says_nothing(site: Site, get: Get) -> None:
    site.answers["/cat"] = Answer(200, "cat", {"Content-Length": "\xb2"}, Content(PNG))
    assert get(f"{site.url}/cat").size_bytes == len(PNG)
    for strange in ("\xb2", "9" * 5000):
        site.put("/api/v1/file/cat", PNG, X_Cozy_Size_Bytes=strange)
        api = FileApi(Destination(site.url, "token", "r", 1, file_api=True))
        assert get("cat", api.trusted(Limits()), how={"api": api}).size_bytes == len(PNG)


def test_a_file_that_is_not_as_long_as_its_api_says_is_another_one(site: Site, get: Get, tmp_path: Path) -> None:
    api = FileApi(Destination(site.url, "token", "r", 1, file_api=True))
    for length in (len(PNG) - 1, len(PNG) + 1, 0):
        site.put("/api/v1/file/cat", PNG, X_Cozy_Size_Bytes=str(length))
        with refused(tmp_path, "is not the one it describes", retryable=True):
            get("cat", api.trusted(Limits()), how={"api": api})


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_a_file_api_does_not_take_is_told_apart_from_a_wrong_ref(
    site: Site, get: Get, status: int
) -> None:
    api = FileApi(Destination(site.url, "token", "r", 1, file_api=True))
    site.answers["/api/v1/file/cat"] = Answer(status, "cat")
    with pytest.raises(InputError, match=f"it answers {status}") as told:
        get("cat", api.trusted(Limits()), how={"api": api})
    assert (told.value.kind, told.value.retryable) == ("unauthorized", False)


@pytest.mark.parametrize("host", [f"{'a' * 70}.example.org", "a..b"])
def test_a_name_that_nobody_knows_may_be_asked_for_again(get: Get, tmp_path: Path, host: str) -> None:
    with refused(tmp_path, "cannot be reached", retryable=True):
        get(f"http://{host}/cat?secret=1")


def test_a_disk_that_does_not_take_the_file_is_not_the_callers_fault(site: Site, tmp_path: Path) -> None:
    path = str(tmp_path / "gone" / "input-0")
    with refused(tmp_path, "a file of the payload cannot be written: no such file or directory", retryable=True):
        fetch_input(InputAsset(site.put("/cat", PNG)), path, PRIVATE, CONFIG, Cancel(), patience=HASTY)


def test_files_of_payloads_do_not_fill_a_disk(site: Site, get: Get, tmp_path: Path) -> None:
    with refused(tmp_path, "a file of the payload cannot be written: its disk has only", retryable=True):
        get(f"{site.put('/cat', PNG)}?secret=1", how={"spare": lambda disk_bytes: disk_bytes})
    assert spare_bytes(64 << 20) < 4 << 20  # a small one, as /tmp may be, is of use
    assert spare_bytes(100 << 40) == 1 << 30


def test_what_is_kept_for_later_gives_way_to_a_file_that_is_wanted_now(site: Site, get: Get) -> None:
    spare, asked = [1 << 62], []

    def give_room(size: int, device: int) -> bool:
        asked.append(device)
        spare[0] = 0
        return len(asked) == 1

    file = get(site.put("/cat", PNG), how={"spare": lambda disk_bytes: spare[0], "give_room": give_room})
    assert asked == [Path(file.local_path).stat().st_dev]


def test_a_link_where_the_file_shall_be_is_not_followed(site: Site, get: Get, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("mine")
    (tmp_path / "input-0.png").symlink_to(target)
    get(site.put("/cat", PNG))
    assert target.read_text() == "mine"
    assert not (tmp_path / "input-0.png").is_symlink()


# --- over TLS ---------------------------------------------------------------------------------------------------------


class _Secured(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        moved = self.path.startswith("/down")
        self.send_response(302 if moved else 200)
        self.send_header("Location", "http://example.org/cat?secret=2")
        self.send_header("Content-Length", str(0 if moved else len(PNG)))
        self.end_headers()
        self.wfile.write(b"" if moved else PNG)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class _Server(HTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients may leave."""


@pytest.fixture
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """How to dial a public `https://localhost` here, trusting its authority; `names` is what it was asked as."""
    made = certificate()
    folder = tmp_path_factory.mktemp("tls")
    (folder / "own.pem").write_bytes(made.certificate + made.key)
    (folder / "ca.pem").write_bytes(made.authority)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "own.pem")
    asked: list[str | None] = []
    context.sni_callback = lambda connection, name, context: asked.append(name)
    server = _Server(("127.0.0.1", 0), _Secured)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    dialing = Dialing(names("93.184.215.14"), connect=lambda sock, _: sock.connect(server.server_address))
    yield {"dialing": dialing, "names": asked, "ca_bundle": str(folder / "ca.pem")}
    server.shutdown()
    thread.join()
    server.server_close()


def test_tls_is_spoken_with_the_name_at_the_checked_address(shown: dict[str, Any], tmp_path: Path) -> None:
    config = msgspec.structs.replace(CONFIG, ca_bundle=shown["ca_bundle"])
    wanted, path = InputAsset("https://localhost/cat"), str(tmp_path / "input-0")
    file = fetch_input(wanted, path, Limits(), config, Cancel(), patience=HASTY, dialing=shown["dialing"])
    assert file.size_bytes == len(PNG)
    assert shown["names"] == ["localhost"]


def test_a_server_that_nobody_vouches_for_is_the_callers_fault(shown: dict[str, Any], get: Get, tmp_path: Path) -> None:
    with refused(tmp_path, "the certificate of `localhost` is not trusted"):
        get("https://localhost/cat?secret=1", Limits(), how={"dialing": shown["dialing"]})


def test_a_redirect_from_https_to_http_is_refused(shown: dict[str, Any], tmp_path: Path) -> None:
    config = msgspec.structs.replace(CONFIG, ca_bundle=shown["ca_bundle"])
    wanted, path = InputAsset("https://localhost/down?secret=1"), str(tmp_path / "input-0")
    with refused(tmp_path, "which is not encrypted"):
        fetch_input(wanted, path, Limits(), config, Cancel(), patience=HASTY, dialing=shown["dialing"])
