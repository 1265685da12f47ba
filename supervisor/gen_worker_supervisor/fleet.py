"""What each happening changes, and what must be done at once because of it.

Pure: `apply` takes the fleet, one happening and the time, changes the fleet and returns actions. Which job runs where
is `decide`'s business.
"""

import heapq
import signal
from collections.abc import Callable
from typing import Any, Literal, assert_never

from gen_worker.wire.messages import (
    Body,
    Cancel,
    Done,
    Drain,
    ErrorDetail,
    ErrorKind,
    Event,
    Failed,
    Hello,
    ImportFailed,
    Interrupt,
    Item,
    Loaded,
    LoadFailed,
    Need,
    Ready,
    Recall,
    Region,
    Release,
    Returned,
    Save,
    Started,
    Warned,
)
from gen_worker_supervisor.blame import Charge
from gen_worker_supervisor.ladder import Ending, Reason, Rung
from gen_worker_supervisor.phases import NEXT_HEALTH, NEXT_PHASE, Health, JobState, Phase, step
from gen_worker_supervisor.state import (
    Action,
    Answer,
    Began,
    Child,
    Death,
    Deliver,
    Device,
    Died,
    Discard,
    DrainAsked,
    EndAsked,
    Finish,
    Fleet,
    Function,
    Happening,
    Instance,
    Job,
    Misbehaved,
    Note,
    Outcome,
    Reported,
    Send,
    Signal,
    Spawn,
    Spawned,
    Submitted,
    Tell,
    Ticked,
    Timer,
    holds,
    lane_of,
)

BOOT_LIMIT_S = 300.0  # a child that is not ready by then is ended like one that died
DRAIN_LIMIT_S = 5.0  # what `shutdown()` of the author's classes may take
TERMINATE_LIMIT_S = 1.0
WEDGED_AFTER_S = 10.0  # a SIGKILL that was not reaped
RETIRED_AFTER_S = 30.0
LOAD_TRIES = 3
BOOT_TRIES = 3
LOSSES = 2  # children that a job was handed to and that died, before it counts as started
UNAVAILABLE_S = 30.0  # after that the next job of the function tries once more
BACKOFF_LIMIT_S = 60.0
PRINTED_CHARS = 400  # of each line of a job's last words that its client is told, so that they fit a frame

STATE_OF: dict[ErrorKind, JobState] = {
    "usage": JobState.INVALID,
    "not_found": JobState.INVALID,
    "invalid": JobState.INVALID,
    "canceled": JobState.CANCELED,
    "killed": JobState.CANCELED,
    "retryable": JobState.RETRYABLE,
    "out_of_memory": JobState.RETRYABLE,
    "busy": JobState.RETRYABLE,
    "draining": JobState.RETRYABLE,
    "unavailable": JobState.RETRYABLE,
}


def apply(fleet: Fleet, happening: Happening, now: float) -> list[Action]:
    """Record what happened and return what follows from it at once."""
    if isinstance(happening, Submitted):  # first, as a job takes the two first of these
        return _submitted(fleet, happening.job, now)
    fleet.changes += 1
    if isinstance(happening, Reported):
        handler = _REPORTS.get(type(happening.message))
        return handler(fleet, happening.child, happening.message, now) if handler is not None else []
    match happening:
        case EndAsked(job, reason, at_once):
            return _end_asked(fleet, job, reason, at_once, now)
        case Ticked():
            return _ticked(fleet, now)
        case Began(child, number, since):
            return _on_began(child, number, since, now)
        case Spawned(child, pid):
            child.pid = pid
            return []
        case Died(child, death):
            return _died(fleet, child, death, now)
        case Misbehaved(child, message):
            return _misbehaved(fleet, child, message, now)
        case DrainAsked():
            return _drain(fleet, now)
        case _:
            assert_never(happening)


# --- the start --------------------------------------------------------------------------------------------------------


def start(fleet: Fleet, now: float) -> list[Action]:
    """Return the actions that give every device its first child."""
    return [action for device in fleet.devices for action in _spawn(fleet, device, now)]


