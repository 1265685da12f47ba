"""The tokens of jobs that have been renewed: whatever is under way shows the one that is good now."""

import threading
from collections import OrderedDict

from gen_worker.wire.fetching import Destination

REMEMBERED = 1024  # jobs that outlive a token; the one that was renewed longest ago is forgotten first

JobKey = tuple[str, str, int]
"""What names a job here: its platform, its request and its attempt. Its token may change."""


def job_key(destination: Destination) -> JobKey:
    """Return what names the job that this is the platform of."""
    return destination.base_url, destination.request_id, destination.attempt


class JobTokens:
    """All that were renewed in this process. For any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fresh: OrderedDict[JobKey, str] = OrderedDict()

    def of(self, destination: Destination) -> str:
        """Return the token to be shown for a job."""
        with self._lock:
            return self._fresh.get(job_key(destination), destination.token)

    def renewed(self, destination: Destination, token: str) -> None:
        """Have this one shown from now on."""
        with self._lock:
            self._fresh[job_key(destination)] = token
            self._fresh.move_to_end(job_key(destination))
            while len(self._fresh) > REMEMBERED:
                self._fresh.popitem(last=False)
