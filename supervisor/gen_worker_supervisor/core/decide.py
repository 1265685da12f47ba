"""Decide which child runs the next job, which child loads what, and what is taken back from a busy child.

Pure: reads the fleet and the time, records the leases it makes, returns the actions. Never sends, spawns or sleeps.
"""

from gen_worker.wire.messages import Load, Recall
from gen_worker_supervisor.core.actions import Action, OrderFetch, Run, Send
from gen_worker_supervisor.core.drains import give_back
from gen_worker_supervisor.core.happenings import Happening, Submitted
from gen_worker_supervisor.core.phases import JobState, Phase
from gen_worker_supervisor.core.pinning import tell_pins
from gen_worker_supervisor.core.reloading import bring_code
from gen_worker_supervisor.core.replacing import bring_on
from gen_worker_supervisor.core.state import (
    LEASED_AHEAD,
    UNKNOWN_LOAD_S,
    Child,
    Fleet,
    Function,
    Instance,
    Job,
    holds,
    unloaded,
)
from gen_worker_supervisor.core.suspicion import next_unsuspicious, release
from gen_worker_supervisor.core.tidying import let_go, tidy

STUCK_BEHIND_S = 0.02  # a job leased ahead that waits longer than this goes to a child that idles
SWAP_PATIENCE = 2.0  # so many times what loading takes a model waits for others that jobs use where it could go
CROWDED = 4  # so many jobs leased ahead of their turn are shared with a child that idles at once


def decide(fleet: Fleet, now: float) -> list[Action]:
    """Lease what can be leased, start the loads that are worth it, recall what another child could do now."""
    actions: list[Action] = []
    if fleet.finished:
        return actions
    if fleet.untidy or fleet.superseded:
        actions += tidy(fleet)
    if fleet.going:
        actions += let_go(fleet)
    if fleet.next_code is not None:
        actions += bring_code(fleet, now)
    elif fleet.replacing:
        actions += bring_on(fleet, now)
    if fleet.held:
        actions += release(fleet, now)
    if fleet.drained:
        actions += give_back(fleet)
    if fleet.waiting or len(fleet.devices) > 1 or fleet.eager or fleet.loads or fleet.ordered:
        _give_work(fleet, now, actions)
    if fleet.catalog.pending:
        awaited = {slot.wanted.key for function in fleet.waiting.values() for slot in function.surveyed.slots}
        orders = fleet.catalog.orders(now, awaited)
        actions += [OrderFetch(order, fleet.catalog.description(order)) for order in orders]
    return actions


def changes_nothing(fleet: Fleet, happening: Happening) -> bool:
    """Whether a job joined others for which no child had room, and nothing has happened since: `decide` need not look.

    That is what most happenings are while clients send more than the children can do.
    """
    if type(happening) is not Submitted:
        return False
    job = happening.job
    return job.waiting and job.function.fast and job.function.refused_at == fleet.changes


def _give_work(fleet: Fleet, now: float, actions: list[Action]) -> None:
    serving = fleet.serving()
    children = [child for child in serving if not child.device.drained] if fleet.drained else serving
    if not children:
        _fetch_ahead(fleet, now)
    if fleet.loads and serving:
        _load_wanted(fleet, children or serving, now, actions)
    if fleet.ordered:
        _load_ordered(fleet, now, actions)
    while children and fleet.waiting and _lease_round(fleet, children, now, actions):
        pass
    if fleet.eager:
        _load_the_rest(fleet, serving, now, actions)
    if not fleet.waiting and len(children) > 1:
        _share(fleet, children, now, actions)


def _fetch_ahead(fleet: Fleet, now: float) -> None:
    """While no child serves yet, have the models that jobs wait for come."""
    for function in fleet.waiting.values():
        fleet.catalog.ask(function.surveyed.slots, now, urgent=True)
    for instance in (*fleet.loads, *(instance for (instance, _), failed in fleet.ordered.items() if not failed)):
        fleet.catalog.ask(fleet.slots_of(instance), now, urgent=True)


def _lease_round(fleet: Fleet, children: list[Child], now: float, actions: list[Action]) -> bool:
    """Give each function with a queue one turn, the one served longest ago first; say whether another may help."""
    again, changes = False, fleet.changes
    for function in list(fleet.waiting.values()):
        if function.fast and function.refused_at == fleet.changes:
            continue  # it looks again when one of its jobs ends, which is soon
        suspicious = not function.clear and fleet.blame.suspects(function.name, now)
        job = next_unsuspicious(fleet, function, now, actions) if suspicious else fleet.first(function, now)
        if job is None:
            continue
        child = (_lonely_place if job.alone else _place)(fleet, children, job, now, actions)
        if child is None:
            function.refused_at = -1 if job.alone else fleet.changes  # one that must not run alone may have room
            continue
        fleet.dequeue(job, served=now)
        if function.waiting:
            fleet.waiting[function.key] = fleet.waiting.pop(function.key)
        _lease(child, job)
        actions.append(Run(child, job))
        again = True
    return again or fleet.changes != changes


