"""What an operator asks of the whole supervisor over the control socket, and the status document by subscription.

Nothing here waits: what takes its time is answered when it is over, and who does not take what it asked for misses it.
"""

import asyncio
import sys
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, TypeAlias, assert_never

from gen_worker.wire import control as wire
from gen_worker_supervisor.clients.model_verbs import ModelVerbs
from gen_worker_supervisor.clients.tailing import Tail
from gen_worker_supervisor.core.blame import charges_told
from gen_worker_supervisor.core.bodies import OutputBody
from gen_worker_supervisor.logs.redaction import redacted
from gen_worker_supervisor.loop.turns import Turns
from gen_worker_supervisor.stacks import Shown, Stacks
from gen_worker_supervisor.status.report import Reporter
from gen_worker_supervisor.supervisor import Supervisor

SHARED_S = 0.2  # a document so young is given to the next who asks, too
LEAST_EVERY_S = 0.1  # between two documents of a subscription

Verb: TypeAlias = (
    wire.List | wire.Read | wire.Restart | wire.Drain | wire.Stack | wire.Model | wire.Quarantine | wire.Pardon
)


class Asker(Protocol):
    """Who asked, and gets the answer."""

    @property
    def caught_up(self) -> bool:
        """Whether everything so far was read: what lies in the kernel's buffers is somebody's memory, too."""
        ...

    @property
    def closed(self) -> bool:
        """Whether nothing that is sent arrives."""
        ...

    def send(self, frame: wire.ServerFrame, descriptors: Sequence[int] = ()) -> None:
        """Take a frame."""
        ...

    def send_body(self, body: OutputBody, frame_of: Callable[[wire.Value], wire.ServerFrame]) -> None:
        """Take a frame with a body of any length."""
        ...


