"""What nobody needs any more: functions that requests made by naming models, and all that newer models superseded.

Pure, like everything that `decide` is made of.
"""

from collections.abc import Callable, Collection, Iterator

from gen_worker.models.wanted import Slot
from gen_worker.wire.fetching import Abort
from gen_worker.wire.messages import Unload
from gen_worker_supervisor.core.actions import Action, LetGo, Note, OrderFetch, Send
from gen_worker_supervisor.core.catalog import Model
from gen_worker_supervisor.core.phases import ModelState
from gen_worker_supervisor.core.state import NAMED_KEPT, Child, Fleet, Function


def tidy(fleet: Fleet) -> list[Action]:
    """Let go of functions, instances and models that no job needs; what one still needs goes after it."""
    if not _end_superseded(fleet) and not fleet.untidy:
        return []
    actions = _forget_unused(fleet)
    meant = {function.surveyed.instance for function in fleet.variants()}
    children = [device.child for device in fleet.devices if device.child is not None]
    for child in children:
        actions += _unload(fleet, child, [each for each in child.loaded if each and each not in meant])
    fleet.untidy = any(child.loading is not None and child.loading not in meant for child in children)
    return actions + _forget_models(fleet)


def unload(fleet: Fleet, instances: Collection[str], device: str = "") -> list[Action]:
    """Have children let go of instances, once no job of theirs runs on them; they come back when a job needs them."""
    if not device:
        fleet.resting.update(instances)
    for instance in instances:
        if not device:
            fleet.loads.pop(instance, None)
        for key in [key for key in fleet.ordered if key[0] == instance and device in ("", key[1])]:
            del fleet.ordered[key]
    for child in fleet.serving():
        if device in ("", child.device.name):
            child.device.resting.update(instances if device else ())
            child.going.update(each for each in instances if each in child.loaded or each == child.loading)
            fleet.going = True
    return []


def let_go(fleet: Fleet) -> list[Action]:
    """Have children let go of the instances that were to go and that no job of theirs runs on any more."""
    actions: list[Action] = []
    fleet.going = False
    for child in fleet.serving():
        used = {job.instance for job in child.leased.values()}
        child.going = {each for each in child.going if each in child.loaded or each == child.loading}
        idle = sorted(each for each in child.going if each in child.loaded and each not in used)
        actions += _unload(fleet, child, idle)
        fleet.going = fleet.going or bool(child.going)
    return actions


def make_room(fleet: Fleet, model: Model) -> list[Action]:
    """Where the disk has no room for a model, let others be evicted that an orchestrator had unloaded, and try again.

    Returns nothing where that does not help.
    """
    if model.failure is None or model.failure.kind != "insufficient_disk" or not fleet.catalog.orchestrated:
        return []
    held = {name for child in fleet.children() for name in (*child.loaded, child.loading)}
    resting = fleet.resting - held - {function.surveyed.instance for function in fleet.waiting.values()}
    needed = {slot.wanted.key for slot in _slots(fleet, lambda instance: instance not in resting)}
    going = [slot.wanted for slot in _slots(fleet, lambda instance: instance in resting)]
    keys = list(fleet.catalog.shelve(wanted for wanted in going if wanted.key not in needed))
    if not keys:
        return []
    fleet.catalog.again(model)
    text = f"`{model.wanted.ref}` is tried again: what was unloaded may be evicted for it"
    return [*(LetGo(key) for key in keys), Note("info", "models", text)]


def _slots(fleet: Fleet, among: Callable[[str], bool]) -> Iterator[Slot]:
    for function in fleet.variants():
        if among(function.surveyed.instance):
            yield from function.surveyed.slots


def _end_superseded(fleet: Fleet) -> bool:
    """Forget the superseded functions that have no job left; say whether there were any."""
    held = {id(function) for function in _functions_at_work(fleet)}
    ended = [each for each in fleet.superseded if not (each.waiting or each.parked or id(each) in held)]
    for function in ended:
        fleet.superseded.remove(function)
        fleet.named.pop(function.key, None)
        fleet.pinned.pop(function.key, None)
        if all(each.surveyed.instance != function.surveyed.instance for each in fleet.variants()):
            _unlearn(fleet, function)
    return bool(ended)


def _unlearn(fleet: Fleet, function: Function) -> None:
    fleet.instances.pop(function.surveyed.instance, None)
    fleet.resting.discard(function.surveyed.instance)


def _functions_at_work(fleet: Fleet) -> list[Function]:
    return [job.function for child in fleet.children() for job in child.leased.values()]


def _forget_unused(fleet: Fleet) -> list[Action]:
    """Forget functions that requests made by naming models when there are many unused ones."""
    if len(fleet.named) < NAMED_KEPT:
        return []
    used = {job.instance for job in fleet.jobs.values()}
    unused = [each for each in fleet.named.values() if each.surveyed.instance not in used and not _is_kept(fleet, each)]
    actions = _take_down(fleet, {function.surveyed.instance for function in unused})
    held = {name for child in fleet.children() for name in (*child.loaded, child.loading)}
    for function in unused:
        if function.surveyed.instance not in held:
            del fleet.named[function.key]
            fleet.pinned = {key: each for key, each in fleet.pinned.items() if not key.startswith(f"{function.key} @")}
            _unlearn(fleet, function)
    return actions


def _is_kept(fleet: Fleet, function: Function) -> bool:
    return any(fleet.catalog.name_of(slot.wanted) in fleet.kept for slot in function.surveyed.slots)


def _take_down(fleet: Fleet, unused: Collection[str]) -> list[Action]:
    """Have children let go of instances that nobody uses, the longest unused first, until few enough are left."""
    held = [
        (child.used_at.get(name, 0.0), name, child)
        for child in fleet.serving()
        for name in unused
        if name in child.loaded
    ]
    going = sorted(held, key=lambda each: each[:2])[: max(0, len(fleet.named) - NAMED_KEPT)]
    return [action for _, name, child in going for action in _unload(fleet, child, [name])]


def _unload(fleet: Fleet, child: Child, instances: Collection[str]) -> list[Action]:
    for instance in instances:
        child.drop(instance)
        fleet.placed += 1
    return [Send(child, Unload(instance)) for instance in instances] if child.serving else []


def _forget_models(fleet: Fleet) -> list[Action]:
    """Forget models that no function has and nobody ordered, and give up on the way those that are not here yet."""
    meant = {slot.wanted.key for function in fleet.variants() for slot in function.surveyed.slots}
    unmeant = [each for key, each in fleet.catalog.models.items() if key not in meant and not each.ordered]
    actions: list[Action] = [
        OrderFetch(Abort(each.number)) for each in unmeant if each.state is ModelState.FETCHING and each.number
    ]
    return actions + [LetGo(key) for key in fleet.catalog.forget(each.wanted for each in unmeant)]
