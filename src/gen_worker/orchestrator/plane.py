"""The control plane as its callers use it: jobs in, their ends out, workers in between."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from itertools import dropwhile, islice
from pathlib import Path
from typing import Protocol, TypeVar, assert_never

import msgspec

from gen_worker.discovery.names import slugify_name
from gen_worker.orchestrator.decide import apply, gather, restore
from gen_worker.orchestrator.placement import is_served, waiting_for
from gen_worker.orchestrator.service import Service, Session
from gen_worker.orchestrator.state import (
    Acknowledge,
    Action,
    CancelAsked,
    Close,
    DrainAsked,
    GivenUp,
    Happening,
    Job,
    Joined,
    Left,
    Limits,
    OpAsked,
    Plane,
    Prefetch,
    Record,
    Recorded,
    Run,
    Said,
    Save,
    Saved,
    Send,
    Submitted,
    Tell,
    Ticked,
    Worker,
)
from gen_worker.orchestrator.store import Restored, Store, StoreError
from gen_worker.orchestrator.tokens import Tokens
from gen_worker.orchestrator.views import (
    ENDED,
    ConflictError,
    Holding,
    InvalidRequestError,
    JobEvent,
    JobRequest,
    JobView,
    Presence,
    QueueFullError,
    Status,
    UnknownWorkerError,
    WorkerView,
)
from gen_worker.orchestrator.watching import Log, Watch
from gen_worker.wire.scheduler import (
    MESSAGE_BYTES,
    Hello,
    HelloAck,
    ModelOp,
    ModelOpKind,
    RunJob,
    SchedulerFrame,
    Snapshot,
    WorkerFrame,
)

PAYLOAD_BYTES = MESSAGE_BYTES - (4 << 20)  # what is left of a message for snapshots and the rest
NAME_CHARS = 200
EVENTS_READ = 256  # at once, of what is kept
UNWRITTEN_BYTES = 32 << 20  # from here on workers wait for the disk; each may have said one message more
FILES_DESCRIBED = 4096  # of models that a job may need or not, about 1 MiB
SWEEP_S = 60.0  # between two looks for jobs to forget

T = TypeVar("T")


class Files(Protocol):
    """Where jobs' files and models' weights are. Each call returns at once."""

    def snapshot(self, ref: str) -> Snapshot | None:
        """Return a model's files with URLs that are good from now on; None for a ref that is not kept here."""
        ...

    def capability(self, request_id: str, attempt: int, tenant: str, function: str) -> str:
        """Return the token with which a worker stores the files of one attempt at a function."""
        ...


class PlaneOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a control plane is started with."""

    state: Path
    """The SQLite file; made where there is none."""

    files: Files
    listen: str = "127.0.0.1:8080"
    """Where workers connect; port 0 takes a free one."""

    file_base_url: str = ""
    tls: tuple[Path, Path] | None = None
    """A certificate chain and its key, both PEM; None: plain text."""

    auth: Tokens | None = None
    """Who checks workers' tokens and renews them; None: whoever comes is a worker."""

    needs: Mapping[str, tuple[str, ...]] = {}
    """Refs of the models that a function runs with; they are fetched ahead and kept."""

    offered: tuple[str, ...] = ()
    """Refs of all models that `files` has. A function that is not in `needs` may run with any of them."""

    published: Callable[[], Iterable[str]] = tuple
    """Returns the refs of what jobs have published so far; functions may run with those as well."""

    max_attempts: int = 4
    """Failures after which a job is not tried again."""

    max_queued: int = 10_000
    max_queued_bytes: int = 256 << 20
    """Of payloads that wait in memory."""

    grace_s: float = 5.0
    """How long the jobs of a lost worker wait for its return."""

    restart_grace_s: float = 35.0
    """How long jobs wait for their workers after a restart: as long as a worker may wait before it comes back."""

    keep_jobs: int = 100_000
    """Ended jobs that are remembered; the oldest go first."""

    keep_bytes: int = 4 << 30
    """What the state may take on disk before the oldest ended jobs go."""

    keep_s: float = 7 * 86400.0
    """How long ended jobs are remembered."""

    told: Callable[[str, Mapping[str, object]], None] = lambda _event, _facts: None
    """Told of workers that come and go: `connected`, `draining`, `left`, and which."""

    warned: Callable[[str], None] = lambda _: None
    """Told what is not as it should be: now and then that the state cannot be written and why, for as long as that is
    so; that a worker is there twice."""