def _spawn(fleet: Fleet, device: Device, now: float) -> list[Action]:
    fleet.generation += 1
    if device.child is not None:
        step(NEXT_PHASE, device.child.phase, Phase.FORKING)  # the table's way from the dead child, which stays dead
        device.restarts += 1
    device.restart_at = None
    child = device.child = Child(device, fleet.generation, now)
    fleet.arm(now + BOOT_LIMIT_S, ("boot", child))
    return [Spawn(child)]


# --- jobs come --------------------------------------------------------------------------------------------------------


def _submitted(fleet: Fleet, job: Job, now: float) -> list[Action]:
    refusal = _refusal(fleet, job, now)
    fleet.jobs[job.number] = job
    if job.named:
        fleet.by_identity[job.identity] = job
    if refusal is not None:
        return [_end(fleet, job, refusal)]
    fleet.enqueue(job)
    if job.deadline is not None:
        fleet.arm(job.deadline, ("deadline", job.number))  # not the job: it would be kept until then
    return []


def _refusal(fleet: Fleet, job: Job, now: float) -> Outcome | None:
    function = job.function
    if job.payload.length > fleet.max_input_bytes:
        return _too_large("input", job.payload.length, fleet.max_input_bytes)
    if fleet.queued >= fleet.max_queued:
        return failure("busy", f"{fleet.queued} jobs wait already, the limit is {fleet.max_queued}", retryable=True)
    if function.clear:
        return None
    if fleet.draining:
        return failure("draining", "the worker is shutting down", retryable=True)
    if function.surveyed.models:
        return failure(
            "model_resolution", f"no resolver for {', '.join(f'`{ref}`' for ref in function.surveyed.models)}"
        )
    reason = _unavailable(fleet, function, now)
    if reason is not None:
        return failure("unavailable", f"`{function.name}` is unavailable: {reason}", retryable=True)
    if fleet.blame.suspects(function.name):
        charge = fleet.blame.quarantined(function.name, job.payload.digest(), now)
        if charge is not None:
            return _quarantine(job, charge)
    else:
        function.clear = True
    return None


def _unavailable(fleet: Fleet, function: Function, now: float) -> str | None:
    if function.unavailable is not None:
        if now < function.available_at:
            return function.unavailable
        function.unavailable = None
    devices = [device for device in fleet.devices if holds(device, function)]
    if not devices:
        return "no device of this host can hold it"
    if all(device.lost for device in devices):
        return devices[0].given_up or f"{devices[0].name} is retired"
    return fleet.blame.breaker(function.name, now)


def _quarantine(job: Job, charge: Charge) -> Outcome:
    text = f"this payload of `{job.function.name}` has killed {charge.deaths} children: {charge.cause}"
    return failure("quarantined", text, detail=ErrorDetail(cause=charge.cause, stack=charge.stack or None))


def body_length(body: Body) -> int:
    """Return the length of a body wherever it lies."""
    return body.length if isinstance(body, Region) else len(body)


def _too_large(what: Literal["input", "output"], length: int, limit: int) -> Outcome:
    variable = f"WORKER_MAX_{what.upper()}_BYTES"
    return failure("invalid", f"the {what} has {length} bytes, the limit is {limit} (`{variable}`)")


def failure(
    kind: ErrorKind, message: str, *, retryable: bool = False, run_s: float = 0.0, detail: ErrorDetail | None = None
) -> Outcome:
    """Return the outcome of a job that ended badly."""
    state = STATE_OF.get(kind, JobState.RETRYABLE if retryable else JobState.FATAL)
    return Outcome(state, kind=kind, message=message, retryable=retryable, run_s=run_s, detail=detail)


# --- jobs end ---------------------------------------------------------------------------------------------------------


def _end(fleet: Fleet, job: Job, outcome: Outcome, child: Child | None = None) -> Action:
    """Give a job its one answer; it may still be in a child, whose later frames for it are dropped."""
    if job.waiting:
        fleet.dequeue(job)
    job.move(outcome.state)
    del fleet.jobs[job.number]
    if job.named and fleet.by_identity.get(job.identity) is job:
        del fleet.by_identity[job.identity]
    if outcome.state is JobState.OK:
        fleet.done += 1
    else:
        fleet.failed += 1
    if job.alone:
        for device in fleet.devices:
            if device.child is not None and device.child.reserved is job:
                device.child.reserved = None
    return Answer(job, outcome, child)


