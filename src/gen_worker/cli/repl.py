"""`gen-worker repl`: an endpoint that stays warm, called line by line."""

import os
import select
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import click

from gen_worker.cli.advice import advised
from gen_worker.cli.calls import Call
from gen_worker.cli.command import Command
from gen_worker.cli.completing import complete_address, complete_place, fields, marker
from gen_worker.cli.events import events_on_stderr
from gen_worker.cli.failure import CANCELED, NO_MODEL, OK, USAGE, USER_CODE, Failure, nearest, say_error
from gen_worker.cli.invoke import timeout_option
from gen_worker.cli.payload import LocalFiles, payload_of
from gen_worker.cli.private import PrivateServer, leave_if_told, private_server
from gen_worker.cli.project import project_options
from gen_worker.cli.results import Results
from gen_worker.cli.servers import Server, field_names, find_server, schema_in, sidecar
from gen_worker.cli.settings import log_format_option, read_settings
from gen_worker.cli.supervisors import connected
from gen_worker.cli.table import room, table
from gen_worker.discovery.names import slugify_name
from gen_worker.rundir import DEFAULT_SOCKET
from gen_worker.settings import Settings

PROMPT = "> "
_PIPED_BYTES = 65536
_LEAVING = ("exit", "quit")
_WORDS = ("help", "functions", "log", *_LEAVING)  # what a line can be besides a call, unless a function has that name

_HELP = """Keep an endpoint warm and call it line by line.

A line is a function and its fields, as for `run`: `generate "a cat" steps=20`. The name of an only function may be left
out. `functions` lists what there is, `help` says more, `exit` or Ctrl-D leaves. Ctrl-C cancels the call that runs; a
second one stops waiting for it, and a private server ends it at once. A call that crashes or hangs costs nothing but
itself.

The functions are those of the server in this folder, if one runs; otherwise of a private one, which ends with the
session. Lines from a pipe are a script: the exit code is that of the last line that failed.

\b
gen-worker repl
gen-worker repl --module my_endpoint.main --devices cpu:1
printf '%s\\n' 'greet Ada' 'greet Bob' | gen-worker repl"""

_LINE_HELP = """\
FUNCTION FIELD=VALUE ...   call a function, as `greet Ada times=2`
functions                  list the functions and their fields
log                        show the last lines of a private server's log
help                       show this
exit, quit                 leave, as Ctrl-D does

steps=20            a value            text@notes.txt      the content of a file
sizes:=[1,2]        JSON               image@cat.png       a file itself
style.name=oil      a nested field     "a cat"             the first text field
{"text": "a cat"}   a whole payload    @payload.json       the same from a file"""


@click.command("repl", cls=Command, help=_HELP, codes=(OK, USER_CODE, USAGE, NO_MODEL, CANCELED))
@click.option(
    "--socket",
    "socket_",
    metavar="ADDRESS",
    shell_complete=complete_address,
    help=f"The server to talk to, a path or tcp://host:port.  [default: {DEFAULT_SOCKET}, else a private server]",
)
@project_options
@click.option(
    "--devices",
    metavar="DEVICES",
    shell_complete=complete_place,
    help="What a private server serves from, as for `serve`.",
)
@timeout_option
@click.option("--pretty", is_flag=True, help="Indent the JSON.")
@log_format_option
def command(
    socket_: str | None,
    config: str | None,
    module: str | None,
    devices: str | None,
    timeout_s: float,
    pretty: bool,
    log_format: str | None,
) -> int:
    """Keep an endpoint warm and call it line by line."""
    settings = read_settings(log_format=log_format)
    sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]  # what is no text costs its line only
    options = [("--config", config), ("--module", module), ("--devices", devices)]
    given = [part for name, value in options if value is not None for part in (name, value)]
    if socket_ is not None and given:
        raise Failure(f"`--socket` and `{given[0]}` together", "a server that runs has its endpoint already")
    with ExitStack() as stack:
        private = None
        if socket_ is None and (given or not _lives(DEFAULT_SOCKET, settings)):
            private = stack.enter_context(private_server(given))
        address = str(private.socket) if private else socket_ or DEFAULT_SOCKET
        session = Session(address, private, settings, Results(pretty=pretty), timeout_s)
        session.welcome()
        return session.run(_lines(session))


