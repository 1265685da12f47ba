"""End what is left of a dead child's engine servers.

That is their lifelines' task, which end with the child and take all of an engine with them. One that is stopped, or was
killed in the same moment, does not.
"""

import asyncio
import os
import signal
import threading
from contextlib import suppress

from gen_worker.runtimes.launching import MARK
from gen_worker_supervisor.processes.proc import descendants, processes

LIFELINE_S = 0.4  # what a lifeline may take


def end_engines_soon(loop: asyncio.AbstractEventLoop, child: int) -> None:
    """End, in a while, what is left of the engines that a child had started which is dead now."""
    loop.call_later(LIFELINE_S, _begin, child)


def _begin(child: int) -> None:
    threading.Thread(target=end_engines, args=(child,), name="gen-worker-leftovers", daemon=True).start()


def end_engines(child: int) -> list[int]:
    """End the processes below this one that bear the mark of a child's engines, and what is below them."""
    with suppress(OSError):  # no descriptor is left to look with: the next supervisor will
        everybody = processes()
        own = descendants(os.getpid(), everybody)
        marked = {pid for pid in own if _is_marked(pid, child)}
        left = marked.union(*(descendants(pid, everybody) for pid in marked))
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        return sorted(left)
    return []


def _is_marked(pid: int, child: int) -> bool:
    with suppress(OSError), open(f"/proc/{pid}/environ", "rb") as environment:
        return any(each.startswith(f"{MARK}={child}-".encode()) for each in environment.read().split(b"\0"))
    return False
