"""A worker as an earlier orchestrator sees it: what it says of itself, and who here does what it wants."""

import asyncio
import time
from collections.abc import Callable, Collection
from typing import TypeAlias

from gen_worker.settings import Settings
from gen_worker.wire.earlier import (
    DeploymentModelConfig,
    InterruptTaskCommand,
    LoadModelCommand,
    Message,
    RealtimeCloseCommand,
    RealtimeFrame,
    RealtimeOpenCommand,
    Report,
    TaskExecutionRequest,
    TaskExecutionResult,
    UnloadModelCommand,
    WorkerRegistration,
)
from gen_worker.wire.scheduler import PROTOCOL_VERSION, HelloAck
from gen_worker_supervisor.earlier_link.jobs import EarlierJobs, Files, Limits
from gen_worker_supervisor.earlier_link.models import EarlierModels
from gen_worker_supervisor.earlier_link.realtime import Sessions
from gen_worker_supervisor.earlier_link.registration import Host, resources, schemas
from gen_worker_supervisor.files.inputs import Inputs
from gen_worker_supervisor.link.availability import Availability, availability
from gen_worker_supervisor.supervisor import Supervisor

LOOK_S = 0.1  # how late a change of what this worker can do may be told

Facts: TypeAlias = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]


class EarlierWorker:
    """One worker towards its orchestrator, over as many connections as it takes."""

    def __init__(
        self,
        supervisor: Supervisor,
        inputs: Inputs,
        settings: Settings,
        host: Host,
        *,
        free_vram_bytes: Callable[[], int],
        described: Collection[str] = (),
    ) -> None:
        self._supervisor = supervisor
        inputs.folders.lie_in(settings.runs_dir)
        self._settings = settings
        self._host = host
        self._free_vram_bytes = free_vram_bytes
        self._send: Callable[[Report], None] = lambda message: None
        self._schemas = schemas(supervisor.survey)
        self._facts_told: Facts | None = None
        self._connected = False
        self._looking: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        limits = Limits(
            concurrency=settings.max_concurrency,
            input_bytes=settings.max_input_bytes,
            delta_bytes=settings.max_output_delta_bytes,
            delta_events=settings.max_output_delta_events,
        )
        token = settings.file_api_token or settings.cozy_hub_token
        files = Files(settings.file_api_url or settings.cozy_hub_url, token)
        self.models = EarlierModels(supervisor, self._say)
        self.jobs = EarlierJobs(supervisor, self._say, self.models, limits, files, described)
        self.sessions = Sessions(self.jobs, self._say, frame_bytes=settings.max_ws_frame_bytes)

    def start(self, send: Callable[[Report], None]) -> None:
        """Say things over a link from now on, and look at what has changed."""
        self._send = send
        self._look()

    def close(self) -> None:
        """Look at nothing any more."""
        if self._looking is not None:
            self._looking.cancel()

    # --- what the link asks and tells ---

    def registration(self, *, is_heartbeat: bool) -> WorkerRegistration:
        """Return everything as it is now."""
        available, hot, warm = self._facts(self._availability())
        told = resources(
            self._supervisor.fleet,
            self._host,
            self._settings,
            available=available,
            schemas=self._schemas,
            hot=hot,
            warm=warm,
            free_vram_bytes=self._free_vram_bytes(),
        )
        self._facts_told = available, hot, warm
        return WorkerRegistration(resources=told, is_heartbeat=is_heartbeat)

    def live(self) -> list[Report]:
        """A connection is up: what may not have arrived over the one before is sent again."""
        self._connected = True
        self.models.places.acknowledged(HelloAck(protocol_version=PROTOCOL_VERSION))
        return list[Report](self.jobs.results.doubted(time.monotonic()))

    def heard(self, message: Message) -> None:
        """Do what the orchestrator wants."""
        match message:
            case TaskExecutionRequest():
                self.jobs.request(message)
            case InterruptTaskCommand():
                self.jobs.interrupt(message)
            case DeploymentModelConfig():
                self.jobs.configure(message)
            case LoadModelCommand():
                self.models.load(message)
            case UnloadModelCommand():
                self.models.unload(message)
            case RealtimeOpenCommand():
                self.sessions.open(message)
            case RealtimeFrame():
                self.sessions.heard(message)
            case RealtimeCloseCommand():
                self.sessions.hang_up(message)
            case _:
                self._supervisor.log.event("warning", "link", f"the orchestrator sent a {type(message).__name__}")

    def leaving(self, message: Report) -> None:
        """A message is about to be written."""
        if isinstance(message, TaskExecutionResult):
            self.jobs.results.leaving(message.run_id)

    def left(self, message: Report, *, written: bool) -> None:
        """A message has left, or was dropped."""
        self.jobs.left(message, written=written)
        self.sessions.left(message)

    def disconnected(self) -> None:
        """The connection is gone: runs go on, realtime sessions end."""
        self._connected = False
        self.jobs.results.disconnected()
        self.sessions.disconnected()

    @property
    def full(self) -> bool:
        """Whether nothing more should be read for now."""
        return self.sessions.full

    # --- what it says by itself ---

    def look_now(self) -> None:
        """Tell what has changed of the functions and the models; figures that always change wait for the heartbeat."""
        self.models.places.changed()
        found = self._availability()
        self.jobs.gates = {gate.function_name: gate.reason for gate in found.gated}
        if self._connected and self._facts(found) != self._facts_told:
            self._send(self.registration(is_heartbeat=True))

    def _look(self) -> None:
        self._looking = self._loop.call_later(LOOK_S, self._look)
        self.models.places.tick()
        self.jobs.tick()
        self.sessions.tick()
        self.look_now()

    def _availability(self) -> Availability:
        fleet = self._supervisor.fleet
        return availability(fleet, time.monotonic(), draining=fleet.draining, free_vram_bytes=self._free_vram_bytes())

    def _facts(self, found: Availability) -> Facts:
        """Return which functions can be called, which models are with a child, and which are here otherwise."""
        names = sorted((*found.state.available_functions, *found.state.loading_functions))
        return tuple(names), *self.models.hot_and_warm()

    def _say(self, message: Report) -> None:
        self._send(message)
