"""`gen-worker restart`: replace the child of one device."""

import sys
from typing import NoReturn

import click
import msgspec

from gen_worker.cli.command import Command
from gen_worker.cli.completing import complete_device
from gen_worker.cli.consent import agree, yes_option
from gen_worker.cli.devices import counted, described, named, no_device, running_on
from gen_worker.cli.failure import CANCELED, MEANINGS, NOT_FOUND, OK, UNREACHABLE, USAGE, USER_CODE, Failure, say
from gen_worker.cli.supervisors import connected, socket_option
from gen_worker.cli.table import duration
from gen_worker.wire.control import Restarted
from gen_worker.wire.status import DeviceStatus

_HELP = """Replace the child process of DEVICE by a new one.

The new one boots, and loads what the old one held, before it takes its place, where there is memory for both. The
requests of the old one run to their end, those of the device one at a time; with `--now` they are ended, which is
asked about where there are several.

\b
gen-worker restart cuda:0
gen-worker restart 0 --now"""


class _Command(Command):
    meanings = {  # noqa: RUF012 - nobody changes it
        **MEANINGS,
        USER_CODE: "there is no new child",
        NOT_FOUND: "no such device",
        CANCELED: "Ctrl-C, or a no",
    }


_CODES = (OK, USER_CODE, USAGE, UNREACHABLE, NOT_FOUND, CANCELED)


@click.command("restart", cls=_Command, help=_HELP, codes=_CODES)
@click.argument("device", shell_complete=complete_device)
@click.option("--now", is_flag=True, help="End its requests, whatever they do.")
@yes_option
@click.option("--json", "as_json", is_flag=True, help="Print a document.")
@socket_option
def command(device: str, now: bool, yes: bool, as_json: bool, socket_: str | None) -> int:
    """Replace the child of one device."""
    with connected(socket_, "gen-worker restart") as client:
        status = client.list()
        known, meant = status.gpus, named(device, status.gpus)
        running = [] if meant is None else running_on([meant], status.jobs)
        if meant is not None and now and len(running) > 1:
            agree(f"end {counted(running)} of `{meant.name}`?", yes=yes)
        if meant is not None and not as_json:
            sys.stderr.write(f"waiting for a new child of `{meant.name}`\n")
            if running and not now:
                say("hint", f"{described(running)} first; `--now` ends what runs there")
        try:
            restarted = client.restart(device if meant is None else meant.name, now)
        except KeyboardInterrupt:
            sys.stderr.write("no longer waiting for it; the restart goes on\n")
            raise
    before = None if meant is None else meant.pid
    if restarted.outcome != "restarted":
        _refuse(device, restarted, known)
    if as_json:
        document = {
            "device": restarted.device,
            "pid_before": before,
            "pid": restarted.pid,
            "seconds": round(restarted.seconds, 3),
        }
        click.echo(msgspec.json.encode(document))
        return OK
    gone = "" if before is None else f" in the place of {before}"
    click.echo(f"`{restarted.device}` has child {restarted.pid}{gone} after {duration(restarted.seconds)}")
    return OK


def _refuse(device: str, restarted: Restarted, known: list[DeviceStatus]) -> NoReturn:
    if restarted.outcome == "not_found":
        raise no_device(device, restarted.candidates)
    reasons = [each.reason for each in known if each.name == restarted.device and each.reason]
    if restarted.outcome == "lost":
        reason = f": {reasons[0]}" if reasons else ""
        text = f"`{device}` has no child, and will have none{reason}"
        raise Failure(text, "restart the supervisor once the device works again", code=USER_CODE)
    text = f"`{device}` has no new child: {restarted.message or 'no reason given'}"
    raise Failure(
        text, "`gen-worker ps` shows what it does; `gen-worker postmortem` what children died of", code=USER_CODE
    )
