"""`gen-worker cancel`: ask one request to end."""

import sys
import time
from typing import TYPE_CHECKING

import click
import msgspec

from gen_worker.cli.command import Command
from gen_worker.cli.completing import complete_request
from gen_worker.cli.failure import CANCELED, MEANINGS, NOT_FOUND, OK, UNREACHABLE, USAGE, Failure, say
from gen_worker.cli.kill import no_request
from gen_worker.cli.supervisors import connected, socket_option
from gen_worker.cli.table import duration
from gen_worker.terminal import printable

if TYPE_CHECKING:
    from gen_worker.client import Client

_PATIENCE_S = 3.0  # what a handler that looks at its cancellation now and then may take

_HELP = """Ask REQUEST to end, as its caller could.

One that waits ends at once; one that runs ends where its code looks whether it was canceled. One that never looks goes
on for 30 seconds, then its child process is ended; `gen-worker kill` does not wait for that.

\b
gen-worker cancel invoke-6f0c2a91
gen-worker kill invoke-6f0c2a91"""


class _Command(Command):
    meanings = {**MEANINGS, NOT_FOUND: "no such request"}  # noqa: RUF012 - nobody changes it


@click.command("cancel", cls=_Command, help=_HELP, codes=(OK, USAGE, UNREACHABLE, NOT_FOUND, CANCELED))
@click.argument("request", shell_complete=complete_request)
@click.option("--json", "as_json", is_flag=True, help="Print a document.")
@socket_option
def command(request: str, as_json: bool, socket_: str | None) -> int:
    """Ask one request to end."""
    with connected(socket_, "gen-worker cancel") as client:
        _find(client, request)
        began = time.monotonic()
        try:
            canceled = _asked(client, request)
        except KeyboardInterrupt:
            sys.stderr.write("no longer waiting for it; it stays canceled\n")
            raise
    seconds = time.monotonic() - began
    if as_json:
        document = {"request": request, "canceled": canceled, "seconds": round(seconds, 3)}
        click.echo(msgspec.json.encode(document))
    elif canceled:
        click.echo(f"canceled `{printable(request)}` after {duration(seconds)}")
    else:
        click.echo(f"`{printable(request)}` finished by itself after {duration(seconds)}: the cancel had no effect")
    return OK


def _find(client: "Client", request: str) -> None:
    """Raise `Failure` unless there is one such request."""
    known = {f"{job.link}/{job.id}": job.id for job in client.list().jobs}
    named = [full for full, name in known.items() if request in (full, name)]
    if len(named) > 1:
        listed = ", ".join(f"`{each}`" for each in named)
        raise Failure(f"`{request}` may mean {listed}", "name one of them", code=USAGE)
    if not named:
        raise no_request(request, list(known.values()))


def _asked(client: "Client", request: str) -> bool:
    """Ask it to end and wait for that; return whether it ended by this."""
    try:
        return client.cancel(request, timeout_s=_PATIENCE_S)
    except TimeoutError:
        sys.stderr.write(f"waiting for `{printable(request)}` to end: it has not looked at its cancellation\n")
        say("hint", f"`gen-worker kill {request}` ends it whatever it does")
        return client.cancel(request)