def _leave(child: Child, job: Job) -> None:
    """Free what a job held in its child."""
    if child.leased.pop(job.number, None) is not None:
        child.used[lane_of(job.function)] -= 1
    if child.reserved is job:
        child.reserved = None
    child.settle_phase()


def _after_leave(fleet: Fleet, child: Child, job: Job, now: float) -> list[Action]:
    """A child whose job needed rung 2 or more is replaced: the interrupt may have fired inside a lock."""
    if job.ending is not None and job.ending.rung >= Rung.INTERRUPT and not child.retiring:
        return _retire(fleet, child, now)
    return _drain_if_empty(fleet, child, now) if child.retiring else []


def _retire(fleet: Fleet, child: Child, now: float) -> list[Action]:
    child.retiring = True
    recalls: list[Action] = [
        Send(child, Recall(job.number)) for job in child.leased.values() if job.state is JobState.LEASED
    ]
    return recalls + _drain_if_empty(fleet, child, now)


def _drain_if_empty(fleet: Fleet, child: Child, now: float) -> list[Action]:
    if child.leased or child.phase in (Phase.DRAINING, Phase.DYING, Phase.SETTLING, Phase.BACKOFF):
        return []
    child.move(Phase.DRAINING)
    fleet.arm(now + DRAIN_LIMIT_S, ("drain", child))
    return [Send(child, Drain())]


# --- a child reports --------------------------------------------------------------------------------------------------


def _on_done(fleet: Fleet, child: Child, message: Done, now: float) -> list[Action]:
    job = child.leased.get(message.job)
    if job is None:
        return _forged(fleet, child, f"the result of job {message.job}, which it does not hold", now, message.body)
    _leave(child, job)
    actions: list[Action] = []
    if job.ended:
        actions += _discard(child, message.body)
    elif job.ending is not None and job.ending.reason is Reason.DEADLINE:
        actions += _discard(child, message.body)
        actions.append(_end(fleet, job, _ended_outcome(job, None)))
    elif body_length(message.body) > fleet.max_output_bytes:
        actions += _discard(child, message.body)
        actions.append(_end(fleet, job, _too_large("output", body_length(message.body), fleet.max_output_bytes)))
    else:
        _succeeded(fleet, child, job, message.run_s, now)
        outcome = Outcome(JobState.OK, message.body, message.yielded, message.run_s)
        actions.append(_end(fleet, job, outcome, child))
    if child.retiring or job.ending is not None:
        actions += _after_leave(fleet, child, job, now)
    return actions


def _succeeded(fleet: Fleet, child: Child, job: Job, run_s: float, now: float) -> None:
    job.function.ran(run_s)
    child.device.deaths_in_row = 0
    if not job.function.clear and fleet.blame.suspects(job.function.name):
        fleet.blame.clear(job.function.name, job.payload.digest())


def _on_failed(fleet: Fleet, child: Child, message: Failed, now: float) -> list[Action]:
    job = child.leased.get(message.job)
    if job is None:
        return _forged(fleet, child, f"the end of job {message.job}, which it does not hold", now)
    _leave(child, job)
    actions: list[Action] = []
    if not job.ended:
        outcome = failure(
            message.kind, message.message, retryable=message.retryable, run_s=message.run_s, detail=message.detail
        )
        if job.ending is not None:
            outcome = _ended_outcome(job, None)
        actions.append(_end(fleet, job, outcome))
    if message.detail is not None and message.detail.cause == "cuda_error" and not child.retiring:
        note = Note("warning", child.device.name, "a CUDA error has spoilt the child's context; it is replaced")
        return [*actions, note, *_retire(fleet, child, now)]
    return actions + _after_leave(fleet, child, job, now)


