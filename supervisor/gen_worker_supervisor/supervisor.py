"""The supervisor's loop: something happens, the fleet changes, actions follow.

All on one asyncio loop that no child and no client can hold. Judgement is in `fleet` and `decide`; this performs it.
"""

import asyncio
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import msgspec

from gen_worker.tracing import begun, continued
from gen_worker.wire.channel import DECODE_ERRORS, ProtocolError, close_all
from gen_worker.wire.earlier_runs import packed
from gen_worker.wire.fetching import Destination
from gen_worker.wire.messages import (
    INLINE_LIMIT,
    Body,
    Boot,
    Call,
    Called,
    Done,
    EarlierRun,
    Encoding,
    Event,
    Grant,
    Hangup,
    Item,
    Load,
    Loaded,
    LoadFailed,
    Message,
    More,
    Need,
    Producing,
    Ready,
    Region,
    Release,
    Report,
    Save,
    Saved,
    Stacked,
    Took,
    Unloaded,
)
from gen_worker.wire.messages import Submit as SubmitFrame
from gen_worker.wire.page import Reading
from gen_worker.wire.regions import RegionError
from gen_worker.wire.survey import Survey
from gen_worker_supervisor.core.actions import (
    Action,
    Answer,
    Bury,
    Deliver,
    Discard,
    Finish,
    FreeMemory,
    LetGo,
    LoadOver,
    LookAtGpus,
    Note,
    OrderFetch,
    OrderInputs,
    Run,
    Send,
    Signal,
    Spawn,
    TakeCode,
    Tell,
)
from gen_worker_supervisor.core.bodies import InlinePayload, OutputBody, Payload
from gen_worker_supervisor.core.decide import changes_nothing, decide
from gen_worker_supervisor.core.drains import at_work
from gen_worker_supervisor.core.fleet import apply, start
from gen_worker_supervisor.core.happenings import (
    Began,
    DeviceDrainAsked,
    Died,
    DrainAsked,
    EndAsked,
    Happening,
    InputsRefused,
    Misbehaved,
    Reported,
    RestartAsked,
    Spawned,
    Submitted,
    Ticked,
    Unsent,
    Vanished,
    Weighed,
)
from gen_worker_supervisor.core.ladder import Reason
from gen_worker_supervisor.core.pinning import pinned_keys
from gen_worker_supervisor.core.reports import MOST_SECONDS
from gen_worker_supervisor.core.state import Child, Client, Death, Device, Fleet, Function, Job, Outcome, unloaded
from gen_worker_supervisor.files.inputs import Inputs
from gen_worker_supervisor.files.models import ModelSupply
from gen_worker_supervisor.files.platform import PlatformCalls
from gen_worker_supervisor.files.saving import Saver
from gen_worker_supervisor.files.storing import Storing
from gen_worker_supervisor.history.postmortems import Graveyard
from gen_worker_supervisor.history.records import Records, record_of
from gen_worker_supervisor.history.spans import Spans
from gen_worker_supervisor.history.tally import Tally
from gen_worker_supervisor.logs.log import Log
from gen_worker_supervisor.logs.redaction import redacted
from gen_worker_supervisor.loop.pulse import Pulse
from gen_worker_supervisor.memory.usage import family_bytes
from gen_worker_supervisor.memory.watch import OomKills
from gen_worker_supervisor.processes.nursery import Nursery
from gen_worker_supervisor.processes.process import ChildProcess
from gen_worker_supervisor.processes.reaper import Reaper
from gen_worker_supervisor.sockets.poller import Poller

REMEMBERED_JOBS = 256
INLINE_BESIDE_INPUTS = INLINE_LIMIT // 2  # of a payload whose frame also names files: 32 paths may take 30 KiB
GRANT_AGAIN_S = 0.1
UNKILLABLE_S = 1.0  # how long the end waits for a child that SIGKILL does not end


class _Told(msgspec.Struct):
    """What a child's event says, as far as the supervisor uses it."""

    progress: float | None = None
    stage: str | None = None
    level: str = "info"
    message: str = ""


_decode_told = msgspec.json.Decoder(_Told).decode


