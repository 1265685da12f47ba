"""`gen-worker restart`: replace the child of one device."""

import sys
from collections.abc import Sequence
from typing import NoReturn

import click
import msgspec

from gen_worker.cli.command import Command
from gen_worker.cli.completing import complete_device
from gen_worker.cli.failure import MEANINGS, NOT_FOUND, OK, UNREACHABLE, USAGE, USER_CODE, Failure, nearest, say
from gen_worker.cli.supervisors import connected, socket_option
from gen_worker.cli.table import duration
from gen_worker.wire.control import Restarted
from gen_worker.wire.status import DeviceStatus, JobStatus

_NAMED = 3

_HELP = """Replace the child process of DEVICE by a new one.

The new one boots, and loads what the old one held, before it takes its place, where there is memory for both. The
requests of the old one run to their end, those of the device one at a time; with `--now` they are ended.

\b
gen-worker restart cuda:0
gen-worker restart 0 --now"""


class _Command(Command):
    meanings = {  # noqa: RUF012 - nobody changes it
        **MEANINGS,
        USER_CODE: "there is no new child",
        NOT_FOUND: "no such device",
    }


@click.command("restart", cls=_Command, help=_HELP, codes=(OK, USER_CODE, USAGE, UNREACHABLE, NOT_FOUND))
@click.argument("device", shell_complete=complete_device)
@click.option("--now", is_flag=True, help="End its requests, whatever they do.")
@click.option("--json", "as_json", is_flag=True, help="Print a document.")
@socket_option
def command(device: str, now: bool, as_json: bool, socket_: str | None) -> int:
    """Replace the child of one device."""
    with connected(socket_, "gen-worker restart") as client:
        status = client.list()
        known, meant = status.gpus, named(device, status.gpus)
        if meant is not None and not as_json:
            sys.stderr.write(f"waiting for a new child of `{meant.name}`\n")
            running = [] if now else [job for job in status.jobs if job.gpu in names_of(meant)]
            if running:
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


def named(device: str, known: Sequence[DeviceStatus]) -> DeviceStatus | None:
    """Return the device that a person means by one of its names, or by the number of a CPU slot."""
    meant = [each for each in known if device in names_of(each)]
    return next(iter(meant or [each for each in known if each.name == f"cpu:{device}"]), None)


def described(running: Sequence[JobStatus]) -> str:
    """Return in words which requests a child has yet to end, and how they hang."""
    told = ", ".join(f"`{job.id}`" + (f" (hangs: {job.hang})" if job.hang else "") for job in running[:_NAMED])
    more = f" and {len(running) - _NAMED} more" if len(running) > _NAMED else ""
    return f"{told}{more} {'ends' if len(running) == 1 else 'end'}"


def names_of(device: DeviceStatus) -> list[str]:
    """Return what a person may call a device: its name, its index, its UUID."""
    return [device.name, *([] if device.index is None else [str(device.index)]), *filter(None, [device.uuid])]


def _refuse(device: str, restarted: Restarted, known: list[DeviceStatus]) -> NoReturn:
    if restarted.outcome == "not_found":
        near = nearest(device, restarted.candidates)
        listed = ", ".join(f"`{each}`" for each in restarted.candidates)
        hint = f"did you mean `{near}`?" if near else f"there are: {listed}"
        raise Failure(f"no device `{device}`", hint, code=NOT_FOUND)
    reasons = [each.reason for each in known if each.name == restarted.device and each.reason]
    if restarted.outcome == "lost":
        reason = f": {reasons[0]}" if reasons else ""
        text = f"`{device}` has no child, and will have none{reason}"
        raise Failure(text, "restart the supervisor once the device works again", code=USER_CODE)
    text = f"`{device}` has no new child: {restarted.message or 'no reason given'}"
    raise Failure(
        text, "`gen-worker ps` shows what it does; `gen-worker postmortem` what children died of", code=USER_CODE
    )
