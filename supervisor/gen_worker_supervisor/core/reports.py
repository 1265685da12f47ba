"""What each frame of a child changes."""

from collections.abc import Callable
from math import isfinite
from typing import Any, Literal

import msgspec

from gen_worker.models.wanted import Slot, overridden_instance
from gen_worker.wire.fetching import Fetched
from gen_worker.wire.messages import (
    MOST_INPUTS,
    Body,
    Degraded,
    Done,
    Engine,
    ErrorKind,
    Event,
    Failed,
    Hello,
    ImportFailed,
    Item,
    Loaded,
    LoadFailed,
    Loading,
    NeedsInputs,
    Ready,
    Returned,
    Started,
    Unloaded,
    Wants,
    Warned,
)
from gen_worker.wire.survey import SurveyedFunction
from gen_worker_supervisor.core.actions import Action, Deliver, LetGo, LoadOver, Note, OrderInputs, Tell
from gen_worker_supervisor.core.admission import stands_against
from gen_worker_supervisor.core.catalog import Model, again_at
from gen_worker_supervisor.core.engines import engine_died, engine_told
from gen_worker_supervisor.core.happenings import FetcherLost, FetcherReported, InputsCame, InputsRefused
from gen_worker_supervisor.core.ladder import Reason
from gen_worker_supervisor.core.outcomes import body_length, ended_outcome, failure, too_large
from gen_worker_supervisor.core.phases import JobState, ModelState, Phase
from gen_worker_supervisor.core.replacing import coming_failed, failed_setup, recycle_if_due
from gen_worker_supervisor.core.state import Child, Fleet, Function, Job, Outcome
from gen_worker_supervisor.core.steps import (
    after_leave,
    discard,
    drain_if_empty,
    end_job,
    give_up,
    got_on,
    kill_child,
    leave_child,
    load_failed,
    make_available,
    mark_started,
    model_failed,
    retire_child,
    run_again,
    spare,
    take_back,
)
from gen_worker_supervisor.core.tidying import make_room
from gen_worker_supervisor.core.verdicts import verdict_of

MOST_CREDITS = 1024  # of one lane
MOST_SECONDS = 1e9  # of a run; what is above it, or not a number, was never measured
MOST_BYTES = 1 << 60
ROOM_S = 1.0  # what needs room on a device where jobs run is tried again after that
NO_MODEL = 3  # the exit code of a server whose models cannot be had


def _on_done(fleet: Fleet, child: Child, message: Done, now: float) -> list[Action]:
    job = child.leased.get(message.job)
    if job is None:
        return _forged(fleet, child, f"the result of job {message.job}, which it does not hold", now, message.body)
    if not _is_measured(message):
        return _forged(fleet, child, f"figures of job {message.job} that make no sense", now, message.body)
    leave_child(child, job)
    actions: list[Action] = []
    if job.ended:
        actions += discard(child, message.body)
    elif job.ending is not None and (job.ending.cut or job.ending.reason is Reason.DEADLINE):
        actions += discard(child, message.body)
        actions.append(end_job(fleet, job, ended_outcome(job, None)))
    elif body_length(message.body) > fleet.max_output_bytes:
        actions += discard(child, message.body)
        actions.append(end_job(fleet, job, too_large("output", body_length(message.body), fleet.max_output_bytes)))
    else:
        _succeeded(fleet, child, job, message, now)
        if job.instance in child.used_at:
            child.used_at[job.instance] = now
        outcome = Outcome(JobState.OK, message.body, message.yielded, message.run_s)
        outcome.peak_rss, outcome.peak_vram = message.peak_rss, message.peak_vram
        outcome.together = message.together
        actions.append(end_job(fleet, job, outcome, child))
    if child.retiring or job.ending is not None:
        actions += after_leave(fleet, child, job, now)
    elif fleet.recycling.by_work:
        actions += recycle_if_due(fleet, child, now)
    return actions


