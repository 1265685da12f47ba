"""A child's death: what becomes of its jobs, who is to blame, when the next child comes."""

from math import inf

from gen_worker_supervisor.core.actions import Action, LookAtGpus, Note, Spawn
from gen_worker_supervisor.core.burials import Burial
from gen_worker_supervisor.core.deaths import counted_as
from gen_worker_supervisor.core.guard import HOST_OOM, is_victim
from gen_worker_supervisor.core.outcomes import death_detail, ended_outcome, failure
from gen_worker_supervisor.core.phases import NEXT_HEALTH, NEXT_PHASE, Health, JobState, Phase, step
from gen_worker_supervisor.core.pinning import bring_back
from gen_worker_supervisor.core.state import Child, Death, Device, Fleet, Job, holds
from gen_worker_supervisor.core.steps import (
    REPLACE_AGAIN_S,
    WEDGED_AFTER_S,
    end_job,
    finish_if_drained,
    forgo_coming,
    give_up,
    kill_child,
    load_failed,
    make_unavailable,
    run_again,
)
from gen_worker_supervisor.core.verdicts import SETUP_FAILED

BOOT_LIMIT_S = 300.0  # a child that is not ready by then is ended like one that died
RETIRED_AFTER_S = 30.0
SETTLE_S = 10.0  # what the driver may take to free a dead child's memory
BOOT_TRIES = 3
LOSSES = 2  # children that a job was handed to and that died, before it counts as started
BACKOFF_LIMIT_S = 60.0


def spawn_child(fleet: Fleet, device: Device, now: float) -> list[Action]:
    """Give a device a child of a new generation."""
    assert not device.lost
    if device.child is not None:
        step(NEXT_PHASE, device.child.phase, Phase.FORKING)  # the table's way from the dead child, which stays dead
        device.restarts += 1
    device.restart_at = None
    device.child, actions = prepare_child(fleet, device, now)
    return actions


def prepare_child(fleet: Fleet, device: Device, now: float) -> tuple[Child, list[Action]]:
    """Return a child of a new generation for a device, which has not got it yet, and how it is made."""
    fleet.generation += 1
    child = Child(device, fleet.generation, now)
    fleet.arm(now + BOOT_LIMIT_S, ("boot", child))
    return child, [Spawn(child)]


def child_died(fleet: Fleet, child: Child, death: Death, now: float) -> list[Action]:
    """Judge what a death means for its jobs, its device and the next child."""
    device = child.device
    wanted = child.retiring or child.ending is not None or fleet.draining
    meant = (wanted and death.exit_code == 0) or (child.forgone and death.signal == "SIGKILL") or _cut_short(child)
    noted = not (fleet.finished or meant)
    burial = Burial(fleet, child, death, now) if noted else None
    child.move(Phase.SETTLING)
    fleet.placed += 1
    if fleet.finished:  # it was killed at the end, which needs no judgement
        child.move(Phase.BACKOFF)
        return []
    actions: list[Action] = [_death_note(child, death)] if noted else []
    if noted and (word := counted_as(child, death)) is not None:
        device.deaths[word] = device.deaths.get(word, 0) + 1
    if child.loading is not None and child is device.child and not _for_others(fleet, child):
        text = f"setup of `{child.loading}` killed its child: {death.cause}"
        actions += load_failed(fleet, child, child.loading, text, death.stack or _printed(death), now, SETUP_FAILED)
    actions += _judge_jobs(fleet, child, death, now)
    actions += burial.end() if burial is not None else []
    if device.health is Health.WEDGED and child is device.child:
        _unwedge(device)
    if _must_settle(fleet, child, death):
        actions += _settle(fleet, device, now)
    else:
        child.move(Phase.BACKOFF)
    if child is not device.child:
        _forget(device, child, now)
    if fleet.draining:
        return actions + finish_if_drained(fleet)
    if child is not device.child:
        return actions
    bring_back(fleet, child)
    if device.lost:
        return actions + forgo_coming(fleet, device, now)
    if device.coming is not None:
        device.child, device.coming = device.coming, None
        device.restarts += 1
        fleet.untidy = True
        return actions
    return actions + _plan_respawn(fleet, child, death, wanted, now)


def _cut_short(child: Child) -> bool:
    """Whether a child was ended while it still started, which no fault of it is: imports hear nobody."""
    return child.retiring and not child.ready and not child.doom and child.phase is Phase.DYING


