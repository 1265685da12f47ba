"""`gen-worker stack`: where each thread of a device's child is."""

import sys

import click
import msgspec

from gen_worker.cli.command import Command
from gen_worker.cli.completing import complete_device
from gen_worker.cli.devices import named, no_device
from gen_worker.cli.failure import MEANINGS, NOT_FOUND, OK, UNREACHABLE, USAGE, USER_CODE, Failure
from gen_worker.cli.supervisors import connected, socket_option
from gen_worker.terminal import printable
from gen_worker.wire.control import Stacked

_HELP = """Show where each thread of DEVICE's child is, and each task of its asyncio loop, the innermost frame first.

It takes less than a second, whatever the child does, and costs it nothing. One that computes or sleeps without Python's
interpreter lock answers by itself; one that keeps the lock is asked by a signal; of one that is stopped, or that the
kernel holds, the states of its threads are shown. A request's code is in the thread `gen-worker-job` or among the
tasks.

\b
gen-worker stack cuda:0
gen-worker stack 0 --json"""


class _Command(Command):
    meanings = {  # noqa: RUF012 - nobody changes it
        **MEANINGS,
        USER_CODE: "there is no child, or it cannot show where it is",
        NOT_FOUND: "no such device",
    }


@click.command("stack", cls=_Command, help=_HELP, codes=(OK, USER_CODE, USAGE, UNREACHABLE, NOT_FOUND))
@click.argument("device", shell_complete=complete_device)
@click.option("--json", "as_json", is_flag=True, help="Print a document.")
@socket_option
def command(device: str, as_json: bool, socket_: str | None) -> int:
    """Show where each thread of a device's child is."""
    with connected(socket_, "gen-worker stack") as client:
        meant = named(device, client.list().gpus)
        shown = client.stack(device if meant is None else meant.name)
    if shown.outcome == "not_found":
        raise no_device(device, shown.candidates)
    if as_json:
        document = {name: getattr(shown, name) for name in ("device", "outcome", "pid", "lines", "message")}
        click.echo(msgspec.json.encode(document))
        return OK if shown.outcome == "shown" else USER_CODE
    for line in shown.lines:
        click.echo(printable(line))
    return _told(shown)


def _told(shown: Stacked) -> int:
    """Say how the answer was had, or raise `Failure` for why there is none."""
    if shown.outcome == "shown":
        if shown.message:
            sys.stderr.write(f"child {shown.pid} of `{shown.device}`: {shown.message}\n")
        return OK
    if shown.outcome == "no_child":
        raise Failure(f"`{shown.device}` has no child now: {shown.message}", "`gen-worker ps` shows it", code=USER_CODE)
    hint = f"`gen-worker restart {shown.device} --now` replaces it"
    raise Failure(f"child {shown.pid} of `{shown.device}`: {shown.message}", hint, code=USER_CODE)