def _is_measured(message: Done | Failed) -> bool:
    """Whether what a child says that a job took can have been measured."""
    peaks = 0 <= message.peak_rss < MOST_BYTES and 0 <= message.peak_vram < MOST_BYTES
    return peaks and 0 <= message.run_s < MOST_SECONDS and 1 <= message.together <= MOST_CREDITS


def _succeeded(fleet: Fleet, child: Child, job: Job, message: Done, now: float) -> None:
    job.function.ran(message.run_s / message.together)
    if job.started is None:  # it was over before anybody looked
        job.moved_at = now - message.run_s
    got_on(job, now)
    child.done += 1
    child.device.deaths_in_row = 0
    if job.instance in child.engines:
        fleet.instance(job.instance).engine_deaths = 0
    if not job.function.clear and fleet.blame.suspects(job.function.name, now):
        fleet.blame.clear(job.function.name, job.payload.digest())


def _on_failed(fleet: Fleet, child: Child, message: Failed, now: float) -> list[Action]:
    job = child.leased.get(message.job)
    if job is None:
        return _forged(fleet, child, f"the end of job {message.job}, which it does not hold", now)
    if not _is_measured(message):
        return _forged(fleet, child, f"figures of job {message.job} that make no sense", now)
    leave_child(child, job)
    actions: list[Action] = []
    if not job.ended:
        text, detail = message.message, message.detail
        if detail is not None and detail.cause == "cuda_error" and (fault := child.device.recent_fault(now)):
            text += f" ({fault})"
        outcome = failure(message.kind, text, retryable=message.retryable, run_s=message.run_s, detail=detail)
        if job.ending is not None:
            job.ending.stack = list(message.detail.stack or ()) if message.detail is not None else []
            outcome = ended_outcome(job, None)
        outcome.peak_rss, outcome.peak_vram = message.peak_rss, message.peak_vram
        outcome.together = message.together
        outcome.raised = message.raised
        actions.append(end_job(fleet, job, outcome))
    if message.detail is not None and message.detail.cause == "cuda_error" and not child.retiring:
        return [*actions, *_spoil(fleet, child, now)]
    return actions + after_leave(fleet, child, job, now)


def _on_returned(fleet: Fleet, child: Child, message: Returned, now: float) -> list[Action]:
    job = child.leased.get(message.job)
    if job is None or (job.state is not JobState.LEASED and not job.ended):
        return _forged(fleet, child, f"job {message.job} back, which it may not", now)
    leave_child(child, job)
    actions: list[Action] = []
    if not job.ended:
        if job.ending is not None:
            actions.append(end_job(fleet, job, ended_outcome(job, None)))
        else:
            actions += run_again(fleet, job, now)
    return actions + (drain_if_empty(fleet, child, now) if child.retiring else [])


def _on_started(fleet: Fleet, child: Child, message: Started, now: float) -> list[Action]:
    job = child.leased.get(message.job)
    if job is None or (job.state is not JobState.LEASED and not job.ended):
        return _forged(fleet, child, f"the start of job {message.job}, which it may not", now)
    _began(fleet, job, now, now)
    return []


def on_began(fleet: Fleet, child: Child, number: int, since: float, now: float) -> list[Action]:
    """Learn from a status page that a job has started."""
    job = child.leased.get(number)
    if job is not None and job.started is None:
        _began(fleet, job, since if job.submitted <= since <= now else now, now)  # the child wrote it: maybe NaN
    return []


def _began(fleet: Fleet, job: Job, since: float, now: float) -> None:
    mark_started(job, since)
    if job.ended and job.ending is not None:
        # It was answered as one that had not begun; the ladder goes on until it ends.
        fleet.arm(now, ("ending", (job.child, job.number)))


def _on_item(fleet: Fleet, child: Child, message: Item, now: float) -> list[Action]:
    job = child.leased.get(message.job)
    if job is None:
        return _forged(fleet, child, f"an item of job {message.job}, which it does not hold", now, message.body)
    if job.ended:
        return discard(child, message.body)
    if job.ending is not None and job.ending.unheard:
        job.ending.cut = True
        return discard(child, message.body)
    if job.state is JobState.LEASED:
        mark_started(job, now)
    if job.stream and job.state is JobState.STARTED:
        job.move(JobState.EMITTED)
    got_on(job, now)
    job.unread += 1
    return [Deliver(job, child, message.body, message.content_type)]


