"""What workers are asked to do with models, and what becomes of it. Pure."""

from collections.abc import Iterator

from gen_worker.orchestrator.placement import victim
from gen_worker.orchestrator.state import Action, Op, Prefetch, Send, Worker
from gen_worker.wire.scheduler import ModelEvent, ModelOp, ModelOpKind, ModelResidency, ModelState, ResidencyTier

FRESH_URLS = 3  # times that a model is asked for because its URLs were too old
TIERS = {
    ModelState.ON_DISK: ResidencyTier.DISK,
    ModelState.IN_RAM: ResidencyTier.RAM,
    ModelState.IN_VRAM: ResidencyTier.VRAM,
}
DONE = {
    ModelOpKind.DOWNLOAD: {ModelState.ON_DISK, ModelState.IN_RAM, ModelState.IN_VRAM},
    ModelOpKind.LOAD: {ModelState.IN_VRAM, ModelState.IN_RAM},
    ModelOpKind.UNLOAD: {ModelState.ON_DISK, ModelState.IN_RAM, ModelState.EVICTED},
}


def ask(worker: Worker, kind: ModelOpKind, ref: str) -> Iterator[Action]:
    """Have a worker do something with a model."""
    worker.ops[ref] = Op(kind)
    yield from _say(worker, kind, ref)


def prefetch(worker: Worker, ref: str) -> Iterator[Action]:
    """Have a worker fetch a model that its functions need."""
    if worker.session is not None:
        worker.ops[ref] = Op(ModelOpKind.DOWNLOAD)
        yield Prefetch(worker.session, ref)


def happened(worker: Worker, event: ModelEvent) -> Iterator[Action]:
    """Take in what became of a model; go on with what was asked."""
    if (tier := TIERS.get(event.state)) is not None:
        worker.models[event.ref] = ModelResidency(ref=event.ref, tier=tier, vram_bytes=event.vram_bytes)
    elif event.state is ModelState.EVICTED:
        worker.models.pop(event.ref, None)
    op = worker.ops.get(event.ref)
    if op is None:
        return
    if event.state is ModelState.FAILED:
        yield from _failed(worker, op, event)
    elif event.state in DONE.get(op.kind, ()):
        del worker.ops[event.ref]
        yield from _then(worker, op)


def _failed(worker: Worker, op: Op, event: ModelEvent) -> Iterator[Action]:
    if event.error == "url_expired" and op.tries < FRESH_URLS:
        op.tries += 1
        yield from _say(worker, op.kind, event.ref)
    elif event.error == "oom" and op.kind is ModelOpKind.LOAD:
        yield from _make_room(worker, op, event.ref)
    else:
        del worker.ops[event.ref]
        yield from _then(worker, op)  # it could not go: the load is tried, and finds another that can


def _make_room(worker: Worker, op: Op, ref: str) -> Iterator[Action]:
    going = victim(worker, op.unloaded | {ref})
    if going is None:
        del worker.ops[ref]
        return
    op.unloaded.add(going)
    worker.ops[going] = Op(ModelOpKind.UNLOAD, then=ref)
    yield from _say(worker, ModelOpKind.UNLOAD, going)


def _then(worker: Worker, op: Op) -> Iterator[Action]:
    if op.then in worker.ops:
        yield from _say(worker, ModelOpKind.LOAD, op.then)


def _say(worker: Worker, kind: ModelOpKind, ref: str) -> Iterator[Action]:
    if worker.session is not None:
        yield Send(worker.session, ModelOp(op=kind, ref=ref))
