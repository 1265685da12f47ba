"""`gen-worker serve`: an endpoint's functions, served by supervised children."""

import os
import socket

import click

from gen_worker.cli.command import Command
from gen_worker.cli.failure import CANCELED, OK, USAGE, USER_CODE, Failure
from gen_worker.cli.project import find_project, project_options
from gen_worker.settings import Settings, SettingsError

_NEEDED = ((os, "memfd_create"), (os, "pidfd_open"), (socket, "AF_UNIX"), (socket, "SOCK_SEQPACKET"))


@click.command("serve", cls=Command, codes=(OK, USER_CODE, USAGE, CANCELED))
@project_options
@click.option(
    "--socket",
    "socket_",
    metavar="PATH",
    default="./.gen-worker.sock",
    show_default=True,
    help="The Unix socket to listen on.",
)
@click.option(
    "--devices",
    metavar="DEVICES",
    help="One child each: `auto`, `cpu:N`, or GPU indices or UUIDs with commas.  [default: auto]",
)
@click.option("--device", metavar="DEVICE", help="The same for a single device.")
def command(config: str | None, module: str | None, socket_: str, devices: str | None, device: str | None) -> int:
    """Serve an endpoint's functions from supervised child processes.

    There is one child for each device; a crash or a hang costs one job and one child, never the server. Call the
    functions with `gen-worker invoke`, watch them with `gen-worker ps`, end one with `gen-worker kill`. Ctrl-C or
    SIGTERM stops the server.
    """
    _refuse_other_systems()
    if devices is not None and device is not None:
        raise Failure("`--devices` and `--device` together", "give one of them")
    try:
        settings = Settings.load()
    except SettingsError as error:
        raise Failure(str(error)) from None
    project = find_project(config, module)
    from gen_worker_supervisor.serve import serve

    return serve(
        module=project.module,
        paths=project.paths,
        socket=socket_,
        devices=devices or device or "auto",
        settings=settings,
        environment=os.environ,
    )


def _refuse_other_systems() -> None:
    missing = [name for home, name in _NEEDED if not hasattr(home, name)]
    if missing:
        listed = ", ".join(f"`{name}`" for name in missing)
        raise Failure(f"`serve` needs Linux: this system has no {listed}", "`gen-worker run` works here")
