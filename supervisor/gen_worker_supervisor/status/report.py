"""Make the document of `gen-worker ps --json` from the fleet and the status pages; asks no child."""

import importlib.metadata
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice

import msgspec

from gen_worker.wire.messages import Engine
from gen_worker.wire.page import Reading
from gen_worker.wire.status import (
    DeviceStatus,
    DownloadStatus,
    EngineStatus,
    FunctionStatus,
    JobStatus,
    LinkStatus,
    MemberStatus,
    MemoryStatus,
    Status,
)
from gen_worker_supervisor.core.admission import seconds_a_job, warm_children
from gen_worker_supervisor.core.catalog import Model
from gen_worker_supervisor.core.naming import OF_ALL, is_hung, silent_s, stall_limit_s, work_of
from gen_worker_supervisor.core.phases import Health, JobState, ModelState, Phase
from gen_worker_supervisor.core.state import Device, Fleet, Function, Job, drained_away, holds, unheld
from gen_worker_supervisor.history.tally import Tally
from gen_worker_supervisor.status.host_facts import HostFacts
from gen_worker_supervisor.status.model_report import host_models, resident_models
from gen_worker_supervisor.status.readiness import is_ready
from gen_worker_supervisor.supervisor import Supervisor

STATES = {
    Phase.FORKING: "starting",
    Phase.IMPORTING: "starting",
    Phase.READY: "idle",
    Phase.LOADING: "loading",
    Phase.BUSY: "busy",
    Phase.DRAINING: "drain",
    Phase.SUSPECT: "hung",
    Phase.DYING: "dying",
    Phase.SETTLING: "restart",
    Phase.BACKOFF: "restart",
}
DRAINED_STATES = {Phase.READY: "drained", Phase.BUSY: "drain"}


EVENTS_SENT = 24  # of those that are remembered, to who watches: a document of 8 GPUs stays within 16 kB
ENDING = (Phase.DRAINING, Phase.SUSPECT, Phase.DYING, Phase.SETTLING, Phase.BACKOFF)


class Reporter:
    """Knows what does not change about this supervisor."""

    def __init__(self, supervisor: Supervisor, serve: str | None, facts: Callable[[], HostFacts]) -> None:
        """`facts` tells how the host is, at once."""
        self._supervisor = supervisor
        self._facts = facts
        self._serve = serve
        self._version = importlib.metadata.version("gen-worker")
        self._host = socket.gethostname()
        self._began = time.monotonic()
        self.http: str | None = None  # where probes and metrics are served
        self.link: Callable[[], LinkStatus] | None = (
            None  # tells how the link to an orchestrator is, where there is one
        )

    def document(self, waiting: int | None = None) -> bytes:
        """Return the document as JSON; `waiting` as `status` takes it."""
        return msgspec.json.encode(self.status(waiting))

    def status(self, waiting: int | None = None) -> Status:
        """Return the document, with so many waiting jobs of each queue and the latest events; None: with all."""
        self._supervisor.look_at_pages()
        now = time.monotonic()
        fleet = self._supervisor.fleet
        facts, log = self._facts(), self._supervisor.log
        memory_used, memory_budget = self._supervisor.models.memory_use
        graveyard = self._supervisor.graveyard
        return Status(
            ts=time.time(),
            host=self._host,
            version=self._version,
            pid=os.getpid(),
            uptime_s=round(now - self._began, 3),
            **facts._asdict(),
            gpus=[self._device(device, now) for device in fleet.devices],
            jobs=_jobs(fleet, now, log.hide, waiting),
            jobs_left_out=_left_out(fleet, waiting),
            downloads=[_download(fleet, model, now) for model in fleet.catalog.under_way()],
            models=host_models(fleet, self._supervisor.models.in_memory, log.hide, now),
            host_memory_used=memory_used,
            host_memory_budget=memory_budget,
            vram_margin=self._supervisor.margin_bytes,
            events=list(log.events)[0 if waiting is None else -EVENTS_SENT :],
            functions=_functions(fleet, now, log.hide, self._supervisor.tally),
            draining=fleet.draining,
            jobs_done=fleet.done,
            jobs_failed=fleet.failed,
            serve=self._serve,
            link=None if self.link is None else self.link(),
            loop_lag_p99_s=self._supervisor.pulse.p99_s(),
            loop_lag_max_s=self._supervisor.pulse.max_s(),
            memory=_memory(fleet),
            quarantined=fleet.blame.refused(now),
            ready=is_ready(fleet),
            http=self.http,
            loads={source: each.status() for source, each in self._supervisor.tally.loads.items()},
            postmortems=0 if graveyard is None else graveyard.written,
            downloaded_bytes=fleet.catalog.downloaded_bytes,
        )

    def _device(self, device: Device, now: float) -> DeviceStatus:
        child = device.child
        process = self._supervisor.process_of(child) if child is not None else None
        reading = process.reading() if process is not None else None
        running = (
            [job for job in child.leased.values() if job.state is not JobState.LEASED] if child is not None else []
        )
        beat = reading.beat_at if reading is not None and reading.beats else None
        work = work_of(self._supervisor.fleet, child) if child is not None else None
        ours = vram_ours(device, self._readings(device))
        return DeviceStatus(
            index=device.index,
            uuid=device.uuid,
            name=device.name,
            product=device.product or None,
            mig=device.profile,
            pid=child.pid if process is not None and child is not None else None,
            state=_state(device),
            vram_used=device.vram_used,
            vram_total=device.vram_total,
            vram_budget=device.allowed_bytes or None,
            vram_ours=ours,
            vram_other=None if ours is None or device.vram_used is None else max(0, device.vram_used - ours),
            vram_unattributed=None if device.vram_baseline is None else device.unattributed,
            util=device.busy,
            temp=device.temperature,
            power_w=device.watts,
            models=[] if child is None or process is None else resident_models(self._supervisor.fleet, child),
            engines=[] if child is None or process is None else list(map(_engine, child.engines.values())),
            job=self._supervisor.log.hide(running[0].request_id) if running else None,
            jobs=len(child.leased) if child is not None else 0,
            heartbeat_age_s=None if beat is None else round(now - beat, 3),
            restarts=device.restarts,
            deaths=dict(device.deaths),
            restart_in_s=None if device.restart_at is None else round(max(0.0, device.restart_at - now), 3),
            rss=reading.rss or None if reading is not None else None,
            own_bytes=child.rss or None if child is not None else None,
            jobs_done=child.done if child is not None else 0,
            age_s=None if child is None or process is None else round(now - child.born, 3),
            health=device.health.value,
            drained=device.drained,
            reason=self._supervisor.log.hide(device.given_up or device.reason) or None,
            phase=child.phase.value if child is not None else None,
            loading=child.loading if child is not None else None,
            hang=child.hang.value if child is not None and child.hang is not None else None,
            silent_s=None if child is None or work is None else round(max(0.0, silent_s(child, work, now)), 3),
            loading_bytes=child.loading_done if child is not None and child.loading is not None else None,
            loading_total=child.loading_total or None if child is not None and child.loading is not None else None,
            members=[_member(gpu) for gpu in device.members],
        )

    def _readings(self, device: Device) -> list[Reading | None]:
        """Return what the living children of a device say of themselves: of one that is replaced there are two."""
        children = [each for each in (device.child, device.coming, *device.leaving) if each is not None]
        processes = [self._supervisor.process_of(child) for child in children]
        return [process.reading() for process in processes if process is not None]