def _on_returned(fleet: Fleet, child: Child, message: Returned, now: float) -> list[Action]:
    job = child.leased.get(message.job)
    if job is None or (job.state is not JobState.LEASED and not job.ended):
        return _forged(fleet, child, f"job {message.job} back, which it may not", now)
    _leave(child, job)
    actions: list[Action] = []
    if not job.ended:
        if job.ending is not None:
            actions.append(_end(fleet, job, _ended_outcome(job, None)))
        else:
            _requeue(fleet, job)
    return actions + (_drain_if_empty(fleet, child, now) if child.retiring else [])


def _requeue(fleet: Fleet, job: Job) -> None:
    job.move(JobState.QUEUED)
    job.child = None
    job.started = None
    job.recalled = False
    fleet.enqueue(job, front=True)


def _on_started(fleet: Fleet, child: Child, message: Started, now: float) -> list[Action]:
    job = child.leased.get(message.job)
    if job is None or (job.state is not JobState.LEASED and not job.ended):
        return _forged(fleet, child, f"the start of job {message.job}, which it may not", now)
    _mark_started(job, now)
    return []


def _on_began(child: Child, number: int, since: float, now: float) -> list[Action]:
    job = child.leased.get(number)
    if job is not None and job.state is JobState.LEASED:
        _mark_started(job, since if job.submitted <= since <= now else now)  # the child wrote it: maybe NaN
    return []


def _mark_started(job: Job, now: float) -> None:
    job.started = now
    if job.state is JobState.LEASED:
        job.move(JobState.STARTED)


def _on_item(fleet: Fleet, child: Child, message: Item, now: float) -> list[Action]:
    job = child.leased.get(message.job)
    if job is None:
        return _forged(fleet, child, f"an item of job {message.job}, which it does not hold", now, message.body)
    if job.ended or job.ending is not None:
        return _discard(child, message.body)
    if job.state is JobState.LEASED:
        _mark_started(job, now)
    if job.stream and job.state is JobState.STARTED:
        job.move(JobState.EMITTED)
    return [Deliver(job, child, message.body)]


def _on_event(fleet: Fleet, child: Child, message: Event, now: float) -> list[Action]:
    job = child.leased.get(message.job)
    return [] if job is None or job.ended else [Tell(job, child, message)]


def _on_hello(fleet: Fleet, child: Child, message: Hello, now: float) -> list[Action]:
    if child.phase is Phase.DRAINING:
        return []  # it was told to go before it came
    if child.phase is not Phase.FORKING:
        return _forged(fleet, child, "a greeting, out of turn", now)
    child.move(Phase.IMPORTING)
    took = f"{(now - child.born) * 1000:.0f} ms"
    return [Note("info", child.device.name, f"child {message.pid} says hello after {took}")]


def _on_ready(fleet: Fleet, child: Child, message: Ready, now: float) -> list[Action]:
    if child.phase is Phase.DRAINING and not child.ready:
        return []  # it was told to go before it was ready
    if child.phase is not Phase.IMPORTING:
        return _forged(fleet, child, "that it is ready, out of turn", now)
    child.move(Phase.READY)
    child.ready = True
    child.credits = dict(message.credits)
    child.job_thread = message.job_thread
    child.device.early_deaths = 0
    return [Note("info", child.device.name, f"child {child.pid} ready after {now - child.born:.2f} s")]


def _on_import_failed(fleet: Fleet, child: Child, message: ImportFailed, now: float) -> list[Action]:
    child.import_error = message.message
    return [Note("error", child.device.name, message.message, tuple(message.stack))]


def _on_loaded(fleet: Fleet, child: Child, message: Loaded, now: float) -> list[Action]:
    if message.instance != child.loading:
        return _forged(fleet, child, f"that `{message.instance}` is set up, which nobody asked for", now)
    child.loading = None
    child.loaded.add(message.instance)
    child.settle_phase()
    known = fleet.instances.setdefault(message.instance, Instance())
    known.load_s, known.failures = message.seconds, 0
    note = Note("info", child.device.name, f"`{message.instance}` set up in {message.seconds:.2f} s")
    return [note, *(_drain_if_empty(fleet, child, now) if child.retiring else [])]


