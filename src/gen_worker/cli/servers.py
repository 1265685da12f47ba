"""A server as its clients know it: where it listens, and what the file beside its socket says of its functions."""

import ipaddress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from gen_worker.cli.failure import Failure, nearest
from gen_worker.cli.ndjson import address_of, open_connection
from gen_worker.cli.schema import Place, Schema
from gen_worker.discovery.names import slugify_name
from gen_worker.rundir import DEFAULT_SOCKET
from gen_worker.settings import Settings
from gen_worker.wire.address import Address, AddressError, TcpAddress, UnixAddress, parse_address


class Server(NamedTuple):
    """A server that a command talks to."""

    address: Address
    functions: list[dict[str, Any]] | None
    """What it serves, as its sidecar has it; None when there is no sidecar to read."""

    token: str | None
    line_limit: int
    log: str = "the log of `gen-worker serve`"

    @property
    def is_remote(self) -> bool:
        """Whether it may run on another machine, so that it cannot read this one's files."""
        return isinstance(self.address, TcpAddress)

    def function(self, name: str) -> dict[str, Any]:
        """Return what is known of a function; raise `Failure` when the server is known not to have it."""
        return described(name, self.functions)


def find_server(text: str, settings: Settings) -> Server:
    """Return the server at an address; raise `Failure` when none listens there."""
    address = address_of(text)
    open_connection(address).close()  # without a server nothing else matters
    document = sidecar(address)
    limit = document.get("max_line_bytes")
    return Server(
        address,
        functions_in(document) if document else None,
        str(settings.token) if settings.token and isinstance(address, TcpAddress) else None,
        limit if isinstance(limit, int) else settings.max_line_bytes,
    )


def sidecar(address: Address) -> dict[str, Any]:
    """Return what a server keeps beside its socket while it is ready; empty when that cannot be read here."""
    try:
        document = msgspec.json.decode(Path(address.sidecar).read_bytes())
    except (OSError, ValueError, msgspec.DecodeError):
        return {}
    if not isinstance(document, dict) or (isinstance(address, TcpAddress) and not _is_of(document, address)):
        return {}
    return document


def _is_of(document: dict[str, Any], address: TcpAddress) -> bool:
    """Whether a TCP server's sidecar, which lies in the folder where it was started, is that of this address."""
    try:
        listen = parse_address(str(document.get("listen", "")))
    except AddressError:
        return False
    if not isinstance(listen, TcpAddress) or listen.port != address.port:
        return False
    return listen.host == address.host or (_is_here(listen.host) and _is_here(address.host))


def _is_here(host: str) -> bool:
    """Whether a host's name or number is one of those of this machine that everybody knows, or stands for all."""
    try:
        number = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return number.is_loopback or number.is_unspecified


def functions_in(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the functions of a description document or of a server's sidecar."""
    functions = document.get("functions")
    return [each for each in functions if isinstance(each, dict)] if isinstance(functions, list) else []


def described(name: str, functions: list[dict[str, Any]] | None) -> dict[str, Any]:
    """Return what is said of a function, in either spelling; raise `Failure` when it is not among those known."""
    if functions is None:
        return {}
    by_name = {str(each.get("name")): each for each in functions}
    slug = slugify_name(name)
    if slug not in by_name:
        near = nearest(slug, by_name)
        listed = ", ".join(f"`{each}`" for each in by_name) or "none"
        raise Failure(f"no function `{name}`", (f"did you mean `{near}`? " if near else "") + f"available: {listed}")
    return by_name[slug]


def schema_in(function: dict[str, Any], which: str = "input_schema") -> Schema | None:
    """Return a schema of a function, None when it is not known."""
    schema = function.get(which)
    return schema if isinstance(schema, dict) else None


def field_names(function: dict[str, Any]) -> dict[str, Place]:
    """Return the fields of a function's payload, and the place of each."""
    schema = schema_in(function) or {}
    return {name: Place(schema, part) for name, part in Place(schema, schema).fields().items()}


def served_here() -> list[dict[str, Any]]:
    """Return the functions of the server at the default socket, as far as its sidecar says; asks nobody."""
    return functions_in(sidecar(UnixAddress(DEFAULT_SOCKET)))
