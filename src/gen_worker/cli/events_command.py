"""`gen-worker events`: what the supervisor tells of itself, its children and its jobs; nothing that children print."""

import click

from gen_worker.cli.command import Command
from gen_worker.cli.failure import CANCELED, OK, UNREACHABLE, USAGE
from gen_worker.cli.log_reading import Meant
from gen_worker.cli.logs import SHOWN, Wanted, show
from gen_worker.cli.numbers import Count
from gen_worker.cli.since import since_option
from gen_worker.cli.supervisors import socket_option

_HELP = f"""Show what a supervisor tells of itself, its children and its jobs: deaths, hangs, downloads, refusals.

The last {SHOWN}, or as many as `--lines` says, or all since `--since`; older ones come from the files, as `logs` says.

\b
gen-worker events
gen-worker events --follow --json"""


@click.command("events", cls=Command, help=_HELP, codes=(OK, USAGE, UNREACHABLE, CANCELED))
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@since_option
@click.option("-n", "--lines", "last", type=Count(0), metavar="N", help="So many of the last ones.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@socket_option
def command(follow: bool, since: float | None, last: int | None, as_json: bool, socket_: str | None) -> int:
    """Show what the supervisor tells."""
    number = SHOWN if last is None and since is None else last
    return show(Wanted(None, Meant(events=True, since=since, last=number), follow, as_json, socket_))