def _on_load_failed(fleet: Fleet, child: Child, message: LoadFailed, now: float) -> list[Action]:
    if message.instance != child.loading:
        return _forged(fleet, child, f"that `{message.instance}` failed, which nobody asked for", now)
    child.loading = None
    child.settle_phase()
    text = f"setup of `{message.instance}` failed: {message.message}"
    note = Note("error", child.device.name, text, tuple(message.stack))
    return [note, *_load_failed(fleet, message.instance, text, tuple(message.stack), now)]


def _load_failed(fleet: Fleet, instance: str, text: str, stack: tuple[str, ...], now: float) -> list[Action]:
    """Count a failed load; after the last try the instance's functions are unavailable and their queues end."""
    known = fleet.instances.setdefault(instance, Instance())
    known.failures += 1
    if known.failures < LOAD_TRIES:
        return []
    actions: list[Action] = []
    for function in fleet.functions.values():
        if function.surveyed.instance == instance:
            actions += _make_unavailable(fleet, function, text, stack, now)
    return actions


def _make_unavailable(
    fleet: Fleet, function: Function, reason: str, stack: tuple[str, ...], now: float
) -> list[Action]:
    function.unavailable, function.available_at, function.clear = reason, now + UNAVAILABLE_S, False
    outcome = failure(
        "unavailable",
        f"`{function.name}` is unavailable: {reason}",
        retryable=True,
        detail=ErrorDetail(stack=list(stack) or None),
    )
    return [_end(fleet, job, outcome) for job in list(function.queue) if job.waiting]


def _on_warned(fleet: Fleet, child: Child, message: Warned, now: float) -> list[Action]:
    return [Note("warning", child.device.name, message.message)]


def _discard(child: Child, body: Body) -> list[Action]:
    return [Discard(child, body)] if isinstance(body, Region) else []


_REPORTS: dict[type, Callable[[Fleet, Child, Any, float], list[Action]]] = {
    Done: _on_done,
    Started: _on_started,
    Failed: _on_failed,
    Item: _on_item,
    Event: _on_event,
    Returned: _on_returned,
    Hello: _on_hello,
    Ready: _on_ready,
    ImportFailed: _on_import_failed,
    Loaded: _on_loaded,
    LoadFailed: _on_load_failed,
    Warned: _on_warned,
}
SHELL_ONLY = (Need, Save, Release)  # frames about memory and files, which change nothing here


def _forged(fleet: Fleet, child: Child, what: str, now: float, body: Body = b"") -> list[Action]:
    return [*_discard(child, body), *_misbehaved(fleet, child, f"it sent {what}", now)]


def _misbehaved(fleet: Fleet, child: Child, what: str, now: float) -> list[Action]:
    """A child that breaks the protocol is not believed any more: it dies, and its jobs with it as in any death."""
    if child.phase in (Phase.DYING, Phase.SETTLING, Phase.BACKOFF):
        return []
    return [
        Note("error", child.device.name, f"child {child.pid} broke the protocol: {what}"),
        *_kill(fleet, child, now),
    ]


def _kill(fleet: Fleet, child: Child, now: float) -> list[Action]:
    if child.killed:
        return []  # its time runs from the first SIGKILL, whatever else wants it dead
    child.move(Phase.DYING)
    child.killed = True
    fleet.arm(now + WEDGED_AFTER_S, ("unkillable", child))
    return [Signal(child, signal.SIGKILL)]


# --- a child dies -----------------------------------------------------------------------------------------------------


def _died(fleet: Fleet, child: Child, death: Death, now: float) -> list[Action]:
    device = child.device
    wanted = child.retiring or child.ending is not None or fleet.draining
    child.move(Phase.SETTLING)
    actions: list[Action] = [] if wanted and death.exit_code == 0 else [_death_note(child, death)]
    if child.loading is not None and child.ending is None:
        text = f"setup of `{child.loading}` killed its child: {death.cause}"
        actions += _load_failed(fleet, child.loading, text, death.stack or _printed(death), now)
    actions += _judge_jobs(fleet, child, death, now)
    if device.health is Health.WEDGED:
        device.health = step(NEXT_HEALTH, device.health, Health.OK)
    child.move(Phase.BACKOFF)
    if fleet.draining:
        return actions + _finish_if_drained(fleet)
    return actions + _plan_respawn(fleet, child, death, wanted, now)