def _member(gpu: Device) -> MemberStatus:
    return MemberStatus(
        index=gpu.index,
        uuid=gpu.uuid,
        name=gpu.name,
        product=gpu.product or None,
        vram_used=gpu.vram_used,
        vram_total=gpu.vram_total,
        vram_unattributed=None if gpu.vram_baseline is None else gpu.unattributed,
        util=gpu.busy,
        temp=gpu.temperature,
        power_w=gpu.watts,
    )


def vram_ours(device: Device, readings: Iterable[Reading | None]) -> int | None:
    """Return the bytes of a GPU that its children hold, by their own account; None where one of them does not say.

    It is what their allocators hold. What the driver takes for each process that uses a GPU, some hundred MiB, no
    process can tell: it is not in it.
    """
    if device.kind != "cuda":
        return None
    held = [0 if reading is None else reading.vram_held for reading in readings]
    return sum(held) if all(held) else None


def _engine(engine: Engine) -> EngineStatus:
    return EngineStatus(engine.instance, engine.name, engine.state, engine.pid or None, engine.port or None)


def _memory(fleet: Fleet) -> MemoryStatus | None:
    read = fleet.memory
    if read is None:
        return None
    return MemoryStatus(read.used, read.limit, fleet.memory_reserve, read.source, read.oom_kills)


def _download(fleet: Fleet, model: Model, now: float) -> DownloadStatus:
    wanted_by = {
        function.name: None
        for function in fleet.variants()
        if any(slot.wanted == model.wanted for slot in function.surveyed.slots)
    }
    bytes_per_s = model.bytes_per_s(now)
    return DownloadStatus(
        ref=model.wanted.ref,
        bytes_done=model.bytes_done,
        bytes_total=model.bytes_total,
        bytes_per_s=None if bytes_per_s is None else round(bytes_per_s, 1),
        state="downloading" if model.state is ModelState.FETCHING else "queued",
        wanted_by=list(wanted_by),
        retries=model.retries,
    )


def _state(device: Device) -> str:
    if device.health in (Health.WEDGED, Health.RETIRED):
        return device.health.value
    if device.given_up is not None:
        return "failed"
    child = device.child
    if child is None:
        return "starting"
    if is_hung(child) and child.phase not in ENDING:
        return "hung"
    return (DRAINED_STATES if device.drained else STATES).get(child.phase, STATES[child.phase])


def _left_out(fleet: Fleet, waiting: int | None) -> int:
    if waiting is None:
        return 0
    return sum(max(0, function.waiting - waiting) for function in fleet.waiting.values())


