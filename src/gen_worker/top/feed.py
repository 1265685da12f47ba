"""Keep the latest status document of one supervisor at hand, and find the way back to it when it has gone.

A thread of its own, which knows nothing of what is drawn.
"""

import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from gen_worker.client.blocking import Client
from gen_worker.rundir import SeveralSupervisors, SupervisorUnreachable
from gen_worker.wire.status import Status

if TYPE_CHECKING:
    from types import TracebackType

RETRY_S = 1.0  # between two tries to reach a supervisor that has gone
LATE_S = 3.0  # a document so much later than it should be is told to be old
_JOBS = 200  # waiting jobs of each queue: more than anybody scrolls through


class Seen(NamedTuple):
    """The latest that is known of the supervisor."""

    status: Status
    boot_id: str
    at: float  # its arrival, as `time.monotonic` counts


class Feed:
    """Follows one supervisor; what it saw last stays when that one is gone.

    `address` is as for `Client`: with None the only supervisor alive is meant, each time anew. A `client` that is
    handed over is used first, and closed.
    """

    def __init__(self, address: str | None, every_s: float = 1.0, client: Client | None = None) -> None:
        self.address = address
        self.latest: Seen | None = None
        self.connected = False
        self._every_s = every_s
        self._client = client
        self._tell: Callable[[], None] = lambda: None
        self._turn = threading.Condition()
        self._paused = False
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="gen-worker-feed", daemon=True)

    def __enter__(self) -> "Feed":
        self._thread.start()
        return self

    def __exit__(self, *raised: "type[BaseException] | BaseException | TracebackType | None") -> None:
        self.close()

    def close(self) -> None:
        """End the subscription and the thread."""
        with self._turn:
            self._closing = True
            self._tell = lambda: None
            self._turn.notify_all()
            client = self._client
        if client is not None:
            client.close()
        if self._thread.ident is not None:
            self._thread.join(RETRY_S)

    def tell(self, tell: Callable[[], None]) -> None:
        """Have `tell` called, in the feed's thread, whenever there is news; at once where there is some already."""
        self._tell = tell
        if self.latest is not None:
            tell()

    def pause(self, paused: bool) -> None:
        """Ask the supervisor for nothing until it is undone; then there is a document at once."""
        with self._turn:
            self._paused = paused
            self._turn.notify_all()

    def stale_s(self) -> float | None:
        """Return how old the latest document is where a newer one should be there; None where all is well."""
        if self.latest is None:
            return None
        age_s = time.monotonic() - self.latest.at
        return age_s if not self.connected or age_s > self._every_s + LATE_S else None

    # --- in its thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            try:
                with self._reached() as client:
                    self._follow(client)
            except (SupervisorUnreachable, SeveralSupervisors, OSError, msgspec.DecodeError):
                self._lost()

    def _reached(self) -> Client:
        """Return a client that `close` knows of."""
        client = self._client or Client(self.address, name="gen-worker top")
        with self._turn:
            self._client = client
            if self._closing:
                client.close()
        return client

    def _follow(self, client: Client) -> None:
        boot_id = client.supervisor.boot_id
        self.connected = True
        while self._may_go_on():
            with closing(client.watch(self._every_s, jobs=_JOBS)) as documents:
                for document in documents:
                    self.latest = Seen(msgspec.json.decode(document, type=Status), boot_id, time.monotonic())
                    self._tell()
                    if self._paused or self._closing:
                        break

    def _may_go_on(self) -> bool:
        """Wait while it is paused; return whether there is more to do."""
        with self._turn:
            self._turn.wait_for(lambda: self._closing or not self._paused)
        return not self._closing

    def _lost(self) -> None:
        self.connected = False
        self._tell()
        with self._turn:
            self._client = None
            self._turn.wait_for(lambda: self._closing, RETRY_S)
