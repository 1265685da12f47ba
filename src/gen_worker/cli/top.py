"""`gen-worker top`: what a supervisor's devices and jobs are doing, as it goes on, and what can be done about it."""

import os
import sys
from io import TextIOWrapper
from pathlib import Path

import click

from gen_worker.cli.command import Command
from gen_worker.cli.failure import CANCELED, MEANINGS, OK, UNREACHABLE, USAGE, Failure
from gen_worker.cli.numbers import Amount, Count
from gen_worker.cli.ps import show
from gen_worker.cli.readers import while_somebody_reads
from gen_worker.cli.supervisors import connected, socket_option
from gen_worker.rundir import CONTROL
from gen_worker.settings import Settings

_HELP = """Watch a supervisor's devices, jobs, downloads and events, and act on them.

`?` shows the keys. It answers while a child hangs, and stays while the supervisor is away. `--json` prints the document
of `ps --json` again and again, one in a line, for programs.

\b
gen-worker top
gen-worker top --readonly --interval 2
gen-worker top --json -n 1 | jq '.gpus[].state'"""

_LEAST_INTERVAL_S = 0.1


class _Command(Command):
    meanings = {**MEANINGS, CANCELED: "Ctrl-C", 129: "its terminal went away", 143: "SIGTERM"}  # noqa: RUF012


@click.command("top", cls=_Command, help=_HELP, codes=(OK, USAGE, UNREACHABLE, 129, CANCELED, 143))
@click.option(
    "-d", "--interval", type=Amount("seconds", _LEAST_INTERVAL_S, 3600.0), default=1.0, show_default=True,
    metavar="SECONDS", help="Time between two looks.",
)  # fmt: skip
@click.option("--readonly", is_flag=True, help="Look only: no key stops, restarts or drains anything.")
@click.option("--once", is_flag=True, help="Print what `gen-worker ps` prints.")
@click.option("--json", "as_json", is_flag=True, help="Print the status document at each look, one in a line.")
@click.option("-n", "number", type=Count(1), metavar="N", help="With `--json`: end after so many.")
@socket_option
def command(interval: float, readonly: bool, once: bool, as_json: bool, number: int | None, socket_: str | None) -> int:
    """Watch a supervisor's devices and jobs, and act on them."""
    if once:
        return show(socket_, "gen-worker top", as_json=as_json)
    if number is not None and not as_json:
        raise Failure("`-n` counts documents, and none are printed", "add `--json`")
    if as_json:
        return _print(interval, number, socket_)
    _refuse_without_a_terminal()
    return _draw(interval, readonly, socket_)


def _print(interval_s: float, number: int | None, socket_: str | None) -> int:
    """Print documents until there were enough of them, or nobody reads them any more."""
    with connected(socket_, "gen-worker top") as client, while_somebody_reads():
        for count, document in enumerate(client.watch(interval_s), 1):
            click.echo(document)
            if count == number:
                break
    return OK


def _refuse_without_a_terminal() -> None:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):  # it is drawn on stderr
        raise Failure(
            "`gen-worker top` needs a terminal, on stdin and stderr", "`docker exec -it`, or `gen-worker ps --json`"
        )
    if os.environ.get("TERM") == "dumb":
        raise Failure(
            "this terminal cannot be drawn on: `TERM` is `dumb`", "`gen-worker ps` prints the same once, as text"
        )


def _draw(interval_s: float, readonly: bool, socket_: str | None) -> int:
    """Show the screen until a person, or a signal, ends it."""
    with connected(socket_, "gen-worker top") as client:
        from gen_worker.top.feed import Feed

        with Feed(socket_, interval_s, client) as feed:  # the first document comes while Textual is imported
            from gen_worker.top.app import Top

            _speak_utf_8()
            top = Top(feed, _run_dir(socket_), readonly=readonly)
            top.run()
            return top.return_code or OK


def _run_dir(socket_: str | None) -> Path:
    """Return the run directory of the supervisor that is looked at: it need not be the one of this user."""
    control = Path(socket_ or "")
    return control.parent.parent if control.name == CONTROL else Settings.load().run_dir


def _speak_utf_8() -> None:
    """Have the screen drawn in UTF-8: terminals speak it whatever a container's locale says."""
    if isinstance(sys.__stderr__, TextIOWrapper):
        sys.__stderr__.reconfigure(encoding="utf-8", errors="backslashreplace")
