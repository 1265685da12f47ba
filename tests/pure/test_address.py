"""How an address is written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen_worker.wire.address import AddressError, TcpAddress, UnixAddress, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("./gw.sock", UnixAddress("./gw.sock")),
        ("/tmp/gw.sock", UnixAddress("/tmp/gw.sock")),
        ("unix:///tmp/gw.sock", UnixAddress("/tmp/gw.sock")),
        ("tcp://127.0.0.1:0", TcpAddress("127.0.0.1", 0)),
        ("tcp://[::1]:80", TcpAddress("::1", 80)),
        ("tcp://GPU-host:8765", TcpAddress("gpu-host", 8765)),
    ],
)
def test_an_address_is_a_path_or_a_host_and_a_port(text: str, address: UnixAddress | TcpAddress) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not an address"),
        ("a\0b", "is not an address"),
        ("tcp://", "names no host"),
        ("tcp://:80", "names no host"),
        ("tcp://host", "names no port"),
        ("tcp://host:", "names no port"),
        ("tcp://host:x", "port could not be cast"),
        ("tcp://host:65536", "port out of range"),
        ("tcp://::1:80", "names no host|port could not|is not an address"),
        ("tcp://host:80/path", "nothing but a host and a port"),
        ("tcp://user@host:80", "nothing but a host and a port"),
        ("unix://relative", "an absolute path"),
        ("unix:///", "an absolute path"),
        ("http://host:80", "nothing listens on `http`"),
    ],
)
def test_anything_else_is_refused_with_what_is_wrong(text: str, reason: str) -> None:
    with pytest.raises(AddressError, match=reason) as caught:
        parse_address(text)
    assert caught.value.hint == "write `tcp://host:port`, `unix:///path` or a path"


@pytest.mark.parametrize(
    ("text", "tcp"),
    [
        ("127.0.0.1:8000", "tcp://127.0.0.1:8000"),
        ("localhost:8000", "tcp://localhost:8000"),
        ("[::1]:8000", "tcp://[::1]:8000"),
        (":8000", "tcp://127.0.0.1:8000"),
        ("8000", "tcp://127.0.0.1:8000"),
    ],
)
def test_a_host_and_a_port_alone_are_no_path(text: str, tcp: str) -> None:
    with pytest.raises(AddressError, match="neither a path nor does it say") as caught:
        parse_address(text)
    assert f"`{tcp}`" in caught.value.hint
    assert parse_address(tcp) != parse_address(f"./{text}")


@pytest.mark.parametrize("text", ["a:b", "gw8000", "gw-1.sock", "./127.0.0.1:8000", "/tmp/a:1", "worker-7"])
def test_a_path_may_hold_colons_and_digits(text: str) -> None:
    assert parse_address(text) == UnixAddress(text)


@given(st.text(max_size=40) | st.text(max_size=30).map("tcp://{}".format))
def test_any_text_is_an_address_or_an_error_of_ours(text: str) -> None:
    try:
        address = parse_address(text)
    except AddressError:
        return
    assert parse_address(str(address)) == address