class ControlPlane:
    """Drives workers. Use it on one asyncio loop, between `start` and `close`."""

    def __init__(self, options: PlaneOptions) -> None:
        self._options = options
        limits = Limits(options.max_attempts, options.grace_s, options.restart_grace_s)
        self._plane = Plane(limits, options.needs)
        self._sessions: dict[int, Session] = {}
        self._logs: dict[str, Log] = {}
        self._watches: dict[str, set[Watch]] = {}
        self._accepting = 0
        self._accepting_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for: float | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False
        self._half = asyncio.Event()
        """Set when no more than half of what may wait to be written does."""

        self._half.set()

    @property
    def address(self) -> str:
        """Where workers connect: `host:port`, the port a real one."""
        return self._address

    async def start(self) -> None:
        """Read what was accepted before and open the port; raise `OSError` or `StoreError` where it cannot be."""
        self._loop = asyncio.get_running_loop()
        self._returning_until = self._loop.time()
        self._settled_at = self._loop.time() + self._options.restart_grace_s
        warned = self._options.warned
        troubled = self._later(lambda trouble: warned(str(trouble)))
        self._store = await asyncio.to_thread(Store, self._options.state, troubled)
        try:
            self._restore(await asyncio.to_thread(self._store.restore))
            self._service = Service(self, self._options.auth)
            self._address = await self._service.start(self._options.listen, self._options.tls)
        except BaseException:
            await asyncio.to_thread(self._store.close)
            raise
        self._arm()
        self._forget()

    def _restore(self, found: list[Restored]) -> None:
        if not self._store.is_new:
            gather(self._plane, self._loop.time())
        for job, worker_id, events, _ in found:
            job.refs = self._plane.refs(job.request)
            self._logs[job.request_id] = Log(events)
            restore(self._plane, job, worker_id, self._loop.time())
        for job, _, _, canceled in found:
            if canceled:
                self._apply(CancelAsked(job.request_id))

    async def close(self) -> None:
        """End the workers' streams and put everything away; jobs that run stay accepted."""
        await self._service.stop()
        self._closed = True
        for handle in (self._timer, self._sweep):
            if handle is not None:
                handle.cancel()
        for watches in self._watches.values():
            for watch in watches:
                watch.fall_behind()
        await asyncio.to_thread(self._store.close)

    # --- what callers ask ---------------------------------------------------------------------------------------------

    async def submit(self, request: JobRequest) -> JobView:
        """Accept a job, so that a crash from here on does not lose it; the same request again is the same job.

        Raises `InvalidRequestError`, `ConflictError` for another request under a known id, `QueueFullError`, and
        `StoreError` where it cannot be kept.
        """
        named = bool(request.request_id)
        request = checked(request)
        known = self._plane.jobs.get(request.request_id)
        if known is None and (full := self._full(len(request.payload))):
            known_view = await self._stored(request.request_id) if named else None
            if known_view is None:
                raise full
            return _same(known_view, request)
        if known is not None:
            return _same(self._view(known), request)
        job = Job(request, time.time(), refs=self._plane.refs(request))
        if await self._accept(job):
            return self._view(job)
        found = await self.job(request.request_id)
        if found is None:  # it was forgotten in this moment
            raise ConflictError(f"request `{request.request_id}` is not known any more")
        return _same(found, request)

    async def cancel(self, request_id: str) -> JobView | None:
        """End a job; return it as it is now, which while it runs is not canceled yet. None: there is no such job.

        What was asked is on disk by then.
        """
        job = self._plane.jobs.get(request_id)
        if job is None:
            return await self._stored(request_id)
        self._apply(CancelAsked(request_id))
        if job.live and not self._closed:
            await self._flushed().wait()
        if job.live:
            return self._view(job)
        async for event in self.watch(request_id):
            if event.job is not None:
                return event.job
        return job.view()

    async def job(self, request_id: str) -> JobView | None:
        """Return a job as it is now."""
        job = self._plane.jobs.get(request_id)
        return await self._stored(request_id) if job is None else self._view(job)

    async def known(self, request_ids: Iterable[str]) -> set[str]:
        """Return those of which there is a job."""
        return await asyncio.to_thread(self._store.known, request_ids)

    async def jobs(self, *, status: Status | None = None, limit: int = 100, after: str | None = None) -> list[JobView]:
        """Return jobs, the newest first; `after` is the request id of the last one of the page before.

        Those that have ended come without what they were given and what they made.
        """
        if status is None or status in ENDED:
            views = await asyncio.to_thread(self._store.jobs, status=status, limit=limit, after=after)
            live = ((view, self._plane.jobs.get(view.request_id)) for view in views)
            return [view if job is None else self._view(job) for view, job in live]
        jobs = (job for job in await self._older(after) if job.view().status == status)
        return [self._view(job) for job in islice(jobs, limit)]

    async def _older(self, than: str | None) -> Iterable[Job]:
        """Return the jobs that have not ended and came before another one, the newest first."""
        newest = reversed(self._plane.jobs.values())
        if than is None:
            return newest
        if than in self._plane.jobs:
            return islice(dropwhile(lambda job: job.request_id != than, newest), 1, None)
        ended = await self._stored(than)  # since the page before
        return () if ended is None else (job for job in newest if job.created < ended.created)

    async def watch(self, request_id: str, *, after: int = 0) -> AsyncIterator[JobEvent]:
        """Yield what happened to a job after an event and happens to it, up to its `result`.

        Nothing for an unknown id; it ends without a `result` where the control plane is closed. Of a long stream that
        nobody watched, the oldest chunks may be gone.
        """
        watch = Watch()
        watches = self._watches.setdefault(request_id, set())
        watches.add(watch)
        try:
            async for event in self._watched(request_id, watch, after):
                yield event
        finally:
            watches.discard(watch)
            if not watches:
                self._watches.pop(request_id, None)

    def live_attempt(self, request_id: str) -> int | None:
        """Return the attempt that counts of a job that has not ended."""
        job = self._plane.jobs.get(request_id)
        return job.attempt if job is not None and job.live else None

    def holding(self, request_id: str) -> Holding | None:
        """Return which attempt of a job counts, and who has it; None for one that nobody has now."""
        job = self._plane.jobs.get(request_id)
        if job is None or not job.live or job.worker is None:
            return None
        return Holding(job.attempt, job.worker.worker_id, job.request.function)

    @property
    def grace_s(self) -> float:
        """How long what depends on a worker waits for it, once that is gone."""
        return self._options.grace_s

    def presence(self, function: str) -> Presence:
        """Return whether somebody has a function, in either spelling."""
        slug = slugify_name(function)
        if is_served(self._plane, slug):
            return Presence.SERVED
        if slug in self._plane.heard:
            return Presence.EXPECTED if self._loop.time() < self._returning_until else Presence.ABSENT
        if self._plane.gathering:
            return Presence.EXPECTED
        if self._plane.sessions:
            return Presence.UNKNOWN
        return Presence.ABSENT if self._loop.time() >= self._settled_at else Presence.EXPECTED

    def expect_back(self, within_s: float) -> None:
        """A worker was lost that comes back within so long: callers may wait for the functions that there were."""
        self._returning_until = max(self._returning_until, self._loop.time() + within_s)

    def lacks_worker(self, request_id: str) -> bool:
        """Whether no worker has a job, and none is there or expected that could."""
        job = self._plane.jobs.get(request_id)
        if job is None or not job.live or (job.worker is not None and job.worker.session is not None):
            return False
        return self.presence(job.request.function) in (Presence.ABSENT, Presence.UNKNOWN)

    def give_up(self, request_id: str, message: str) -> bool:
        """End a job that no worker has as one that may be tried again; return whether it is ended."""
        self._apply(GivenUp(request_id, message))
        job = self._plane.jobs.get(request_id)
        return job is None or not job.live

    async def workers(self) -> list[WorkerView]:
        """Return the workers, in the order of their ids."""
        return [worker.view() for _, worker in sorted(self._plane.workers.items())]

    async def drain(self, worker_id: str, deadline_ms: int) -> None:
        """Have a worker end its jobs and leave; raise `UnknownWorkerError`. 0 ms: as long as they take."""
        worker = self._connected(worker_id)
        stays = not worker.draining
        self._apply(DrainAsked(worker_id, deadline_ms))
        if stays:
            self._options.told("draining", {"worker": worker_id, "jobs": len(worker.jobs)})

    async def model_op(self, worker_id: str, op: ModelOp) -> None:
        """Have a worker do something with a model; raise `UnknownWorkerError`."""
        self._connected(worker_id)
        self._apply(OpAsked(worker_id, op))

    # --- submitting ---------------------------------------------------------------------------------------------------

    def _view(self, job: Job) -> JobView:
        return msgspec.structs.replace(job.view(), waiting_for=waiting_for(self._plane, job))

    def _full(self, size: int) -> QueueFullError | None:
        waiting = self._plane.waiting + self._accepting
        held = self._plane.held_bytes + self._accepting_bytes
        if waiting >= self._options.max_queued:
            return QueueFullError(f"{waiting} jobs wait already, which is the most", self._plane.room_in_s())
        if held + size > self._options.max_queued_bytes:
            return QueueFullError(
                f"{held} bytes of payloads wait already, the limit is {self._options.max_queued_bytes}",
                self._plane.room_in_s(),
            )
        return None

    async def _accept(self, job: Job) -> bool:
        """Put a job on disk and take it in; False where its id is known already."""
        accepted: asyncio.Future[bool] = self._loop.create_future()
        size = len(job.request.payload)

        def done(is_new: bool) -> None:
            if is_new:
                self._apply(Submitted(job))
            if not accepted.done():
                accepted.set_result(is_new)

        def refused(error: StoreError) -> None:
            if not accepted.done():
                accepted.set_exception(error)

        self._accepting += 1
        self._accepting_bytes += size
        self._store.accept(job, self._later(done), self._later(refused))
        try:
            return await accepted
        finally:
            self._accepting -= 1
            self._accepting_bytes -= size

    def _later(self, call: Callable[[T], None]) -> Callable[[T], None]:
        """Return what makes the call on the loop, from the writer's thread."""

        def make(value: T) -> None:
            self._loop.call_soon_threadsafe(call, value)

        return make

    async def _stored(self, request_id: str) -> JobView | None:
        return await asyncio.to_thread(self._store.job, request_id)

    def _connected(self, worker_id: str) -> Worker:
        worker = self._plane.workers.get(worker_id)
        if worker is None or worker.session is None:
            raise UnknownWorkerError(f"no connected worker has the id `{worker_id}`")
        return worker

    # --- watching -----------------------------------------------------------------------------------------------------

    async def _watched(self, request_id: str, watch: Watch, last: int) -> AsyncIterator[JobEvent]:
        while not self._closed:
            watch.resume()
            job = self._plane.jobs.get(request_id)
            progress = job.progress if job is not None else None
            async for event in self._past(request_id, last):
                last = event.number
                yield event
            if job is None:
                if (view := await self._stored(request_id)) is not None:
                    number = await asyncio.to_thread(self._store.last_event, request_id) + 1
                    yield JobEvent(number=number, kind="result", attempt=view.attempt, job=view)
                return
            if progress is not None:
                yield JobEvent(number=last, kind="progress", attempt=job.attempt, body=progress)
            while (news := await watch.next()) is not None:
                if news.kind == "result" or news.number > last or (news.kind == "progress" and news.number == last):
                    last = max(last, news.number)
                    yield news
                if news.kind == "result":
                    return

    async def _past(self, request_id: str, last: int) -> AsyncIterator[JobEvent]:
        """Yield what is kept of a job's events."""
        await self._flushed().wait()
        while events := await asyncio.to_thread(self._store.events, request_id, after=last, limit=EVENTS_READ):
            for event in events:
                yield event
            last = events[-1].number

    def _flushed(self) -> asyncio.Event:
        """Return what is set when all that has happened can be read."""
        flushed = asyncio.Event()
        self._store.flush(self._later(lambda _: flushed.set()))
        return flushed

    def _tell(self, tell: Tell) -> None:
        job, kind = tell.job, tell.kind
        log = self._logs.setdefault(job.request_id, Log())
        ended = job.view(told=True) if kind == "result" else None
        if kind != "progress":
            old = log.add(len(tell.body))
            if old:
                self._store.shorten(job.request_id, old)
        event = JobEvent(
            number=log.last,
            kind=kind,
            attempt=job.attempt,
            seq=tell.seq,
            content_type=tell.content_type,
            body=tell.body,
            job=ended,
        )
        if kind == "result":
            del self._logs[job.request_id]
        elif kind != "progress":
            self._store.tell(job.request_id, event)
        for watch in self._watches.get(job.request_id, ()):
            watch.tell(event)

    # --- workers' streams ---------------------------------------------------------------------------------------------

    def joined(self, session: Session, hello: Hello) -> None:
        """A worker has said Hello."""
        self._sessions[session.number] = session
        self._apply(Joined(session.number, hello, time.time()))
        if (worker := self._plane.sessions.get(session.number)) is not None:
            functions = len(worker.offered)
            self._options.told("connected", {"worker": worker.worker_id, "functions": functions})

    def said(self, session: Session, frame: WorkerFrame) -> None:
        """A worker has said something after it."""
        worker = self._plane.sessions.get(session.number)
        stays = worker is not None and not worker.draining
        self._apply(Said(session.number, frame, time.time()))
        if worker is not None and stays and worker.draining:
            self._options.told("draining", {"worker": worker.worker_id, "jobs": len(worker.jobs)})

    def left(self, session: Session) -> None:
        """A stream that had joined is over."""
        del self._sessions[session.number]
        worker = self._plane.sessions.get(session.number)  # none of one that another stream has superseded
        self._apply(Left(session.number))
        if worker is not None:
            facts = {"worker": worker.worker_id, "drained": worker.draining, "jobs": len(worker.jobs)}
            self._options.told("left", facts)

    async def room(self) -> None:
        """Wait until some of what workers have said is on disk, where that is much; the disk is never without work."""
        while (unwritten := self._store.unwritten_bytes) > UNWRITTEN_BYTES / 2:
            if self._half.is_set():
                self._half = self._flushed()
            if unwritten <= UNWRITTEN_BYTES:
                return
            await self._half.wait()

    # --- deciding and doing -------------------------------------------------------------------------------------------

    def _apply(self, happening: Happening) -> None:
        if self._closed:
            return
        try:
            for action in apply(self._plane, happening, self._loop.time()):
                self._carry_out(action)
        except Exception as fault:
            self._tell_of(fault, happening)
            raise
        finally:
            self._arm()

    def _carry_out(self, action: Action) -> None:
        """Perform an action; a fault of ours in it costs neither those behind it nor the stream that led to it."""
        try:
            self._perform(action)
        except Exception as fault:  # noqa: BLE001 - told with its traceback
            self._tell_of(fault, action)

    def _tell_of(self, fault: Exception, what: Happening | Action) -> None:
        message = f"the control plane failed at `{type(what).__name__}`"
        self._loop.call_exception_handler({"message": message, "exception": fault})

    def _arm(self) -> None:
        due = self._plane.next_due()
        if due == self._armed_for:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._armed_for = due
        self._timer = None if due is None else self._loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self._armed_for = None
        self._apply(Ticked(deaf=self._store.unwritten_bytes > UNWRITTEN_BYTES))

    def _forget(self) -> None:
        options = self._options
        self._store.forget(
            before=time.time() - options.keep_s,
            jobs=options.keep_jobs,
            size=options.keep_bytes,
            done=self._later(self._forgot),
        )

    def _forgot(self, some: bool) -> None:
        if not self._closed:
            self._sweep = self._loop.call_later(0.0 if some else SWEEP_S, self._forget)

    def _perform(self, action: Action) -> None:
        match action:
            case Acknowledge(session, refs):
                keep = tuple(ref for ref in refs if self._options.files.snapshot(ref) is not None)
                self._send(session, HelloAck(file_base_url=self._options.file_base_url, keep=keep))
            case Send(session, frame):
                self._send(session, self._with_snapshot(frame))
            case Prefetch(session, ref):
                if (snapshot := self._options.files.snapshot(ref)) is not None:
                    self._send(session, ModelOp(op=ModelOpKind.DOWNLOAD, ref=ref, snapshot=snapshot))
            case Run(session, job):
                self._send(session, self._run(job))
            case Close(session, reason):
                if session in self._sessions:
                    self._close(self._sessions[session], reason)
            case Save(job, confirm):
                saved = Saved(job.request_id, job.attempt)
                self._store.save(job, self._later(lambda _: self._apply(saved)) if confirm else None)
            case Record(job, ending):
                job.finished = time.time()
                self._store.record(job, ending, self._later(lambda _: self._apply(Recorded(job.request_id))))
            case Tell():
                self._tell(action)
            case _:
                assert_never(action)

    def _close(self, session: Session, reason: str) -> None:
        session.close(reason)
        if reason == "worker_stream_superseded":
            self._options.warned(
                f"worker `{session.worker_id}` connected a second time: its earlier connection is ended;"
                " if these are two workers, give each its own `--worker-id`"
            )

    def _send(self, session: int, frame: SchedulerFrame) -> None:
        if session in self._sessions:
            self._sessions[session].send(frame)

    def _with_snapshot(self, frame: SchedulerFrame) -> SchedulerFrame:
        if isinstance(frame, ModelOp) and frame.op is not ModelOpKind.UNLOAD and frame.snapshot is None:
            return msgspec.structs.replace(frame, snapshot=self._options.files.snapshot(frame.ref))
        return frame

    def _described(self, job: Job) -> dict[str, Snapshot]:
        """Return the models that a job runs with; of a function that nobody has looked into, those that are offered."""
        options = self._options
        guessed = () if job.request.function in options.needs else (*options.offered, *options.published())
        found: dict[str, Snapshot] = {}
        room = FILES_DESCRIBED
        for ref in dict.fromkeys((*job.refs, *guessed)):
            snapshot = options.files.snapshot(ref)
            if snapshot is not None and ref not in job.refs:
                room -= len(snapshot.files)
            if snapshot is not None and (room >= 0 or ref in job.refs):
                found[ref] = snapshot
        return found

    def _run(self, job: Job) -> RunJob:
        request, files = job.request, self._options.files
        return RunJob(
            request_id=job.request_id,
            attempt=job.attempt,
            function_name=request.function,
            input_payload=request.payload,
            timeout_ms=request.timeout_ms,
            tenant=request.tenant,
            invoker_id=request.invoker_id,
            capability_token=files.capability(job.request_id, job.attempt, request.tenant, request.function),
            output_mode=request.output_mode,
            compute=request.compute,
            models=request.models,
            snapshots=self._described(job),
            traceparent=request.traceparent,
        )


def checked(request: JobRequest) -> JobRequest:
    """Return a request with the one spelling of its function, and an id; raise `InvalidRequestError`."""
    function = slugify_name(request.function)
    if not function:
        raise InvalidRequestError("a request names a function")
    for name in ("request_id", "tenant", "invoker_id"):
        text: str = getattr(request, name)
        if len(text) > NAME_CHARS or not text.isprintable():
            raise InvalidRequestError(f"`{name}` must be at most {NAME_CHARS} printable characters")
    if len(request.payload) > PAYLOAD_BYTES:
        raise InvalidRequestError(f"the payload has {len(request.payload)} bytes, the limit is {PAYLOAD_BYTES}")
    if not 0 <= request.timeout_ms < 1 << 53:
        raise InvalidRequestError("`timeout_ms` must be 0 or more")
    return msgspec.structs.replace(request, function=function, request_id=request.request_id or uuid.uuid4().hex)


def _same(view: JobView, request: JobRequest) -> JobView:
    if msgspec.structs.replace(view.request, traceparent=request.traceparent) != request:
        raise ConflictError(f"request `{request.request_id}` was another one: its id cannot be used again")
    return view