def _jobs(fleet: Fleet, now: float, hide: Callable[[str], str], waiting: int | None = None) -> list[JobStatus]:
    """Return what holds no place in a queue, then each queue in the order in which it is served."""
    found = [_job(fleet, job, now, hide) for job in fleet.jobs.values() if not job.waiting]
    for function in fleet.waiting.values():
        found += _queue(fleet, function, now, hide, waiting)
    return found


def _queue(
    fleet: Fleet, function: Function, now: float, hide: Callable[[str], str], waiting: int | None
) -> list[JobStatus]:
    """Return how the jobs in a queue stand. There may be ten thousand: what they have in common is looked at once."""
    name, stage = function.name, _missing(fleet, function)
    lead_s, each_s = _starts(fleet, function)
    return [
        JobStatus(
            id=hide(job.request_id),
            function=name,
            status="queued",
            stage=stage,
            deadline_s=None if job.deadline is None else round(max(0.0, job.deadline - now), 3),
            link=job.client.link,
            attempt=job.attempt,
            queued_s=round(now - job.submitted, 3),
            tenant=hide(job.tenant) if job.tenant else None,
            priority=job.priority,
            position=position,
            starts_in_s=None if each_s is None else round(lead_s + position * each_s, 3),
        )
        for position, job in enumerate(islice(function.queue, waiting), 1)
    ]


def _starts(fleet: Fleet, function: Function) -> tuple[float, float | None]:
    """Return after how long a function's jobs begin to be served, and then each one more; None: nobody knows."""
    surveyed, run_s = function.surveyed, function.median_s
    if run_s is None or not fleet.catalog.ready(surveyed.slots):
        return 0.0, None
    if warm_children(fleet, function):
        return 0.0, seconds_a_job(fleet, function)
    return fleet.instance(surveyed.instance).load_s - run_s, run_s  # the first one waits for no other job


def _missing(fleet: Fleet, function: Function) -> str | None:
    """Return what the jobs in a queue wait for that has nothing to do with other jobs."""
    surveyed = function.surveyed
    for slot in surveyed.slots:
        model = fleet.catalog.of(slot.wanted)
        if not model.here:
            share = f" {model.bytes_done / model.bytes_total:.0%}" if model.bytes_total else ""
            return f"downloading {model.wanted.ref}{share}" if model.bytes_done else f"waiting for {model.wanted.ref}"
    instance = surveyed.instance
    loading = any(device.child is not None and device.child.loading == instance for device in fleet.devices)
    return "loading" if instance and loading else None


def _job(fleet: Fleet, job: Job, now: float, hide: Callable[[str], str]) -> JobStatus:
    started = job.started
    waits = "waiting for another with its payload" if job.held else "fetching its inputs"
    stage = job.stage or (waits if job.fetching else None)
    return JobStatus(
        id=hide(job.request_id),
        function=job.function.name,
        status="ending" if job.ending is not None else "queued" if job.state is JobState.QUEUED else "running",
        stage=None if stage is None else hide(stage),
        progress=job.progress,
        elapsed_s=round(now - started, 3) if started is not None else 0.0,
        deadline_s=None if job.deadline is None else round(max(0.0, job.deadline - now), 3),
        gpu=job.child.device.name if job.child is not None else None,
        link=job.client.link,
        attempt=job.attempt,
        queued_s=round((started or now) - job.submitted, 3),
        tenant=hide(job.tenant) if job.tenant else None,
        priority=job.priority,
        hang=_hang(fleet, job),
    )


def _hang(fleet: Fleet, job: Job) -> str | None:
    """Return how a job hangs: by itself, or with everything in its child."""
    child = job.child
    if child is None or child.hang is None or job.started is None:
        return None
    work = work_of(fleet, child)
    return child.hang.value if child.hang in OF_ALL or (work is not None and job in work.jobs) else None


def _functions(fleet: Fleet, now: float, hide: Callable[[str], str], tally: Tally) -> list[FunctionStatus]:
    queued: Counter[str] = Counter()  # there may be thousands of functions: few of them have a queue
    for each in fleet.waiting.values():
        queued[each.name] += each.waiting
    return [_function(fleet, each, queued[each.name], now, hide, tally) for each in fleet.functions.values()]


def _function(
    fleet: Fleet, function: Function, queued: int, now: float, hide: Callable[[str], str], tally: Tally
) -> FunctionStatus:
    counted = tally.functions.get(function.name)
    reason = function.unavailable if function.unavailable is not None and now < function.available_at else None
    reason = reason or fleet.blame.breaker(function.name, now) or drained_away(fleet, function) or None
    if reason is None and not any(holds(device, function) for device in fleet.devices):
        reason = unheld(fleet, function)
    return FunctionStatus(
        name=function.name,
        state="available" if reason is None else "unavailable",
        reason=None if reason is None else hide(reason),
        queued=queued,
        median_run_s=function.median_s,
        stall_limit_s=round(stall_limit_s(fleet, function), 3),
        ended={} if counted is None else dict(counted.ended),
        run=None if counted is None else counted.run.status(),
        wait=None if counted is None else counted.wait.status(),
    )
