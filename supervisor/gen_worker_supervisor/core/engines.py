"""What is known of the engine servers of children, and what follows from the death of one.

Pure, like everything that `apply` and `decide` are made of. The child starts its engines and ends them.
"""

from gen_worker.wire.messages import Engine, Unloaded
from gen_worker_supervisor.core.actions import Action, Note
from gen_worker_supervisor.core.fates import backoff_s
from gen_worker_supervisor.core.state import Child, Fleet
from gen_worker_supervisor.core.steps import make_unavailable, spare
from gen_worker_supervisor.core.verdicts import LOAD_TRIES


def engine_told(fleet: Fleet, child: Child, message: Engine, now: float) -> list[Action]:
    """Learn what an engine is at; while it boots that is what moves in its child."""
    if message.state == "gone" or message.instance not in (child.loading, *child.loaded):
        child.engines.pop(message.instance, None)
        return []
    child.engines[message.instance] = message
    child.watch.signs += 1
    return []


def engine_died(fleet: Fleet, child: Child, message: Unloaded, now: float) -> list[Action]:
    """Have an instance whose engine died set up again, after a pause where that has just happened, too.

    After some deaths in a row without a job that ended well in between, its functions are unavailable for a while.
    """
    instance, device = message.instance, child.device
    held = instance in child.loaded
    child.drop(instance)
    if not held:
        return []
    fleet.placed += 1
    printed = tuple(message.printed or ())
    text = f"`{instance}` is set up anew: {message.reason}"
    actions: list[Action] = [Note("error", device.name, text, printed)]
    if child.retiring or fleet.draining or child is not device.child:
        return actions
    known = fleet.instance(instance)
    known.engine_deaths += 1
    pause_s = backoff_s(known.engine_deaths - 1, child.generation)
    if pause_s:
        spare(fleet, child, instance, now + pause_s)
    if known.engine_deaths < LOAD_TRIES:
        fleet.ordered[instance, device.name] = ""
        return actions
    why = f"{message.reason}, for the {_nth(known.engine_deaths)} time without a job that ended well in between"
    for function in fleet.variants():
        if function.surveyed.instance == instance:
            actions += make_unavailable(fleet, function, why, printed, now)
    return actions


def _nth(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
