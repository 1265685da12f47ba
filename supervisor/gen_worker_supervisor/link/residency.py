"""Where a worker's models are, which functions need them, and what it is called when one cannot be had.

Pure: reads the fleet.
"""

from collections.abc import Callable, Iterator

from gen_worker.models.errors import ModelErrorKind
from gen_worker.wire.fetching import FetchFailed
from gen_worker.wire.scheduler import ModelResidency, ResidencyTier
from gen_worker_supervisor.core.catalog import Model
from gen_worker_supervisor.core.phases import Phase
from gen_worker_supervisor.core.state import Child, Fleet, Function

_GONE = (Phase.DYING, Phase.SETTLING, Phase.BACKOFF)
_TOLD: frozenset[ModelErrorKind] = frozenset(
    ("url_expired", "digest_mismatch", "insufficient_disk", "read_only", "load_failed")
)
"""What an orchestrator is told as it is; everything else is `download_failed` for it."""


def residency(fleet: Fleet, in_memory: Callable[[Model], bool]) -> dict[str, ModelResidency]:
    """Return where each model is, by its ref as an orchestrator writes it; a model that is not here has no entry.

    What was superseded by another snapshot of the same ref does not count. `vram_bytes` is what all its copies take.
    """
    catalog = fleet.catalog
    digests = {name: digest for (_, name), digest in catalog.digests.items()}
    found = {
        name: ResidencyTier.DISK
        for name, stocked in catalog.shelf.items()
        if digests.get(name, stocked.wanted.digest) == stocked.wanted.digest
    }
    for model in catalog.models.values():
        if model.here and digests.get(model.name, model.wanted.digest) == model.wanted.digest:
            tier = ResidencyTier.RAM if in_memory(model) else ResidencyTier.DISK
            found[model.name] = max(tier, found.get(model.name, tier))
    vram: dict[str, int] = {}
    for child, instance in held(fleet):
        wanted = {slot.name: slot.wanted for slot in fleet.slots_of(instance)}
        for resident in child.models.get(instance, []):
            if resident.slot not in wanted:
                continue
            name = catalog.name_of(wanted[resident.slot])
            tier = ResidencyTier.VRAM if child.device.kind == "cuda" else ResidencyTier.RAM
            found[name] = max(tier, found.get(name, tier))
            if tier is ResidencyTier.VRAM:
                vram[name] = vram.get(name, 0) + resident.bytes
    return {name: ModelResidency(ref=name, tier=found[name], vram_bytes=vram.get(name, 0)) for name in sorted(found)}


def held(fleet: Fleet) -> Iterator[tuple[Child, str]]:
    """Return the instances that later jobs may run on, each with a child that holds it."""
    instances = current(fleet)
    for device in fleet.devices:
        child = device.child
        if child is not None and child.phase not in _GONE:
            yield from ((child, instance) for instance in child.loaded if instance in instances)


def current(fleet: Fleet) -> set[str]:
    """Return the instances that later jobs may run on."""
    superseded = {id(function) for function in fleet.superseded}
    return {each.surveyed.instance for each in fleet.variants() if id(each) not in superseded}


def binders(fleet: Fleet, name: str) -> list[Function]:
    """Return the functions whose later jobs need a model."""
    superseded = {id(function) for function in fleet.superseded}
    return [each for each in fleet.variants() if id(each) not in superseded and binds(fleet, each, name)]


def in_use(fleet: Fleet, name: str) -> bool:
    """Whether a job that a child was handed needs a model."""
    children = [device.child for device in fleet.devices if device.child is not None]
    return any(binds(fleet, job.function, name) for child in children for job in child.leased.values())


def binds(fleet: Fleet, function: Function, name: str) -> bool:
    """Whether a function needs a model."""
    return any(fleet.catalog.name_of(slot.wanted) == name for slot in function.surveyed.slots)


def error_of(failure: FetchFailed) -> str:
    """Return how an orchestrator is told why a model cannot be had."""
    return failure.kind if failure.kind in _TOLD else "download_failed"
