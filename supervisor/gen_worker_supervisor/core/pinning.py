"""What an operator wants of models by hand: which are to be set up where, and which stay whatever comes next.

Pure, like everything that `apply` and `decide` are made of. Pins are kept as long as the supervisor lives.
"""

from collections.abc import Collection, Iterable
from math import inf, isfinite
from typing import NamedTuple

from gen_worker.models.refs import PREFIXES
from gen_worker.models.wanted import Wanted
from gen_worker.wire.messages import Pin
from gen_worker_supervisor.core.actions import Action, Note, Send
from gen_worker_supervisor.core.happenings import LoadAsked, PinAsked
from gen_worker_supervisor.core.phases import Phase
from gen_worker_supervisor.core.state import Child, Device, Fleet, Function, holds

_PREFIX_OF = {provider: prefix for prefix, provider in PREFIXES.items()}


# --- what is meant ----------------------------------------------------------------------------------------------------


class Meant(NamedTuple):
    """What a person means by a ref: the models of that name, and where there is none, those to choose from."""

    names: frozenset[str]
    candidates: list[str]


def meant(fleet: Fleet, ref: str) -> Meant:
    """Return what a ref means here: as a binding or an orchestrator writes it, or the last part of one model's name."""
    models = _bound(fleet)
    exact = [each for each in models if ref in _spellings(fleet, each)]
    short = [each for each in models if ref == each.repo.rpartition("/")[2]]
    found = exact or (short if len({each.ref for each in short}) == 1 else [])
    candidates = sorted({each.ref for each in short or models})
    return Meant(frozenset(fleet.catalog.name_of(each) for each in found), [] if found else candidates)


def _bound(fleet: Fleet) -> list[Wanted]:
    superseded = {id(function) for function in fleet.superseded}
    functions = (each for each in fleet.variants() if id(each) not in superseded)
    return list(dict.fromkeys(slot.wanted for each in functions for slot in each.surveyed.slots))


def _spellings(fleet: Fleet, wanted: Wanted) -> tuple[str, ...]:
    name, prefix = fleet.catalog.name_of(wanted), _PREFIX_OF[wanted.provider]
    return wanted.ref, name, prefix + wanted.ref, prefix + name


# --- where it is ------------------------------------------------------------------------------------------------------


def instances_of(fleet: Fleet, names: Iterable[str], *, on: Device | None = None, bound: bool = False) -> list[str]:
    """Return the instances that need one of these models: those that may be on a device, or that an author bound."""
    needed = frozenset(names)
    functions = fleet.functions.values() if bound else fleet.variants()
    return list(
        dict.fromkeys(
            each.surveyed.instance
            for each in functions
            if _needs(fleet, each, needed) and (on is None or holds(on, each))
        )
    )


def _needs(fleet: Fleet, function: Function, names: frozenset[str]) -> bool:
    return any(fleet.catalog.name_of(slot.wanted) in names for slot in function.surveyed.slots)


def roomiest(devices: Iterable[Device]) -> Device | None:
    """Return the device that has most room for one more model: one that serves, with most memory free, and least held.

    What is free is what may be taken of it less what its models take, or what the driver says where that is less.
    """
    return max(devices, key=_room, default=None)


def _room(device: Device) -> tuple[bool, bool, float, int]:
    child = device.child
    held = 0 if child is None else sum(each.bytes for models in child.models.values() for each in models)
    limit = device.allowed_bytes or device.vram_total
    free = inf if limit is None else limit - held
    if device.vram_total is not None and device.vram_used is not None:
        free = min(free, device.vram_total - device.vram_used)
    return not device.drained, child is not None and child.serving, free, -held


# --- loads ------------------------------------------------------------------------------------------------------------


def load_asked(fleet: Fleet, asked: LoadAsked, now: float) -> list[Action]:
    """Have a device set up instances, also those that it could not just before."""
    device = next(each for each in fleet.devices if each.name == asked.device)
    for instance in asked.instances:
        fleet.ordered[instance, device.name] = ""
        fleet.resting.discard(instance)
        device.resting.discard(instance)
        refused = fleet.instance(instance).refused
        if isfinite(refused.get(device.name, inf)):
            del refused[device.name]
        slots = fleet.slots_of(instance)
        for slot in slots:
            model = fleet.catalog.of(slot.wanted)
            if isfinite(model.retry_at):
                model.retry_at = 0.0
        fleet.catalog.ask(slots, now, urgent=True)
    return []


def places_for(fleet: Fleet, names: frozenset[str], devices: Iterable[Device]) -> tuple[list[Device], str]:
    """Return those of the devices on which a function that needs one of these models may run, and else why none is."""
    able, why = [], "no function that needs it may run there"
    for device in devices:
        instances = instances_of(fleet, names, on=device, bound=True)
        if not instances:
            continue
        if device.lost:
            why = device.loss
        elif unfit := [each for each in instances if fleet.instance(each).refused.get(device.name) == inf]:
            why = _why_unfit(fleet, unfit[0], device)
        else:
            able.append(device)
    return able, why