def _death_note(child: Child, death: Death) -> Note:
    lines = death.stack or _printed(death)
    text = f"child {child.pid} died: {death.cause}" if child.pid is not None else f"child {death.cause}"
    return Note("error", child.device.name, text, lines)


def _printed(death: Death) -> tuple[str, ...]:
    return tuple(line for _, line in death.printed)


def _judge_jobs(fleet: Fleet, child: Child, death: Death, now: float) -> list[Action]:
    held = list(child.leased.values())
    child.leased.clear()
    child.reserved = None
    actions: list[Action] = []
    unfinished = [job for job in held if not job.ended and job.ending is None]
    innocent = child.ending is not None or child.retiring
    suspects = [job for job in unfinished if _is_suspect(job, innocent=innocent)]
    for job in held:
        if not job.ended and job.ending is not None:
            actions.append(_end(fleet, job, _ended_outcome(job, death)))
    for job in reversed(unfinished):  # each goes to the front, so the first is the first again
        if job in suspects:
            actions += _judge_suspect(fleet, job, death, now, charged=len(suspects) == 1 and not innocent)
        else:
            _requeue(fleet, job)
    return actions


def _is_suspect(job: Job, *, innocent: bool) -> bool:
    """Whether a job may have killed its child: it had started; or it was lost before, for its child may not tell."""
    if job.state is JobState.EMITTED:
        return True
    if innocent:
        return False
    job.losses += job.state is JobState.LEASED
    return job.state is JobState.STARTED or job.losses >= LOSSES


def _judge_suspect(fleet: Fleet, job: Job, death: Death, now: float, *, charged: bool) -> list[Action]:
    job.deaths += 1
    stack = list(death.stack)
    if charged:
        job.function.clear = False
        name, payload = job.function.name, job.payload.digest()
        fleet.blame.charge(name, payload, now, deaths=job.deaths, cause=death.cause, stack=stack)
    detail = death_detail(death, job)
    if job.state is JobState.EMITTED:
        text = f"its child died ({death.cause}) after part of the stream had left"
        return [_end(fleet, job, failure("retryable", text, retryable=True, detail=detail))]
    if job.deaths >= 2:
        text = f"`{job.function.name}` killed its child twice, the second time alone in it: {death.cause}"
        return [_end(fleet, job, failure("child_died", text, detail=detail))]
    job.alone = True
    _requeue(fleet, job)
    return [Note("warning", job.function.name, f"request {job.request_id} runs once more, alone in a child")]


def death_detail(death: Death, job: Job, rung: int | None = None) -> ErrorDetail:
    """Return what a job's client is told of its child's death; of all that was printed, what the job printed itself."""
    printed = [line[:PRINTED_CHARS] for number, line in death.printed if number == job.number]
    return ErrorDetail(
        cause=death.cause,
        signal=death.signal,
        exit_code=death.exit_code,
        stack=list(death.stack) or None,
        stderr=printed or None,
        rung=rung,
    )


def _plan_respawn(fleet: Fleet, child: Child, death: Death, wanted: bool, now: float) -> list[Action]:
    device = child.device
    if device.health is Health.RETIRED:
        return []  # it came too late; its loss is known
    if not child.ready:
        device.early_deaths += 1
        if device.early_deaths >= BOOT_TRIES:
            device.given_up = (
                child.import_error or f"its child died {BOOT_TRIES} times before it was ready: {death.cause}"
            )
            return _after_loss(fleet, device, now)
    delay = 0.0 if wanted else backoff_s(device.deaths_in_row, child.generation)
    if not wanted:
        device.deaths_in_row += 1
    if delay == 0.0:
        return _spawn(fleet, device, now)
    device.restart_at = now + delay
    fleet.arm(device.restart_at, ("respawn", device))
    return [Note("info", device.name, f"a new child in {delay:.1f} s")]


