"""How a client comes to the control socket that is meant."""

import errno
import os
import socket
from math import inf
from pathlib import Path

from gen_worker.rundir import SupervisorUnreachable, choose, connect, no_answer, other_owner
from gen_worker.settings import Settings

LONGEST_S = 24 * 86400.0  # of a wait: `poll` takes no more milliseconds


def connected(path: str | Path | None, timeout_s: float | None) -> socket.socket:
    """Return a socket to the supervisor: the one at `path`, or the only one.

    `path` may also be what `serve` listens on, an address like `tcp://127.0.0.1:8000` too.
    Raises `SupervisorUnreachable` when none answers, `SeveralSupervisors` when there are several to choose from.
    """
    if not hasattr(socket, "SOCK_SEQPACKET") or not hasattr(socket, "AF_UNIX"):
        raise SupervisorUnreachable("the control socket needs Linux")
    chosen = os.fspath(choose(None, Settings.load().run_dir) if path is None else path)
    if "://" not in chosen:
        try:
            return connect(chosen, socket.SOCK_SEQPACKET, timeout_s)
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:  # else it takes requests, and another socket is the one to speak to
                raise no_answer(chosen, error, Settings.load().run_dir) from error
    return connect(choose(chosen, Settings.load().run_dir), socket.SOCK_SEQPACKET, timeout_s)


def gone(error: Exception, sock: socket.socket) -> SupervisorUnreachable:
    """Return what a failed send or receive means; a supervisor hangs up on other users without a word."""
    if owner := other_owner(sock):
        return SupervisorUnreachable(f"the supervisor is another user's, {owner}: it hung up", "be that user, or root")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return SupervisorUnreachable(f"the supervisor is gone: {reason.lower()}")


def silent(timeout_s: float) -> SupervisorUnreachable:
    """Return what it means that `open` has no answer."""
    text = f"the supervisor does not answer within {timeout_s:g} s"
    return SupervisorUnreachable(text, "`gen-worker doctor --only supervisors` says whether it was stopped")


def seconds(timeout_s: float | None) -> float | None:
    """Return a time to wait as clocks and sockets take it, None for ever; raise `ValueError` where it is no time."""
    if timeout_s is None or timeout_s == inf:
        return None
    if not timeout_s >= 0:  # nan is neither
        raise ValueError(f"`timeout_s` is a number of seconds, 0 or more: {timeout_s}")
    return min(timeout_s, LONGEST_S)