def _lives(address: str, settings: Settings) -> bool:
    try:
        find_server(address, settings)
    except Failure:
        return False
    return True


class Session:
    """The calls of one sitting."""

    def __init__(
        self, address: str, private: PrivateServer | None, settings: Settings, results: Results, timeout_s: float
    ) -> None:
        self.is_script = not sys.stdin.isatty()
        self._address = address
        self._private = private
        self._settings = settings
        self._results = results
        self._timeout_s = timeout_s
        self._events = events_on_stderr(settings)
        self._server = self._find()
        self._interrupted = False

    def _find(self) -> Server:
        if self._private is not None:
            self._private.refuse_ended()
        server = find_server(self._address, self._settings)
        return server._replace(log="`log`") if self._private else server

    def welcome(self) -> None:
        """Say on a terminal what is there."""
        if not self.is_script:
            where = "a private server, which ends with this session" if self._private else f"`{self._address}`"
            functions = ", ".join(f"`{name}`" for name in self._names()) or "unknown"
            sys.stderr.write(f"server: {where}{self._pid()}\nfunctions: {functions}; `help` says what a line can be\n")

    def _pid(self) -> str:
        pid = sidecar(self._server.address).get("pid")
        return f", pid {pid}" if isinstance(pid, int) and self._private is None else ""

    def _names(self, begun: str = "") -> list[str]:
        names = [str(each.get("name")) for each in self._server.functions or []]
        return [name for name in names if name.startswith(begun)]

    def run(self, lines: Iterator[str]) -> int:
        """Do one line after the other until `exit` or the end; return the exit code."""
        failed = OK
        for line in lines:
            if line.strip() in _LEAVING and line.strip() not in self._names():  # not a word of `do`: it ends this
                break
            code = self._attempt(line)
            failed = code or failed
            if self.is_script and self._interrupted:
                return CANCELED
        return failed if self.is_script else OK

    def _attempt(self, line: str) -> int:
        self._interrupted = False
        try:
            return self.do(line)
        except KeyboardInterrupt:
            self._interrupted = True
            sys.stderr.write("\nno longer waiting for it\n")
            return CANCELED
        except Failure as failure:
            if self._private is not None:
                self._private.refuse_ended()  # nothing can follow
            say_error(str(failure), failure.hint)
            return failure.code

    def do(self, line: str) -> int:
        """Do what a line says; return its exit code."""
        words = _split(line)
        if not words:
            return OK
        answers = {"help": lambda: _LINE_HELP, "functions": self._listing, "log": self._log}
        if words[0] in answers and words[0] not in self._names():
            if len(words) > 1 and len(self._names()) != 1:  # of an only function it is a payload
                raise Failure(f"`{words[0]}` takes nothing, not `{words[1]}`")
            if len(words) == 1:
                click.echo(answers[words[0]]())
                return OK
        self._server = self._find()
        name, words = self._function(words)
        files = LocalFiles(inline=self._server.is_remote, stdin=False)
        schema = schema_in(self._server.function(name))
        payload = payload_of(words, schema, files=files)
        with advised(payload, schema):
            return self._call(name, payload)

    def _function(self, words: list[str]) -> tuple[str, list[str]]:
        """Return the name of the function that a line calls, and the words of its payload."""
        names = self._names()
        if not names or slugify_name(words[0]) in names:
            return words[0], words[1:]
        if len(names) == 1:
            return names[0], words
        near = nearest(slugify_name(words[0]), (*names, *_WORDS))
        raise Failure(f"no function `{words[0]}`", f"did you mean `{near}`?" if near else "`functions` lists them")

    def _call(self, name: str, payload: dict[str, Any]) -> int:
        call = Call(self._server, name, self._events, self._results.value, name="repl")
        try:
            return call.run(payload, stream=True, timeout_s=self._timeout_s)
        except KeyboardInterrupt:
            if self._private is not None:  # nobody else's: what does not end must not hold up the next line
                with connected(str(self._private.socket), "gen-worker repl") as client:
                    client.kill(call.request_id, True)
            raise
        finally:
            self._interrupted = call.canceling

    def _listing(self) -> str:
        functions = self._server.functions or []
        rows = [(str(each.get("name")), " ".join(_field_texts(each))) for each in functions]
        return table(("FUNCTION", "FIELDS"), rows, elastic=("FIELDS",), width=room())

    def _log(self) -> str:
        if self._private is None:
            raise Failure("the server writes its log where it was started")
        return "\n".join(self._private.last_words())

    def complete(self, before: str, begun: str) -> list[str]:
        """Return how the word that is being typed could go on, after what stands before it in the line."""
        words, names = before.split(), self._names()
        if words and slugify_name(words[0]) in names:
            return fields(self._server.function(words[0]), begun)
        if len(names) == 1:
            return self._names(begun) + fields(self._server.function(names[0]), begun)
        return [] if words else [word for word in (*names, *_WORDS) if word.startswith(begun)]


