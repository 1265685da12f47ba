"""Whether a supervisor is ready for jobs, and a file that is there for as long as it is."""

from pathlib import Path

from gen_worker_supervisor.core.naming import is_hung
from gen_worker_supervisor.core.state import Fleet


def is_ready(fleet: Fleet) -> bool:
    """Whether some child takes jobs: not before the start is over, and not while everything drains or is drained."""
    takes_jobs = any(not child.device.drained and not is_hung(child) for child in fleet.serving())
    return not fleet.draining and not fleet.booting and takes_jobs


class ReadyFile:
    """A file for probes that look for one: it is there while the supervisor is ready."""

    def __init__(self, path: Path) -> None:
        """Remove what a killed supervisor left there; raise `OSError` where that is not possible."""
        self._path = path
        self._is_there = False
        path.unlink(missing_ok=True)

    def show(self, ready: bool) -> None:
        """Make or remove the file; raise `OSError` where that is not possible, which is tried once for each change."""
        if ready == self._is_there:
            return
        self._is_there = ready
        if ready:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch()
        else:
            self._path.unlink(missing_ok=True)
