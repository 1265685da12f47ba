"""Requests to origins: follows redirects itself, shows credentials to nobody else, tries again what may pass."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from http.client import HTTPException, HTTPResponse
from ssl import SSLCertVerificationError
from types import TracebackType
from typing import Protocol

import msgspec

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.config import FetchConfig
from gen_worker.fetch.network.connections import DIALING, Connection, Connections, Dialing
from gen_worker.fetch.network.origins import Origin, Url, without_queries
from gen_worker.fetch.network.patience import FOR_QUESTIONS, HttpError, Patience, RedirectedError, Tries
from gen_worker.models.errors import ModelError

__all__ = ["FAILURES", "Body", "CutError", "HttpError", "Response", "Transport", "translated"]

REDIRECTS = 5
JSON_BYTES = 64 << 20  # a listing of a thousand files has about 300 KiB
FAILURES = (OSError, HTTPException, HttpError)
"""What a single request can raise that another may not; `translated` makes of them what people read."""

_REDIRECTED = (301, 302, 303, 307, 308)
_HARMLESS = frozenset(("accept", "accept-encoding", "if-range", "origin", "range", "user-agent"))
_DRAIN_BYTES = 64 << 10  # reading so much of an error is cheaper than a new connection


class CutError(ConnectionError):
    """The connection ended in the middle of an answer."""


class Body(Protocol):
    """What a request sends."""

    @property
    def length(self) -> int:
        """How many bytes it has."""

    def pieces(self) -> Iterator[bytes | memoryview]:
        """Yield them, from the first on; each piece is good until the next."""


class Response:
    """An answer of 2xx, or another that was asked to be seen. Belongs to one thread, which closes it.

    Its connection goes back to `connections` in the end; where there are none it is closed.
    """

    def __init__(
        self, url: Url, answer: HTTPResponse, connection: Connection, connections: Connections | None, cancel: Cancel
    ) -> None:
        self.url = url
        """Where it came from in the end, after redirects; its `shown` is for people."""
        self.status = answer.status
        self.headers = {name.lower(): value for name, value in answer.headers.items()}
        self._answer = answer
        self._connection = connection
        self._connections = connections
        self._cancel = cancel
        self._left = None if answer.chunked else answer.length
        self._buffered = True  # what came together with the head
        self._ended = self._left == 0
        self._watch = ExitStack()

    @property
    def url_shown(self) -> str:
        """Where it came from, without the query."""
        return self.url.shown

    def watch(self) -> None:
        """Have every wait for the body end when the request is canceled."""
        self._watch.enter_context(self._cancel.watching(self._connection.handle))

    def read_into(self, buffer: bytearray | memoryview) -> int:
        """Read some bytes of the body, at least one unless it has ended; raise `OSError` where it is cut short."""
        if self._ended:
            return 0
        count = self._read(memoryview(buffer)[: self._left])
        if count == 0:
            self._cancel.raise_if_set()
            if self._left:
                raise CutError(f"the connection ended {self._left} bytes too soon")
            self._ended = True
        if self._left is not None:
            self._left -= count
            self._ended = self._left == 0
        return count

    def _read(self, view: memoryview) -> int:
        if self._answer.chunked:
            piece = self._answer.read1(len(view))
            view[: len(piece)] = piece
            return len(piece)
        if not self._buffered:
            return self._connection.fill(view)
        count: int = self._answer.fp.readinto1(view)
        self._buffered = count == len(view)  # otherwise its buffer is empty now
        return count

    def read(self, limit: int = JSON_BYTES) -> bytes:
        """Return the whole body; raise `ModelError` if it is longer than the limit."""
        buffer = memoryview(bytearray(min(limit + 1, 64 << 10)))
        body = bytearray()
        while count := self.read_into(buffer):
            body += buffer[:count]
            if len(body) > limit:
                raise ModelError("download_failed", f"`{self.url_shown}` answers more than {limit} bytes")
        return bytes(body)

    def drain(self) -> None:
        """Read what little is left, so that the connection can be used again."""
        if self._answer.chunked or (self._left is not None and self._left <= _DRAIN_BYTES):
            with suppress(*FAILURES, ModelError):
                self.read(_DRAIN_BYTES)

    def close(self) -> None:
        """End it; an answer that was read to its end leaves its connection for the next request."""
        self._watch.close()
        kept = self._ended and not self._answer.will_close
        self._answer.close()
        if kept and self._connections is not None and not self._cancel.is_set():
            self._connections.give(self.url.origin, self._connection)
        elif self._ended:
            self._connection.close()
        else:
            self._connection.abandon()

    def __enter__(self) -> "Response":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Transport:
    """Asks origins. For any number of threads; `close` closes the connections that are kept."""

    def __init__(self, config: FetchConfig, patience: Patience = FOR_QUESTIONS, dialing: Dialing = DIALING) -> None:
        if 0 < config.stall_timeout_s < patience.quiet_s:  # else nobody would look at the clock in time
            patience = msgspec.structs.replace(patience, quiet_s=config.stall_timeout_s)
        self._patience = patience
        self._connections = Connections(config, patience, dialing)

    def close(self) -> None:
        """Close the connections that are kept."""
        self._connections.close()

    def __enter__(self) -> "Transport":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(
        self,
        url: str,
        *,
        headers: Mapping[str, str] = {},
        token: str = "",
        token_for: str = "",
        cancel: Cancel,
        method: str = "GET",
    ) -> Response:
        """Return the answer to a request, after as many tries as it takes within the patience there is.

        The token goes to the origin of `token_for` (a URL; that of `url` when empty) and to no other. Raises
        `HttpError` for 400 and above, and `ModelError`.
        """

        def ask() -> Response:
            return self.once(url, headers=headers, token=token, token_for=token_for, cancel=cancel, method=method)

        return self._patiently(ask, url, cancel)

    def once(
        self,
        url: str,
        *,
        headers: Mapping[str, str] = {},
        token: str = "",
        token_for: str = "",
        cancel: Cancel,
        method: str = "GET",
        accepted: tuple[int, ...] = (),
    ) -> Response:
        """As `open`, with one try: raises one of `FAILURES`, too. Statuses in `accepted` are no `HttpError`."""
        asked = at = Url(url)
        trusted = Url(token_for).origin if token_for else at.origin
        for _ in range(REDIRECTS + 1):
            sent = dict(headers) if at.origin == asked.origin else harmless(headers)
            if token and at.origin == trusted:
                sent["Authorization"] = f"Bearer {token}"
            try:
                response = self._exchange(method, at, sent, cancel)
            except (OSError, HTTPException) as error:
                if at.origin == asked.origin:
                    raise
                raise RedirectedError(error) from error
            location = response.headers.get("location", "")
            if response.status in _REDIRECTED and location:
                with response:
                    at = at.redirected(location)
                    response.drain()
                continue
            if 200 <= response.status < 300 or response.status in accepted:
                return response
            with response:
                response.drain()
                raise http_error(response, asked.origin)
        raise ModelError("download_failed", f"`{asked.shown}` redirects more than {REDIRECTS} times")

    def send(
        self, method: str, url: str, *, headers: Mapping[str, str], body: Body | None = None, cancel: Cancel
    ) -> Response:
        """Return the answer to one request with a body, whatever its status is.

        It goes over a connection of its own, and to nobody else: a redirect is an answer. Raises one of `FAILURES`, and
        `ModelError`.
        """
        to = Url(url)
        cancel.raise_if_set()
        connection = self._connections.make(to.origin, cancel)
        fields = {**headers, "Content-Length": str(body.length if body is not None else 0), "Connection": "close"}
        try:
            with cancel.watching(connection.handle):
                connection.send(head_of(method, to, fields, connection))
                answer = _answer_to(connection, method, body)
            response = Response(to, answer, connection, None, cancel)
        except BaseException:
            connection.abandon()
            raise
        try:
            response.watch()
        except BaseException:
            response.close()
            raise
        return response

    def _patiently(self, ask: Callable[[], Response], url: str, cancel: Cancel) -> Response:
        tries = Tries(self._patience)
        while True:
            try:
                return ask()
            except FAILURES as error:
                cancel.raise_if_set()
                failure = error
            try:
                cancel.wait(tries.failed(failure))
            except (OSError, HTTPException) as error:
                raise translated(error, Url(url)) from error

    def _exchange(self, method: str, url: Url, headers: Mapping[str, str], cancel: Cancel) -> Response:
        cancel.raise_if_set()
        connection = self._connections.take(url.origin)
        if connection is not None:
            try:
                return self._ask(connection, method, url, headers, cancel)
            except (ConnectionError, HTTPException):  # it was closed just now: that says nothing of the origin
                cancel.raise_if_set()
        return self._ask(self._connections.make(url.origin, cancel), method, url, headers, cancel)

    def _ask(
        self, connection: Connection, method: str, url: Url, headers: Mapping[str, str], cancel: Cancel
    ) -> Response:
        try:
            with cancel.watching(connection.handle):
                connection.send(head_of(method, url, headers, connection))
                answer = connection.answer(method)
            response = Response(url, answer, connection, self._connections, cancel)
        except BaseException:
            connection.abandon()
            raise
        try:
            response.watch()
        except BaseException:
            response.close()
            raise
        return response


def _answer_to(connection: Connection, method: str, body: Body | None) -> HTTPResponse:
    """Send a body and return the answer, which may come before everything is sent: then nobody takes the rest."""
    try:
        for piece in body.pieces() if body is not None else ():
            connection.write(piece)
    except ConnectionError as error:
        try:
            answer = connection.answer(method)
        except (OSError, HTTPException):
            raise error from None
        if answer.status < 400:
            raise
        return answer
    return connection.answer(method)


def harmless(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers that a stranger may see."""
    return {name: value for name, value in headers.items() if name.lower() in _HARMLESS}


