"""Where a request goes: URLs, who may see what on the way, and which proxy is asked. Pure."""

import ipaddress
import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote, unquote, urljoin, urlsplit

from gen_worker.models.errors import ModelError

_PORTS = {"http": 80, "https": 443}
_QUERY = re.compile(r"(https?://[^\s?\"'`]*)\?[^\s\"'`]*")
_USER = re.compile(r"(https?://)[^\s/?#\"'`]*@")


class Origin(NamedTuple):
    """What credentials belong to: nobody else gets to see them."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" if self.port != _PORTS.get(self.scheme) else host


class Url:
    """A URL that may be fetched. What is shown of it never has a query, for that may be a signature."""

    __slots__ = ("origin", "path", "target")

    def __init__(self, text: str) -> None:
        text = quote(text, safe="%/:=&?~#+!$,;'@()*[]|^{}")  # nothing is left that could end a line of a request
        try:
            split = urlsplit(text)
            host, port = split.hostname, split.port
        except ValueError:
            host, port, split = None, None, urlsplit("")
        if split.scheme not in _PORTS or not host or split.username is not None:
            raise ModelError("bad_manifest", f"not a URL that can be fetched: `{without_queries(text)}`")
        self.origin = Origin(split.scheme, host, port or _PORTS[split.scheme])
        self.path = split.path or "/"
        self.target = f"{self.path}?{split.query}" if split.query else self.path

    @property
    def shown(self) -> str:
        """What people get to see of it."""
        return f"{self.origin.scheme}://{self.origin}{self.path}"

    def __str__(self) -> str:
        return f"{self.origin.scheme}://{self.origin}{self.target}"

    def __repr__(self) -> str:
        return f"<{self.shown}>"

    def redirected(self, location: str) -> "Url":
        """Return where a redirect leads; raise `ModelError` where it must not be followed."""
        try:
            url = Url(urljoin(str(self), location))
        except ValueError:
            raise ModelError("download_failed", f"`{self.shown}` redirects to what is no URL") from None
        if self.origin.scheme == "https" and url.origin.scheme != "https":
            raise ModelError(
                "download_failed",
                f"`{self.shown}` redirects to `{url.shown}`, which is not encrypted",
                "an `https` address must not lead to an `http` one: check the endpoint that is set, and the network",
            )
        return url


def without_queries(text: str) -> str:
    """Return the text, its URLs without their queries, and without users and passwords."""
    return _QUERY.sub(r"\1", _USER.sub(r"\1", text))


class Proxy(NamedTuple):
    """A proxy, and what proves to it who asks."""

    host: str
    port: int
    credentials: str
    """`user:password`; never shown."""

    def __repr__(self) -> str:
        return f"<proxy {self.host}:{self.port}>"


def proxy_for(origin: Origin, proxies: Mapping[str, str]) -> Proxy | None:
    """Return the proxy that an origin is asked through; `proxies` has `http`, `https` and `no`, as the environment."""
    text = proxies.get(origin.scheme, "")
    if not text or bypasses(origin, proxies.get("no", "")):
        return None
    try:
        split = urlsplit(text if "://" in text else f"http://{text}")
        host, port = split.hostname, split.port
    except ValueError:
        host, port, split = None, None, urlsplit("")
    if split.scheme != "http" or not host:
        raise ModelError(
            "not_configured",
            f"the proxy for `{origin.scheme}` is none that can be used",
            f"set `{origin.scheme.upper()}_PROXY` to `http://[user:password@]host[:port]`",
        )
    user = f"{unquote(split.username or '')}:{unquote(split.password or '')}"
    return Proxy(host, port or 80, user if user != ":" else "")


def bypasses(origin: Origin, no_proxy: str) -> bool:
    """Whether `NO_PROXY` names an origin: by `*`, a name or the end of one, an address or a network, with or without
    a port.
    """
    return any(_names(entry.strip().lower(), origin) for entry in no_proxy.split(",") if entry.strip())


def _names(entry: str, origin: Origin) -> bool:
    if entry == "*":
        return True
    address = _address(origin.host)
    try:
        if address is not None:
            return address in ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:  # a name, or something with a port
        pass
    name, colon, port = entry.rpartition(":")
    if colon and port.isascii() and port.isdigit() and (":" not in name or name.endswith("]")):
        return int(port) == origin.port and _names(name, origin)
    name = entry.removeprefix("*").removeprefix(".")
    return origin.host == name or (address is None and origin.host.endswith(f".{name}"))


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
