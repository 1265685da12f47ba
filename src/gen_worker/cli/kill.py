"""`gen-worker kill`: end one request, whatever it does, and nothing else."""

import sys
from typing import NoReturn

import click
import msgspec

from gen_worker.cli.command import Command
from gen_worker.cli.completing import complete_request
from gen_worker.cli.failure import CANCELED, MEANINGS, NOT_FOUND, OK, UNREACHABLE, USAGE, Failure
from gen_worker.cli.supervisors import connected, socket_option
from gen_worker.cli.table import duration
from gen_worker.terminal import printable
from gen_worker.wire.control import Killed

_RUNGS = {
    1: "it ended when it was asked to",
    2: "an exception raised in its thread",
    3: "its child ended while its stack was taken",
    4: "SIGTERM to its child",
    5: "SIGKILL to its child",
}


_HELP = """End REQUEST, whatever it does, and nothing else.

It is asked to end first; if it does not, its child process is ended and replaced. Other requests go on. Printed is what
it took, and where the code was.

\b
gen-worker ps
gen-worker kill invoke-6f0c2a91
gen-worker kill invoke-6f0c2a91 --now"""


class _Command(Command):
    meanings = {**MEANINGS, NOT_FOUND: "no such request"}  # noqa: RUF012 - nobody changes it


@click.command("kill", cls=_Command, help=_HELP, codes=(OK, USAGE, UNREACHABLE, NOT_FOUND, CANCELED))
@click.argument("request", shell_complete=complete_request)
@click.option("--now", is_flag=True, help="Do not let it end by itself: take its stack, then end its child.")
@click.option("--json", "as_json", is_flag=True, help="Print a document.")
@socket_option
def command(request: str, now: bool, as_json: bool, socket_: str | None) -> int:
    """End one request."""
    with connected(socket_, "gen-worker kill") as client:
        known = [job.id for job in client.list().jobs]
        named = [name for name in known if request == name or request.endswith(f"/{name}")]
        if len(named) == 1 and not as_json:
            sys.stderr.write(f"waiting for `{printable(request)}` to end\n")
        try:
            killed = client.kill(request, now)
        except KeyboardInterrupt:
            sys.stderr.write("no longer waiting for it; the kill goes on\n")
            raise
    if killed.outcome in ("not_found", "ambiguous"):
        _refuse(request, killed, known)
    if as_json:
        document = {"request": request, "outcome": killed.outcome, "rung": killed.rung, "stack": killed.stack}
        click.echo(msgspec.json.encode({**document, "seconds": round(killed.seconds, 3)}))
    else:
        click.echo(printable(describe(request, killed), lines=True))
    return OK


def describe(request: str, killed: Killed) -> str:
    """Return what ended the request, and where it was."""
    if killed.outcome == "finished":
        return f"`{request}` finished by itself after {duration(killed.seconds)}"
    rung = "" if killed.rung is None else f" by rung {killed.rung}, {_RUNGS.get(killed.rung, 'of unknown meaning')}"
    return "\n".join([f"killed `{request}` after {duration(killed.seconds)}{rung}", *killed.stack])


def _refuse(request: str, killed: Killed, known: list[str]) -> NoReturn:
    if killed.outcome == "ambiguous":
        listed = ", ".join(f"`{each}`" for each in killed.candidates)
        raise Failure(f"`{request}` may mean {listed}", "name one of them", code=USAGE)
    raise no_request(request, known)


def no_request(request: str, known: list[str]) -> Failure:
    """Return what to raise for a request that is not among those known."""
    near = meant(request, known)
    where = "it has ended, or never was: `gen-worker ps` shows what runs, `gen-worker jobs` what ended"
    return Failure(f"no request `{request}`", f"did you mean `{near}`?" if near else where, code=NOT_FOUND)


def meant(request: str, known: list[str]) -> str | None:
    """Return the only request that begins so or differs in one character; random ids look alike beyond that."""
    begun = [each for each in known if each.startswith(request)]
    near = begun or [each for each in known if _one_apart(each, request)]
    return near[0] if len(near) == 1 else None


def _one_apart(one: str, other: str) -> bool:
    return len(one) == len(other) and sum(a != b for a, b in zip(one, other, strict=True)) == 1