def head_of(method: str, url: Url, headers: Mapping[str, str], connection: Connection) -> bytes:
    """Return the head of a request as it goes over a connection."""
    fields = {"Host": str(url.origin), "User-Agent": "gen-worker", "Accept-Encoding": "identity", **headers}
    if connection.absolute and connection.credentials:
        fields["Proxy-Authorization"] = connection.credentials
    lines = [f"{method} {url if connection.absolute else url.target} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in fields.items()]
    if any("\r" in line or "\n" in line for line in lines):
        raise ModelError("download_failed", f"a header for `{url.shown}` has more than one line")
    try:
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    except UnicodeEncodeError:
        text = f"a header for `{url.shown}` has characters that none may have"
        raise ModelError("download_failed", text) from None


def http_error(response: Response, asked: Origin) -> HttpError:
    """Return what an answer of 400 or above, or a redirect to nowhere, is raised as."""
    reason = without_queries(response.headers.get("x-error-message", ""))[:200]
    text = f"`{response.url_shown}` answers {response.status}{f': {reason}' if reason else ''}"
    return HttpError(response.status, response.headers, text, redirected=response.url.origin != asked)


def translated(error: OSError | HTTPException, url: Url) -> ModelError:
    """Return what people read when an origin cannot be reached."""
    who = f"`{url.origin}`"
    if isinstance(error, RedirectedError):
        who, error = f"whoever {who} redirects to", error.reason
    if isinstance(error, SSLCertVerificationError):
        return ModelError(
            "unreachable",
            f"the certificate of {who} is not trusted: {error.verify_message}",
            "name the authority that signed it in `GEN_WORKER_CA_BUNDLE`",
        )
    reason = (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__
    return ModelError(
        "unreachable",
        f"{who} cannot be reached: {reason}",
        "check the network; behind a proxy set `HTTPS_PROXY`, without a network use `--offline`",
    )