def _failure(what: str, error: Exception, *, expected: bool) -> tuple[str, tuple[str, ...]]:
    """Return what failed in words, and the stack of what should not have."""
    if expected:
        return f"{what} failed: {error}", ()
    stack = "".join(traceback.format_exception(error)).splitlines()
    return f"{what} failed, which is a fault of gen-worker: {type(error).__name__}: {error}", tuple(stack)


_NOTHING_EARLIER: tuple[EarlierRun | None, list[int]] = (None, [])
_RUNS_AGAIN = msgspec.json.encode(
    {"message": "its child died while it ran: it runs once more, alone in a child", "level": "warning"}
)


class _Answered:
    """The client of a job that has its answer."""

    link = ""

    def answer(self, job: Job, outcome: Outcome, body: OutputBody) -> None:
        raise AssertionError(f"job {job.number} was answered twice")

    def item(self, job: Job, body: OutputBody, content_type: str) -> None:
        raise AssertionError(f"an item of job {job.number} after its answer")

    def event(self, job: Job, event: Event) -> None:
        raise AssertionError(f"an event of job {job.number} after its answer")

    def rerun(self, job: Job) -> None:
        raise AssertionError(f"job {job.number} runs again after its answer")


ANSWERED = _Answered()


def _nobody(*told: object) -> None:
    """Is told what nobody wants to know."""