class Verbs:
    """Does what operators ask."""

    def __init__(self, supervisor: Supervisor, loop: asyncio.AbstractEventLoop, reporter: Reporter) -> None:
        self._supervisor = supervisor
        self._loop = loop
        self._reporter = reporter
        self._models = ModelVerbs(supervisor, hide=lambda text: redacted(supervisor.log.hide(text)))
        self._documents: dict[int, tuple[float, bytes]] = {}
        self._subscriptions: set[Subscription] = set()
        self.turns = Turns(loop)  # who watches may want a document each
        self._stacks = Stacks(supervisor, loop)
        self._tail = Tail(supervisor.log.ring, loop)
        supervisor.log.on_lines = self._tail.on_lines

    def perform(self, frame: Verb, asker: Asker) -> None:
        """Do what a frame asks; the answer goes to `asker`, now or when it is done."""
        match frame:
            case wire.List():
                asker.send_body(self._reporter.document(), wire.Listed)
            case wire.Read():
                self._tail.read(frame, asker)
            case wire.Restart():
                self._restart(frame, asker)
            case wire.Drain():
                self._drain(frame, asker)
            case wire.Stack():
                self._stack(frame, asker)
            case wire.Model():
                self._models.perform(frame, asker.send)
            case wire.Quarantine():
                self._quarantine(asker)
            case wire.Pardon():
                self._pardon(frame, asker)
            case _:
                assert_never(frame)

    def forget(self, asker: Asker) -> None:
        """Somebody who asked has gone."""
        self._tail.forget(asker)

    # --- the status document ------------------------------------------------------------------------------------------

    def watch(self, asker: Asker, every_ms: int, jobs: int) -> "Subscription":
        """Send the status document again and again until the subscription is closed."""
        waiting = min(max(0, jobs), sys.maxsize)
        made = Subscription(self, self._loop, asker, max(LEAST_EVERY_S, every_ms / 1000), waiting)
        self._subscriptions.add(made)
        return made

    def show_now(self) -> None:
        """Send the document to whoever watches without waiting for their intervals: something is wrong."""
        self._documents.clear()
        for subscription in self._subscriptions:
            subscription.hurry()

    def close(self, subscription: "Subscription") -> None:
        """Somebody watches no more."""
        self._subscriptions.discard(subscription)

    def document(self, jobs: int) -> bytes:
        """Return the document with so many waiting jobs of each queue at most; many who watch cost what one does."""
        now = self._loop.time()
        made_at, document = self._documents.get(jobs, (float("-inf"), b""))
        if now - made_at >= SHARED_S:
            document = self._reporter.document(jobs)
            self._documents = {each: kept for each, kept in self._documents.items() if now - kept[0] < SHARED_S}
            self._documents[jobs] = (now, document)
        return document

    # --- devices ------------------------------------------------------------------------------------------------------

    def _restart(self, frame: wire.Restart, asker: Asker) -> None:
        name, devices = frame.device, self._supervisor.fleet.devices
        device = next((device for device in devices if device.is_called(name)), None)
        if device is None or device.lost:
            outcome: Literal["not_found", "lost"] = "not_found" if device is None else "lost"
            asker.send(wire.Restarted(name, outcome, candidates=[device.name for device in devices]))
            return
        began = self._loop.time()

        def tell(pid: int | None, message: str) -> None:
            seconds = self._loop.time() - began
            asker.send(wire.Restarted(name, "failed" if pid is None else "restarted", pid, seconds, message))

        self._supervisor.restart(device, tell, at_once=frame.now)

    def _drain(self, frame: wire.Drain, asker: Asker) -> None:
        known = self._supervisor.fleet.devices
        named = [device for device in known if not frame.device or device.is_called(frame.device)]
        devices = [device for device in named if not device.lost]
        if not devices:
            outcome: Literal["not_found", "lost"] = "lost" if named else "not_found"
            asker.send(wire.Drained(frame.device, outcome, candidates=[device.name for device in known]))
            return
        began = self._loop.time()

        def tell() -> None:
            drained = all(device.drained for device in devices)
            names, seconds = [device.name for device in devices], self._loop.time() - began
            asker.send(wire.Drained(frame.device, "drained" if drained else "undrained", names, seconds))

        self._supervisor.drain_devices(devices, tell, undo=frame.undo)

    def _stack(self, frame: wire.Stack, asker: Asker) -> None:
        name, devices = frame.device, self._supervisor.fleet.devices
        device = next((device for device in devices if device.is_called(name)), None)
        if device is None:
            asker.send(wire.Stacked(name, "not_found", candidates=[device.name for device in devices]))
            return

        def tell(shown: Shown) -> None:
            asker.send(wire.Stacked(name, shown.outcome, shown.pid, list(shown.lines), shown.message))

        self._stacks.ask(device, tell)

    # --- payloads -----------------------------------------------------------------------------------------------------

    def _quarantine(self, asker: Asker) -> None:
        fleet, now = self._supervisor.fleet, self._loop.time()
        asker.send(charges_told(fleet.blame, fleet.functions, self._supervisor.log.hide, now))

    def _pardon(self, frame: wire.Pardon, asker: Asker) -> None:
        function, digest = frame.function, frame.digest
        count = self._supervisor.fleet.blame.pardon(self._loop.time(), function, digest)
        if count:
            whose = f" of `{function}`" if function else ""
            which = f" of payloads {digest}…" if digest else ""
            charges = "1 charge" if count == 1 else f"{count} charges"
            text = f"an operator had {charges}{whose}{which} forgotten"
            self._supervisor.log.event("info", "quarantine", text)
            self._supervisor.fleet.doubt()
            self._supervisor.handle()  # jobs that waited for one of these payloads to be tried go now
        asker.send(wire.Pardoned(count))


class Subscription:
    """One client's: the document now and every so often, but only while the client takes them."""

    def __init__(self, verbs: Verbs, loop: asyncio.AbstractEventLoop, asker: Asker, every_s: float, jobs: int) -> None:
        self._verbs = verbs
        self._loop = loop
        self._asker = asker
        self._every_s = every_s
        self._jobs = jobs
        self._due = loop.time()
        self._timer: asyncio.TimerHandle | None = None
        verbs.turns.soon(self._show)

    def _show(self) -> None:
        """Send the document to a client that has taken the last one, and come back when the next is due."""
        if not self._asker.closed and self._asker.caught_up:
            self._asker.send_body(self._verbs.document(self._jobs), wire.Seen)
        if self._asker.closed:  # which may just have been found
            self.close()
            return
        self._due = max(self._due + self._every_s, self._loop.time())
        self._timer = self._loop.call_at(self._due, self._verbs.turns.soon, self._show)

    def hurry(self) -> None:
        """Send the document next, and the following ones at their interval from there."""
        if self._timer is not None:
            self._timer.cancel()
        self._due = self._loop.time()
        self._verbs.turns.soon(self._show)

    def close(self) -> None:
        """Send nothing more."""
        self._verbs.close(self)
        self._verbs.turns.forgo(self._show)
        if self._timer is not None:
            self._timer.cancel()