def backoff_s(deaths: int, salt: int) -> float:
    """Return the pause before the next child after this many earlier deaths in a row: 0, then 1, 2, 4 … 60 s, jittered.

    The jitter comes from `salt` (up to a fifth less), so that the decision stays a function of its arguments.
    """
    if deaths == 0:
        return 0.0
    return min(BACKOFF_LIMIT_S, 2.0 ** min(deaths - 1, 30)) * (1.0 - 0.2 * (salt * 2654435761 % 1000) / 1000)


def _after_loss(fleet: Fleet, device: Device, now: float) -> list[Action]:
    """A device is out: end what only it could run; end the supervisor when nothing is left."""
    fleet.doubt()
    actions: list[Action] = []
    for function in fleet.functions.values():
        able = [other for other in fleet.devices if holds(other, function)]
        if able and all(other.lost for other in able):
            actions += _make_unavailable(fleet, function, device.given_up or f"{device.name} is retired", (), now)
    if all(other.lost for other in fleet.devices):
        fleet.finished = True
        actions.append(Finish(1, f"no device can serve: {device.given_up or 'all are retired'}"))
    return actions


# --- jobs are ended ---------------------------------------------------------------------------------------------------


def _end_asked(fleet: Fleet, job: Job, reason: Reason, at_once: bool, now: float) -> list[Action]:
    if job.ended:
        return []
    if job.ending is None:
        job.ending = Ending(reason, now, at_once)
    else:
        job.ending.hasten(reason, now, at_once=at_once)
    if job.state is JobState.QUEUED:
        return [_end(fleet, job, _ended_outcome(job, None))]
    return _climb(fleet, job, now)


def _climb(fleet: Fleet, job: Job, now: float) -> list[Action]:
    ending, child = job.ending, job.child
    assert ending is not None
    assert child is not None
    actions: list[Action] = []
    for rung in ending.climb(now):
        if job.state is JobState.LEASED and rung >= Rung.DUMP:
            actions.append(Send(child, Cancel(job.number)))
            actions.append(_end(fleet, job, _ended_outcome(job, None)))
            return actions
        actions += _perform_rung(fleet, job, child, rung, now)
    due = ending.next_due()
    if due is not None:
        fleet.arm(due, ("ending", job))
    return actions


def _perform_rung(fleet: Fleet, job: Job, child: Child, rung: Rung, now: float) -> list[Action]:
    match rung:
        case Rung.COOPERATE:
            return [Send(child, Cancel(job.number))]
        case Rung.INTERRUPT:
            return [Send(child, Interrupt(job.number))]
        case Rung.DUMP:
            if child.phase in (Phase.READY, Phase.BUSY, Phase.LOADING):
                child.move(Phase.SUSPECT)
            return [Signal(child, signal.SIGUSR2)]
        case Rung.TERMINATE:
            child.ending = job.ending
            child.move(Phase.DYING)
            fleet.arm(now + TERMINATE_LIMIT_S, ("drain", child))  # the job may end now; the child must
            return [Signal(child, signal.SIGTERM)]
        case Rung.KILL:
            return _kill(fleet, child, now)
        case _:
            assert_never(rung)


def _ended_outcome(job: Job, death: Death | None) -> Outcome:
    """Return the answer of a job that somebody wanted ended; the ladder's last rung is said."""
    ending = job.ending
    assert ending is not None
    rung = ending.rung or None
    detail = ErrorDetail(cause=str(ending.reason), rung=rung)
    if death is not None:
        detail = death_detail(death, job, rung)
        detail.cause = str(ending.reason)
    if ending.reason is Reason.KILL:
        detail.cause = "killed"
        return failure("killed", f"killed by an operator{_by_rung(ending)}", detail=detail)
    if ending.reason is Reason.DEADLINE:
        return failure("deadline", "deadline exceeded", detail=detail)
    if ending.reason is Reason.DRAIN:
        return failure("draining", "the worker is shutting down", retryable=True, detail=detail)
    return failure("canceled", "canceled", detail=detail)


