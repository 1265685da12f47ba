"""`gen-worker quarantine`: payloads that killed children, and why they are refused."""

import sys

import click
import msgspec

from gen_worker.cli.command import Command, Group
from gen_worker.cli.completing import complete_charged
from gen_worker.cli.failure import MEANINGS, NOT_FOUND, OK, UNREACHABLE, USAGE, Failure, nearest
from gen_worker.cli.supervisors import connected, socket_option
from gen_worker.cli.table import WIDTH, duration, room, table
from gen_worker.discovery.names import slugify_name
from gen_worker.wire.control import Charged, Quarantined

DIGEST_CHARS = 12  # of a digest, where a person reads it
_STACK_LINES = 5

_HELP = """Look after the payloads that are refused because they killed children.

A payload that killed two children of its function is refused for `GEN_WORKER_QUARANTINE_S` seconds; a function with
five such is not served at all until the first of them is let go. A success clears a payload.

\b
gen-worker quarantine ls
gen-worker quarantine clear generate
gen-worker quarantine clear --digest f70cfea8
gen-worker quarantine clear --all"""


class _Command(Command):
    meanings = {**MEANINGS, NOT_FOUND: "nothing of that kind is charged"}  # noqa: RUF012 - nobody changes it


@click.group("quarantine", cls=Group, help=_HELP)
def command() -> None:
    """Look after the payloads that are refused because they killed children."""


_json_option = click.option("--json", "as_json", is_flag=True, help="Print a document.")


@command.command(
    "ls",
    cls=_Command,
    codes=(OK, USAGE, UNREACHABLE),
    help="List the payloads that are charged with children's deaths.",
)
@_json_option
@socket_option
def ls(as_json: bool, socket_: str | None) -> int:
    """List the payloads that are charged with children's deaths."""
    with connected(socket_, "gen-worker quarantine") as client:
        found = client.quarantined()
    click.echo(msgspec.json.encode(document(found)) if as_json else describe(found, room()))
    return OK


def document(found: Quarantined) -> dict[str, object]:
    """Return what is charged as a document."""
    charges = [{name: getattr(charge, name) for name in Charged.__struct_fields__} for charge in found.charges]
    return {"charges": charges, "breakers": found.breakers, "left_out": found.left_out}


def describe(found: Quarantined, width: int = WIDTH) -> str:
    """Return what is charged: a table, where the refused ones were, and the functions that are not served."""
    if not found.charges:
        return "nothing is charged"
    rows = [
        (
            charge.function,
            charge.digest[:DIGEST_CHARS],
            str(charge.deaths),
            "refused" if charge.quarantined else "charged" if charge.deaths else "suspected",
            duration(charge.expires_in_s),
            charge.cause,
        )
        for charge in found.charges
    ]
    heads = ("FUNCTION", "PAYLOAD", "DEATHS", "STATE", "LEFT", "CAUSE")
    parts = [table(heads, rows, elastic=("FUNCTION", "CAUSE"), width=width)]
    if found.left_out:
        parts.append(f"and {found.left_out} more")
    parts += [_where(charge) for charge in found.charges if charge.quarantined and charge.stack]
    parts += [f"`{name}` is not served: {reason}" for name, reason in found.breakers.items()]
    return "\n\n".join(parts)


def _where(charge: Charged) -> str:
    lines = [f"  {line}" for line in charge.stack[:_STACK_LINES]]
    if charge.postmortem:
        lines.append(f"  `gen-worker postmortem {charge.postmortem}` tells more")
    return "\n".join([f"{charge.function} {charge.digest[:DIGEST_CHARS]}: {charge.cause}", *lines])


@command.command(
    "clear",
    cls=_Command,
    codes=(OK, USAGE, UNREACHABLE, NOT_FOUND),
    help="Forget what stands against the payloads of FUNCTION, or against one payload, so that they run again.",
)
@click.argument("function", required=False, default="", shell_complete=complete_charged)
@click.option("--digest", default="", metavar="D", help="The payload, as `ls` names it, or what that begins with.")
@click.option("--all", "everything", is_flag=True, help="Everything, of every function.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@_json_option
@socket_option
def clear(function: str, digest: str, everything: bool, yes: bool, as_json: bool, socket_: str | None) -> int:
    """Forget what stands against payloads."""
    if everything == bool(function or digest):
        raise Failure("name a function or a payload, or `--all`", "`gen-worker quarantine ls` lists them")
    if everything and not yes:
        if not sys.stdin.isatty():
            raise Failure("nothing was cleared: nobody can be asked", "`--yes` clears without asking")
        click.confirm("forget what stands against every payload?", abort=True, err=True)
    function = slugify_name(function) if function else ""
    with connected(socket_, "gen-worker quarantine") as client:
        charged = {charge.function: None for charge in client.quarantined().charges}
        count = client.pardon(function, digest.lower())
    if not count and not everything:
        near = nearest(function, charged) if function not in charged else None
        hint = f"did you mean `{near}`?" if near else "`gen-worker quarantine ls` lists what is charged"
        whose = " ".join(filter(None, (function and f"`{function}`", digest and f"payload `{digest}`")))
        raise Failure(f"nothing is charged to {whose}", hint, code=NOT_FOUND)
    if as_json:
        click.echo(msgspec.json.encode({"cleared": count}))
    else:
        click.echo(f"{count} {'charge' if count == 1 else 'charges'} forgotten")
    return OK