def _on_event(fleet: Fleet, child: Child, message: Event, now: float) -> list[Action]:
    job = child.leased.get(message.job)
    if job is None or job.ended:
        return []
    if job.started is not None:
        got_on(job, now)
    return [Tell(job, child, message)]


def _on_hello(fleet: Fleet, child: Child, message: Hello, now: float) -> list[Action]:
    if child.phase is Phase.DRAINING:
        return []  # it was told to go before it came
    if child.phase is not Phase.FORKING:
        return _forged(fleet, child, "a greeting, out of turn", now)
    child.move(Phase.IMPORTING)
    took = f"{(now - child.born) * 1000:.0f} ms"
    return [Note("info", child.device.name, f"child {message.pid} started in {took}")]


def _on_ready(fleet: Fleet, child: Child, message: Ready, now: float) -> list[Action]:
    if child.phase is Phase.DRAINING and not child.ready:
        return []  # it was told to go before it was ready
    if child.phase is not Phase.IMPORTING:
        return _forged(fleet, child, "that it is ready, out of turn", now)
    if not all(0 <= message.credits.get(lane, -1) <= MOST_CREDITS for lane in child.used):
        return _forged(fleet, child, f"credits that make no sense: {message.credits}", now)
    child.move(Phase.READY)
    child.ready = True
    child.credits = dict(message.credits)
    child.job_thread, child.job_tid = message.job_thread, message.job_tid
    child.device.early_deaths = 0
    child.device.proven = True
    if fleet.recycling.age_s:
        fleet.arm(child.born + fleet.recycling.age_s, ("recycle", child))
    return [Note("info", child.device.name, f"child {child.pid} ready after {now - child.born:.2f} s")]


def _on_import_failed(fleet: Fleet, child: Child, message: ImportFailed, now: float) -> list[Action]:
    child.import_error = message.message
    return [Note("error", child.device.name, message.message, tuple(message.stack))]


def _on_loaded(fleet: Fleet, child: Child, message: Loaded, now: float) -> list[Action]:
    if message.instance != child.loading:
        return _forged(fleet, child, f"that `{message.instance}` is set up, which nobody asked for", now)
    figures = (message.seconds, *(resident.bytes for resident in message.models))
    if not all(0 <= figure < MOST_BYTES for figure in figures):
        return _forged(fleet, child, f"figures of `{message.instance}` that make no sense", now)
    child.loading = None
    fleet.placed += 1
    if child is child.device.child:
        fleet.resting.discard(message.instance)
        child.device.resting.discard(message.instance)
    child.loaded_at = now
    child.set_up[message.instance] = now, message.seconds
    child.loaded.add(message.instance)
    child.settle_phase()
    known = fleet.instance(message.instance)
    known.load_s, known.learned, known.failures = message.seconds, True, 0
    known.refused.pop(child.device.name, None)
    make_available(fleet, message.instance)
    actions: list[Action] = []
    if message.models:
        child.models[message.instance] = message.models
        child.used_at[message.instance] = now
        actions += _learn_derived(fleet, child, message)
        used = [fleet.catalog.of(slot.wanted) for slot in fleet.slots_of(message.instance)]
        paths = frozenset(model.slot for model in message.models if model.tier == "DISK")
        actions.append(LoadOver(child, used, message.instance, paths))
    if message.rung:
        child.rungs[message.instance] = message.rung
    note = Note("info", child.device.name, f"`{message.instance}` set up in {message.seconds:.2f} s{_placed(message)}")
    return [*actions, note, *(drain_if_empty(fleet, child, now) if child.retiring else [])]


