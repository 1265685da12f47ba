"""A process that has imported the heavy modules once and forks children from there.

It only imports: no computation, no second thread, no user code. A child forked after one OpenMP operation would hang
for ever, so the zygote looks at itself before it serves and refuses when it is not fit.
"""

import argparse
import ctypes
import gc
import importlib
import os
import signal
import socket
import sys
from collections.abc import Sequence

from gen_worker.discovery.notices import leave_out_fallbacks
from gen_worker.oom_score import ZYGOTE, go_before
from gen_worker.wire.channel import Channel, close_all
from gen_worker.wire.messages import Fork, Forked, Unfit, Warm, ZygoteOrder
from gen_worker_child.main import PR_SET_PDEATHSIG, die_with, run_child

GONE = (BrokenPipeError, ConnectionResetError)  # the supervisor has ended, or is about to
DESCRIPTORS = 5  # the child's socket, stdout, stderr, crash memfd, status page


def unfit() -> str | None:
    """Return why nobody may fork from this process, or None."""
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        return f"importing left {threads} threads running"
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
        if target.startswith("/dev/nvidia"):
            return f"importing opened {target}"
    return None


def warm_up(modules: Sequence[str]) -> Warm:
    """Import what the author's module will need, and keep the collector from touching it."""
    leave_out_fallbacks()
    imported, failed = [], []
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - foreign import code may raise anything; the child will import it again
            failed.append(f"{name}: {type(error).__name__}: {error}"[:300])
        else:
            imported.append(name)
    gc.collect()
    gc.freeze()
    return Warm(imported, failed)


def serve(channel: Channel[ZygoteOrder]) -> None:
    """Fork a child for every order until the supervisor is gone."""
    while (received := channel.receive()) is not None:
        order, descriptors = received
        if len(descriptors) != DESCRIPTORS:
            close_all(descriptors)
            raise RuntimeError(f"a fork order came with {len(descriptors)} descriptors instead of {DESCRIPTORS}")
        middle = os.fork()
        if middle == 0:
            _fork_again(channel, order, descriptors)
        close_all(descriptors)
        _, status = os.waitpid(middle, 0)
        if status != 0:
            sys.exit(f"[zygote] the process in the middle ended with status {status}: no child was made")
        channel.count_sent()


def _fork_again(channel: Channel[ZygoteOrder], order: Fork, descriptors: list[int]) -> None:
    """Fork the child and end, so that it becomes the supervisor's own."""
    middle = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become_child(channel, order, descriptors, middle)
    pidfd = os.pidfd_open(pid)
    try:
        channel.send(Forked(order.generation, pid), [pidfd])
    except GONE:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)  # nobody will ever know of it
    os._exit(0)


def _become_child(channel: Channel[ZygoteOrder], order: Fork, descriptors: list[int], middle: int) -> None:
    sock_fd, out_fd, err_fd, crash_fd, page_fd = descriptors
    while os.getppid() != order.supervisor_pid:
        if os.getppid() not in (middle, order.supervisor_pid):
            os._exit(1)  # the supervisor died in between
        os.sched_yield()
    if (drawn := sys.modules.get("numpy.random")) is not None:
        drawn.seed()  # each child its own numbers
    os.setsid()
    channel.close()
    os.dup2(out_fd, 1)
    os.dup2(err_fd, 2)
    close_all([out_fd, err_fd])
    os.environ.clear()
    os.environ.update(order.environment)
    run_child(socket.socket(fileno=sock_fd), order.generation, crash_fd, page_fd, order.supervisor_pid)


def main(arguments: Sequence[str] | None = None) -> None:
    """Warm up, tell the supervisor, serve."""
    parser = argparse.ArgumentParser(prog="gen-worker zygote")
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--supervisor", type=int, required=True)
    parser.add_argument("modules", nargs="*")
    options = parser.parse_args(arguments)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    die_with(options.supervisor)
    go_before(options.supervisor, ZYGOTE)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.argv = ["gen-worker zygote"]
    channel: Channel[ZygoteOrder] = Channel(socket.socket(fileno=options.socket), generation=0, receives=ZygoteOrder)
    warm = warm_up(options.modules)
    reason = unfit()
    if reason is not None:
        channel.send(Unfit(reason))
        return
    try:
        channel.send(warm)
        serve(channel)
    except GONE:
        return
    except BlockingIOError as error:
        sys.exit(f"[zygote] cannot fork: {error.strerror}")  # the supervisor starts another one when it can


if __name__ == "__main__":
    main()
