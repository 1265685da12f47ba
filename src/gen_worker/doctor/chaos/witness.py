"""Jobs of somebody else, all the time: whom no fault of another job may disturb."""

import threading
import time
from pathlib import Path

from gen_worker.client import Client, JobError, SupervisorUnreachable

_PAUSE_S = 0.005
_CALM_JOBS = 100
_CALM_S = 3.0
_CONNECT_S = 10.0


class Witness:
    """A client that runs one quick job after the other from its making to its close, and notes how that goes."""

    def __init__(self, control: Path) -> None:
        self._client = Client(control, _CONNECT_S, name="gen-worker doctor: a bystander")
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._took: list[float] = []
        self._failures: list[str] = []
        self._began: float | None = None  # when the job began that is under way
        self._thread = threading.Thread(target=self._run, name="gen-worker-witness", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + _CALM_S
        while len(self._took) < _CALM_JOBS and time.monotonic() < deadline:
            time.sleep(_PAUSE_S)
        self.undisturbed = self.account().p99_s

    def _run(self) -> None:
        while not self._closing.wait(_PAUSE_S):
            began = self._began = time.monotonic()
            try:
                self._client.call("echo", {"text": "witness"})
            except (JobError, SupervisorUnreachable) as error:
                if not self._closing.is_set():
                    self._note(began, str(error))
                if isinstance(error, SupervisorUnreachable):
                    return
            else:
                self._note(began)

    def _note(self, began: float, failure: str = "") -> None:
        with self._lock:
            self._began = None
            self._took.append(time.monotonic() - began)
            if failure:
                self._failures.append(failure)

    def account(self) -> "Account":
        """Return how its jobs went since it was last asked, the one that is under way with them."""
        with self._lock:
            took, self._took = self._took, []
            failures, self._failures = self._failures, []
            if self._began is not None:
                took.append(time.monotonic() - self._began)
        return Account(sorted(took), failures)

    def close(self) -> None:
        """Run no more jobs."""
        self._closing.set()
        self._client.close()
        self._thread.join()


class Account:
    """How some jobs went: how long each took, in order of that, and what those said that failed."""

    def __init__(self, took: list[float], failures: list[str]) -> None:
        self.took = took
        self.failures = failures

    @property
    def p99_s(self) -> float:
        """The time that 99 of 100 stayed below; 0 for none."""
        return self.took[int(0.99 * (len(self.took) - 1))] if self.took else 0.0

    @property
    def slowest_s(self) -> float:
        """The longest time; 0 for none."""
        return self.took[-1] if self.took else 0.0
