"""`gen-worker undrain`: give drained devices requests again."""

import click

from gen_worker.cli.command import Command
from gen_worker.cli.completing import complete_device
from gen_worker.cli.drain import chosen, tell, undone
from gen_worker.cli.failure import MEANINGS, NOT_FOUND, OK, UNREACHABLE, USAGE, USER_CODE
from gen_worker.cli.supervisors import connected, socket_option

_HELP = """Give DEVICE requests again, after `gen-worker drain`; without DEVICE every device.

What was loaded there is loaded still, so that it serves at once.

\b
gen-worker undrain cuda:0
gen-worker undrain"""


class _Command(Command):
    meanings = {**MEANINGS, USER_CODE: "the device is lost", NOT_FOUND: "no such device"}  # noqa: RUF012 - nobody changes it


@click.command("undrain", cls=_Command, help=_HELP, codes=(OK, USER_CODE, USAGE, UNREACHABLE, NOT_FOUND))
@click.argument("device", required=False, shell_complete=complete_device)
@click.option("--json", "as_json", is_flag=True, help="Print a document.")
@socket_option
def command(device: str | None, as_json: bool, socket_: str | None) -> int:
    """Give drained devices requests again."""
    with connected(socket_, "gen-worker undrain") as client:
        return tell(undone(client, device, chosen(device, client.list().gpus)), as_json)
