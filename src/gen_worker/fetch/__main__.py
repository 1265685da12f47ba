"""The fetcher as a process of its own, started by a supervisor: `python -m gen_worker.fetch --socket FD`."""

import argparse
import ctypes
import os
import signal
import socket
import sys

from gen_worker.oom_score import FETCHER, go_before
from gen_worker.wire.channel import Channel
from gen_worker.wire.fetching import FetchOrder

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Obey a supervisor until it closes its socket, ends, or asks this process to."""
    parser = argparse.ArgumentParser(prog="gen-worker fetcher")
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--supervisor", type=int, required=True)
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != options.supervisor:
        os._exit(1)  # it died before the kernel was told to end this process with it
    go_before(options.supervisor, FETCHER)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal goes to everybody; the supervisor decides
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))

    from gen_worker.fetch.server import serve  # from here on there is somebody to end this process

    channel: Channel[FetchOrder] = Channel(socket.socket(fileno=options.socket), generation=0, receives=FetchOrder)
    os._exit(serve(channel))  # threads that wait for the network would hold up a longer farewell


if __name__ == "__main__":
    main()
