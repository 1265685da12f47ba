"""What the status document says of models. Pure: reads the fleet."""

from collections.abc import Callable, Iterator

from gen_worker.wire.messages import Tier
from gen_worker.wire.status import HostModelStatus, ModelStatus
from gen_worker_supervisor.core.catalog import Model
from gen_worker_supervisor.core.pinning import pinned_refs, pinned_to
from gen_worker_supervisor.core.state import Child, Fleet


def resident_models(fleet: Fleet, child: Child) -> list[ModelStatus]:
    """Return the models that a child holds."""
    pinned = pinned_refs(fleet, child.device) if fleet.pins else ()
    return [
        ModelStatus(
            model.ref, model.bytes, model.tier, instance, child.rungs.get(instance) or None, model.ref in pinned
        )
        for instance, models in child.models.items()
        for model in models
    ]


def host_models(
    fleet: Fleet, in_memory: Callable[[Model], bool], hide: Callable[[str], str], now: float
) -> list[HostModelStatus]:
    """Return every model that somebody asked for, or that a function is bound to."""
    known = fleet.catalog.models
    bound = (slot.wanted for each in fleet.functions.values() for slot in each.surveyed.slots)
    cold = [Model(each) for each in dict.fromkeys(bound) if each.key not in known]
    tiers = _tiers(fleet)
    return [_host_model(fleet, model, tiers, in_memory, hide, now) for model in (*known.values(), *cold)]


def _tiers(fleet: Fleet) -> dict[str, set[Tier]]:
    found: dict[str, set[Tier]] = {}
    for child in _children(fleet):
        for models in child.models.values():
            for model in models:
                found.setdefault(model.ref, set()).add(model.tier)
    return found


def _host_model(
    fleet: Fleet,
    model: Model,
    tiers: dict[str, set[Tier]],
    in_memory: Callable[[Model], bool],
    hide: Callable[[str], str],
    now: float,
) -> HostModelStatus:
    held, snapshot = tiers.get(model.wanted.ref, set()), model.snapshot
    state: Tier = "DISK" if model.here else "COLD"
    if "VRAM" in held:
        state = "VRAM"
    elif "RAM" in held or in_memory(model):
        state = "RAM"
    variants = [each for each in fleet.variants() if any(slot.wanted == model.wanted for slot in each.surveyed.slots)]
    instances = {each.surveyed.instance for each in variants}
    known = [fleet.instances[each] for each in instances if each in fleet.instances]
    return HostModelStatus(
        ref=model.wanted.ref,
        state=state,
        bytes=None if snapshot is None else snapshot.size,
        path=None if snapshot is None else snapshot.path,
        error=None if model.failure is None else hide(model.failure.message),
        pinned=pinned_to(fleet, model.name),
        functions=list(dict.fromkeys(each.name for each in variants)),
        used_s=min((round(now - at, 3) for at in _uses(fleet, instances, now)), default=None),
        load_s=max((round(each.load_s, 3) for each in known if each.learned), default=None),
    )


def _uses(fleet: Fleet, instances: set[str], now: float) -> Iterator[float]:
    """Yield when instances were used last, which is now where a job runs on one."""
    for child in _children(fleet):
        yield from (at for instance, at in child.used_at.items() if instance in instances)
        if any(job.instance in instances for job in child.leased.values()):
            yield now


def _children(fleet: Fleet) -> Iterator[Child]:
    yield from (device.child for device in fleet.devices if device.child is not None)
