"""Where a server listens and a client connects: a Unix socket's path, or a host and a port.

Pure: reads and writes the text of addresses, resolves and opens nothing.
"""

import re
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import urlsplit

TCP_SIDECAR = ".gen-worker.serve.json"
_HOST_AND_PORT = re.compile(r"(?:([\w.-]+|\[[\w:]+\])?:)?(\d{1,5})")  # what hardly anybody means for a path


class AddressError(ValueError):
    """A text is no address; `hint` says how one is written."""

    def __init__(self, message: str, hint: str = "write `tcp://host:port`, `unix:///path` or a path") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """The path of a Unix socket."""

    path: str

    def __str__(self) -> str:
        return self.path

    @property
    def sidecar(self) -> str:
        """The file that a server keeps while it is ready."""
        return f"{self.path}.json"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host, by its name or number, and a port; port 0 stands for any that is free."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp://[{self.host}]:{self.port}" if ":" in self.host else f"tcp://{self.host}:{self.port}"

    @property
    def sidecar(self) -> str:
        """The file that a server keeps while it is ready, in the folder where it was started."""
        return TCP_SIDECAR


Address: TypeAlias = UnixAddress | TcpAddress


def parse_address(text: str) -> Address:
    """Read `tcp://host:port`, `unix:///path` or a path; raise `AddressError` for anything else."""
    scheme, found, _ = text.partition("://")
    if not text.strip() or "\0" in text or (found and not text.isprintable()):
        raise AddressError(f"`{ascii(text)[1:-1]}` is not an address")
    if not found:
        return _path(text)
    if scheme == "unix":
        return _unix(text)
    if scheme == "tcp":
        return _tcp(text)
    raise AddressError(f"`{text}` is not an address: nothing listens on `{scheme}`")


def parse_port(text: str) -> TcpAddress:
    """Read `PORT` or `HOST:PORT`; without a host it is 127.0.0.1. Raises `AddressError` for anything else."""
    found = _HOST_AND_PORT.fullmatch(text)
    if found is None or int(found[2]) > 65535 or text.startswith(":") or not text.isascii():
        raise AddressError(f"`{ascii(text)[1:-1]}` is no port", "write `8082`, or `0.0.0.0:8082` for every interface")
    return TcpAddress((found[1] or "127.0.0.1").strip("[]"), int(found[2]))


def _path(text: str) -> UnixAddress:
    found = _HOST_AND_PORT.fullmatch(text)
    if found is None:
        return UnixAddress(text)
    hint = f"over TCP it is `tcp://{found[1] or '127.0.0.1'}:{found[2]}`; a file of that name is `./{text}`"
    raise AddressError(f"`{text}` is not an address: it is neither a path nor does it say `tcp://`", hint)


def _unix(text: str) -> UnixAddress:
    path = text.removeprefix("unix://")
    if not path.startswith("/") or path.endswith("/"):
        raise AddressError(f"`{text}` is not an address: after `unix://` comes an absolute path")
    return UnixAddress(path)


def _tcp(text: str) -> TcpAddress:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise AddressError(f"`{text}` is not an address: {str(error).lower()}") from None
    if not host:
        raise AddressError(f"`{text}` is not an address: it names no host")
    if port is None:
        raise AddressError(f"`{text}` is not an address: it names no port")
    if parts.path or parts.query or parts.fragment or "@" in parts.netloc:
        raise AddressError(f"`{text}` is not an address: nothing but a host and a port belongs there")
    return TcpAddress(host, port)
