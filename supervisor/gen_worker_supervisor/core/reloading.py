"""Go over to other code of the author's: children of it boot and load beside those that work, then take over at once.

Until then nothing changes for any request; code that turns out not to work changes nothing at all. Pure, like
everything that `apply` and `decide` are made of.
"""

from collections.abc import Iterator
from math import inf

from gen_worker.models.wanted import base_instance
from gen_worker.wire.messages import Load
from gen_worker.wire.survey import SurveyedFunction
from gen_worker_supervisor.core.actions import Action, Note, Send, TakeCode
from gen_worker_supervisor.core.fates import prepare_child
from gen_worker_supervisor.core.happenings import CodeChanged
from gen_worker_supervisor.core.outcomes import failure
from gen_worker_supervisor.core.phases import Phase
from gen_worker_supervisor.core.replacing import has_room_for_two, succeed
from gen_worker_supervisor.core.state import Child, Device, Fleet, Function, NextCode
from gen_worker_supervisor.core.steps import end_job, forgo_coming, retire_child
from gen_worker_supervisor.core.verdicts import Verdict

SOURCE = "reload"
GONE = Verdict("not_found", retryable=False, tries=1, lasts_s=inf)


def code_changed(fleet: Fleet, happening: CodeChanged, now: float) -> list[Action]:
    """Have a child with the code that is there now boot on every device that has room for two."""
    if fleet.draining or fleet.finished:
        return []
    actions = [action for device in fleet.devices for action in forgo_coming(fleet, device, now)]  # of older code
    functions = {function.name: function for function in happening.functions}
    fleet.next_code = code = NextCode(happening.number, functions, fleet.generation)
    for device in fleet.devices:
        child = device.child
        if child is not None and child.serving and not device.lost and has_room_for_two(fleet, device, child):
            device.coming, spawned = prepare_child(fleet, device, now)
            code.awaited.add(device.name)
            actions += spawned
    fleet.replacing = True
    return actions


def bring_code(fleet: Fleet, now: float) -> list[Action]:
    """Have each child of the next code load what the one before it holds; when all have, go over to that code."""
    code = fleet.next_code
    assert code is not None
    actions: list[Action] = []
    waits = False
    for device in fleet.devices:
        if device.child is not None and device.child.generation > code.after and not device.lost:
            if device.child.phase in (Phase.DYING, Phase.SETTLING, Phase.BACKOFF):
                return [*actions, *_forgo(fleet, code, now)]
            waits = waits or not device.child.serving
        elif device.name not in code.awaited:
            continue
        elif device.coming is not None:
            loads = _next_load(fleet, code, device, device.coming)
            actions += loads
            waits = waits or bool(loads) or not device.coming.serving or device.coming.loading is not None
        elif device.child is not None and not device.child.retiring:
            return [*actions, *_forgo(fleet, code, now)]
    return actions if waits else [*actions, *_go_over(fleet, code, now)]


def _next_load(fleet: Fleet, code: NextCode, device: Device, coming: Child) -> list[Action]:
    """Return the order to set up one more instance that the present child holds and the next code has, too."""
    if not coming.serving or coming.loading is not None or device.child is None:
        return []
    has = {function.instance: function.slots for function in code.functions.values()}
    for instance in sorted(device.child.loaded - device.child.going - coming.loaded):
        slots = has.get(instance)
        if slots is not None and instance == base_instance(instance) and fleet.catalog.ready(slots):
            coming.loading = instance
            coming.loading_done = coming.loading_total = 0
            coming.settle_phase()
            return [Send(coming, Load(instance, fleet.catalog.slot_models(slots)))]
    return []


def _forgo(fleet: Fleet, code: NextCode, now: float) -> list[Action]:
    """Stay with the code that there is: a child of the other one has died, or could not set up what is needed."""
    fleet.next_code = None
    fleet.replacing = False
    actions = [action for device in fleet.devices for action in forgo_coming(fleet, device, now)]
    text = "the changed code does not work, its children are gone: the code before goes on"
    return [*actions, Note("error", SOURCE, text), TakeCode(code.number, False)]


def _go_over(fleet: Fleet, code: NextCode, now: float) -> list[Action]:
    fleet.next_code = None
    fleet.replacing = False
    actions = _exchange(fleet, code.functions, now)
    for device in fleet.devices:
        if device.coming is not None and device.child is not None:
            actions += succeed(fleet, device, device.child, device.coming, now)
        elif device.child is not None and device.child.generation <= code.after and not device.child.retiring:
            actions += retire_child(fleet, device.child, now)  # no room for two: it goes first
    fleet.placed += 1
    fleet.changes += 1
    return [*actions, TakeCode(code.number, True)]


# --- the table of functions -------------------------------------------------------------------------------------------


def _exchange(fleet: Fleet, functions: dict[str, SurveyedFunction], now: float) -> list[Action]:
    """Put the functions of the next code into the place of those before, and what waits for them there, too.

    What waits for a function that is gone is told so; what runs goes on where it runs.
    """
    for function in list(fleet.variants()):
        after = functions.get(function.name)
        is_own = fleet.functions.get(function.name) is function
        if is_own and function.own == after:
            function.unavailable, function.stack, function.clear = None, (), False
            continue
        fleet.supersede(function)
        if is_own and after is not None:
            fleet.functions[function.name] = made = Function(after)
            _hand_on(fleet, function, made)
    for name in functions.keys() - fleet.functions.keys():
        fleet.functions[name] = Function(functions[name])
    for instance in fleet.instances.values():  # other code may be set up where this one failed
        instance.failures = 0
        instance.refused.clear()
    fleet.blame.pardon(now)
    fleet.untidy = True
    fleet.share_out()
    return list(_end_gone(fleet))


def _hand_on(fleet: Fleet, before: Function, after: Function) -> None:
    """Give what waits for a function to the one that is called so now."""
    for job in list(before.queue):
        fleet.dequeue(job)
        job.function = after
        fleet.enqueue(job)


def _end_gone(fleet: Fleet) -> Iterator[Action]:
    """Answer what has not begun and whose function is gone; what a child has is given back, and answered then."""
    for function in fleet.superseded:
        if function.name not in fleet.functions:
            function.unavailable, function.available_at, function.verdict = "its code was taken out", inf, GONE
    for job in list(fleet.jobs.values()):
        if job.child is None and job.function.name not in fleet.functions:
            text = f"no function `{job.function.name}`: its code was taken out while this waited"
            yield end_job(fleet, job, failure("not_found", text))