def _for_others(fleet: Fleet, child: Child) -> bool:
    """Whether a child was to end for something else than what it set up or imported."""
    replaced = child.retiring and (not child.doom or is_victim(child))
    return replaced or child.ending is not None or fleet.draining or child.device.lost


def _forget(device: Device, child: Child, now: float) -> None:
    """A child that was not in its device's place is gone, or as good as gone."""
    if child is device.coming:
        device.coming, device.replace_at = None, now + REPLACE_AGAIN_S
    elif child in device.leaving:
        device.leaving.remove(child)


def _unwedge(device: Device) -> None:
    device.health = step(NEXT_HEALTH, device.health, Health.DIRTY if device.unattributed else Health.OK)
    device.reason = missing(device) if device.unattributed else ""


def _must_settle(fleet: Fleet, child: Child, death: Death) -> bool:
    """Whether the next child waits for the memory of this one: nobody else here has any of the device's."""
    device = child.device
    measured = device.vram_baseline is not None and device.vram_used is not None
    if fleet.draining or device.lost or not measured or death.unborn:
        return False
    return child is device.child and device.coming is None and not device.leaving


def _settle(fleet: Fleet, device: Device, now: float) -> list[Action]:
    for gpu in (device, *device.members):
        gpu.vram_used = None  # what was read before the death says nothing
    device.settle_by = now + SETTLE_S
    fleet.arm(device.settle_by, ("settle", device))
    return [LookAtGpus()]


def missing(device: Device) -> str:
    """Return how much of a device's memory is missing, in words; of a group's, of which of its GPUs."""
    lacking = [gpu for gpu in device.members if gpu.unattributed]
    whose = f"the memory of {' and '.join(gpu.name for gpu in lacking)}" if lacking else "its memory"
    return f"{device.unattributed / (1 << 20):.0f} MiB of {whose} are in use and no child has them"


def _death_note(child: Child, death: Death) -> Note:
    lines = death.stack or _printed(death)
    text = f"child {child.pid} died: {death.cause}" if child.pid is not None else f"child {death.cause}"
    return Note("error", child.device.name, text + _kept(child), lines)


def _kept(child: Child) -> str:
    return f"; `gen-worker postmortem {child.postmortem}` tells more" if child.postmortem else ""


def _printed(death: Death) -> tuple[str, ...]:
    return tuple(line for _, line in death.printed)


def _judge_jobs(fleet: Fleet, child: Child, death: Death, now: float) -> list[Action]:
    held = list(child.leased.values())
    child.leased.clear()
    child.reserved = None
    actions: list[Action] = []
    unfinished = [job for job in held if not job.ended and job.ending is None]
    innocent = child.ending is not None or child.spoilt or is_victim(child)
    suspects = [] if innocent else [job for job in unfinished if _is_suspect(job)]
    for job in held:
        if not job.ended and job.ending is not None:
            actions.append(end_job(fleet, job, ended_outcome(job, death)))
    for job in reversed(unfinished):  # each goes to the front, so the first is the first again
        if job in suspects:
            actions += _judge_suspect(fleet, job, death, now, charged=len(suspects) == 1)
        elif job.state is JobState.EMITTED:
            what = "its child was ended with another job in it" if child.ending is not None else "its child died"
            actions.append(_cut_off(fleet, job, what, death))
        elif is_victim(child) and job.state is JobState.STARTED:
            actions += _spare(fleet, job, death, now)
        elif job.state is JobState.STARTED and not job.reruns:
            ours = child.ending is not None
            text = f"its child was ended with another job in it: {death.cause}" if ours else _lost(death)
            actions.append(end_job(fleet, job, failure("child_died", text, retryable=True)))
        else:
            actions += run_again(fleet, job, now)
    return actions


def _is_suspect(job: Job) -> bool:
    """Whether a job may have killed its child: it had started; or it was lost before, for its child may not tell."""
    job.losses += job.state is JobState.LEASED
    return job.state is not JobState.LEASED or job.losses >= LOSSES


