"""What the control plane does about what happens. Pure: takes what it knows and the time, returns what to do.

The fence: a job is heard from one worker about one attempt, the present one. Attempts count from 1 and only go up, and
no worker sees one that is not on disk, so that none is given out twice, not even across a crash.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Literal, assert_never

import msgspec

from gen_worker.orchestrator import models
from gen_worker.orchestrator.placement import placements, unable
from gen_worker.orchestrator.state import (
    Acknowledge,
    Action,
    CancelAsked,
    CancelOver,
    Close,
    DrainAsked,
    Due,
    Ending,
    Gathered,
    GivenUp,
    GraceOver,
    Happening,
    Job,
    Joined,
    Left,
    Missed,
    OpAsked,
    Phase,
    Plane,
    QueueKey,
    Record,
    Recorded,
    Resend,
    Run,
    Said,
    Save,
    Saved,
    Send,
    Submitted,
    Tell,
    Ticked,
    Timer,
    Worker,
    queue_key,
)
from gen_worker.orchestrator.views import CANCELED, DONE, LATE, OUTCOMES, TRIED, UNABLE
from gen_worker.wire.scheduler import (
    EVENT_TYPE,
    PROTOCOL_VERSION,
    CancelJob,
    Drain,
    FnUnavailable,
    Hello,
    JobAccepted,
    JobProgress,
    JobResult,
    JobStatus,
    ModelEvent,
    ModelState,
    StateDelta,
)

DEADLINE = "deadline exceeded"  # how a worker says that a job took longer than its `timeout_ms`
DRAINING = "worker draining"  # how it says that it has no time left for a job
LOST = "its worker was lost"


def apply(plane: Plane, happening: Happening, now: float) -> list[Action]:
    """Take in what happened; return what to do about it, in this order."""
    actions = list(_about(plane, happening, now))
    match happening:
        case Submitted(job):
            actions += _place(plane, now, only=queue_key(job))
        case Recorded() | OpAsked() | Said(frame=JobAccepted() | JobProgress()):
            pass  # who can take what is as before, and these come in crowds
        case Said(frame=ModelEvent(state=ModelState.DOWNLOADING)):
            pass
        case _:
            actions += _place(plane, now)
    return actions


def _about(plane: Plane, happening: Happening, now: float) -> Iterator[Action]:
    match happening:
        case Submitted(job):
            yield from _submitted(plane, job)
        case CancelAsked() | GivenUp():
            yield from _unwanted(plane, happening, now)
        case Joined(session, hello, unix):
            yield from _joined(plane, session, hello, now, unix)
        case Left(session):
            _left(plane, session, now)
        case Said():
            yield from _said(plane, happening, now)
        case DrainAsked(worker_id, deadline_ms):
            yield from _drain(plane.workers[worker_id], deadline_ms)
        case OpAsked(worker_id, op):
            yield from models.ask(plane.workers[worker_id], op.op, op.ref)
        case Saved(request_id, attempt):
            yield from _saved(plane, request_id, attempt)
        case Recorded(request_id):
            yield from _recorded(plane, request_id)
        case Ticked(deaf):
            yield from _ticked(plane, now, deaf=deaf)
        case _:
            assert_never(happening)


# --- jobs and their callers -------------------------------------------------------------------------------------------


def _submitted(plane: Plane, job: Job) -> Iterator[Action]:
    plane.jobs[job.request_id] = job
    plane.held_bytes += len(job.request.payload)
    plane.enqueue(job)
    yield from _refuse(plane, job.request.function)


def restore(plane: Plane, job: Job, worker_id: str, now: float) -> None:
    """Take in a job from before a restart; the one that a worker may have waits for that worker."""
    plane.jobs[job.request_id] = job
    plane.held_bytes += len(job.request.payload)
    if not worker_id:
        plane.enqueue(job)
        return
    worker = plane.workers.get(worker_id)
    if worker is None:
        worker = plane.workers[worker_id] = Worker(worker_id)
        plane.arm(now + plane.limits.restart_grace_s, GraceOver(worker_id, worker.losses))
    job.phase = Phase.ASSIGNED
    job.worker = worker
    worker.jobs[job.request_id] = job


def gather(plane: Plane, now: float) -> None:
    """Begin another life: until workers have had the time to come back, what only some of them refuse is waited for."""
    plane.gathering = True
    plane.arm(now + plane.limits.restart_grace_s, Gathered())


def _unwanted(plane: Plane, asked: CancelAsked | GivenUp, now: float) -> Iterator[Action]:
    job = plane.jobs.get(asked.request_id)
    if job is None or not job.live or job.canceled:
        return
    session = None if job.worker is None else job.worker.session
    if isinstance(asked, GivenUp):
        if session is None:
            yield from _end(plane, job, Ending("retryable", TRIED, asked.message))
        return
    job.canceled = True
    if session is None:
        yield from _end(plane, job, _canceled())
        return
    yield Save(job, confirm=True)
    yield Send(session, CancelJob(request_id=job.request_id, attempt=job.attempt))
    plane.arm(now + plane.limits.cancel_s, CancelOver(job.request_id, job.attempt))


def _canceled() -> Ending:
    return Ending("canceled", CANCELED, "canceled")


def _end(plane: Plane, job: Job, ending: Ending) -> Iterator[Action]:
    """End a job; its callers are told when that is on disk."""
    if job.phase is Phase.QUEUED:
        plane.dequeue(job)
    elif job.worker is not None:
        job.worker.jobs.pop(job.request_id, None)
    job.move(Phase.ENDED)
    job.ending = ending
    yield Record(job, ending)


def _recorded(plane: Plane, request_id: str) -> Iterator[Action]:
    job = plane.jobs.pop(request_id)
    plane.held_bytes -= len(job.request.payload)
    yield Tell(job, "result")


def _refuse(plane: Plane, function: str) -> Iterator[Action]:
    """End what waits for a function that no worker can run."""
    if (reason := unable(plane, function)) is None:
        return
    ending = Ending("retryable", UNABLE, f"no worker can run `{function}`: {reason}")
    for queue in list(plane.queues.get(function, {}).values()):
        for job in list(queue.jobs):
            yield from _end(plane, job, ending)


def _refuse_all(plane: Plane) -> Iterator[Action]:
    refused = {function for worker in plane.workers.values() for function in worker.gated}
    for function in refused & plane.queues.keys():
        yield from _refuse(plane, function)


# --- giving jobs to workers -------------------------------------------------------------------------------------------


def _place(plane: Plane, now: float, only: QueueKey | None = None) -> Iterator[Action]:
    for job, worker in placements(plane, only):
        plane.dequeue(job)
        job.move(Phase.ASSIGNED)
        job.worker = worker
        job.sends = 0
        worker.jobs[job.request_id] = job
        worker.use(job.refs, plane.turn)
        yield Save(job)
        yield from _send(plane, job, now)


def _send(plane: Plane, job: Job, now: float) -> Iterator[Action]:
    worker = job.worker
    if worker is None or worker.session is None:
        return
    job.sends += 1
    plane.arm(now + plane.limits.resend_s, Resend(job.request_id, job.attempt, worker.session))
    yield Run(worker.session, job)


def _try_again(
    plane: Plane, job: Job, now: float, *, failed: bool, message: str, delay_s: float = 0.0
) -> Iterator[Action]:
    """Let a job go from its worker to be tried with the next attempt, or end it where it has failed too often."""
    if job.worker is not None:
        job.worker.jobs.pop(job.request_id, None)
        job.avoids.add(job.worker.worker_id)
    job.failures += failed
    if job.canceled:
        yield from _end(plane, job, _canceled())
        return
    if failed and job.failures >= plane.limits.max_attempts:
        yield from _end(plane, job, Ending("retryable", TRIED, f"{message}; it failed {job.failures} times"))
        return
    job.move(Phase.WAITING)
    job.worker = None
    job.attempt += 1
    job.seq = 0
    job.started = job.progress = None
    job.due = delay_s == 0
    if not job.due:
        plane.arm(now + delay_s, Due(job.request_id, job.attempt))
    yield Save(job, confirm=True)


def _saved(plane: Plane, request_id: str, attempt: int) -> Iterator[Action]:
    job = plane.jobs.get(request_id)
    if job is not None:
        job.durable = max(job.durable, attempt)
        yield from _ready(plane, job)


def _ready(plane: Plane, job: Job) -> Iterator[Action]:
    """Let a job wait for a worker again, if nothing else keeps it."""
    if job.phase is Phase.WAITING and job.due and job.durable == job.attempt:
        job.move(Phase.QUEUED)
        plane.enqueue(job, front=True)
        yield from _refuse(plane, job.request.function)


def backoff_s(plane: Plane, failures: int) -> float:
    """Return how long to wait after so many failures of a job."""
    limits = plane.limits
    longest = min(limits.backoff_s * 2.0 ** max(failures - 1, 0), limits.max_backoff_s)
    return longest * plane.random.uniform(0.5, 1.0)


# --- timers -----------------------------------------------------------------------------------------------------------


def _ticked(plane: Plane, now: float, *, deaf: bool) -> Iterator[Action]:
    for timer in plane.over(now):
        if deaf and isinstance(timer, Resend):  # the answer may be among what is not heard yet
            plane.arm(now + plane.limits.resend_s, timer)
        else:
            yield from _timed(plane, timer, now)


def _timed(plane: Plane, timer: Timer, now: float) -> Iterator[Action]:
    match timer:
        case Resend():
            yield from _unanswered(plane, timer, now)
        case GraceOver(worker_id, losses):
            yield from _given_up(plane, worker_id, losses, now)
        case Due(request_id, attempt):
            job = plane.jobs.get(request_id)
            if job is not None and job.attempt == attempt:
                job.due = True
                yield from _ready(plane, job)
        case CancelOver(request_id, attempt):
            job = plane.jobs.get(request_id)
            if job is not None and job.live and job.attempt == attempt:
                yield from _end(plane, job, _canceled())
        case Missed(functions):
            plane.missed -= Counter(functions)
            for function in functions:
                yield from _refuse(plane, function)
        case Gathered():
            plane.gathering = False
            yield from _refuse_all(plane)
        case _:
            assert_never(timer)


def _unanswered(plane: Plane, timer: Resend, now: float) -> Iterator[Action]:
    """Say again what a worker has not acknowledged; a few times, then another one is tried."""
    job = plane.jobs.get(timer.request_id)
    if job is None or job.attempt != timer.attempt or job.phase is not Phase.ASSIGNED:
        return
    if job.worker is None or job.worker.session != timer.session or job.canceled:
        return
    if job.sends < plane.limits.max_sends:
        yield from _send(plane, job, now)
        return
    yield Send(timer.session, CancelJob(request_id=job.request_id, attempt=job.attempt))
    yield from _try_again(plane, job, now, failed=True, message="its worker does not accept it")


# --- workers come and go ----------------------------------------------------------------------------------------------


def _joined(plane: Plane, session: int, hello: Hello, now: float, unix: float) -> Iterator[Action]:
    if hello.protocol_version != PROTOCOL_VERSION:
        yield Close(session, "protocol_version_mismatch")
        return
    worker = plane.workers.setdefault(hello.worker_id, Worker(hello.worker_id))
    if worker.session is not None:
        del plane.sessions[worker.session]
        yield Close(worker.session, "worker_stream_superseded")
    _greet(worker, session, hello, unix)
    plane.sessions[session] = worker
    functions = (*hello.state.available_functions, *hello.state.loading_functions)
    plane.heard_of(*functions)
    needed = tuple(dict.fromkeys(ref for function in functions for ref in plane.needs.get(function, ())))
    yield Acknowledge(session, needed)
    yield from _reconcile(plane, worker, Joined(session, hello, unix), now)
    for ref in needed:
        if ref not in worker.models:
            yield from models.prefetch(worker, ref)
    yield from _refuse_all(plane)


def _greet(worker: Worker, session: int, hello: Hello, unix: float) -> None:
    worker.session = session
    worker.since = unix
    worker.release_id = hello.release_id
    worker.resources = hello.resources
    worker.state = hello.state
    worker.models = {model.ref: model for model in hello.models}
    worker.gated = {}  # it says again what it cannot run
    worker.ops = {}
    worker.draining = False
    worker.limit = max(worker.limit, worker.lanes + 1)


def _reconcile(plane: Plane, worker: Worker, joined: Joined, now: float) -> Iterator[Action]:
    """Agree with a worker on what it has: it keeps what is its, drops what is not, and what it lacks goes elsewhere."""
    kept = set()
    for held in joined.hello.in_flight:
        cancel = Send(joined.session, CancelJob(request_id=held.request_id, attempt=held.attempt))
        job = worker.jobs.get(held.request_id)
        if job is None or job.attempt != held.attempt:
            yield cancel
            continue
        kept.add(held.request_id)
        yield from _accepted(job, joined.unix)
        if job.canceled:
            yield cancel
    for job in [job for request_id, job in worker.jobs.items() if request_id not in kept]:
        yield from _lost(plane, job, now)


def _lost(plane: Plane, job: Job, now: float) -> Iterator[Action]:
    """Its worker does not have a job any more, or is gone with it: that is a failure if it ever began.

    So it is where this happens again and again before: it may be what ends its workers' streams.
    """
    began = job.phase is Phase.RUNNING
    job.unheard += job.sends > 0 and not began
    failed = began or job.unheard > plane.limits.max_unheard
    yield from _try_again(plane, job, now, failed=failed, message=LOST)


def _left(plane: Plane, session: int, now: float) -> None:
    worker = plane.sessions.pop(session, None)
    if worker is not None:
        worker.session = None
        worker.losses += 1
        plane.arm(now + plane.limits.grace_s, GraceOver(worker.worker_id, worker.losses))


def _given_up(plane: Plane, worker_id: str, losses: int, now: float) -> Iterator[Action]:
    worker = plane.workers.get(worker_id)
    if worker is None or worker.session is not None or worker.losses != losses:
        return
    del plane.workers[worker_id]
    if worker.offered:
        plane.missed.update(worker.offered)
        plane.arm(now + max(plane.limits.restart_grace_s - plane.limits.grace_s, 0.0), Missed(worker.offered))
    for job in list(worker.jobs.values()):
        yield from _lost(plane, job, now)
    yield from _refuse_all(plane)


def _drain(worker: Worker, deadline_ms: int) -> Iterator[Action]:
    if worker.session is not None:
        worker.draining = True
        yield Send(worker.session, Drain(deadline_ms=deadline_ms))


# --- what workers say -------------------------------------------------------------------------------------------------


def _said(plane: Plane, said: Said, now: float) -> Iterator[Action]:
    worker = plane.sessions.get(said.session)
    if worker is None:  # of a stream that is being ended
        return
    match said.frame:
        case JobAccepted() | JobProgress() | JobResult() as frame:
            yield from _said_of_job(plane, worker, frame, now, said.unix)
        case StateDelta() as state:
            worker.state = state
            plane.heard_of(*state.available_functions, *state.loading_functions)
            for function in state.available_functions:
                worker.gated.pop(function, None)
            yield from _refuse_all(plane)
        case FnUnavailable(function_name=function) as frame:
            plane.heard_of(function)
            worker.gated[function] = f"{frame.reason}: {frame.detail}" if frame.detail else frame.reason
            yield from _refuse(plane, function)
        case ModelEvent() as event:
            yield from models.happened(worker, event)
        case Hello():
            yield Close(said.session, "hello_expected")
        case _:
            assert_never(said.frame)


def _said_of_job(
    plane: Plane, worker: Worker, frame: JobAccepted | JobProgress | JobResult, now: float, unix: float
) -> Iterator[Action]:
    job = worker.jobs.get(frame.request_id)
    if job is None or job.attempt != frame.attempt:  # the fence
        return
    match frame:
        case JobAccepted():
            yield from _accepted(job, unix)
        case JobProgress():
            yield from _progressed(job, frame, unix)
        case JobResult():
            yield from _finished(plane, worker, job, frame, now)
        case _:
            assert_never(frame)


def _accepted(job: Job, unix: float) -> Iterator[Action]:
    if job.phase is Phase.ASSIGNED:
        job.move(Phase.RUNNING)
    if job.started is None:
        job.started = unix
        yield Save(job)
        yield Tell(job, "accepted")


def _progressed(job: Job, frame: JobProgress, unix: float) -> Iterator[Action]:
    yield from _accepted(job, unix)
    if frame.seq <= job.seq:
        return
    job.seq = frame.seq
    if frame.content_type != EVENT_TYPE:
        yield Tell(job, "chunk", frame.seq, frame.content_type, frame.body)
        return
    kind, value = _spoken(frame.body)
    if kind == "progress":
        job.progress = value
    yield Tell(job, kind, frame.seq, frame.content_type, value)


class _Spoken(msgspec.Struct):
    event: Literal["progress", "log"] = "progress"
    value: msgspec.Raw = msgspec.Raw(b"{}")


_decode = msgspec.json.Decoder(_Spoken).decode


def _spoken(body: bytes) -> tuple[Literal["progress", "log"], bytes]:
    """Return what a function said of itself; what cannot be read is a line of the log that says so."""
    try:
        spoken = _decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return "log", b'{"level":"warning","message":"an event of the worker cannot be read"}'
    return spoken.event, bytes(spoken.value)


def _finished(plane: Plane, worker: Worker, job: Job, frame: JobResult, now: float) -> Iterator[Action]:
    if frame.metrics is not None:
        worker.learn(frame.metrics)
    if frame.status is JobStatus.OK and frame.metrics is not None:
        plane.ran(job.request.function, frame.metrics.runtime_ms / 1000)
    if frame.status is JobStatus.RETRYABLE:
        leaves = frame.safe_message.startswith(DRAINING)
        worker.draining |= leaves
        delay_s = 0.0 if leaves else backoff_s(plane, job.failures + 1)
        yield from _try_again(plane, job, now, failed=not leaves, message=frame.safe_message, delay_s=delay_s)
        return
    status, code = OUTCOMES[frame.status]
    if code not in (DONE, CANCELED) and frame.safe_message.startswith(DEADLINE):
        code = LATE
    ending = Ending(status, code, frame.safe_message, frame.inline, frame.blob_ref, frame.metrics)
    yield from _end(plane, job, ending)
