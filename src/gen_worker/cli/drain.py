"""`gen-worker drain`: give devices no more requests, until that is undone."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
import msgspec

from gen_worker.cli.command import Command
from gen_worker.cli.completing import complete_device
from gen_worker.cli.consent import agree, yes_option
from gen_worker.cli.devices import counted, described, named, no_device, running_on
from gen_worker.cli.failure import CANCELED, MEANINGS, NOT_FOUND, OK, UNREACHABLE, USAGE, USER_CODE, Failure, say
from gen_worker.cli.numbers import Amount
from gen_worker.cli.supervisors import connected, socket_option
from gen_worker.cli.table import duration
from gen_worker.wire.control import Drained
from gen_worker.wire.status import DeviceStatus, JobStatus, Status

if TYPE_CHECKING:
    from gen_worker.client import Client

_HELP = """Give DEVICE no more requests, and wait until none runs there.

What it has begun runs to its end, what waits goes to the other devices, and what is loaded stays. Where every device
for a function is drained, its requests are given back at once as `unavailable`: their callers may ask elsewhere.
Without DEVICE every device is drained. It stays so, whatever becomes of its child, until `gen-worker undrain`, or the
end of the supervisor.

\b
gen-worker drain cuda:0
gen-worker drain 0 --timeout 60
gen-worker drain --yes && systemctl reboot
gen-worker undrain cuda:0"""


class DrainCommand(Command):
    """A command that drains devices, or undoes that."""

    meanings = {  # noqa: RUF012 - nobody changes it
        **MEANINGS,
        USER_CODE: "requests still run there, or the device is lost",
        NOT_FOUND: "no such device",
        CANCELED: "Ctrl-C, or a no",
    }


CODES = (OK, USER_CODE, USAGE, UNREACHABLE, NOT_FOUND, CANCELED)


@click.command("drain", cls=DrainCommand, help=_HELP, codes=CODES)
@click.argument("device", required=False, shell_complete=complete_device)
@click.option("--undo", is_flag=True, help="Give it requests again, as `gen-worker undrain` does.")
@click.option("--timeout", "timeout_s", type=Amount("seconds"), metavar="SECONDS", help="Wait no longer.")
@yes_option
@click.option("--json", "as_json", is_flag=True, help="Print a document.")
@socket_option
def command(
    device: str | None, undo: bool, timeout_s: float | None, yes: bool, as_json: bool, socket_: str | None
) -> int:
    """Give devices no more requests."""
    with connected(socket_, "gen-worker drain") as client:
        status = client.list()
        meant = chosen(device, status.gpus)
        if undo:
            return tell(undone(client, device, meant), as_json)
        running = running_on(meant, status.jobs)
        if device is None:
            agree(question(status), yes=yes)
        if running:
            sys.stderr.write(f"waiting for {counted(running)} of {_listed(meant)}\n")
            say("hint", f"{described(running)} first; `gen-worker kill` ends one that does not")
        try:
            drained = client.drain(_name(device, meant), timeout_s=timeout_s)
        except KeyboardInterrupt:
            sys.stderr.write(f"no longer waiting; the drain goes on: `{_undo(device, meant)}` ends it\n")
            raise
        except TimeoutError:
            if left := running_on(meant, client.list().jobs):
                raise _too_late(left, device, meant, timeout_s) from None
            drained = client.drain(_name(device, meant))  # with nothing there the answer was only on its way
    if drained.outcome == "undrained":
        raise Failure(f"{_listed(meant)}: somebody has undone the drain meanwhile", code=USER_CODE)
    return tell(drained, as_json)


def question(status: Status) -> str:
    """Return what a person is asked before all devices are drained: with no device left, nothing waits on. Pure."""
    asked = f"give no more requests to {_listed(status.gpus)}"
    wait = sum(job.status == "queued" for job in status.jobs) + status.jobs_left_out
    if wait:
        asked += f", and answer {'1 that waits' if wait == 1 else f'{wait} that wait'} with `unavailable`"
    return f"{asked}?"


def chosen(device: str | None, known: Sequence[DeviceStatus]) -> list[DeviceStatus]:
    """Return the devices that a person means, all where none is named; raise `Failure` for one that is not there."""
    if device is None:
        return list(known)
    meant = named(device, known)
    if meant is None:
        raise no_device(device, [each.name for each in known])
    return [meant]


def undone(client: "Client", device: str | None, meant: Sequence[DeviceStatus]) -> Drained:
    """Give devices requests again."""
    return client.drain(_name(device, meant), undo=True)


def tell(drained: Drained, as_json: bool) -> int:
    """Print what became of a drain; raise `Failure` where there is nothing to drain."""
    if drained.outcome == "not_found":
        raise no_device(drained.device, drained.candidates)
    if drained.outcome == "lost":
        text = f"`{drained.device}` has no child, and will have none" if drained.device else "no device has a child"
        raise Failure(text, "`gen-worker ps` says why", code=USER_CODE)
    if as_json:
        document = {"outcome": drained.outcome, "devices": drained.devices, "seconds": round(drained.seconds, 3)}
        click.echo(msgspec.json.encode(document))
    elif drained.outcome == "drained":
        click.echo(
            f"{_names(drained.devices, 'is', 'are')} drained after {duration(drained.seconds)}: nothing runs there"
        )
    else:
        click.echo(f"{_names(drained.devices, 'gets', 'get')} requests again")
    return OK


def _too_late(
    running: list[JobStatus], device: str | None, meant: Sequence[DeviceStatus], timeout_s: float | None
) -> Failure:
    have = "has" if len(running) == 1 else "have"
    text = f"{counted(running)} of {_listed(meant)} {have} not ended after {duration(timeout_s)}"
    hint = f"the drain goes on; `gen-worker kill` ends a request, `{_undo(device, meant)}` the drain"
    return Failure(text, hint, code=USER_CODE)


def _name(device: str | None, meant: Sequence[DeviceStatus]) -> str:
    """Return the device's name as the supervisor is told it: "" are all."""
    return "" if device is None else meant[0].name


def _undo(device: str | None, meant: Sequence[DeviceStatus]) -> str:
    return f"gen-worker undrain {_name(device, meant)}".strip()


def _listed(devices: Sequence[DeviceStatus]) -> str:
    return ", ".join(f"`{device.name}`" for device in devices)


def _names(names: Sequence[str], one: str, several: str) -> str:
    return f"{', '.join(f'`{name}`' for name in names)} {one if len(names) == 1 else several}"