def _judge_suspect(fleet: Fleet, job: Job, death: Death, now: float, *, charged: bool) -> list[Action]:
    job.deaths += 1
    name, stack = job.function.name, list(death.stack)
    if charged:
        fleet.blame.charge(
            name,
            job.payload.digest(),
            now,
            deaths=job.deaths,
            cause=death.cause,
            stack=stack,
            postmortem=job.child.postmortem if job.child is not None else "",
            tells=job.alone or not _may_be_from_outside(death),
        )
    elif not job.reruns:
        fleet.blame.suspect(name, job.payload.digest(), now, cause=death.cause)
    fleet.doubt(name)
    if job.state is JobState.EMITTED:
        return [_cut_off(fleet, job, "its child died", death)]
    detail = death_detail(death, job)
    if not job.reruns:
        return [end_job(fleet, job, failure("child_died", _lost(death), retryable=True, detail=detail))]
    if job.deaths >= 2:
        text = f"`{job.function.name}` killed its child twice, the second time alone in it: {death.cause}"
        return [end_job(fleet, job, failure("child_died", text, detail=detail))]
    job.alone = True
    note = Note("warning", job.function.name, f"request {job.request_id} runs once more, alone in a child")
    return run_again(fleet, job, now) or [note]


def _cut_off(fleet: Fleet, job: Job, what: str, death: Death) -> Action:
    """A job of whose stream items have left does not run again here."""
    text = f"{what} ({death.cause}) after part of the stream had left"
    return end_job(fleet, job, failure("retryable", text, retryable=True, detail=death_detail(death, job)))


def _spare(fleet: Fleet, job: Job, death: Death, now: float) -> list[Action]:
    """A job whose child was ended for memory that others took runs again, but not for ever."""
    job.losses += 1
    if job.reruns and job.losses < LOSSES:
        return run_again(fleet, job, now)
    text = f"its child was ended while it ran: {death.cause}; it took no more memory than usual"
    return [end_job(fleet, job, failure("child_died", text, retryable=True, detail=death_detail(death, job)))]


def _may_be_from_outside(death: Death) -> bool:
    """Whether somebody may have killed the child: of several at once that says nothing of a payload they shared."""
    return death.cause in ("SIGKILL", "SIGTERM") and not death.oom_kills


def _lost(death: Death) -> str:
    return f"its child died while it ran: {death.cause}"


def _plan_respawn(fleet: Fleet, child: Child, death: Death, wanted: bool, now: float) -> list[Action]:
    device = child.device
    if device.health is Health.RETIRED:
        return []  # it came too late; its loss is known
    if not child.ready and not _for_others(fleet, child) and not _blameless(device, death):
        device.early_deaths += 1
        if device.early_deaths >= BOOT_TRIES:
            device.given_up = (
                child.import_error or f"its child died {BOOT_TRIES} times before it was ready: {death.cause}"
            )
            return after_loss(fleet, device, now)
    victim = is_victim(child)  # the next one would be, too
    wanted = wanted and not victim
    delay = 0.0 if wanted else backoff_s(device.deaths_in_row + (death.unborn or victim), child.generation)
    if not wanted:
        device.deaths_in_row += 1
    if delay == 0.0:
        return [] if child.phase is Phase.SETTLING else spawn_child(fleet, device, now)
    device.restart_at = now + delay
    fleet.arm(device.restart_at, ("respawn", device))
    return [Note("info", device.name, f"a new child in {delay:.1f} s")]


def respawn(fleet: Fleet, device: Device, now: float) -> list[Action]:
    """The next child of a device was put off until now, unless it came before, was put off again or never comes."""
    due = device.restart_at is not None and now >= device.restart_at
    gone = device.child is not None and device.child.phase is Phase.BACKOFF
    return spawn_child(fleet, device, now) if due and gone and not fleet.draining else []


def _blameless(device: Device, death: Death) -> bool:
    """Whether a death before a child was ready says nothing of its module: there was no room for one."""
    return death.unborn or (device.proven and death.cause == HOST_OOM)


def backoff_s(deaths: int, salt: int) -> float:
    """Return the pause before the next child after this many earlier deaths in a row: 0, then 1, 2, 4 … 60 s, jittered.

    The jitter comes from `salt` (up to a fifth less), so that the decision stays a function of its arguments.
    """
    if deaths == 0:
        return 0.0
    return min(BACKOFF_LIMIT_S, 2.0 ** min(deaths - 1, 30)) * (1.0 - 0.2 * (salt * 2654435761 % 1000) / 1000)