def _placed(message: Loaded) -> str:
    held = sum(model.bytes for model in message.models)
    return f", {held / (1 << 20):.0f} MiB{f', {message.rung}' if message.rung else ''}" if held else ""


def _learn_derived(fleet: Fleet, child: Child, message: Loaded) -> list[Action]:
    """Learn of the copies in another dtype that a child has made, which the next load comes from."""
    notes: list[Action] = []
    slots = {slot.name: slot for slot in fleet.slots_of(message.instance)}
    for resident in message.models:
        slot = slots.get(resident.slot)
        if slot is None or not resident.derived or fleet.catalog.learn_derived(slot.wanted, resident.derived):
            continue
        text = f"`{resident.derived}` is no copy of `{slot.wanted.ref}`: it is left alone"
        notes.append(Note("warning", child.device.name, text))
    return notes


def _on_loading(fleet: Fleet, child: Child, message: Loading, now: float) -> list[Action]:
    if message.instance == child.loading:
        child.loading_done, child.loading_total = message.bytes_done, message.bytes_total
    return []


def _on_load_failed(fleet: Fleet, child: Child, message: LoadFailed, now: float) -> list[Action]:
    if message.instance != child.loading:
        return _forged(fleet, child, f"that `{message.instance}` failed, which nobody asked for", now)
    spoilt = message.broken and not child.retiring and child is not child.device.coming
    return _judge_load(fleet, child, message, now) + (_spoil(fleet, child, now) if spoilt else [])


def _spoil(fleet: Fleet, child: Child, now: float) -> list[Action]:
    """After a CUDA error nothing works in a child any more."""
    child.spoilt = True
    note = Note("warning", child.device.name, "a CUDA error has spoilt the child's context; it is replaced")
    return [note, *retire_child(fleet, child, now)]


def _judge_load(fleet: Fleet, child: Child, message: LoadFailed, now: float) -> list[Action]:
    """What a failed load means for its instance."""
    over = _load_over(fleet, child, message.instance)
    if child is child.device.coming:
        return [over, *coming_failed(fleet, child, message, now)]
    if message.instance in fleet.loads and (message.kind == "out_of_memory" or message.reason == "insufficient_vram"):
        fleet.loads[message.instance] = "oom"
    if message.reason == "insufficient_vram" and (child.leased or child.device.held):  # of what runs now, which ends
        spare(fleet, child, message.instance, now + ROOM_S)
        return [over, Note("info", child.device.name, f"`{message.instance}` waits for room: {message.message}")]
    if message.kind == "model" and fleet.catalog.damaged(fleet.slots_of(message.instance), now):
        text = f"`{message.instance}` cannot be loaded, its files are verified: {message.message}"
        return [over, Note("warning", child.device.name, text)]
    text = failed_setup(message)
    stack = tuple(message.stack)
    note = Note("error", child.device.name, text, stack)
    verdict = verdict_of(message.kind, message.reason, message.hint, message.axes)
    return [over, note, *load_failed(fleet, child, message.instance, text, stack, now, verdict)]


def vanished(fleet: Fleet, child: Child, message: LoadFailed, now: float) -> list[Action]:
    """A load failed as its files went from the host's memory: nothing is wrong with those on the disk."""
    if message.instance != child.loading:
        return _on_load_failed(fleet, child, message, now)
    text = f"`{message.instance}` is loaded again, from the disk: its models left the host's memory: {message.message}"
    return [_load_over(fleet, child, message.instance), Note("warning", child.device.name, text)]


def _load_over(fleet: Fleet, child: Child, instance: str) -> LoadOver:
    """A child does not load an instance any more, and has none of it."""
    child.loading = None
    child.settle_phase()
    fleet.placed += 1
    return LoadOver(child, [], instance)


def _on_unloaded(fleet: Fleet, child: Child, message: Unloaded, now: float) -> list[Action]:
    if message.printed is not None:
        return engine_died(fleet, child, message, now)
    child.drop(message.instance)
    fleet.placed += 1
    child.crowded = child.crowded or bool(message.reason)
    why = f": {message.reason}" if message.reason else ""
    return [Note("info", child.device.name, f"`{message.instance}` unloaded{why}")]


