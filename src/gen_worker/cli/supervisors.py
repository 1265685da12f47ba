"""A connection to the supervisor that a command means, with what can go wrong told in the commands' way."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from gen_worker.cli.failure import UNREACHABLE, USAGE, Failure
from gen_worker.cli.settings import read_settings
from gen_worker.rundir import SeveralSupervisors, SupervisorUnreachable

if TYPE_CHECKING:
    from gen_worker.client import Client

socket_option = click.option(
    "--socket", "socket_", metavar="ADDRESS", help="A supervisor's socket or address, when there are several."
)


@contextmanager
def connected(path: str | None, name: str, within_s: float = 10.0) -> "Iterator[Client]":
    """Connect to the supervisor named by a socket, or to the only one; raise `Failure` when that is not possible."""
    if not hasattr(socket, "SOCK_SEQPACKET") or not hasattr(socket, "AF_UNIX"):
        raise Failure("supervisors run on Linux only", code=UNREACHABLE)
    read_settings()
    from gen_worker.client import Client

    try:
        with Client(path, within_s, name=name) as client:
            yield client
    except SeveralSupervisors as several:
        raise Failure(str(several), "choose one with `--socket`", code=USAGE) from None
    except SupervisorUnreachable as unreachable:
        raise Failure(str(unreachable), unreachable.hint, code=UNREACHABLE) from None