def _lease(child: Child, job: Job) -> None:
    job.move(JobState.LEASED)
    job.child = child
    child.leased[job.number] = job
    lane = job.function.lane
    if lane == "device":
        child.in_turn = child.in_turn + 1 if child.used[lane] else 1
    child.used[lane] += 1
    child.settle_phase()


def _room(fleet: Fleet, child: Child, function: Function) -> int:
    """Return how many more jobs of a function a child takes now."""
    if child.reserved is not None:
        return 0
    lane = function.lane
    if lane == "device" and (child.loading is not None or (child.device.leaving and child.device.held)):
        return 0
    if function.surveyed.batch:
        return _room_in_batch(fleet, child, function)
    ahead = LEASED_AHEAD if lane == "device" and function.fast and _fast_ahead(child) else 0
    if ahead and fleet.ordered and _is_to_load(fleet, child):
        ahead = 0
    return child.credits[lane] + ahead - child.used[lane]


def _room_in_batch(fleet: Fleet, child: Child, function: Function) -> int:
    """Return how many more jobs a child takes whose function runs several in one call: one batch and the next.

    Nothing else runs on the device meanwhile. While others wait for it, it is given one batch, and then it is their
    turn.
    """
    size, used = function.surveyed.batch, child.used["device"]
    if used and any(job.function is not function and job.function.lane == "device" for job in child.leased.values()):
        return 0
    if (fleet.ordered and _is_to_load(fleet, child)) or _is_awaited(fleet, child, function):
        return size - child.in_turn if used else size
    return 2 * size - used


def _is_awaited(fleet: Fleet, child: Child, function: Function) -> bool:
    """Whether another function waits for a child's device."""
    return any(
        other is not function and other.lane == "device" and holds(child.device, other)
        for other in fleet.waiting.values()
    )


def _is_to_load(fleet: Fleet, child: Child) -> bool:
    """Whether an operator waits for something to be set up, which a child does when nothing runs on its device."""
    return any(where == child.device.name and not failed for (_, where), failed in fleet.ordered.items())


def _fast_ahead(child: Child) -> bool:
    """Whether what runs on the device is over soon, as far as is known; behind anything else nothing is leased ahead.

    A job that holds the child's interpreter lock keeps what is leased behind it: a recall is not even read.
    """
    for job in child.leased.values():
        if job.function.lane == "device":
            return job.function.fast
    return True


def _place(fleet: Fleet, children: list[Child], job: Job, now: float, actions: list[Action]) -> Child | None:
    """Return the warm child where a job waits least; start a load on one more where the queue is worth it."""
    function = job.function
    instance = job.instance
    best: Child | None = None
    best_used = 0
    best_rank = (0, 0)
    warm = coming = 0
    lane = function.lane
    for child in children:
        if (instance not in child.loaded and instance != child.loading) or instance in child.going:
            continue
        if not holds(child.device, function):
            continue
        warm += 1
        coming += instance == child.loading
        used = child.used[lane]
        # What runs on the device may hold the interpreter: a job for the loop goes first where nothing does; one for
        # the device, of children that have as little to do, to one whose loop has nothing.
        rank = (child.used["device"], child.used["loop"] > 0) if lane == "device" else (child.used["device"] > 0, used)
        if (best is None or rank < best_rank) and instance in child.loaded and _room(fleet, child, function) > 0:
            best, best_used, best_rank = child, used, rank
    if best is not None and (instance == "" or best_used < (function.surveyed.batch or best.credits[lane])):
        return best
    if instance:
        _consider_load(fleet, children, job, now, actions, warm=warm, coming=coming)
    return best


def _consider_load(
    fleet: Fleet, children: list[Child], job: Job, now: float, actions: list[Action], *, warm: int, coming: int
) -> None:
    """Load a job's instance on one more child when its queue would otherwise wait longer than the load takes.

    Of the children that have it, those where it is still coming take a job each once it is there.
    """
    function = job.function
    known = fleet.instance(job.instance)
    if warm and (function.waiting - coming) * function.run_s / warm <= known.load_s:
        return
    slots = function.surveyed.slots
    if slots and not fleet.catalog.ready(slots):
        fleet.catalog.ask(slots, now, urgent=True)
        return
    able = [child for child in children if _may_load(child, job.instance) and holds(child.device, function)]
    able = [child for child in able if known.refused.get(child.device.name, 0.0) <= now]
    if slots:
        able = [child for child in able if _may_displace(fleet, child, job, known, now)]
    if able:
        _load(fleet, min(able, key=_displaced), job.instance, actions)


def _displaced(child: Child) -> tuple[bool, int, float]:
    """Rank a child by what a load may cost it: nothing yet, or the model that was used the longest time ago."""
    return child.crowded, 0 if child.crowded else len(child.models), min(child.used_at.values(), default=0.0)


def _may_load(child: Child, instance: str) -> bool:
    idle = child.loading is None and child.used["device"] == 0 and child.reserved is None
    return idle and instance not in child.loaded and not child.device.held


