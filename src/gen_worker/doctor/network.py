"""Whether those can be reached whom a worker talks to: nothing is sent but what a connection needs."""

import re
import socket
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from gen_worker.doctor.finding import Finding, ok, problem, skipped, warning

CONNECT_S = 3.0
ANSWER_S = 8.0
CLOCKS_APART_S = 60.0
_PORTS = {"https": 443, "grpcs": 443, "http": 80}


def orchestrator(addresses: Sequence[str], limit_s: float = CONNECT_S) -> Finding:
    """Whether some orchestrator of those set takes a connection."""
    if not addresses:
        return skipped("orchestrator", "none is set")
    refused = []
    for address in addresses:
        host, port = host_and_port(address)
        shown = _shown(address)
        if port is None:
            refused.append(f"`{shown}` has no port" if shown == address else f"`{shown}` is not written as `host:port`")
            continue
        try:
            socket.create_connection((host, port), limit_s).close()
        except (OSError, UnicodeError) as error:
            told = getattr(error, "strerror", None) or str(error) or type(error).__name__
            refused.append(f"`{shown}`: {told.lower()}")
        else:
            return ok("orchestrator", f"`{shown}` takes connections")
    remedy = "check `ORCHESTRATOR_PUBLIC_ADDR` and the way there: names, firewalls, proxies"
    return problem("orchestrator", "; ".join(refused), remedy)


def _shown(address: str) -> str:
    """Return an address without what may be a secret: what stands before the host, and after it."""
    if not re.search(r"[@?#]", address):
        return address
    try:
        found = urlsplit(address if "://" in address else f"//{address}")
        host = found.hostname or ""
    except ValueError:
        return "…"
    return f"{found.scheme}://{host}…" if found.scheme else f"{host}…"


def host_and_port(address: str) -> tuple[str, int | None]:
    """Return where an address leads; the port is None where it has none. Pure."""
    scheme, _, rest = address.rpartition("://")
    found = re.fullmatch(r"(?:\[([^\]]*)\]|([^:/]*))(?::(\d{1,5}))?/?", rest)
    if found is None:
        return rest, None
    port = int(found[3]) if found[3] else _PORTS.get(scheme.lower())
    return found[1] or found[2], port if port is not None and 0 < port < 1 << 16 else None


def hub(name: str, url: str, ca_bundle: str, now: float, limit_s: float = ANSWER_S) -> list[Finding]:
    """Whether a server of models answers, and what its clock says of this one; no token goes there."""
    import http.client
    import ssl
    import urllib.error
    import urllib.request

    shown = f"`{urlsplit(url).scheme}://{urlsplit(url).hostname}`"
    try:
        context = ssl.create_default_context()
        if ca_bundle:
            context.load_verify_locations(cafile=ca_bundle)
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=limit_s, context=context) as answer:
            date = answer.headers.get("Date", "")
    except urllib.error.HTTPError as refusal:  # it answers
        date = refusal.headers.get("Date", "")
        refusal.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        cause = getattr(error, "reason", error)
        told = (cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)).lower()
        remedy = "check the network; behind a proxy set `HTTPS_PROXY`, for a private authority `GEN_WORKER_CA_BUNDLE`"
        return [problem(name, f"{shown}: {told}", remedy)]
    return [ok(name, f"{shown} answers"), *clocks(date, now)]


def clocks(date: str, now: float) -> list[Finding]:
    """Compare this clock with what a server says in `Date`; nothing where that cannot be read. Pure."""
    from email.utils import parsedate_to_datetime

    try:
        apart_s = now - parsedate_to_datetime(date).timestamp()
    except ValueError:
        return []
    if abs(apart_s) <= CLOCKS_APART_S:
        return []
    way = "ahead of" if apart_s > 0 else "behind"
    told = f"this clock is {abs(apart_s):.0f} s {way} the server's"
    return [warning("clock-offset", told, "set it, as with `chronyc makestep`: tokens are good for a time only")]


def authorities(path: str) -> Finding:
    """Whether the file of further authorities is there and has some."""
    if not path:
        return skipped("authorities", "those of the system")
    import ssl

    try:
        ssl.create_default_context(cafile=path)
    except OSError as error:
        told = f"`{path}`: {(error.strerror or str(error)).lower()}"
        return problem("authorities", told, "`GEN_WORKER_CA_BUNDLE` takes a PEM file")
    return ok("authorities", f"`{Path(path)}`, beside those of the system")