def _by_rung(ending: Ending) -> str:
    return f" (rung {ending.rung}: {Rung(ending.rung).name.lower()})" if ending.rung else " before it started"


# --- time passes ------------------------------------------------------------------------------------------------------


def _ticked(fleet: Fleet, now: float) -> list[Action]:
    actions: list[Action] = []
    while fleet.timers and fleet.timers[0][0] <= now:
        _, _, timer = heapq.heappop(fleet.timers)
        actions += _due(fleet, timer, now)
    return actions


def _due(fleet: Fleet, timer: Timer, now: float) -> list[Action]:
    kind, subject = timer
    match kind:
        case "deadline":
            overdue = fleet.jobs.get(subject)
            return [] if overdue is None else _end_asked(fleet, overdue, Reason.DEADLINE, False, now)
        case "ending":
            job: Job = subject
            gone = job.ended or job.child is None or job.number not in job.child.leased
            return [] if gone else _climb(fleet, job, now)
        case "respawn":
            device: Device = subject
            idle = device.child is not None and device.child.phase is Phase.BACKOFF
            return _spawn(fleet, device, now) if idle and not fleet.draining else []
        case "boot":
            late: Child = subject
            if late.phase not in (Phase.FORKING, Phase.IMPORTING):
                return []
            note = Note("error", late.device.name, f"child {late.pid} was not ready after {BOOT_LIMIT_S:.0f} s")
            return [note, *_kill(fleet, late, now)]
        case "drain":
            return _drain_overdue(fleet, subject, now)
        case "unkillable":
            return _unkillable(fleet, subject, now)
        case "look":
            return []  # `decide` looks after every happening
        case _:
            assert_never(kind)


def _drain_overdue(fleet: Fleet, child: Child, now: float) -> list[Action]:
    if child.phase is Phase.DRAINING:
        child.move(Phase.DYING)
        fleet.arm(now + TERMINATE_LIMIT_S, ("drain", child))
        return [Signal(child, signal.SIGTERM)]
    return _kill(fleet, child, now) if child.phase is Phase.DYING else []


def _unkillable(fleet: Fleet, child: Child, now: float) -> list[Action]:
    """A SIGKILL was not reaped: answer the jobs, give the device up in two steps, leave the process to the kernel."""
    device = child.device
    if child is not device.child or child.phase is not Phase.DYING or device.health is Health.RETIRED:
        return []
    if device.health is not Health.WEDGED:
        device.health = step(NEXT_HEALTH, device.health, Health.WEDGED)
        fleet.arm(now + RETIRED_AFTER_S - WEDGED_AFTER_S, ("unkillable", child))
        text = f"child {child.pid} is not dead {WEDGED_AFTER_S:.0f} s after SIGKILL: the device is wedged"
        death = Death(cause="unkillable", signal="SIGKILL")
        return [Note("error", device.name, text), *_judge_jobs(fleet, child, death, now)]
    device.health = step(NEXT_HEALTH, device.health, Health.RETIRED)
    text = f"child {child.pid} is not dead {RETIRED_AFTER_S:.0f} s after SIGKILL: the device is retired"
    actions = [Note("error", device.name, text), *_after_loss(fleet, device, now)]
    return actions + (_finish_if_drained(fleet) if fleet.draining else [])


# --- the end ----------------------------------------------------------------------------------------------------------


def _drain(fleet: Fleet, now: float) -> list[Action]:
    if fleet.draining:
        return []
    fleet.draining = True
    fleet.doubt()
    actions: list[Action] = []
    for job in list(fleet.jobs.values()):
        actions += _end_asked(fleet, job, Reason.DRAIN, False, now)
    for device in fleet.devices:
        if device.child is not None and device.child.phase is not Phase.BACKOFF:
            actions += _retire(fleet, device.child, now)
    return actions + _finish_if_drained(fleet)


def _finish_if_drained(fleet: Fleet) -> list[Action]:
    gone = all(
        device.child is None or device.child.phase is Phase.BACKOFF or device.health is Health.RETIRED
        for device in fleet.devices
    )
    if not gone or fleet.finished:
        return []
    fleet.finished = True
    return [Finish(0)]