def _on_degraded(fleet: Fleet, child: Child, message: Degraded, now: float) -> list[Action]:
    child.rungs[message.instance] = message.rung
    return [Note("warning", child.device.name, f"`{message.instance}` degraded to {message.rung}: {message.message}")]


def _on_wants(fleet: Fleet, child: Child, message: Wants, now: float) -> list[Action]:
    """A request names models of its own: it waits for them, and runs on an instance that has them."""
    job = child.leased.get(message.job)
    if job is None:
        return _forged(fleet, child, f"the models of job {message.job}, which it does not hold", now)
    function = fleet.functions[job.function.name]
    if not _may_want(job, function.own, message):
        return _forged(fleet, child, f"models for job {message.job} that nobody may name", now)
    leave_child(child, job)
    if job.ended:
        return drain_if_empty(fleet, child, now) if child.retiring else []
    if job.ending is not None:
        return [end_job(fleet, job, ended_outcome(job, None)), *after_leave(fleet, child, job, now)]
    slots = _with_bound(fleet, function, message.slots)
    instance = overridden_instance(function.own.instance, function.own.slots, slots)
    function = fleet.with_models(function, instance, slots)
    only = next((device for device in fleet.devices if device.name == job.function.device), None)
    job.function = function if only is None else fleet.on_device(function, only)
    actions = run_again(fleet, job, now)
    return actions + (drain_if_empty(fleet, child, now) if child.retiring else [])


def _may_want(job: Job, own: SurveyedFunction, message: Wants) -> bool:
    """Whether these can be the models that a request named."""
    slots = {slot.name: slot for slot in own.slots}
    if job.state is JobState.EMITTED or job.function.chosen or message.instance == own.instance:
        return False
    free = {each.param for each in own.injections}
    named = [slot for slot in message.slots if slot.name not in free]
    if [slot.name for slot in named] != [name for name in slots if name not in free]:
        return False
    if any(slot.wanted != slots[slot.name].wanted and not slots[slot.name].overrides for slot in named):
        return False
    return message.instance == overridden_instance(own.instance, own.slots, message.slots)


def _with_bound(fleet: Fleet, function: Function, named: list[Slot]) -> list[Slot]:
    """Return the slots with the models that a request named, the others with those that they have now."""
    bound = {slot.name: slot for slot in function.surveyed.slots}
    own = {slot.name: slot.wanted for slot in function.own.slots}
    return [
        bound[slot.name]
        if slot.wanted == own.get(slot.name)
        else msgspec.structs.replace(slot, wanted=fleet.catalog.described(slot.wanted))
        for slot in named
    ]


def _on_needs_inputs(fleet: Fleet, child: Child, message: NeedsInputs, now: float) -> list[Action]:
    """A payload names files behind URLs: its job waits for them where it holds no device."""
    job = child.leased.get(message.job)
    if job is None:
        return _forged(fleet, child, f"the inputs of job {message.job}, which it does not hold", now)
    if job.state is JobState.EMITTED or not message.assets:
        return _forged(fleet, child, f"a wish for inputs of job {message.job} that cannot be meant", now)
    leave_child(child, job)
    after = after_leave(fleet, child, job, now)
    if job.ended:
        return after
    if job.ending is not None:
        return [end_job(fleet, job, ended_outcome(job, None)), *after]
    if fleet.draining:
        return [*run_again(fleet, job, now), *after]
    if job.inputs is not None:
        return [end_job(fleet, job, failure("invalid", "the files of a payload are asked for once")), *after]
    if len(message.assets) > MOST_INPUTS:
        text = f"the payload names {len(message.assets)} files by URLs, the limit is {MOST_INPUTS}"
        return [end_job(fleet, job, failure("invalid", text)), *after]
    take_back(job)
    job.inputs = []
    fleet.park(job)
    return [OrderInputs(job, message.assets), *after]


