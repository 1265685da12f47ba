"""Decide which child runs the next job, which child loads what, and what is taken back from a busy child.

Pure: reads the fleet and the time, records the leases it makes, returns the actions. Never sends, spawns or sleeps.
"""

from gen_worker.wire.messages import Load, Recall
from gen_worker_supervisor.phases import JobState, Phase
from gen_worker_supervisor.state import (
    LEASED_AHEAD,
    Action,
    Child,
    Fleet,
    Function,
    Instance,
    Job,
    Run,
    Send,
    holds,
    lane_of,
    unloaded,
)

STUCK_BEHIND_S = 0.02  # a job leased ahead that waits longer than this goes to a child that idles
CROWDED = 4  # so many jobs leased ahead of their turn are shared with a child that idles at once


def decide(fleet: Fleet, now: float) -> list[Action]:
    """Lease what can be leased, start the loads that are worth it, recall what another child could do now."""
    actions: list[Action] = []
    if fleet.finished:
        return actions
    if not fleet.waiting and len(fleet.devices) == 1 and not fleet.eager:
        return actions
    children = fleet.serving()
    if not children:
        return actions
    while fleet.waiting and _lease_round(fleet, children, actions):
        pass
    if fleet.eager:
        _load_the_rest(fleet, children, actions)
    if not fleet.waiting and len(children) > 1:
        _share(fleet, children, now, actions)
    return actions


def _lease_round(fleet: Fleet, children: list[Child], actions: list[Action]) -> bool:
    """Give each function with a queue one turn, the one served longest ago first; say whether another may help."""
    again = False
    for function in list(fleet.waiting.values()):
        if function.fast and function.refused_at == fleet.changes:
            continue  # it looks again when one of its jobs ends, which is soon
        job = fleet.first(function)
        child = (_lonely_place if job.alone else _place)(fleet, children, job, actions)
        if child is None:
            function.refused_at = fleet.changes
            continue
        fleet.dequeue(job)
        if function.waiting:
            fleet.waiting[function.name] = fleet.waiting.pop(function.name)
        _lease(child, job)
        actions.append(Run(child, job))
        again = again or len(children) > 1 or _room(child, function) > 0
    return again


def _lease(child: Child, job: Job) -> None:
    job.move(JobState.LEASED)
    job.child = child
    child.leased[job.number] = job
    child.used[lane_of(job.function)] += 1
    child.settle_phase()


def _room(child: Child, function: Function) -> int:
    """Return how many more jobs of a function a child takes now."""
    if child.reserved is not None:
        return 0
    lane = lane_of(function)
    if lane == "device" and child.loading is not None:
        return 0
    ahead = LEASED_AHEAD if lane == "device" and function.fast and _fast_ahead(child) else 0
    return child.credits[lane] + ahead - child.used[lane]


def _fast_ahead(child: Child) -> bool:
    """Whether what runs on the device is over soon, as far as is known; behind anything else nothing is leased ahead.

    A job that holds the child's interpreter lock keeps what is leased behind it: a recall is not even read.
    """
    for job in child.leased.values():
        if lane_of(job.function) == "device":
            return job.function.fast
    return True


def _place(fleet: Fleet, children: list[Child], job: Job, actions: list[Action]) -> Child | None:
    """Return the warm child where a job waits least; start a load on one more where the queue is worth it."""
    function = job.function
    instance = function.surveyed.instance
    best: Child | None = None
    best_used = 0
    best_rank = (False, 0)
    warm = 0
    lane = lane_of(function)
    for child in children:
        if instance not in child.loaded and instance != child.loading:
            continue
        if not holds(child.device, function):
            continue
        warm += 1
        used = child.used[lane]
        # What runs on the device may hold the interpreter: a job for the loop goes first where nothing does.
        rank = (lane == "loop" and child.used["device"] > 0, used)
        if (best is None or rank < best_rank) and instance in child.loaded and _room(child, function) > 0:
            best, best_used, best_rank = child, used, rank
    if best is not None and (instance == "" or best_used < best.credits[lane]):
        return best
    if instance:
        _consider_load(fleet, children, function, warm, actions)
    return best


def _consider_load(fleet: Fleet, children: list[Child], function: Function, warm: int, actions: list[Action]) -> None:
    """Load a function's instance on one more child when its queue would otherwise wait longer than the load takes."""
    name = function.surveyed.instance
    known = fleet.instances.setdefault(name, Instance())
    if warm and function.waiting * function.run_s / warm <= known.load_s:
        return
    for child in children:
        idle = child.loading is None and child.used["device"] == 0 and child.reserved is None
        if idle and name not in child.loaded and holds(child.device, function):
            _load(child, name, actions)
            return


def _lonely_place(fleet: Fleet, children: list[Child], job: Job, actions: list[Action]) -> Child | None:
    """Return a child that does nothing else, for a job that may have killed one; until there is one, keep one free."""
    able = [child for child in children if holds(child.device, job.function) and child.reserved in (None, job)]
    if not able:
        return None
    chosen = min(able, key=lambda child: (_occupied(child), child.reserved is not job, len(child.leased)))
    for child in able:
        child.reserved = job if child is chosen else None
    if _occupied(chosen):
        return None
    instance = job.function.surveyed.instance
    if instance in chosen.loaded:
        return chosen
    fleet.instances.setdefault(instance, Instance())
    _load(chosen, instance, actions)
    return None


def _occupied(child: Child) -> bool:
    return bool(child.leased) or child.loading is not None


def _load(child: Child, instance: str, actions: list[Action]) -> None:
    child.loading = instance
    child.settle_phase()
    actions.append(Send(child, Load(instance)))


def _load_the_rest(fleet: Fleet, children: list[Child], actions: list[Action]) -> None:
    """Have each child that does nothing set up one more of the instances it can hold."""
    for child in children:
        if not _occupied(child) and child.reserved is None and (rest := unloaded(fleet, child)):
            fleet.instances.setdefault(rest[0], Instance())
            _load(child, rest[0], actions)


def _share(fleet: Fleet, children: list[Child], now: float, actions: list[Action]) -> None:
    """Take a job that waits in a busy child back for one that idles."""
    idle = [child for child in children if child.phase is Phase.READY]
    if not idle:
        return
    for child in children:
        ahead = [job for job in child.leased.values() if job.state is JobState.LEASED and not job.recalled]
        if child.used["device"] < 2 or not ahead:
            continue
        begun = (job.started for job in child.leased.values() if job.started is not None)
        stuck_at = min(begun, default=now) + STUCK_BEHIND_S  # as far as known
        if len(ahead) < CROWDED and now < stuck_at:
            fleet.arm(stuck_at, ("look", None))
            continue
        job = ahead[-1]
        if any(job.function.surveyed.instance in other.loaded and holds(other.device, job.function) for other in idle):
            job.recalled = True
            actions.append(Send(child, Recall(job.number)))
