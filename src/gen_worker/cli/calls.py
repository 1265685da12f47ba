"""One request to a server, from its line to its end, as `invoke`, `run --attach` and `repl` make it."""

import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, NoReturn

import msgspec

from gen_worker.capability import InsufficientVRAMError
from gen_worker.cli.events import Events
from gen_worker.cli.failure import CANCELED, NO_MODEL, OK, USAGE, USER_CODE, Failure, say_error
from gen_worker.cli.interrupts import announce, interrupts
from gen_worker.cli.json_texts import NOT_JSON
from gen_worker.cli.ndjson import Line, Lines, NoAnswerInTime, WireError, no_answer, open_connection
from gen_worker.cli.project import show_stack, where_raised
from gen_worker.cli.servers import Server
from gen_worker.discovery.names import slugify_name
from gen_worker.wire.messages import ErrorDetail

NOTICE_AFTER_S = 15.0

Take = Callable[[str, bytes], None]
"""Is handed what a request gives: `yield` and an item, or `result` and the output, as JSON."""


class Call:
    """One request on its way; what it tells while it runs goes to `events`."""

    def __init__(self, server: Server, function: str, events: Events, take: Take, *, name: str) -> None:
        self.canceling = False
        """Whether a Ctrl-C came."""

        self.request_id = f"{name}-{os.urandom(4).hex()}"
        self._server = server
        self._function = slugify_name(function) or function  # a server knows a variant by no other spelling
        self._events = events
        self._take = take
        self._open = ExitStack()
        self._connection = self._open.enter_context(open_connection(server.address))
        self._lines = Lines(self._connection)
        self._stopped = False
        self._over = threading.Event()

    def run(
        self,
        payload: dict[str, Any],
        *,
        stream: bool,
        timeout_s: float = 0.0,
        tenant: str = "",
        priority: int = 0,
        traceparent: str = "",
    ) -> int:
        """Send the request and wait for its end, 0 seconds for ever; return the exit code.

        The first Ctrl-C cancels the request, a second one soon after raises `KeyboardInterrupt`. A request that has not
        ended when this returns or raises is canceled by the server: the connection is closed.
        """
        request: dict[str, Any] = {"request_id": self.request_id, "function": self._function, "payload": payload}
        request |= {"stream": stream, "events": True}
        if timeout_s:
            request["timeout_ms"] = math.ceil(timeout_s * 1000)
        if tenant:
            request["tenant"] = tenant
        if priority:
            request["priority"] = priority
        if traceparent:
            request["traceparent"] = traceparent
        with self._open, interrupts(self._cancel, self._stop):
            try:
                self._send(self._lines, request)
                return self._wait(timeout_s)
            except Failure:
                if self._stopped:
                    raise KeyboardInterrupt from None
                raise
            finally:
                self._over.set()
                self._events.hide()

    def _send(self, lines: Lines, message: dict[str, Any]) -> None:
        if self._server.token is not None:
            message["token"] = self._server.token
        line = msgspec.json.encode(message) + b"\n"
        if len(line) > self._server.line_limit + 1:
            raise Failure(
                f"the payload makes a line of {len(line) - 1} bytes, the server takes {self._server.line_limit}",
                "big values travel over the control socket: `gen_worker.client.Client().call(…)` in Python",
            )
        lines.send(line)

    def _cancel(self) -> None:
        """Ask the server, on a connection of its own, to end the request."""
        self.canceling = True
        announce("canceling; press Ctrl-C again to stop waiting", self._events.erasing)
        try:
            with open_connection(self._server.address) as connection:
                self._send(Lines(connection), {"cancel": {"request_id": self.request_id}})
                self._over.wait()  # the server may see a hang-up before what was sent
        except Failure as failure:
            if not self._over.is_set():
                say_error(f"cannot cancel: {failure}")

    def _stop(self) -> None:
        """Wait no longer."""
        self._stopped = True
        with suppress(OSError):  # the server has closed it already
            self._connection.shutdown(socket.SHUT_RDWR)

    def _wait(self, timeout_s: float) -> int:
        deadline = time.monotonic() + timeout_s if timeout_s else None
        notice_at = None if deadline else time.monotonic() + NOTICE_AFTER_S
        while True:
            try:
                line = self._lines.receive(deadline or notice_at)
            except NoAnswerInTime:
                if deadline:
                    raise Failure(f"no answer within {timeout_s:g} s; `{self.request_id}` is canceled") from None
                notice_at = None
                self._events.hide()
                sys.stderr.write(f"still waiting for `{self._function}`; `gen-worker ps` shows what it does\n")
                continue
            if line is None:
                self._lines.refuse_others()
                hint = f"it ended, or was ended: {self._server.log} may say why"
                raise Failure("the server closed the connection before its answer", hint, code=USER_CODE)
            if line.error is not None:
                _report(line.error, self._function, timed=timeout_s > 0, log=self._server.log)
            if self._is_last(line):
                return OK

    def _is_last(self, line: Line) -> bool:
        for event in line.events or ([line] if line.event else []):
            if event.event in ("yield", "result"):
                self._events.hide()
                self._take(event.event, bytes(event.value))
            else:
                self._show(event.event, bytes(event.value))
        return bool(line.ok)

    def _show(self, what: str, value: bytes) -> None:
        try:
            content = msgspec.json.decode(value)
        except NOT_JSON as error:
            raise no_answer(error) from None
        if isinstance(content, dict):
            self._events.show(self._function, self.request_id, what, content, time.time())


