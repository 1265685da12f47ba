"""A worker as its orchestrator sees it: what it says of itself, and who here answers what the orchestrator wants."""

import asyncio
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from gen_worker.settings import Settings
from gen_worker.wire.scheduler import (
    CancelJob,
    Drain,
    FnUnavailable,
    Hello,
    HelloAck,
    ModelOp,
    RunJob,
    StateDelta,
    WorkerFrame,
    WorkerResources,
)
from gen_worker_supervisor.files.inputs import Inputs
from gen_worker_supervisor.files.uploads import Uploads
from gen_worker_supervisor.link.availability import Availability, availability
from gen_worker_supervisor.link.jobs import LinkJobs
from gen_worker_supervisor.link.models import LinkModels
from gen_worker_supervisor.supervisor import Supervisor

LOOK_S = 0.1  # how late a change of what this worker can do may be told


class Worker:
    """One worker towards its orchestrator: its session, over as many connections as it takes."""

    def __init__(
        self,
        supervisor: Supervisor,
        uploads: Uploads,
        inputs: Inputs,
        settings: Settings,
        *,
        worker_id: str,
        release_id: str,
        resources: Callable[[], WorkerResources],
        free_vram_bytes: Callable[[], int],
        on_drain: Callable[[float | None], None],
    ) -> None:
        self._supervisor = supervisor
        self._inputs = inputs
        self._worker_id = worker_id
        self._release_id = release_id
        self._resources = resources
        self._free_vram_bytes = free_vram_bytes
        self._on_drain = on_drain
        self._send: Callable[[WorkerFrame], None] = lambda frame: None
        self._loop = asyncio.get_running_loop()
        self._told: StateDelta | None = None
        self._gated: dict[str, FnUnavailable] = {}
        self._looking: asyncio.TimerHandle | None = None
        self._connected = False
        self.models = LinkModels(supervisor, self._tell)
        self.jobs = LinkJobs(
            supervisor,
            uploads,
            self.models,
            self._tell,
            later=self._loop.call_later,
            max_concurrency=settings.max_concurrency,
        )

    def start(self, send: Callable[[WorkerFrame], None]) -> None:
        """Say things over a link from now on, and look at what has changed."""
        self._send = send
        self._look()

    def close(self) -> None:
        """Look at nothing any more."""
        if self._looking is not None:
            self._looking.cancel()

    # --- what the link asks and tells ---

    def hello(self) -> Hello:
        """Return everything as it is now."""
        self._notice(self._availability())
        return Hello(
            worker_id=self._worker_id,
            release_id=self._release_id,
            resources=self._resources(),
            state=self._availability().state,
            models=self.models.residency(),
            in_flight=tuple(self.jobs.ledger.in_flight(time.monotonic())),
        )

    def acknowledged(self, ack: HelloAck) -> None:
        """Take what the orchestrator says of files and models; on a new connection, say everything again."""
        self.jobs.file_base_url = ack.file_base_url
        self._inputs.trusted_origin = origin_of(ack.file_base_url)
        self.models.acknowledged(ack)
        if self._connected:
            return
        self._connected = True
        found = self._availability()
        self._notice(found)
        for gate in found.gated:
            self._send(gate)
        self._told = found.state
        self._send(found.state)
        self.jobs.acknowledged()

    def received(self, frame: RunJob | CancelJob | ModelOp | Drain) -> None:
        """Do what the orchestrator wants."""
        match frame:
            case RunJob():
                self.jobs.run(frame)
            case CancelJob():
                self.jobs.cancel(frame)
            case ModelOp():
                self.models.operate(frame)
            case Drain(deadline_ms=deadline_ms):
                self._on_drain(deadline_ms / 1000 if deadline_ms > 0 else None)
                self.look_now()

    def left(self, frame: WorkerFrame, *, written: bool) -> None:
        """A message has left, or was dropped."""
        self.jobs.left(frame, written=written)

    def disconnected(self) -> None:
        """The connection is gone: what is said meanwhile is said again, as it is then, on the next one."""
        self._connected = self.jobs.connected = False

    # --- what it says by itself ---

    def look_now(self) -> None:
        """Tell what has changed."""
        self.models.changed()
        if not self._connected:
            return
        found = self._availability()
        for gate in found.gated:
            if self._gated.get(gate.function_name) != gate:
                self._send(gate)
        self._notice(found)
        if found.state != self._told:
            self._told = found.state
            self._send(found.state)

    def _look(self) -> None:
        self._looking = self._loop.call_later(LOOK_S, self._look)
        self.models.tick()
        self.jobs.tick()
        self.look_now()

    def _availability(self) -> Availability:
        fleet = self._supervisor.fleet
        free = self._free_vram_bytes()
        return availability(fleet, time.monotonic(), draining=fleet.draining, free_vram_bytes=free)

    def _notice(self, found: Availability) -> None:
        self._gated = {gate.function_name: gate for gate in found.gated}
        self.jobs.gates = {gate.function_name: gate.reason for gate in found.gated}

    def _tell(self, frame: WorkerFrame) -> None:
        """Say something over the connection there is; without one it is dropped, as the next `Hello` says it anew."""
        if self._connected:
            self._send(frame)
        else:
            self.jobs.left(frame, written=False)


def origin_of(url: str) -> str:
    """Return the scheme, host and port of a URL; "" where it is none."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}" if parts.scheme and parts.netloc else ""
