"""Where an orchestrator is, from how a person or another orchestrator writes it. Pure."""

import re
from ipaddress import IPv6Address
from typing import Literal

import msgspec

from gen_worker.settings import SettingsError

_SCHEMES = {"grpcs": True, "https": True, "grpc": False, "http": False}
_PORTS = {"https": 443, "grpcs": 443, "http": 80}
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?")

Bare = Literal["tls", "plain", "by port"]
"""How an address without a scheme is spoken to; by port: over TLS where that is 443."""


class AddressError(SettingsError):
    """What stands for an orchestrator's address, or for its certificates, cannot be meant; `hint` says what could."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class Target(msgspec.Struct, frozen=True):
    """One place to dial."""

    host: str
    """A name or an address; an IPv6 one without its brackets."""

    port: int
    tls: bool

    @property
    def authority(self) -> str:
        """`host:port`, as gRPC and a URL take it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{'grpcs' if self.tls else 'grpc'}://{self.authority}"


def parse_target(text: str, *, bare: Bare = "by port") -> Target:
    """Return where to dial; raise `AddressError` for what is no address."""
    scheme, separator, rest = text.strip().rpartition("://")
    if separator and scheme.lower() not in _SCHEMES:
        raise _wrong(text, f"its scheme is none of {', '.join(f'`{each}://`' for each in _SCHEMES)}")
    host, port = _host_and_port(text, rest.removesuffix("/") if separator else rest, _PORTS.get(scheme.lower()))
    if separator:
        return Target(host, port, _SCHEMES[scheme.lower()])
    return Target(host, port, port == 443 if bare == "by port" else bare == "tls")


def redirected(details: str, *, tls: bool) -> Target | None:
    """Return where `not_leader:<address>` leads; None where that leads nowhere.

    `tls` is how the orchestrator that says so was spoken to: so is an address without a scheme.
    """
    _, marker, address = details.partition("not_leader:")
    words = address.split()
    if not marker or not words:
        return None
    try:
        return parse_target(words[0].rstrip(",;."), bare="tls" if tls else "plain")
    except AddressError:
        return None


def _host_and_port(text: str, rest: str, usual_port: int | None) -> tuple[str, int]:
    bracketed = re.fullmatch(r"\[([^\[\]]*)\](?::(.*))?", rest)
    if bracketed is not None:
        return _ipv6(text, bracketed[1]), _port(text, bracketed[2], usual_port)
    if rest.count(":") > 1:
        raise _wrong(text, "an IPv6 address stands in brackets, as in `[::1]:8080`")
    host, colon, port = rest.partition(":")
    if not _HOST.fullmatch(host):
        raise _wrong(text, "it is not a host and a port")
    return host, _port(text, port if colon else None, usual_port)


def _ipv6(text: str, host: str) -> str:
    try:
        IPv6Address(host)
    except ValueError:
        raise _wrong(text, "what stands in brackets is no IPv6 address") from None
    return host


def _port(text: str, port: str | None, usual: int | None) -> int:
    if port is None:
        if usual is None:
            raise _wrong(text, "it has no port")
        return usual
    if not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise _wrong(text, "its port is no number from 1 to 65535")
    return int(port)


def _wrong(text: str, why: str) -> AddressError:
    shown = "an address with a user in it" if "@" in text else f"`{text[:80]!s}`".encode("ascii", "replace").decode()
    hint = "write `host:port`, with `grpcs://` before it for TLS or `grpc://` for none"
    return AddressError(f"cannot dial the orchestrator at {shown}: {why}", hint)
