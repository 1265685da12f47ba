"""How a client comes to the control socket that is meant."""

import errno
import os
import socket
from pathlib import Path

from gen_worker.rundir import SupervisorUnreachable, choose, connect
from gen_worker.settings import Settings


def connected(path: str | Path | None, timeout_s: float) -> socket.socket:
    """Return a socket to the supervisor: the one at `path`, which may also be what `serve` listens on, or the only one.

    Raises `SupervisorUnreachable` when none answers, `SeveralSupervisors` when there are several to choose from.
    """
    if not hasattr(socket, "SOCK_SEQPACKET") or not hasattr(socket, "AF_UNIX"):
        raise SupervisorUnreachable("the control socket needs Linux")
    chosen = choose(None, Settings.load().run_dir) if path is None else path
    try:
        return connect(chosen, socket.SOCK_SEQPACKET, timeout_s)
    except OSError as error:
        if error.errno != errno.EPROTOTYPE:
            reason = error.strerror or str(error)
            raise SupervisorUnreachable(f"no supervisor answers at `{chosen}`: {reason.lower()}") from error
    return connect(choose(os.fspath(chosen), Settings.load().run_dir), socket.SOCK_SEQPACKET, timeout_s)


def gone(error: Exception) -> SupervisorUnreachable:
    """Return what a failed send or receive means."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return SupervisorUnreachable(f"the supervisor is gone: {reason.lower()}")


def silent(timeout_s: float) -> SupervisorUnreachable:
    """Return what it means that `open` has no answer."""
    return SupervisorUnreachable(f"the supervisor does not answer within {timeout_s:g} s")
