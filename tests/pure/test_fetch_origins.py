"""Where requests go, and who is asked on the way."""

import msgspec
import pytest

from gen_worker.fetch.config import FetchConfig
from gen_worker.fetch.network.origins import Origin, Proxy, Url, bypasses, proxy_for, without_queries
from gen_worker.fetch.network.patience import FOR_FILES, HttpError, Patience, Tries, delay, passes, retry_after
from gen_worker.models.errors import ModelError

# --- urls -------------------------------------------------------------------------------------------------------------


def test_a_url_shows_no_query() -> None:
    url = Url("https://cdn.example.com/a%20b?X-Signature=secret#fragment")
    assert str(url) == "https://cdn.example.com/a%20b?X-Signature=secret"
    assert url.shown == "https://cdn.example.com/a%20b"
    assert "secret" not in repr(url)
    assert url.origin == Origin("https", "cdn.example.com", 443)


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("http://h", "http://h/"),
        ("http://h:80/a", "http://h/a"),
        ("http://H:8080/a b", "http://h:8080/a%20b"),
        ("https://[::1]:9/ä", "https://[::1]:9/%C3%A4"),
        ("http://h/a?q=%20+1", "http://h/a?q=%20+1"),
        ('http://h/a\r\nX: y?q="<\\>"', "http://h/a%0D%0AX:%20y?q=%22%3C%5C%3E%22"),
    ],
)
def test_a_url_is_sent_as_it_has_to_be(text: str, sent: str) -> None:
    assert str(Url(text)) == sent


@pytest.mark.parametrize(
    "text",
    [
        "",
        "h/a",
        "ftp://h/a",
        "file:///a",
        "http://",
        "http://u:p@h/",
        "http://h:x/",
        "http://h:99999/",
        "//h/a",
        "http://h\\@x/",
    ],
)
def test_what_is_no_url_of_http_is_refused(text: str) -> None:
    with pytest.raises(ModelError) as caught:
        Url(text)
    assert caught.value.kind == "bad_manifest"


def test_a_refused_url_is_told_without_its_query() -> None:
    with pytest.raises(ModelError) as caught:
        Url("http://h:x/a?token=secret")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/c", "https://h/c"),
        ("c?d=1", "https://h/a/c?d=1"),
        ("https://other/c", "https://other/c"),
        ("//other/c", "https://other/c"),
    ],
)
def test_redirects_are_read_from_where_they_come(location: str, expected: str) -> None:
    assert str(Url("https://h/a/b?x=1").redirected(location)) == expected


def test_a_redirect_away_from_tls_is_refused() -> None:
    with pytest.raises(ModelError, match="not encrypted"):
        Url("https://h/a").redirected("http://h/a")


@pytest.mark.parametrize("location", ["http://[", "//[x?token=secret", "https://a]b/", "http://bob:secret@[/"])
def test_a_redirect_to_what_is_no_url_is_refused_by_who_sent_it_alone(location: str) -> None:
    with pytest.raises(ModelError, match="`https://h/a` redirects to what is no URL") as caught:
        Url("https://h/a?b").redirected(location)
    assert "secret" not in str(caught.value)


def test_texts_lose_the_passwords_in_their_urls() -> None:
    assert (
        without_queries("`http://bob:canary@h:1/a?b` or `https://canary@h/c@d`") == "`http://h:1/a` or `https://h/c@d`"
    )
    with pytest.raises(ModelError, match="`http://h/a`"):
        Url("http://bob:canary@h/a")


def test_texts_lose_the_queries_of_their_urls() -> None:
    text = "see https://h/a?token=secret and http://h:1/b?c, or not?"
    assert without_queries(text) == "see https://h/a and http://h:1/b or not?"


# --- proxies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("no_proxy", "expected"),
    [
        ("", False),
        ("*", True),
        ("hub.example.com", True),
        ("example.com", True),
        (".example.com", True),
        ("*.example.com", True),
        (" x , EXAMPLE.com ", True),
        ("ample.com", False),
        ("a.hub.example.com", False),
        ("example.com:443", True),
        ("example.com:8443", False),
        ("10.0.0.0/8", False),
    ],
)
def test_names_are_excepted_from_the_proxy(no_proxy: str, expected: bool) -> None:
    assert bypasses(Origin("https", "hub.example.com", 443), no_proxy) is expected