def _may_displace(fleet: Fleet, child: Child, job: Job, known: Instance, now: float) -> bool:
    """Whether a model may be loaded where another may have to go for it.

    Two functions whose models do not fit together would else take turns with every job. One that waits lets the other
    go on for as long as the change costs twice, then it is its turn.
    """
    busy = any(each is not job.function and each.surveyed.instance in child.models for each in fleet.waiting.values())
    if not busy:
        return True
    change_s = known.load_s if known.learned else UNKNOWN_LOAD_S
    patience_over = max(job.submitted, child.loaded_at) + SWAP_PATIENCE * change_s
    if now < patience_over:
        fleet.arm(patience_over, ("look", None))
    return now >= patience_over


def _lonely_place(fleet: Fleet, children: list[Child], job: Job, now: float, actions: list[Action]) -> Child | None:
    """Return a child that does nothing else, for a job that may have killed one; until there is one, keep one free."""
    able = [child for child in children if holds(child.device, job.function) and child.reserved in (None, job)]
    if not able:
        return None
    chosen = min(able, key=lambda child: (_occupied(child), child.reserved is not job, len(child.leased)))
    for child in able:
        if child is chosen:
            child.reserved = job
        elif child.reserved is job:
            fleet.unreserve(child)
    job.function.reserving = job
    if _occupied(chosen) or chosen.device.held:
        return None
    if job.instance in chosen.loaded:
        return chosen
    slots = job.function.surveyed.slots
    if not fleet.catalog.ready(slots):
        fleet.catalog.ask(slots, now, urgent=True)
        return None
    fleet.instance(job.instance)
    _load(fleet, chosen, job.instance, actions)
    return None


def _occupied(child: Child) -> bool:
    return bool(child.leased) or child.loading is not None


def _load(fleet: Fleet, child: Child, instance: str, actions: list[Action]) -> None:
    child.loading = instance
    child.loading_done = child.loading_total = 0
    child.settle_phase()
    actions += tell_pins(fleet, child)
    actions.append(Send(child, Load(instance, fleet.catalog.slot_models(fleet.slots_of(instance)))))


def _load_the_rest(fleet: Fleet, children: list[Child], now: float, actions: list[Action]) -> None:
    """Have each child that does nothing set up one more of the instances it can hold."""
    for child in children:
        if _occupied(child) or child.reserved is not None or child.device.held:
            continue
        for instance in unloaded(fleet, child):
            slots = fleet.slots_of(instance)
            if fleet.instance(instance).refused.get(child.device.name, 0.0) > now:
                continue
            if fleet.catalog.ready(slots):
                _load(fleet, child, instance, actions)
                break
            fleet.catalog.ask(slots, now, urgent=False)


def _load_ordered(fleet: Fleet, now: float, actions: list[Action]) -> None:
    """Set up what an operator wants set up on certain devices."""
    for child in fleet.serving():
        device = child.device.name
        for instance in [each for (each, where), failed in fleet.ordered.items() if where == device and not failed]:
            slots = fleet.slots_of(instance)
            if instance in child.loaded:
                del fleet.ordered[instance, device]
            elif not slots:
                fleet.ordered[instance, device] = "other models have superseded it"
            elif not fleet.catalog.ready(slots):
                fleet.catalog.ask(slots, now, urgent=True)
            elif _may_load(child, instance) and fleet.instance(instance).refused.get(device, 0.0) <= now:
                _load(fleet, child, instance, actions)


def _load_wanted(fleet: Fleet, children: list[Child], now: float, actions: list[Action]) -> None:
    """Set up the instances that somebody wants set up, each on the child where that costs least."""
    for instance in [instance for instance, failed in fleet.loads.items() if not failed]:
        if any(instance in child.loaded or instance == child.loading for child in children):
            continue
        function = next((each for each in fleet.variants() if each.surveyed.instance == instance), None)
        if function is None:
            fleet.placed += 1
            fleet.loads[instance] = "load_failed"  # other models have superseded it
            continue
        slots = function.surveyed.slots
        if not fleet.catalog.ready(slots):
            fleet.catalog.ask(slots, now, urgent=True)
            continue
        able = [child for child in children if _may_load(child, instance) and holds(child.device, function)]
        able = [child for child in able if fleet.instance(instance).refused.get(child.device.name, 0.0) <= now]
        if able:
            _load(fleet, min(able, key=_displaced), instance, actions)


def _share(fleet: Fleet, children: list[Child], now: float, actions: list[Action]) -> None:
    """Take a job that waits in a busy child back for one that idles."""
    idle = [child for child in children if child.phase is Phase.READY and not child.device.held]
    if not idle:
        return
    for child in children:
        ahead = [job for job in child.leased.values() if job.state is JobState.LEASED and not job.recalled]
        if child.used["device"] < 2 or not ahead:
            continue
        if len(ahead) <= ahead[0].function.surveyed.batch:
            continue  # they run in one call, soon
        begun = (job.started for job in child.leased.values() if job.started is not None)
        stuck_at = min(begun, default=now) + STUCK_BEHIND_S  # as far as known
        if len(ahead) < CROWDED and now < stuck_at:
            fleet.arm(stuck_at, ("look", None))
            continue
        job = ahead[-1]
        if any(job.instance in other.loaded and holds(other.device, job.function) for other in idle):
            job.recalled = True
            actions.append(Send(child, Recall(job.number)))
