"""A stranger's URL reaches public addresses only, however another one is written or wrapped."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen_worker.fetch.inputs.addresses import unreachable_as

REFUSED = {
    "0.0.0.0": "unspecified",
    "0.1.2.3": "unspecified",
    "10.0.0.1": "private",
    "100.64.0.1": "shared by a carrier",
    "100.127.255.254": "shared by a carrier",
    "127.0.0.1": "loopback",
    "127.255.255.254": "loopback",
    "169.254.169.254": "link-local",
    "172.16.0.1": "private",
    "172.31.255.255": "private",
    "192.0.0.8": "reserved",
    "192.0.2.1": "reserved",
    "192.168.1.1": "private",
    "198.18.0.1": "reserved",
    "198.51.100.7": "reserved",
    "203.0.113.7": "reserved",
    "224.0.0.1": "multicast",
    "239.255.255.250": "multicast",
    "240.0.0.1": "reserved",
    "255.255.255.255": "reserved",
    "::": "unspecified",
    "::1": "loopback",
    "::127.0.0.1": "loopback",
    "::ffff:127.0.0.1": "loopback",
    "::ffff:10.0.0.1": "private",
    "64:ff9b::7f00:1": "loopback",
    "64:ff9b::a9fe:a9fe": "link-local",
    "64:ff9b:1::1": "reserved",
    "2002:7f00:1::": "loopback",
    "2002:a00:1::1": "private",
    "2001:0:7f00:1::": "loopback",
    "2001:0:4136:e378:8000:63bf:f5ff:fffe": "private",
    "2001:db8::1": "reserved",
    "100::1": "reserved",
    "fc00::1": "private",
    "fd12:3456:789a::1": "private",
    "fe80::1": "link-local",
    "fe80::1%eth0": "link-local",
    "fec0::1": "private",
    "ff02::1": "multicast",
    "4000::1": "reserved",
}
PUBLIC = (
    "1.1.1.1",
    "93.184.215.14",
    "172.15.255.255",
    "172.32.0.1",
    "100.63.255.255",
    "100.128.0.1",
    "2606:4700:4700::1111",
    "2a00:1450:4001:81b::200e",
    "::ffff:93.184.215.14",
    "64:ff9b::5db8:d70e",
    "2002:5db8:d70e::1",
)


@pytest.mark.promise(38)
@pytest.mark.parametrize(("address", "kind"), REFUSED.items())
def test_an_address_that_is_not_public_is_refused_by_its_kind(address: str, kind: str) -> None:
    assert unreachable_as(address) == kind


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_reached_also_by_way_of_a_translator(address: str) -> None:
    assert unreachable_as(address) is None


@given(st.ip_addresses(v=4))
def test_what_wraps_an_address_changes_nothing_about_it(address: ipaddress.IPv4Address) -> None:
    kind = unreachable_as(str(address))
    number = int(address)
    wrapped = [(0xFFFF << 32) | number, (0x64FF9B << 96) | number, (0x2002 << 112) | (number << 80)]
    assert {unreachable_as(str(ipaddress.IPv6Address(each))) for each in wrapped} == {kind}


@pytest.mark.promise(38)
@given(st.ip_addresses())
def test_no_address_is_public_here_that_is_special_elsewhere(address: ipaddress.IPv4Address) -> None:
    if address.is_private or address.is_loopback or address.is_multicast or address.is_link_local:
        assert unreachable_as(str(address)) is not None