def _field_texts(function: dict[str, Any]) -> list[str]:
    required = (schema_in(function) or {}).get("required") or []
    return [
        f"{name}{marker(place)}" if name in required else f"[{name}{marker(place)}]"
        for name, place in field_names(function).items()
    ]


def _split(line: str) -> list[str]:
    """Return the words of a line, none for a comment."""
    head, _, rest = line.strip().partition(" ")
    if head.startswith("#"):
        return []
    if head.startswith("{"):  # JSON has quotes of its own
        return [line.strip()]
    if rest.lstrip().startswith("{"):
        return [head, rest.strip()]
    try:
        return shlex.split(line)
    except ValueError as error:
        raise Failure(
            f"the line cannot be split into words: {str(error).lower()}", "a `'` or `\"` is left open"
        ) from None


# --- where lines come from --------------------------------------------------------------------------------------------


def _lines(session: Session) -> Iterator[str]:
    return _piped_lines() if session.is_script else _typed_lines(session)


def _piped_lines() -> Iterator[str]:
    """Yield the lines of a script; what is no text costs its line only.

    A signal that comes just before a `read` begins is heard by Python only when that returns, which may be never: what
    waits here is a `select` that the signal's own byte ends. A signal that ends the session is heard even where what it
    raised was lost, as in a destructor.
    """
    stdin, rest = sys.stdin.fileno(), b""
    with _woken_by_signals() as woken:
        while True:
            ready, _, _ = select.select([stdin, woken], [], [])
            if woken in ready:
                leave_if_told(os.read(woken, _PIPED_BYTES))
            if stdin not in ready:
                continue
            data = os.read(stdin, _PIPED_BYTES)
            *lines, rest = (rest + data).split(b"\n")
            if not data and rest:
                lines.append(rest)
            yield from (line.decode(sys.stdin.encoding, sys.stdin.errors or "strict") for line in lines)
            if not data:
                return


@contextmanager
def _woken_by_signals() -> Iterator[int]:
    """Give a descriptor that has bytes to read once a signal has come."""
    woken, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    try:
        yield woken
    finally:
        signal.set_wakeup_fd(before)
        os.close(woken)
        os.close(wakes)


def _typed_lines(session: Session) -> Iterator[str]:
    with _edited(session):
        while True:
            try:
                line = _typed_line()
            except KeyboardInterrupt:
                sys.stderr.write("\n")
                continue
            except EOFError:
                sys.stderr.write("\n")
                return
            yield line


def _typed_line() -> str:
    if sys.stdout.isatty():
        return input(PROMPT)
    sys.stderr.write(PROMPT)  # stdout is for results alone
    sys.stderr.flush()
    if not (line := sys.stdin.readline()):
        raise EOFError
    return line


@contextmanager
def _edited(session: Session) -> Iterator[None]:
    """Let lines be edited, remembered and completed, where Python has been built with that."""
    try:
        import readline
    except ImportError:
        yield
        return
    found: list[str] = []

    def complete(begun: str, index: int) -> str | None:
        nonlocal found
        if index == 0:
            words = session.complete(readline.get_line_buffer()[: readline.get_begidx()], begun)
            found = [word if word.endswith(("=", "@", "/")) else f"{word} " for word in words]
        return found[index] if index < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" \t\n")
    readline.parse_and_bind("bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete")
    try:
        yield
    finally:
        readline.set_completer(None)
