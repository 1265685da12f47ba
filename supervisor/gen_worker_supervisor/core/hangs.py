"""What follows from a look at the children: what moves is known, a hang has its name, what is dead for long is ended.

Pure: takes looks at children, changes the fleet, returns actions. `naming` says how a child hangs.
"""

import signal

from gen_worker.wire.hangs import HANGS
from gen_worker_supervisor.core.actions import Action, Note, Signal
from gen_worker_supervisor.core.endings import end_asked
from gen_worker_supervisor.core.evidence import Evidence, Hang
from gen_worker_supervisor.core.happenings import Watched
from gen_worker_supervisor.core.ladder import TERMINATE_AFTER_S, Reason
from gen_worker_supervisor.core.naming import HELD_BACK, hang_of, quiet_s, silent_s, work_of
from gen_worker_supervisor.core.phases import Phase
from gen_worker_supervisor.core.state import Child, Fleet, Job
from gen_worker_supervisor.core.steps import got_on

PAUSE_S = 5.0  # nothing is known of what was between two looks further apart: everybody may have been stopped
RESTING_CPU = 0.005  # of a processor: threads of drivers and idle servers wake up now and then
RESTING_CPU_S = 0.03  # on top of it: descendants are measured in ticks
RESTING_IO = 1024.0  # bytes a second, in the same way
BESIDE_S = 0.9  # looks that come sooner one after another are not all kept

_GOING = (Phase.SUSPECT, Phase.DYING, Phase.SETTLING, Phase.BACKOFF)


def watched(fleet: Fleet, happening: Watched, now: float) -> list[Action]:
    """Learn from a look at the children."""
    actions: list[Action] = []
    for child, look in happening.looks:
        _learn(fleet, child, look)
        if child.phase not in _GOING:
            actions += _name(fleet, child, look.at)
            actions += _end_what_is_dead(fleet, child, look, now)
    return actions


def _learn(fleet: Fleet, child: Child, look: Evidence) -> None:
    watch = child.watch
    last = child.looks[-1] if child.looks else None
    if last is None or look.at - last.at > PAUSE_S:
        watch.since = child.born if last is None else look.at
        watch.stir = last = None
    if last is not None and look.page_mark != last.page_mark and (work := work_of(fleet, child)):
        for job in work.jobs:
            got_on(job, look.at)
    load = (child.loading, child.loading_done + watch.signs)
    if load != watch.load:
        watch.load, watch.load_at, watch.stir = load, look.at, None
    if last is not None and look.io_bytes > last.io_bytes + RESTING_IO * (look.at - last.at):
        watch.io_at = look.at
    if watch.stir is None or _moved(child, watch.stir, look):
        watch.stir = look
    if last is not None and len(child.looks) > 1 and last.at - child.looks[-2].at < BESIDE_S:
        child.looks[-1] = look
    else:
        child.looks.append(look)


def _moved(child: Child, before: Evidence, look: Evidence) -> bool:
    """Whether anything of a child moved; of what cannot be measured nobody can say that it did not."""
    unseen = child.device.kind == "cuda" and look.gpu_busy is None
    if not (look.measured and before.measured) or look.gpu_busy or unseen:
        return True
    span = look.at - before.at
    return (
        look.page_mark != before.page_mark
        or look.job_cpu_s > before.job_cpu_s
        or look.cpu_s - before.cpu_s > RESTING_CPU_S + RESTING_CPU * span
        or look.io_bytes - before.io_bytes > RESTING_IO * max(1.0, span)
    )


def _name(fleet: Fleet, child: Child, at: float) -> list[Action]:
    """Name how a child hangs, or that it does not any more."""
    hang, before = hang_of(fleet, child, at), child.hang
    if hang is before:
        return []
    child.hang = hang
    source = child.device.name
    if hang is None:
        return [
            Note("info", source, f"child {child.pid} goes on: it was {before} for {at - child.watch.hung_at:.1f} s")
        ]
    if before is not None:
        return []
    child.watch.hung_at = at
    work = work_of(fleet, child)
    silence = "" if work is None else f", nothing new for {silent_s(child, work, at):.0f} s"
    who = f"child {child.pid}" if work is None else f"child {child.pid}, {work.words}"
    return [Note("info" if hang in HELD_BACK else "warning", source, f"{who}: {hang}{silence}: {HANGS[hang]}")]


def _end_what_is_dead(fleet: Fleet, child: Child, look: Evidence, now: float) -> list[Action]:
    """End a job, a load or an import that does not get on in a child where nothing moves at all."""
    limit_s, work = fleet.stall_timeout_s, work_of(fleet, child)
    if not limit_s or work is None or not look.measured or child.doom:
        return []
    if min(quiet_s(child, look.at), silent_s(child, work, look.at)) < limit_s:
        return []
    hang = child.hang or Hang.NATIVE_WAIT
    text = f"{work.words}: {hang}, nothing of its child moved for {limit_s:g} s: it is ended"
    if not work.jobs:
        return [Note("error", child.device.name, text), *_end_child(fleet, child, now)]
    job = work.jobs[0]
    if len(work.jobs) > 1 or job.ending is not None:
        return []  # of several nobody knows which one it is
    note = Note("warning", child.device.name, text)
    actions = end_asked(fleet, job, Reason.STALL, False, now)
    _tell(job, hang)
    return [note, *actions]


def _tell(job: Job, hang: Hang) -> None:
    if job.ending is not None:
        job.ending.hang = hang


def _end_child(fleet: Fleet, child: Child, now: float) -> list[Action]:
    """End a child that is at no job: by the ladder from its stack dump on."""
    child.doom, child.retiring = "hang", True
    child.move(Phase.SUSPECT)
    fleet.arm(now + TERMINATE_AFTER_S, ("drain", child))
    return [Signal(child, signal.SIGUSR2)]