def after_loss(fleet: Fleet, device: Device, now: float) -> list[Action]:
    """A device is out: end what only it could run; end the supervisor when nothing is left."""
    fleet.share_out()
    fleet.doubt()
    actions: list[Action] = []
    for function in fleet.variants():
        able = [other for other in fleet.devices if holds(other, function)]
        refused = fleet.instance(function.surveyed.instance).refused
        if able and all(other.lost or refused.get(other.name) == inf for other in able):
            imported = device.child is None or device.child.import_error is None
            word = "device_lost" if imported else "import_failed"
            verdict = SETUP_FAILED._replace(lasts_s=inf, reason=word)
            actions += make_unavailable(fleet, function, device.loss, (), now, verdict)
    if all(other.lost for other in fleet.devices):
        actions += give_up(fleet, 1, f"no device can serve: {device.loss}")
    return actions


def unkillable(fleet: Fleet, child: Child, now: float) -> list[Action]:
    """A SIGKILL was not reaped: answer the jobs, give the device up in two steps, leave the process to the kernel."""
    device = child.device
    if child.phase is not Phase.DYING:
        return []
    if device.health is Health.RETIRED:  # for another child of it: what is left here is answered
        stranded = _undying(fleet, child, "", now) if child.leased else []
        return stranded + (finish_if_drained(fleet) if fleet.draining else [])
    if child is not device.child and not child.replaced:  # it never had the place: nothing waits for it
        _forget(device, child, now)
        return _undying(fleet, child, "", now) + (finish_if_drained(fleet) if fleet.draining else [])
    actions = _give_back_place(fleet, child, now) if child.replaced else []
    if device.health is not Health.WEDGED:
        device.health = step(NEXT_HEALTH, device.health, Health.WEDGED)
        device.reason = f"child {child.pid} is not dead {WEDGED_AFTER_S:.0f} s after SIGKILL"
        fleet.arm(now + RETIRED_AFTER_S - WEDGED_AFTER_S, ("unkillable", child))
        return [*actions, *_undying(fleet, child, ": the device is wedged", now), *forgo_coming(fleet, device, now)]
    device.health = step(NEXT_HEALTH, device.health, Health.RETIRED)
    device.reason = f"child {child.pid} is not dead {RETIRED_AFTER_S:.0f} s after SIGKILL"
    if child.leased:  # it is another child's death that has wedged the device
        actions += _undying(fleet, child, "", now)
    note = Note("error", device.name, f"{device.reason}: the device is retired")
    actions += [note, *after_loss(fleet, device, now)]
    return actions + (finish_if_drained(fleet) if fleet.draining else [])


def _give_back_place(fleet: Fleet, child: Child, now: float) -> list[Action]:
    """A child that cannot be ended holds its device still: the one that has taken its place may not run there."""
    device, present = child.device, child.device.child
    device.leaving.remove(child)
    device.child, child.replaced = child, False
    device.settle_by = device.restart_at = None
    if present is None or present.phase in (Phase.SETTLING, Phase.BACKOFF):
        return []
    device.leaving.append(present)
    death = Death(cause="device_lost")
    stranded = strand(fleet, present, "another child of its device cannot be ended", death, now)
    return stranded + kill_child(fleet, present, now)


def _undying(fleet: Fleet, child: Child, so: str, now: float) -> list[Action]:
    death = Death(cause="unkillable", signal="SIGKILL")
    burial = Burial(fleet, child, death, now)
    text = f"child {child.pid} is not dead {WEDGED_AFTER_S:.0f} s after SIGKILL{so}"
    note = Note("error", child.device.name, text + _kept(child))
    return [note, *strand(fleet, child, "its child cannot be ended", death, now), *burial.end()]


def strand(fleet: Fleet, child: Child, text: str, death: Death, now: float) -> list[Action]:
    """Nothing runs any more in a child that still exists: answer what had begun there, take back what had not.

    Whoever asked for it may ask again; here it does not run again: it may have brought its device down.
    """
    held = list(child.leased.values())
    child.leased.clear()
    child.used = {"device": 0, "loop": 0}
    child.reserved = None
    actions: list[Action] = []
    for job in reversed(held):
        if job.ended:
            continue
        if job.ending is not None:
            actions.append(end_job(fleet, job, ended_outcome(job, death)))
        elif job.state is JobState.LEASED:
            actions += run_again(fleet, job, now)
        else:
            detail = death_detail(death, job)
            actions.append(end_job(fleet, job, failure("retryable", text, retryable=True, detail=detail)))
    return actions