# --- how it ended badly -----------------------------------------------------------------------------------------------

_CODES = {"usage": USAGE, "not_found": USAGE, "invalid": USAGE, "model_resolution": NO_MODEL, "canceled": CANCELED}

_NO_TOKEN = ("a line without `token`", "a wrong `token`")  # what a server on TCP says before it hangs up

_FOR_A_WHILE = "tried again in"  # of what is unavailable: what ends by itself
_FOR_AN_OPERATOR = "drained by an operator"
_FOR_ITS_PAYLOADS = "payloads of it killed children"

_REMEDIES = {
    "missing_cuda_library": "install it where the server runs, then start the server again",
    "cuda_unavailable": "have it served where a GPU is; `--devices cpu` has a CPU stand for one",
    "insufficient_gpus": "have it served with such a group, as `--devices 0+1`; CPU slots stand for it: `cpu:2`",
    "compute_capability_unmet": "have it served where a newer GPU is",
    InsufficientVRAMError.reason: "have it served where a device has more memory, or with a larger `--vram-budget`",
}
"""What helps where the host of a server lacks what a function needs."""

_HINTS = {
    "usage": "`gen-worker run --list` shows what it takes",
    "child_died": "{log} has the rest of what the child said",
    "quarantined": "change the payload, or wait; `gen-worker quarantine clear {function}` lets it run again",
    "draining": "the server is stopping",
}


def _report(error: WireError, function: str, *, timed: bool, log: str) -> NoReturn:
    """Say why the request failed; `timed` is whether its deadline was this command's, `log` is the server's log."""
    detail = error.detail or ErrorDetail()
    raised = where_raised(detail.stack or []) if error.kind == "invalid" else ""
    if error.kind in ("invalid", "canceled"):  # told in full by their message
        detail = ErrorDetail()
    show_stack(detail.stack or detail.stderr or [])
    facts = (("cause", detail.cause), ("exit code", detail.exit_code), ("rung", detail.rung))
    told = ", ".join(
        f"{name} {value}" for name, value in facts if value is not None and not _says(error.message, name, value)
    )
    hint = _HINTS.get(error.kind, _hint_of_trying(error, function)).format(log=log, function=function)
    if error.kind == "child_died" and detail.postmortem is not None:
        hint = f"`gen-worker postmortem {detail.postmortem}` tells what is known of it"
    elif error.kind == "quarantined" and detail.postmortem is not None:
        hint += f"; `gen-worker postmortem {detail.postmortem}` tells what it did"
    if error.kind == "usage" and error.message in _NO_TOKEN:
        hint = "set `GEN_WORKER_TOKEN` to the server's token"
    hint = detail.hint or hint or raised
    if error.kind == "retryable" and detail.hang is not None and detail.postmortem is not None:
        hint += f"; `gen-worker postmortem {detail.postmortem}` tells more"
    code = USAGE if error.kind == "deadline" and timed else _CODES.get(error.kind, USER_CODE)
    raise Failure(f"{error.message} ({told})" if told else error.message, hint, code=code)


def _hint_of_trying(error: WireError, function: str) -> str:
    """Return what trying again is worth."""
    if not error.retryable:
        return ""
    after_s = None if error.detail is None else error.detail.retry_after_s
    if after_s is not None:
        return f"try again in {after_s:g} s"
    if error.kind != "unavailable" or _FOR_A_WHILE in error.message:
        return "it may go well if you try again"
    if _FOR_ITS_PAYLOADS in error.message:
        return f"`gen-worker quarantine clear {function}` lets it run again"
    if _FOR_AN_OPERATOR in error.message:
        return "`gen-worker undrain` ends that"
    named = (remedy for reason, remedy in _REMEDIES.items() if f"unavailable: {reason}: " in error.message)
    return next(named, "it stays so until the server is started again")


def _says(message: str, name: str, value: object) -> bool:
    return f"{name} {value}" in message or (isinstance(value, str) and value in message)
