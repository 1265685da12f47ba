"""What is asked of the supervisor for a person: each in a thread and on a connection of its own, so that nothing waits.

An errand says in a few words what came of it. Knows nothing of what is drawn.
"""

import threading
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias, TypeVar

from gen_worker.cli.table import duration
from gen_worker.client.blocking import Client
from gen_worker.rundir import SeveralSupervisors, SupervisorUnreachable
from gen_worker.wire.control import Drained, Killed, Restarted

CONNECT_S = 5.0
SOON_S = 60.0  # until the answer to what takes no job's time
LONG_S = 3600.0  # until the answer to what waits for jobs, or models

Found = TypeVar("Found")
Deliver: TypeAlias = Callable[[Callable[[], None]], object]
"""Calls a function in the thread that draws."""


class Outcome(NamedTuple):
    """What came of an errand, in a line or two."""

    text: str
    severity: Literal["information", "warning", "error"] = "information"


Errand: TypeAlias = Callable[[Client], Outcome]


class Errands:
    """Runs errands; what comes of them is delivered to the thread that draws.

    `boot_id` is of the supervisor that a person looks at: no other one is asked for anything.
    """

    def __init__(self, address: str | None, deliver: Deliver) -> None:
        self._address = address
        self._deliver = deliver
        self._clients: set[Client] = set()
        self._lock = threading.Lock()
        self._closed = False

    def run(
        self,
        boot_id: str,
        errand: Callable[[Client], Found],
        then: Callable[[Found], None],
        failed: Callable[[Outcome], None],
    ) -> None:
        """Start an errand and return; its value goes to `then`, or why there is none to `failed`."""
        run = threading.Thread(
            target=self._run, args=(boot_id, errand, then, failed), name="gen-worker-errand", daemon=True
        )
        run.start()

    def close(self) -> None:
        """Wait for no answer any more; what was asked for goes on."""
        with self._lock:
            self._closed = True
            clients = list(self._clients)
        for client in clients:
            client.close()

    def _run(
        self,
        boot_id: str,
        errand: Callable[[Client], Found],
        then: Callable[[Found], None],
        failed: Callable[[Outcome], None],
    ) -> None:
        try:
            with Client(self._address, CONNECT_S, name="gen-worker top") as client:
                self._keep(client)
                try:
                    found = self._asked(client, boot_id, errand)
                finally:
                    self._drop(client)
        except TimeoutError:
            self._deliver(lambda: failed(Outcome("no answer yet; it goes on", "warning")))
        except (SupervisorUnreachable, SeveralSupervisors, OSError) as error:
            outcome = Outcome(_with_hint(str(error), getattr(error, "hint", "")), "error")
            self._deliver(lambda: failed(outcome))
        else:
            self._deliver(lambda: then(found))

    def _asked(self, client: Client, boot_id: str, errand: Callable[[Client], Found]) -> Found:
        if client.supervisor.boot_id != boot_id:
            raise SupervisorUnreachable("the supervisor is another one now", "look again: nothing was done")
        return errand(client)

    def _keep(self, client: Client) -> None:
        with self._lock:
            self._clients.add(client)
            closed = self._closed
        if closed:
            client.close()

    def _drop(self, client: Client) -> None:
        with self._lock:
            self._clients.discard(client)


# --- what is asked for ------------------------------------------------------------------------------------------------


def cancel(job: str) -> Errand:
    """Ask a job to end."""

    def errand(client: Client) -> Outcome:
        if client.cancel(job, SOON_S):
            return Outcome(f"{job} is canceled")
        return Outcome(f"{job} had ended by itself", "warning")

    return errand


def kill(job: str) -> Errand:
    """End a job by ending its child."""
    return lambda client: told_killed(job, client.kill(job, now=True, timeout_s=SOON_S))


def restart(device: str, *, now: bool) -> Errand:
    """Replace a device's child."""
    return lambda client: told_restarted(client.restart(device, now, timeout_s=LONG_S))


def drain(device: str, *, undo: bool) -> Errand:
    """Give a device no more jobs, or jobs again."""
    return lambda client: told_drained(client.drain(device, undo=undo, timeout_s=LONG_S))


def told_killed(job: str, killed: Killed) -> Outcome:
    """Return what a kill came to."""
    match killed.outcome:
        case "killed":
            return Outcome(f"{job} was killed after {duration(killed.seconds)}")
        case "finished":
            return Outcome(f"{job} had finished by itself")
        case "not_found":
            return Outcome(f"no request {job} any more: it has ended", "warning")
        case "ambiguous":
            return Outcome(_with_hint(f"{job} may mean several requests", "use `gen-worker kill`"), "error")


def told_restarted(restarted: Restarted) -> Outcome:
    """Return what a restart came to."""
    device = restarted.device
    match restarted.outcome:
        case "restarted":
            return Outcome(f"{device} has child {restarted.pid} after {duration(restarted.seconds)}")
        case "failed":
            text = f"{device} has no new child: {restarted.message or 'no reason given'}"
            return Outcome(_with_hint(text, "`e` shows what the last one died of"), "error")
        case "not_found":
            return Outcome(f"no device {device} any more", "error")
        case "lost":
            text = f"{device} has no child, and will have none"
            return Outcome(_with_hint(text, "restart the supervisor once it works again"), "error")


def told_drained(drained: Drained) -> Outcome:
    """Return what a drain, or its end, came to."""
    device = drained.device
    match drained.outcome:
        case "drained":
            return Outcome(f"{device} is drained: nothing runs there")
        case "undrained":
            return Outcome(f"{device} takes jobs again")
        case "not_found":
            return Outcome(f"{device} cannot be drained: the supervisor knows no such device", "error")
        case "lost":
            return Outcome(f"{device} has no child, and takes no jobs anyway", "warning")


def _with_hint(text: str, hint: str) -> str:
    return f"{text}\nhint: {hint}" if hint else text