class Supervisor:
    """A fleet and everything that touches the world for it."""

    # Set by whoever has what it takes, or wants it done.

    inputs: Inputs | None = None
    """Fetches the files that payloads name by URLs."""

    storing: Storing | None = None
    """Has files stored where jobs from elsewhere want them."""

    platform: PlatformCalls | None = None
    """Has what producers ask of their platform asked."""

    producing: Producing | None = None
    """What the contexts of producers are given that nobody sent from a platform."""

    graveyard: Graveyard | None = None
    """Keeps what is known of children's deaths."""

    spans: Spans | None = None
    """Has spans of jobs sent to a collector; a job begins a trace then where its caller has none."""

    records: Records | None = None
    """Keeps what is known of jobs that ended."""

    on_code: Callable[[int, bool], None]
    """Told what became of a change of the author's code."""

    look_at_gpus: Callable[[], None]
    """Has the driver asked at once what is in use."""

    on_stacked: Callable[[ChildProcess, Stacked], None]
    """Is told where a child's threads are."""

    on_took: Callable[[Job, int], None]
    """Is told how many of its peer's messages a realtime job took."""

    def __init__(
        self,
        fleet: Fleet,
        survey: Survey,
        *,
        loop: asyncio.AbstractEventLoop,
        poller: Poller,
        reaper: Reaper,
        log: Log,
        saver: Saver,
        environment: Mapping[str, str],
        margin_bytes: int = 0,
        derived: str = "",
        use_zygote: bool = True,
    ) -> None:
        self.fleet = fleet
        self.log = log
        self.status: asyncio.Future[int] = loop.create_future()
        self.booted: asyncio.Future[None] = loop.create_future()
        self.pulse = Pulse(loop)
        self.adopt(survey)
        self._loop = loop
        self._poller = poller
        self._saver = saver
        self.margin_bytes = margin_bytes
        self._derived = fleet.catalog.derived_root = derived
        self.models = ModelSupply(log, self.handle)
        self.models.secured = partial(pinned_keys, fleet)
        self.oom_kills = OomKills()
        self.tally = Tally()
        self._reaper = reaper
        self._nursery = Nursery(loop, reaper, log, environment, survey.preload, use_zygote=use_zygote)
        self._processes: dict[int, ChildProcess] = {}
        self._later: list[Happening] = []
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._recent: dict[int, str] = {}
        self._performers = self._how_to_perform()
        self.on_code = self.look_at_gpus = self.on_stacked = self.on_took = _nobody
        self._ears: dict[type, Callable[[ChildProcess, Any], None]] = {
            Stacked: lambda process, message: self.on_stacked(process, message),
            Need: lambda process, message: self._grant(process, message.size),
            Release: lambda process, message: process.inputs.released(message.index),
            Took: self._took,
        }  # what changes nothing of the fleet
        self._left: list[tuple[str, str]] = []
        self._watchers: dict[int, list[Callable[[Outcome], None]]] = {}
        self._waiting: list[Callable[[], bool]] = []  # says whether what somebody waits for is over

    def _how_to_perform(self) -> dict[type, Callable[[Any], None]]:
        """Return what performs each kind of action."""
        return {
            Run: self._run,
            Answer: self._answer,
            Send: self._send,
            Deliver: self._deliver,
            Tell: self._tell,
            Discard: self._discard,
            Spawn: self._spawn,
            Signal: self._signal,
            LoadOver: self._load_over,
            LetGo: lambda action: self.models.let_go(action.key),
            OrderFetch: lambda action: self.models.order(action.order, action.described),
            OrderInputs: self._order_inputs,
            Note: lambda note: self.log.event(note.level, note.source, note.message, note.lines),
            Finish: self._finish,
            FreeMemory: lambda action: self.models.give_back(action.size),
            Bury: self._bury,
            LookAtGpus: lambda action: self.look_at_gpus(),
            TakeCode: lambda action: self.on_code(action.number, action.taken),
        }

    # --- the loop ---

    def handle(self, *happenings: Happening) -> None:
        """Record what happened, in order, and perform everything that follows."""
        if self._busy:
            self._later.extend(happenings)  # a client acted on its answer: its turn comes when this one is performed
            return
        self._busy = True
        perform = self._performers
        now = time.monotonic()
        try:
            for happening in happenings:
                try:
                    wanted = apply(self.fleet, happening, now)
                except Exception as error:  # noqa: BLE001 - a fault of ours costs nobody who has no part in it
                    self._disbelieve(happening, error)
                    continue
                for action in wanted:
                    try:
                        perform[type(action)](action)
                    except Exception as error:  # noqa: BLE001 - as above
                        self._go_on_without(action, error)
            idle = len(happenings) == 1 and changes_nothing(self.fleet, happenings[0])
            for action in () if idle else decide(self.fleet, now):
                try:
                    perform[type(action)](action)
                except Exception as error:  # noqa: BLE001 - as above
                    self._go_on_without(action, error)
        finally:
            self._busy = False
        if self._waiting:
            self._loop.call_soon(self._look)
        if self._later:
            later, self._later = self._later, []
            self.handle(*later)
        timers = self.fleet.timers
        if timers and timers[0][0] < self._timer_at:
            self._arm(timers[0][0])

    def _go_on_without(self, action: Action, error: Exception) -> None:
        """An action failed, for lack of memory or as it fits no frame: the others are performed all the same."""
        expected = isinstance(error, OSError | RegionError | ProtocolError)
        self.log.event("error", "supervisor", *_failure(type(action).__name__.lower(), error, expected=expected))
        if isinstance(action, Run):
            self._later.append(Unsent(action.child, action.job, str(error)))

    def _disbelieve(self, happening: Happening, error: Exception) -> None:
        """Nobody here can make sense of what happened: what follows from it is lost, and a child that said it goes."""
        self.log.event("error", "supervisor", *_failure(type(happening).__name__.lower(), error, expected=False))
        if isinstance(happening, Reported):
            text = f"a `{type(happening.message).__name__.lower()}` that the supervisor cannot handle"
            self._later.append(Misbehaved(happening.child, text))

    def _arm(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._loop.call_later(max(0.0, due - time.monotonic()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer_at = float("inf")
        self._timer = None
        self.look_at_pages()
        self.handle(Ticked())

    def look_at_pages(self) -> None:
        """Learn which leased jobs have started, which children write down rather than send."""
        for process in list(self._processes.values()):
            self._look_at_page(process)

    def _look_at_page(self, process: ChildProcess) -> None:
        if all(job.started is not None for job in process.child.leased.values()):
            return
        reading = process.reading()
        if reading is not None and reading.job:
            self.handle(Began(process.child, reading.job, reading.job_since))

    # --- life ---

    def start(self) -> None:
        """Start the zygote and give every device a child."""
        self._nursery.start()
        for action in start(self.fleet, time.monotonic()):
            self._performers[type(action)](action)
        self.handle()

    def drain(self, within_s: float | None = 0.0) -> None:
        """End every job and every child after its `shutdown()`; `status` is set when all are gone.

        Running jobs may end by themselves for so many seconds, None: as long as it takes; then the ladder ends them.
        """
        self.handle(DrainAsked(within_s))

    def _finish(self, action: Finish) -> None:
        if action.message:
            self.log.event("error", "supervisor", action.message)
        if not self.status.done():
            self.status.set_result(action.status)

    def close(self) -> None:
        """End what is left at once: children and zygote are killed, not asked."""
        self.pulse.close()
        self._nursery.close()
        if self._timer is not None:
            self._timer.cancel()
        for process in list(self._processes.values()):
            process.signal(signal.SIGKILL)
            process.wait_for_death(UNKILLABLE_S)
        self.models.close()
        self._reaper.end_orphans()

    def _spawn(self, action: Spawn) -> None:
        child = action.child
        try:
            process = ChildProcess(child, self._loop, self._poller, self, self._reaper)
        except OSError as error:  # no descriptor left, or no memory
            self.handle(Died(child, Death(f"not started: {error.strerror}", unborn=True)))
            return
        self._processes[child.generation] = process
        self._nursery.make(process)
        paths, module = self.survey.paths, self.survey.module
        device = child.device
        budget = device.gpus[0].allowed_bytes  # what is placed there is placed on the first one
        process.send(Boot(module, paths, device.kind, {}, 1.0, budget, self.margin_bytes, self._derived))

    # --- jobs ---

    def submit(
        self,
        client: Client,
        *,
        request_id: str,
        function: Function,
        payload: Payload,
        encoding: Encoding,
        attempt: int = 1,
        stream: bool = False,
        events: bool = False,
        remote: bool = False,
        timeout_s: float | None = None,
        reruns: bool = True,
        destination: Destination | None = None,
        inline_file_bytes: int = 0,
        wire: bool = False,
        tenant: str = "",
        priority: int = 0,
        traceparent: str = "",
        producing: Producing | None = None,
        earlier: EarlierRun | None = None,
    ) -> Job:
        """Put a job into the table; its answer may come before this returns."""
        fleet = self.fleet
        fleet.number += 1
        now = time.monotonic()
        span = (continued(traceparent) if traceparent else None) or (begun() if self.spans is not None else None)
        if span is not None and destination is not None:
            destination = msgspec.structs.replace(destination, traceparent=span.traceparent)
        job = Job(
            fleet.number,
            client,
            request_id or f"local-{fleet.number:08x}",
            attempt,
            bool(request_id),
            function,
            payload,
            encoding,
            stream,
            events,
            now,
            None if timeout_s is None else now + timeout_s,
            remote,
            reruns=reruns,
            destination=destination,
            inline_file_bytes=inline_file_bytes,
            wire=wire,
            tenant=tenant,
            priority=priority,
            span=span,
            earlier=earlier,
            producing=(producing or self.producing) if function.surveyed.produces else None,
        )
        self.handle(Submitted(job))
        return job

    def routable(self, name: str) -> str | None:
        """Return the routable name of a function by either of its spellings."""
        return name if name in self.fleet.functions else self._spellings.get(name)

    def adopt(self, survey: Survey) -> None:
        """Take what was found in the author's module for what is served."""
        self.survey = survey
        self._spellings = {function.name.replace("-", "_"): function.name for function in survey.functions}
        self._spellings |= {function.python_name: function.name for function in survey.functions}

    def preload(self, modules: list[str]) -> None:
        """Have children forked from a process that has imported these modules, from the next one on."""
        self._nursery.preload(modules)

    def end(self, job: Job, reason: Reason, *, at_once: bool = False) -> None:
        """Have a job ended; its answer says how that went."""
        if job.child is not None and job.child.generation in self._processes:
            self._look_at_page(self._processes[job.child.generation])
        self.handle(EndAsked(job, reason, at_once))

    def restart(self, device: Device, then: Callable[[int | None, str], None], *, at_once: bool = False) -> None:
        """Have a device's child replaced; call back with the next one's pid, or None and why there is none."""
        self._waiting.append(partial(self._told_of_next, device, device.child, then))
        self.handle(RestartAsked(device, at_once))

    def _told_of_next(self, device: Device, before: Child | None, then: Callable[[int | None, str], None]) -> bool:
        """Call back whoever waits for a child that has come, or cannot come; say whether that is so."""
        child = device.child
        if child is not before and child is not None and child.ready:
            self._loop.call_soon(then, child.pid, "")
        elif device.lost or self.fleet.draining:
            self._loop.call_soon(then, None, device.given_up or device.reason or "the supervisor is shutting down")
        elif child is before and child is not None and child.serving and device.coming is None:
            self._loop.call_soon(then, None, "the next child could not be made ready: the one before it serves on")
        else:
            return False
        return True

    def drain_devices(self, devices: list[Device], then: Callable[[], None], *, undo: bool = False) -> None:
        """Give devices no more jobs, or jobs again; call back once none runs there, or that was undone."""
        self._waiting.append(partial(self._told_of_rest, devices, then))
        self.handle(*(DeviceDrainAsked(device, undo) for device in devices))

    def _told_of_rest(self, devices: list[Device], then: Callable[[], None]) -> bool:
        """Call back whoever waits for drained devices on which nothing runs any more; say whether that is so."""
        if any(device.drained and at_work(device) for device in devices):
            return False
        self._loop.call_soon(then)
        return True

    def look(self, over: Callable[[], bool]) -> None:
        """Call `over` now, and after whatever happens until it returns that what somebody waits for is over."""
        self._waiting.append(over)
        self._look()

    def _look(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._waiting += [over for over in waiting if not over()]

    def find(self, request_id: str) -> list[Job]:
        """Return the live jobs that a person may mean by a request id, or by `link/request_id`."""
        jobs = self.fleet.jobs.values()
        exact = [job for job in jobs if job.request_id == request_id]
        return exact or [job for job in jobs if f"{job.client.link}/{job.request_id}" == request_id]

    def watch(self, job: Job, then: Callable[[Outcome], None]) -> None:
        """Call back with the outcome, after the job's client got it."""
        self._watchers.setdefault(job.number, []).append(then)

    def more(self, job: Job, items: int) -> None:
        """Tell the job's child that the reader took stream items."""
        if job.child is not None and not job.ended:
            job.unread, job.moved_at = max(0, job.unread - items), time.monotonic()
            self._processes[job.child.generation].send(More(job.number, items))

    def tell_peer_said(self, job: Job, data: bytes, *, is_text: bool) -> None:
        """Pass a message on to a realtime job that has said it is there; raise `RegionError` without memory for it."""
        assert job.child is not None
        process = self._processes[job.child.generation]
        if len(data) <= INLINE_LIMIT:
            process.send(Message(job.number, data, is_text))
        else:
            region, fd = process.inputs.place(InlinePayload(data))
            process.send(Message(job.number, region, is_text), (fd,))

    def tell_peer_left(self, job: Job, reason: str) -> None:
        """Tell a realtime job that no message comes any more."""
        if job.child is not None and not job.ended:
            self._processes[job.child.generation].send(Hangup(job.number, reason))

    def _run(self, action: Run) -> None:
        child, job = action.child, action.job
        if job.again:
            self._forget_files(job)  # of the child that died
            job.client.rerun(job)
            if job.deaths and job.events:
                job.client.event(job, Event(job.number, "log", _RUNS_AGAIN))
            if job.inputs and self.inputs is not None and not self.inputs.has(job):
                job.inputs = None
        process = self._processes[child.generation]
        body: Body
        descriptors: tuple[int, ...] = ()
        payload = job.payload
        limit = INLINE_BESIDE_INPUTS if job.inputs else INLINE_LIMIT
        if isinstance(payload, InlinePayload) and len(payload.data) <= limit:
            body = payload.data
        else:
            try:
                body, fd = process.inputs.place(payload)
            except RegionError as error:
                self.handle(Unsent(child, job, str(error)))
                return
            descriptors = (fd,)
        left = None if job.deadline is None else job.deadline - time.monotonic()
        earlier, tables = _NOTHING_EARLIER
        if job.earlier is not None:
            earlier, tables = packed(job.earlier, names_models=job.function.own.names_models)
        instance = job.instance
        order = SubmitFrame(
            job.number,
            job.function.name,
            job.request_id,
            body,
            job.encoding,
            job.stream,
            left,
            job.events,
            job.remote,
            instance if "?" in instance else "",
            wire=job.wire,
            inline_file_bytes=job.inline_file_bytes,
            inputs=job.inputs or [],
            models=self.fleet.chosen_models(job.function) if job.function.chosen else {},
            traceparent=job.span.traceparent if job.span is not None else "",
            producing=job.producing,
            earlier=earlier,
        )
        try:
            process.send(order, (*descriptors, *tables))
        except (OSError, ProtocolError):
            if isinstance(body, Region):
                process.inputs.released(body.index)
            raise
        finally:
            close_all(tables)

    def _order_inputs(self, action: OrderInputs) -> None:
        if self.inputs is None:
            self.handle(InputsRefused(action.job, "nothing is fetched here that a payload names by a URL"))
        else:
            self.inputs.order(action.job, action.assets)

    def _answer(self, action: Answer) -> None:
        job, outcome, child = action.job, action.outcome, action.child
        body = b"" if child is None else self._lend(child, outcome.body)
        now = time.monotonic()
        if outcome.kind is not None:
            if outcome.detail is not None and outcome.detail.stderr:  # whoever asked is not whose secrets these are
                outcome.detail.stderr = [redacted(self.log.hide_cut(line)) for line in outcome.detail.stderr]
            self._note_failure(job, outcome)
        job.client.answer(job, outcome, body)
        record = record_of(job, outcome, now)  # after the answer, which somebody waits for
        self.tally.ended(record)
        if self.records is not None:
            self.records.keep(record)
        if self.spans is not None:
            self.spans.keep(job, outcome, now)
        job.client = ANSWERED  # they know each other: else only the cycle collector would free them
        job.payload.close()
        if job.inputs is not None and self.inputs is not None:
            self.inputs.forget(job)
        self._forget_files(job)
        self._remember(job)
        if self._watchers:
            for then in self._watchers.pop(job.number, ()):
                then(outcome)

    def _forget_files(self, job: Job) -> None:
        """Nobody waits any more for what a job was saving."""
        if job.destination is None:
            self._saver.forget(job.number)
        elif self.storing is not None:
            self.storing.forget(job.number)
        if self.platform is not None:
            self.platform.forget(job.number)

    def _remember(self, job: Job) -> None:
        """Keep a request's name for the lines of its job that are read after its end."""
        recent = self._recent
        recent[job.number] = job.request_id
        if len(recent) > 2 * REMEMBERED_JOBS:
            for number in list(recent)[:REMEMBERED_JOBS]:
                del recent[number]

    def _deliver(self, action: Deliver) -> None:
        action.job.client.item(action.job, self._lend(action.child, action.body), action.content_type)

    def _send(self, action: Send) -> None:
        generation, message = action.child.generation, action.message
        if isinstance(message, Load) and message.models:
            models = self.models.load_begins(generation, message.models, message.instance)
            message = Load(message.instance, models)
        self._processes[generation].send(message)

    def _load_over(self, action: LoadOver) -> None:
        self.models.load_ends(action.child.generation, action.instance, action.paths)
        self.models.used(action.used)

    def _discard(self, action: Discard) -> None:
        self._processes[action.child.generation].outputs.lent(action.region.index).release()

    def _signal(self, action: Signal) -> None:
        self._processes[action.child.generation].signal(action.number)

    def _note_failure(self, job: Job, outcome: Outcome) -> None:
        stack = (
            tuple(outcome.detail.stack or ())
            if outcome.detail is not None and outcome.kind in ("user_exception", "invalid")
            else ()
        )
        where = job.child.device.name if job.child is not None else job.function.name
        level: Literal["info", "warning"] = "info" if outcome.state in ("canceled", "invalid") else "warning"
        who = f"request {job.request_id} of `{job.function.name}`"
        text = f"{who}: {outcome.kind}: {outcome.message}"
        if outcome.kind == "canceled" and job.ending is not None and job.ending.reason is Reason.DISCONNECT:
            self._left.append((where, text))
            if len(self._left) == 1:
                self._loop.call_soon(self._note_left)
            return
        if job.ending is not None and job.ending.rung:
            told = job.ending.told(time.monotonic())
            # The answer of one that was killed names its rung, for its client.
            text = f"{who}: killed by an operator ({told})" if outcome.kind == "killed" else f"{text} ({told})"
        self.log.event(level, where, text, stack, job.request_id)

    def _note_left(self) -> None:
        """Say in one line how many jobs ended at once because their clients are gone."""
        left, self._left = self._left, []
        if len(left) == 1:
            self.log.event("info", *left[0])
        else:
            self.log.event("info", "serve", f"{len(left)} requests canceled: their clients are gone")

    def _lend(self, child: Child, body: Body) -> OutputBody:
        return self._processes[child.generation].outputs.lent(body.index) if isinstance(body, Region) else body

    def _tell(self, action: Tell) -> None:
        job, child, event = action.job, action.child, action.event
        try:
            told = _decode_told(event.value)
        except DECODE_ERRORS as error:
            self.handle(Misbehaved(child, f"an event that is none: {error}"))
            return
        if b"\n" in event.value:  # links pass it on as it is, in one line
            self.handle(Misbehaved(child, "an event of several lines"))
            return
        if event.event == "progress":
            job.progress, job.stage = told.progress, told.stage
        else:
            self.log.logged(child.device.name, job.request_id, told.level, told.message)
        if job.events:
            job.client.event(job, event)

    # --- what a child does ---

    def on_frames(self, process: ChildProcess, frames: list[tuple[Report, list[int]]]) -> None:
        """Frames came from a child."""
        child = process.child
        happenings: list[Happening] = []
        for at, (message, descriptors) in enumerate(frames):
            if type(message) is Done and type(message.body) is bytes and not descriptors:  # what most frames are
                happenings.append(Reported(child, message))
                continue
            if type(message) is Done or type(message) is Item:
                if isinstance(message.body, Region) and not process.outputs.lend(message.body):
                    happenings.append(Misbehaved(child, "an output in a region it does not hold"))
                    close_all([fd for _, unread in frames[at:] for fd in unread])
                    break
            elif type(message) is Save:
                self._save(process, message, descriptors)
                continue
            elif type(message) is Call:
                self._call(process, message, descriptors)
                continue
            if descriptors:
                close_all(descriptors)
            if (hear := self._ears.get(type(message))) is not None:
                hear(process, message)
            else:
                happenings += self._happenings_of(process, message)
        if happenings:
            self.handle(*happenings)
            if not self.booted.done():
                self._note_boot()

    def _happenings_of(self, process: ChildProcess, message: Report) -> list[Happening]:
        child = process.child
        if type(message) is Loaded and message.models and 0 <= message.seconds < MOST_SECONDS:
            source = "ram" if self.models.loads_from_memory(child.generation, message.instance) else "disk"
            self.tally.loaded(source, message.seconds)
        if type(message) is Ready or type(message) is Loaded:
            return [Weighed(child, family_bytes(process.pid)), Reported(child, message)]
        if type(message) is Unloaded:
            self.models.unloaded(child.generation, message.instance)
        elif type(message) is LoadFailed and self.models.vanished(child.generation, message.instance):
            return [Vanished(child, message)]
        return [Reported(child, message)]

    def _took(self, process: ChildProcess, message: Took) -> None:
        job = process.child.leased.get(message.job)
        if job is None or not job.function.surveyed.realtime or message.messages < 0:
            self.handle(Misbehaved(process.child, f"messages that job {message.job} took, which has no peer"))
        elif not job.ended:
            self.on_took(job, message.messages)

    def _grant(self, process: ChildProcess, size: int, again: bool = False) -> None:
        if process.child.generation not in self._processes:
            return  # it has died while it waited
        try:
            granted = process.outputs.grant(size)
        except RegionError as error:
            if not again:
                self.log.event("warning", process.child.device.name, f"an output waits for memory: {error}")
            self._loop.call_later(GRANT_AGAIN_S, self._grant, process, size, True)
            return
        if granted is None:
            self.handle(Misbehaved(process.child, f"a wish for an output region of {size} bytes"))
            return
        index, region = granted
        process.send(Grant(index, region.size), [region.fd])

    def _save(self, process: ChildProcess, order: Save, descriptors: list[int]) -> None:
        job = process.child.leased.get(order.job)
        if job is None:
            close_all(descriptors)
            if order.job in self._recent:  # a thread of the author's that outlived its job
                process.send(Saved(order.job, order.token, error="the job has ended"))
            else:
                self.handle(Misbehaved(process.child, f"a file of job {order.job}, which it does not hold"))
            return
        job.saving += 1

        def tell(saved: Saved) -> None:
            job.saving, job.moved_at = max(0, job.saving - 1), time.monotonic()
            process.send(saved)

        if job.destination is None:
            self._saver.save(order, descriptors, tell)
        elif self.storing is None:
            close_all(descriptors)
            tell(Saved(order.job, order.token, error="no file can be stored from here", failure="transfer"))
        else:
            if order.repo and self.platform is not None:
                self.platform.begins(order.job, job.destination)
            self.storing.save(order, job.destination, descriptors, tell)

    def _call(self, process: ChildProcess, order: Call, descriptors: list[int]) -> None:
        job = process.child.leased.get(order.job)
        if job is None or self.platform is None:
            close_all(descriptors)
            if job is None and order.job not in self._recent:
                self.handle(Misbehaved(process.child, f"a call for job {order.job}, which it does not hold"))
                return
            text = "the job has ended" if job is None else "nothing is asked of a platform from here"
            process.send(Called(order.job, order.token, error=text, failure="unconfigured"))
            return
        job.saving += 1

        def tell(answer: Called, attached: list[int]) -> None:
            job.saving, job.moved_at = max(0, job.saving - 1), time.monotonic()
            process.send(answer, attached)

        self.platform.call(order, job.destination, descriptors, tell)

    def on_misbehaviour(self, process: ChildProcess, what: str) -> None:
        """A child broke the protocol."""
        self.handle(Misbehaved(process.child, what))

    def on_line(self, process: ChildProcess, job: int, line: str) -> None:
        """A child printed a line."""
        held = process.child.leased
        if not job and len(held) == 1:
            job = next(iter(held))
        process.tail.append((job, line))
        known = held.get(job)
        request_id = known.request_id if known is not None else self._recent.get(job)
        self.log.printed(process.child.device.name, request_id, line)

    def on_birth(self, process: ChildProcess) -> None:
        """A child's process exists."""
        self.handle(Spawned(process.child, process.pid))

    def on_death(self, process: ChildProcess, death: Death) -> None:
        """A child's process has ended."""
        if death.signal == "SIGKILL":
            death = replace(death, oom_kills=self.oom_kills.claim(time.monotonic()))
        self._look_at_page(process)
        if self.graveyard is not None:
            self.graveyard.look(process.child, process.reading(), time.monotonic())
        del self._processes[process.child.generation]
        self.models.child_gone(process.child.generation)
        self.handle(Died(process.child, death))
        self._note_boot()

    def _bury(self, action: Bury) -> None:
        if self.graveyard is not None:
            self.graveyard.bury(action, time.monotonic())

    def readings(self) -> list[tuple[Child, Reading | None]]:
        """Return what the status page of each child says."""
        return [(process.child, process.reading()) for process in self._processes.values()]

    def processes(self) -> list[ChildProcess]:
        """Return the processes of all children that there are."""
        return list(self._processes.values())

    def process_of(self, child: Child) -> ChildProcess | None:
        """Return the process of a child, None when it is gone."""
        return self._processes.get(child.generation)

    def _note_boot(self) -> None:
        """Set `booted` once a child is ready and every other device's is too, or has died at least once."""
        if self.booted.done():
            return
        ready = [self._is_ready(device.child) for device in self.fleet.devices]
        died = [device.restarts > 0 or device.early_deaths > 0 for device in self.fleet.devices]
        if any(ready) and all(one or other for one, other in zip(ready, died, strict=True)):
            self.fleet.booting = False
            self.booted.set_result(None)

    def _is_ready(self, child: Child | None) -> bool:
        return child is not None and child.ready and not (self.fleet.eager and unloaded(self.fleet, child))
