"""`gen-worker invoke`: call a function of a running server."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from types import FrameType
from typing import Any

import click
import msgspec

from gen_worker.cli.command import Command
from gen_worker.cli.failure import CANCELED, NO_MODEL, OK, USAGE, USER_CODE, Failure, nearest, say_error
from gen_worker.cli.ndjson import Address, Line, Lines, NoAnswerInTime, WireError, parse_address
from gen_worker.cli.payload import payload_of
from gen_worker.cli.project import find_project, functions_of, project_options, show_stack, survey_of
from gen_worker.cli.schema import Schema
from gen_worker.discovery.names import slugify_name
from gen_worker.wire.messages import ErrorDetail

DEFAULT_SOCKET = "./.gen-worker.sock"
NOTICE_AFTER_S = 15.0
PRESS_AGAIN_S = 2.0  # a second Ctrl-C in this time ends this command at once

_HELP = """Call FUNCTION of a running `gen-worker serve` and print its output.

The payload is given as for `run`: `steps=20`, `text@notes.txt`, `sizes:=[1,2]`, a word for the first text field; or,
as the only argument, as JSON, as `@payload.json`, or as `-` for stdin.

\b
gen-worker invoke generate "a cat in the snow" steps=20
gen-worker invoke embed '{"texts": ["a cat"]}'
gen-worker invoke chat --stream hello"""


@click.command("invoke", cls=Command, help=_HELP, codes=(OK, USER_CODE, USAGE, NO_MODEL, CANCELED))
@click.argument("function", metavar="FUNCTION")
@click.argument("arguments", nargs=-1, metavar="[FIELD=VALUE]...")
@click.option(
    "--socket",
    "socket_",
    metavar="ADDRESS",
    default=DEFAULT_SOCKET,
    show_default=True,
    help="Where the server listens: a path, or tcp://host:port.",
)
@click.option("--stream", is_flag=True, help="Print the items of a stream as they are made.")
@click.option(
    "--timeout",
    "timeout_s",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=0.0,
    help="Give up after so long; 0 waits for ever.  [default: 0]",
)
@click.option("--pretty", is_flag=True, help="Indent the JSON.")
@project_options
def command(
    function: str,
    arguments: tuple[str, ...],
    socket_: str,
    stream: bool,
    timeout_s: float,
    pretty: bool,
    config: str | None,
    module: str | None,
) -> int:
    """Call a function of a running server."""
    address = parse_address(socket_)
    address.connect().close()  # without a server nothing else matters
    functions = _known_functions(address)
    if functions is None and (config or module):
        functions = functions_of(survey_of(find_project(config, module)).description)
    payload = payload_of(arguments, _schema(function, functions))
    call = _Call(address, function, pretty)
    with closing(call), _cooperative_interrupt(call):
        call.send(payload, stream)
        return call.wait(timeout_s)


def _known_functions(address: Address) -> list[dict[str, Any]] | None:
    try:
        return functions_of(address.sidecar.read_bytes())
    except OSError:
        return None


def _schema(function: str, functions: list[dict[str, Any]] | None) -> Schema | None:
    if functions is None:
        return None
    by_name = {str(each.get("name")): each.get("input_schema") for each in functions}
    slug = slugify_name(function)
    if slug not in by_name:
        near = nearest(slug, by_name)
        listed = ", ".join(f"`{name}`" for name in by_name) or "none"
        raise Failure(f"no function `{function}`", f"did you mean `{near}`?" if near else f"available: {listed}")
    schema = by_name[slug]
    return schema if isinstance(schema, dict) else None


class _Call:
    """One request on its way."""

    def __init__(self, address: Address, function: str, pretty: bool) -> None:
        self.request_id = f"invoke-{os.urandom(4).hex()}"
        self._address = address
        self._open = ExitStack()
        self._lines = Lines(self._open.enter_context(address.connect()))
        self._function = function
        self._pretty = pretty

    def send(self, payload: dict[str, Any], stream: bool) -> None:
        """Send the request."""
        request = {"request_id": self.request_id, "function": self._function, "payload": payload}
        self._lines.send(request | {"stream": stream, "events": True})

    def cancel(self) -> None:
        """Ask the server, on a connection of its own, to end the request."""
        connection = self._open.enter_context(self._address.connect())  # stays: a hang-up may overtake what was sent
        Lines(connection).send({"cancel": {"request_id": self.request_id}})

    def close(self) -> None:
        """Close the connections; a request that has not ended is canceled by that."""
        self._open.close()

    def wait(self, timeout_s: float) -> int:
        """Print what comes until the end of the request; return the exit code."""
        deadline = time.monotonic() + timeout_s if timeout_s else None
        notice_at = None if deadline else time.monotonic() + NOTICE_AFTER_S
        while True:
            try:
                line = self._lines.receive(deadline or notice_at)
            except NoAnswerInTime:
                if deadline:
                    raise Failure(f"no answer within {timeout_s:g} s; the request is canceled") from None
                notice_at = None
                sys.stderr.write(f"still waiting for `{self._function}`; `gen-worker ps` shows what it does\n")
                continue
            if line is None:
                raise Failure("the server closed the connection before its answer", code=USER_CODE)
            if (code := self._take(line)) is not None:
                return code

    def _take(self, line: Line) -> int | None:
        if line.error is not None:
            return _report(line.error)
        for event in line.events or ([line] if line.event else []):
            if event.event in ("yield", "result"):
                self._print(bytes(event.value))
            else:
                sys.stderr.write(f'{{"event":"{event.event}","value":{bytes(event.value).decode()}}}\n')
        return OK if line.ok else None

    def _print(self, value: bytes) -> None:
        out = sys.stdout.buffer
        out.write((msgspec.json.format(value, indent=2) if self._pretty else value) + b"\n")
        out.flush()


# --- how it ended badly -----------------------------------------------------------------------------------------------

_CODES = {"usage": USAGE, "not_found": USAGE, "invalid": USAGE, "model_resolution": NO_MODEL, "canceled": CANCELED}

_HINTS = {
    "usage": "`gen-worker run --list` shows what it takes",
    "child_died": "the log of `gen-worker serve` has the rest of what the child said",
    "quarantined": "this payload ended several children; change it, or wait until the quarantine passes",
    "busy": "too many requests wait; try again later",
    "draining": "the server is stopping",
}


def _report(error: WireError) -> int:
    """Say why the request failed; return the exit code for that."""
    detail = error.detail or ErrorDetail()
    if error.kind not in ("invalid", "canceled"):  # those are told in full by their message
        show_stack(detail.stack or detail.stderr or [])
    facts = (("cause", detail.cause), ("exit code", detail.exit_code), ("rung", detail.rung))
    told = ", ".join(
        f"{name} {value}" for name, value in facts if value is not None and not _says(error.message, name, value)
    )
    hint = _HINTS.get(error.kind, "it may go well if you try again" if error.retryable else "")
    raise Failure(f"{error.message} ({told})" if told else error.message, hint, code=_CODES.get(error.kind, USER_CODE))


def _says(message: str, name: str, value: object) -> bool:
    return f"{name} {value}" in message or (isinstance(value, str) and value in message)


@contextmanager
def _cooperative_interrupt(call: _Call) -> Iterator[None]:
    """Make the first Ctrl-C cancel the request, and a second one soon after end this command."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = -PRESS_AGAIN_S

    def on_press(_signal: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        now = time.monotonic()
        if now - pressed < PRESS_AGAIN_S:
            raise KeyboardInterrupt
        pressed = now
        sys.stderr.write("canceling; press Ctrl-C again to stop waiting\n")
        try:
            call.cancel()
        except Failure as failure:
            say_error(f"cannot cancel: {failure}")

    before = signal.signal(signal.SIGINT, on_press)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