@pytest.mark.parametrize(
    ("no_proxy", "expected"),
    [
        ("10.1.2.3", True),
        ("10.0.0.0/8", True),
        ("10.1.2.3:80", True),
        ("10.1.2.3:81", False),
        ("10.1.2", False),
        ("2.3", False),
        ("*", True),
    ],
)
def test_addresses_are_excepted_from_the_proxy(no_proxy: str, expected: bool) -> None:
    assert bypasses(Origin("http", "10.1.2.3", 80), no_proxy) is expected


@pytest.mark.parametrize(("no_proxy", "expected"), [("::1", True), ("[::1]", True), ("[::1]:80", True), ("::2", False)])
def test_addresses_with_colons_are_excepted_from_the_proxy(no_proxy: str, expected: bool) -> None:
    assert bypasses(Origin("http", "::1", 80), no_proxy) is expected


def test_each_scheme_has_its_proxy() -> None:
    proxies = {"http": "proxy:3128", "https": "http://us%40er:pass@proxy2"}
    assert proxy_for(Origin("http", "h", 80), proxies) == Proxy("proxy", 3128, "")
    assert proxy_for(Origin("https", "h", 443), proxies) == Proxy("proxy2", 80, "us@er:pass")
    assert proxy_for(Origin("https", "h", 443), {"http": "proxy"}) is None
    assert "pass" not in repr(proxy_for(Origin("https", "h", 443), proxies))


# --- patience ---------------------------------------------------------------------------------------------------------


def test_waits_double_up_to_a_bound_and_any_part_of_them_is_taken() -> None:
    patience = Patience(chance=lambda: 1.0)
    assert [delay(patience, failures) for failures in (1, 2, 3, 7, 8, 1000)] == [0.5, 1.0, 2.0, 30.0, 30.0, 30.0]
    assert delay(Patience(chance=lambda: 0.0), 5) == 0.0


@pytest.mark.promise(25, 26)
def test_who_is_told_nothing_else_is_as_patient_as_is_promised() -> None:
    patience = Patience()
    assert (patience.tries, patience.seconds, patience.longest_retry_after_s) == (30, 3600.0, 60.0)
    assert (patience.quiet_s, patience.slow_bytes_per_s, patience.slow_s) == (30.0, 64 << 10, 60.0)
    assert msgspec.structs.replace(patience, clock=FOR_FILES.clock, chance=FOR_FILES.chance) == FOR_FILES
    assert FetchConfig(root="", hf_cache="").stall_timeout_s == 180.0


def test_failures_in_a_row_are_counted_until_something_is_gained() -> None:
    tries = Tries(Patience(tries=3))
    error = ConnectionError("cut")
    for _ in range(5):
        tries.failed(error)
        tries.failed(error)
        tries.gained()
    tries.failed(error)
    tries.failed(error)
    with pytest.raises(ConnectionError):
        tries.failed(error)


def test_nothing_is_tried_again_after_its_time() -> None:
    now = [0.0]
    tries = Tries(Patience(seconds=100.0, clock=lambda: now[0]))
    tries.failed(ConnectionError())
    now[0] = 100.0
    with pytest.raises(ConnectionError):
        tries.failed(ConnectionError())


@pytest.mark.parametrize(
    ("status", "expected"),
    [(408, True), (429, True), (500, True), (503, True), (400, False), (403, False), (404, False)],
)
def test_some_statuses_may_pass(status: int, expected: bool) -> None:
    assert passes(HttpError(status, {}, "")) is expected


def test_a_server_says_how_long_it_wants_to_be_left_alone() -> None:
    patience = Patience(chance=lambda: 0.0)
    assert Tries(patience).failed(HttpError(503, {"retry-after": "7"}, "")) == 7.0
    assert Tries(patience).failed(HttpError(503, {"retry-after": "3600"}, "")) == 60.0
    assert retry_after(HttpError(503, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, "")) == 0.0
    assert retry_after(HttpError(503, {"retry-after": "Wed, 21 Oct 2115 07:28:00 GMT"}, "")) > 1e9
    for nonsense in ("", "soon", "-5", "nan nan"):
        assert retry_after(HttpError(503, {"retry-after": nonsense}, "")) == 0.0
    assert retry_after(ConnectionError()) == 0.0
