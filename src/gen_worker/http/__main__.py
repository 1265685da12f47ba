"""The process that serves probes and metrics, started by a supervisor: `python -m gen_worker.http --listen FD …`."""

import argparse
import ctypes
import os
import signal

from gen_worker.oom_score import FETCHER, go_before

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve until the supervisor ends, which ends this process with it."""
    parser = argparse.ArgumentParser(prog="gen-worker http")
    parser.add_argument("--listen", type=int, required=True, help="the descriptor of a listening socket")
    parser.add_argument("--control", required=True, help="the supervisor's control socket")
    parser.add_argument("--supervisor", type=int, required=True)
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != options.supervisor:
        os._exit(1)  # it died before the kernel was told to end this process with it
    go_before(options.supervisor, FETCHER)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal goes to everybody; the supervisor decides

    from gen_worker.http.serving import serve  # from here on there is somebody to end this process

    serve(options.listen, options.control)


if __name__ == "__main__":
    main()
