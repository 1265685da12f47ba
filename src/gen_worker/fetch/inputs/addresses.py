"""Which addresses may be reached because a stranger named them: public ones, whatever they are wrapped in. Pure."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TypeAlias

_Ip: TypeAlias = IPv4Address | IPv6Address

_V4 = [
    (IPv4Network(network), kind)
    for kind, networks in {
        "unspecified": "0.0.0.0/8",
        "private": "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16",
        "shared by a carrier": "100.64.0.0/10",
        "loopback": "127.0.0.0/8",
        "link-local": "169.254.0.0/16",
        "multicast": "224.0.0.0/4",
        "reserved": "192.0.0.0/24 192.0.2.0/24 192.88.99.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 240.0.0.0/4",
    }.items()
    for network in networks.split()
]
_V6 = [
    (IPv6Network(network), kind)
    for kind, networks in {
        "unspecified": "::/128",
        "loopback": "::1/128",
        "private": "fc00::/7 fec0::/10",
        "link-local": "fe80::/10",
        "multicast": "ff00::/8",
        "reserved": "100::/64 2001::/23 2001:db8::/32 3fff::/20 5f00::/16 64:ff9b:1::/48",
    }.items()
    for network in networks.split()
]
_UNICAST = IPv6Network("2000::/3")  # all that is given out of IPv6
_NAT64 = IPv6Network("64:ff9b::/96")
_COMPATIBLE = IPv6Network("::/96")


def unreachable_as(address: str) -> str | None:
    """Return what kind of address this is when nothing there may be reached; None for a public one."""
    ip: _Ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv4Address):
        return _kind(ip)
    within = _wrapped_in(ip)
    if within:
        return next((kind for each in within if (kind := _kind(each))), None)
    return _kind(ip) or (None if ip in _UNICAST else "reserved")


def _kind(ip: _Ip) -> str | None:
    table = _V4 if isinstance(ip, IPv4Address) else _V6
    return next((kind for network, kind in table if ip in network), None)


def _wrapped_in(ip: IPv6Address) -> list[IPv4Address]:
    """Return the addresses of IPv4 that a packet to this one ends at."""
    if ip.ipv4_mapped is not None:
        return [ip.ipv4_mapped]
    if ip.sixtofour is not None:
        return [ip.sixtofour]
    if ip.teredo is not None:
        return list(ip.teredo)
    if ip in _NAT64 or (ip in _COMPATIBLE and int(ip) > 1):
        return [IPv4Address(int(ip) & 0xFFFFFFFF)]
    return []