def _why_unfit(fleet: Fleet, instance: str, device: Device) -> str:
    """Return why a device will never set up an instance, which it has tried."""
    told = (each.unavailable for each in fleet.variants() if each.surveyed.instance == instance and each.unavailable)
    return next(told, f"its setup there has found that {device.name} lacks what `{instance}` needs")


def holders(fleet: Fleet, names: frozenset[str], device: Device) -> bool:
    """Whether a device has everything set up that an author bound to these models."""
    child = device.child
    needed = instances_of(fleet, names, on=device, bound=True)
    return child is not None and child.serving and not child.going and child.loaded.issuperset(needed)


def end_of_load(fleet: Fleet, instances: Collection[str], device: Device, now: float) -> str | None:
    """Return why a device will not have instances that were asked for; "" where it has them, None until then."""
    child = device.child
    there = child.loaded if child is not None and child.serving else set()
    missing = [each for each in instances if each not in there]
    if missing and (device.lost or fleet.draining or fleet.finished):
        return device.loss if device.lost else "the supervisor is shutting down"
    for instance in missing:
        key = instance, device.name
        unreachable = fleet.catalog.failure(fleet.slots_of(instance), now)
        if unreachable is not None and key in fleet.ordered:
            fleet.ordered[key] = unreachable.message
        if failed := fleet.ordered.get(key, "somebody had it unloaded meanwhile"):
            return failed
    return None if missing else ""


def unload_over(instances: Collection[str], devices: Iterable[Device]) -> bool:
    """Whether no child of these devices has yet to let go of one of the instances.

    A job that waited for one may have it set up again at once.
    """
    for child in (device.child for device in devices):
        if child is None or child.phase in (Phase.DYING, Phase.SETTLING, Phase.BACKOFF):
            continue
        if child.going.intersection(instances) or (not child.serving and child.loaded.intersection(instances)):
            return False
    return True


def bring_back(fleet: Fleet, child: Child) -> None:
    """Have a device's next child set up what this one had of pinned models, before a job asks for them."""
    for instance in pinned(fleet, child.device).intersection(child.loaded) - child.going:
        fleet.ordered[instance, child.device.name] = ""


# --- pins -------------------------------------------------------------------------------------------------------------


def pin_asked(fleet: Fleet, asked: PinAsked, now: float) -> list[Action]:
    """Pin models to devices, or take that back: then what had no room beside them is tried again."""
    pins = {(name, device) for name in asked.names for device in asked.devices}
    changed = fleet.pins & pins if asked.undo else pins - fleet.pins
    fleet.pins = fleet.pins - pins if asked.undo else fleet.pins | pins
    if asked.undo:
        _give_another_chance(fleet, asked.devices)
    actions: list[Action] = [
        Note("info", device, f"`{name}` is {'pinned no longer' if asked.undo else 'pinned'}")
        for name, device in sorted(changed)
    ]
    for child in fleet.children():
        if child.serving:
            actions += tell_pins(fleet, child)
    return actions


def _give_another_chance(fleet: Fleet, devices: frozenset[str]) -> None:
    for function in fleet.variants():
        if function.verdict.reason == "insufficient_vram":
            function.unavailable = None
            refused = fleet.instance(function.surveyed.instance).refused
            for device in devices.intersection(refused):
                del refused[device]
    fleet.doubt()


def pinned(fleet: Fleet, device: Device) -> frozenset[str]:
    """Return the instances that stay on a device whatever comes next: those with a model that is pinned there."""
    names = frozenset(name for name, where in fleet.pins if where == device.name)
    return frozenset(instances_of(fleet, names)) if names else frozenset()


def pinned_refs(fleet: Fleet, device: Device) -> frozenset[str]:
    """Return the refs of the models that are pinned to a device."""
    names = {name for name, where in fleet.pins if where == device.name}
    return frozenset(each.ref for each in _bound(fleet) if fleet.catalog.name_of(each) in names)


def pinned_to(fleet: Fleet, name: str) -> list[str]:
    """Return the devices that a model is pinned to."""
    return [device.name for device in fleet.devices if (name, device.name) in fleet.pins]


def kept_by_pins(fleet: Fleet, instances: Collection[str], devices: Iterable[Device]) -> str:
    """Return for which pinned models these instances stay where they are, in words; empty where they may go."""
    wanted = (slot.wanted for instance in instances for slot in fleet.slots_of(instance))
    names = list(dict.fromkeys(fleet.catalog.name_of(each) for each in wanted))
    found = ((name, device.name) for device in devices for name in names if (name, device.name) in fleet.pins)
    return ", ".join(f"`{name}` is pinned to {device}" for name, device in found)


def pinned_keys(fleet: Fleet) -> frozenset[str]:
    """Return what names the content of the pinned models that are on this host."""
    names = {name for name, _ in fleet.pins}
    return frozenset(model.key for model in fleet.catalog.models.values() if model.here and model.name in names)


def tell_pins(fleet: Fleet, child: Child) -> list[Action]:
    """Return what tells a child which instances it may let go of for no other, where it does not know that."""
    staying = pinned(fleet, child.device)
    if staying == child.pinned:
        return []
    child.pinned = staying
    return [Send(child, Pin(sorted(staying)))]