def _of_inputs(fleet: Fleet, happening: InputsCame | InputsRefused, now: float) -> list[Action]:
    """Learn what became of the files that a job waits for."""
    job = happening.job
    if not job.fetching or job.held:
        return []  # it has ended meanwhile, or waits for something else by now
    if isinstance(happening, InputsRefused):
        kind: ErrorKind = "invalid" if happening.invalid else "retryable" if happening.retryable else "internal"
        outcome = failure(kind, happening.message, retryable=happening.retryable)
        outcome.raised = ("AuthError",) if happening.unauthorized else ()
        return [end_job(fleet, job, outcome)]
    refusal = stands_against(fleet, job, now)
    if refusal is not None:
        return [end_job(fleet, job, refusal)]
    fleet.unpark(job)
    job.inputs = happening.files
    fleet.enqueue(job, front=True)
    return []


def _on_warned(fleet: Fleet, child: Child, message: Warned, now: float) -> list[Action]:
    return [Note("warning", child.device.name, message.message)]


def of_fetcher(
    fleet: Fleet, happening: FetcherReported | FetcherLost | InputsCame | InputsRefused, now: float
) -> list[Action]:
    """Learn what became of orders to the fetcher."""
    if isinstance(happening, InputsCame | InputsRefused):
        return _of_inputs(fleet, happening, now)
    if isinstance(happening, FetcherLost):
        actions: list[Action] = []
        fleet.placed += 1
        for lost in fleet.catalog.fetcher_lost(now):
            actions += _cannot_be_had(fleet, lost)
        return actions
    report = happening.report
    model = fleet.catalog.reported(report, now)
    if model is None:
        unmeant = isinstance(report, Fetched) and not fleet.catalog.means(report.snapshot.key)
        return [LetGo(report.snapshot.key)] if isinstance(report, Fetched) and unmeant else []
    fleet.placed += 1
    ref = f"`{model.wanted.ref}`"
    if isinstance(report, Fetched):
        how = f"downloaded, {report.fetched_bytes / (1 << 20):.1f} MiB" if report.fetched_bytes else "is on disk"
        notes: list[Action] = [Note("info", "models", f"{ref} {how}")]
        return notes + [Note("warning", "models", note) for note in report.snapshot.notes]
    if model.state is not ModelState.FAILED:
        return []
    return make_room(fleet, model) or _cannot_be_had(fleet, model)


def _cannot_be_had(fleet: Fleet, model: Model) -> list[Action]:
    report = model.failure
    assert report is not None
    level: Literal["info", "error"] = "error" if isfinite(model.retry_at) else "info"  # one waits to be described
    failed = Note(level, "models", f"{report.message}{f'; hint: {report.hint}' if report.hint else ''}")
    if fleet.eager and fleet.booting:
        return [failed, *give_up(fleet, NO_MODEL, "")]
    if fleet.eager and isfinite(model.retry_at):
        fleet.arm(again_at(model), ("look", None))
    return [failed, *model_failed(fleet, model, report)]


def _forged(fleet: Fleet, child: Child, what: str, now: float, body: Body = b"") -> list[Action]:
    return [*discard(child, body), *misbehaved(fleet, child, f"it sent {what}", now)]


def misbehaved(fleet: Fleet, child: Child, what: str, now: float) -> list[Action]:
    """A child that breaks the protocol is not believed any more: it dies, and its jobs with it as in any death."""
    if child.phase in (Phase.DYING, Phase.SETTLING, Phase.BACKOFF):
        return []
    return [
        Note("error", child.device.name, f"child {child.pid} broke the protocol: {what}"),
        *kill_child(fleet, child, now),
    ]


REPORTS: dict[type, Callable[[Fleet, Child, Any, float], list[Action]]] = {
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
    Loading: _on_loading,
    Unloaded: _on_unloaded,
    Engine: engine_told,
    Degraded: _on_degraded,
    Wants: _on_wants,
    NeedsInputs: _on_needs_inputs,
    Warned: _on_warned,
}
