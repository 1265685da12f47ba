"""The models of a worker as its orchestrator sees them: what it describes and wants done, and where each of them is.

Where models are is read from the fleet, where they shall be is written there; nothing here moves a byte.
"""

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Literal, Protocol

import msgspec

from gen_worker.models.refs import RefError
from gen_worker.models.wanted import Slot, Wanted, overridden_instance
from gen_worker.wire.fetching import FetchFailed, Stocked
from gen_worker.wire.scheduler import (
    HelloAck,
    ModelBinding,
    ModelEvent,
    ModelOp,
    ModelOpKind,
    ModelResidency,
    ModelState,
    ResidencyTier,
    RunJob,
    Snapshot,
    WorkerFrame,
)
from gen_worker_supervisor.core.catalog import DIGESTS_KEPT, Model
from gen_worker_supervisor.core.happenings import Happening, UnloadAsked
from gen_worker_supervisor.core.phases import ModelState as Coming
from gen_worker_supervisor.core.pinning import kept_by_pins
from gen_worker_supervisor.core.state import Fleet, Function, holds
from gen_worker_supervisor.link.refs import digest_of, providers, wanted_of
from gen_worker_supervisor.link.residency import binders, binds, current, error_of, held, in_use, residency

DOWNLOADING_S = 5.0  # between two events on how far a model is
_STATES = {
    ResidencyTier.DISK: ModelState.ON_DISK,
    ResidencyTier.RAM: ModelState.IN_RAM,
    ResidencyTier.VRAM: ModelState.IN_VRAM,
}


# --- who has a hand on them -------------------------------------------------------------------------------------------


class Supply(Protocol):
    """The disk and the host's memory, as `ModelSupply` has its hands on them."""

    on_evicted: Callable[[str], None]
    changes: int

    @property
    def started(self) -> bool:
        """Whether models can be had at all."""
        ...

    def in_memory(self, model: Model) -> bool:
        """Whether a model could be loaded without the disk."""
        ...

    def take_stock(self, then: Callable[[list[Stocked]], None]) -> None:
        """Have it said once what lies in the caches."""
        ...

    def keep(self, refs: list[str], keys: Collection[str]) -> None:
        """Have these go after all others: refs from the disk, keys from the host's memory."""
        ...


class Notes(Protocol):
    """Where an operator reads what happens."""

    def event(self, level: Literal["info", "warning", "error"], source: str, message: str) -> None:
        """Write a line."""
        ...


class Host(Protocol):
    """The supervisor, as far as models need it."""

    fleet: Fleet

    @property
    def models(self) -> Supply:
        """The disk and the host's memory."""
        ...

    @property
    def log(self) -> Notes:
        """Where an operator reads what happens."""
        ...

    def handle(self, *happenings: Happening) -> None:
        """Record what happened and perform what follows."""
        ...


# --- what is wanted of them -------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Operation:
    """Something that an orchestrator wants done with a model, until it was told how that went."""

    kind: ModelOpKind
    wanted: Wanted
    models: list[Wanted] = field(default_factory=list)
    instances: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The ref of its model."""
        return self.wanted.wire_ref


class LinkModels:
    """What an orchestrator says of models, and what it is told of them."""

    def __init__(
        self,
        supervisor: Host,
        send: Callable[[WorkerFrame], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._supervisor = supervisor
        self._fleet = supervisor.fleet
        self._send = send
        self._clock = clock
        self._fleet.catalog.orchestrated = True
        self._bound = [slot.wanted for each in self._fleet.functions.values() for slot in each.own.slots]
        self._providers = providers(self._bound)
        self._spelled: dict[str, str] = {}  # names as the orchestrator writes them
        self._operations: list[_Operation] = []
        self._told: dict[str, ModelResidency] = {}
        self._failures: dict[str, FetchFailed] = {}  # that were told, by the model's key
        self._progress: dict[str, float] = {}  # when it was told last how far a download is, by name
        self._seen = (-1, -1)
        self._acknowledged = False
        self._asked = self._is_stocked = False
        self._on_stock: Callable[[], None] | None = None
        supervisor.models.on_evicted = self._evicted

    # --- what it says by itself ---

    def when_stocked(self, then: Callable[[], None]) -> None:
        """Call back once it is known what lies in the caches, so that the first `Hello` tells it; at once if it is."""
        self._on_stock = then
        if not self._take_stock():
            then()

    def _take_stock(self) -> bool:
        """Ask once what lies in the caches, which matters where functions have models; say whether that was asked."""
        if not self._asked and self._bound and self._supervisor.models.started:
            self._asked = True
            self._supervisor.models.take_stock(self._stocked)
        return self._asked and not self._is_stocked

    def _stocked(self, models: list[Stocked]) -> None:
        """Learn what lies in the caches: what an orchestrator described before is used without its saying so again."""
        self._is_stocked = True
        catalog = self._fleet.catalog
        for stocked in models:
            wanted = self._as_bound(stocked.wanted)
            name = wanted.wire_ref
            if name in catalog.shelf or (wanted.provider, name) in catalog.digests:
                continue  # one that was used later, or described since
            catalog.shelf[name] = stocked
            if stocked.wanted.digest and not wanted.digest:
                catalog.describe(wanted, stocked.wanted.digest, ())
        self._rebind()
        self._fleet.placed += 1
        self._supervisor.handle()
        if self._on_stock is not None:
            self._on_stock()

    def _as_bound(self, stocked: Wanted) -> Wanted:
        """Return what an orchestrator's snapshot was described for."""
        if stocked.provider != "tensorhub" or not stocked.digest:
            return stocked
        for bound in self._bound:
            if msgspec.structs.replace(bound.plain, provider="tensorhub", digest=stocked.digest) == stocked:
                return bound.plain
        return msgspec.structs.replace(stocked, digest="") if stocked.tag else stocked

    def residency(self) -> tuple[ModelResidency, ...]:
        """Return where all models are, for a `Hello`: what is told after it are changes of that."""
        self._acknowledged = False
        self._told = self._residency()
        failed = ((key, model.failure) for key, model in self._fleet.catalog.models.items())
        self._failures = {key: failure for key, failure in failed if failure is not None}
        self._progress.clear()
        return tuple(self._renamed(each) for each in self._told.values())

    def _residency(self) -> dict[str, ModelResidency]:
        return residency(self._fleet, self._supervisor.models.in_memory)

    def _renamed(self, model: ModelResidency) -> ModelResidency:
        return msgspec.structs.replace(model, ref=self._spelled.get(model.ref, model.ref))

    def name_of(self, ref: str) -> str:
        """Return what a model is called here that a ref on the wire means."""
        return wanted_of(ref, self._providers).wire_ref

    @property
    def busy(self) -> bool:
        """Whether something that an orchestrator wants done is under way."""
        return bool(self._operations)

    def tick(self) -> None:
        """Tell how far downloads are; to be called once in a while."""
        self._take_stock()
        if self._acknowledged:
            self._tell_progress(self._clock())

    def changed(self) -> None:
        """Tell what has become of models since this was called last; costs nothing when nothing has."""
        seen = (self._fleet.placed, self._supervisor.models.changes)
        if seen == self._seen or not self._acknowledged:
            return
        self._seen = seen
        now = self._clock()
        changed, failed = self._tell_changes(), self._tell_failures()
        for operation in list(self._operations):
            self._look_at(operation, changed, failed, now)
        self._spare()
        self._tell_progress(now)

    def _tell(
        self,
        name: str,
        state: ModelState,
        *,
        vram_bytes: int = 0,
        error: str = "",
        bytes_done: int = 0,
        bytes_total: int = 0,
    ) -> None:
        ref = self._spelled.get(name, name)
        event = ModelEvent(
            ref=ref, state=state, vram_bytes=vram_bytes, error=error, bytes_done=bytes_done, bytes_total=bytes_total
        )
        self._send(event)

    def _tell_changes(self) -> set[str]:
        """Tell which models are somewhere else than was told last; return their names."""
        self._correct_shelf()
        before, self._told = self._told, self._residency()
        changed = {name for name, model in self._told.items() if before.get(name) != model}
        for name in sorted(changed):
            self._tell(name, _STATES[self._told[name].tier], vram_bytes=self._told[name].vram_bytes)
        coming = {model.name for model in self._fleet.catalog.models.values() if not model.settled}
        for name in before:
            if name not in self._told and name not in coming:
                changed.add(name)
                self._tell(name, ModelState.EVICTED)
        return changed

    def _correct_shelf(self) -> None:
        """Forget of what was in the caches what the fetcher did not find there."""
        absent = (Coming.QUEUED, Coming.FETCHING, Coming.FAILED)
        for model in self._fleet.catalog.models.values():
            stocked = self._fleet.catalog.shelf.get(model.name)
            if stocked is not None and model.state in absent and stocked.wanted.digest == model.wanted.digest:
                del self._fleet.catalog.shelf[model.name]

    def _tell_failures(self) -> set[str]:
        """Tell of models that cannot be had since they were told last; return their names."""
        before, self._failures = self._failures, {}
        told: set[str] = set()
        for key, model in self._fleet.catalog.models.items():
            if model.state is not Coming.FAILED or model.failure is None:
                continue
            self._failures[key] = model.failure
            news = model.failure is not before.get(key) and model.name not in told
            if news and isfinite(model.retry_at):  # else it waits to be described
                told.add(model.name)
                self._tell(model.name, ModelState.FAILED, error=error_of(model.failure))
        return told

    def _tell_progress(self, now: float) -> None:
        fetching = {
            model.name: model for model in self._fleet.catalog.models.values() if model.state is Coming.FETCHING
        }
        for name, model in fetching.items():
            if now - self._progress.get(name, -inf) >= DOWNLOADING_S:
                self._progress[name] = now
                done, total = model.bytes_done, model.bytes_total or 0
                self._tell(name, ModelState.DOWNLOADING, bytes_done=done, bytes_total=total)
        for name in [name for name in self._progress if name not in fetching]:
            del self._progress[name]

    def _evicted(self, ref: str) -> None:
        shelf = self._fleet.catalog.shelf
        for name in [name for name, stocked in shelf.items() if stocked.wanted.ref == ref]:
            del shelf[name]
            self._fleet.placed += 1

    # --- what is to be kept ---

    def acknowledged(self, ack: HelloAck) -> None:
        """Take what the orchestrator wants spared as long as there is room; replaces what it wanted before."""
        if not self._acknowledged:
            self._acknowledged = True
            self._seen = (-1, -1)
        names = set()
        for ref in ack.keep:
            try:
                names.add(self._named(ref).wire_ref)
            except RefError as error:
                self._supervisor.log.event(
                    "warning", "models", f"the orchestrator wants to keep what is no ref: {error}"
                )
        self._fleet.kept = frozenset(names)
        self._spare()

    def _spare(self) -> None:
        """Have the disk and the host's memory let go of these models after all others."""
        kept, catalog = self._fleet.kept, self._fleet.catalog
        if not self._supervisor.models.started or not (self._bound or kept):
            return
        models = [model for model in catalog.models.values() if model.name in kept]
        refs = {wanted.ref: None for wanted in self._bound} | {model.wanted.ref: None for model in models}
        refs |= {stocked.wanted.ref: None for name, stocked in catalog.shelf.items() if name in kept}
        self._supervisor.models.keep(list(refs), [model.key for model in models if model.here])

    # --- what is described ---

    def function_for(self, run: RunJob, name: str) -> Function | str:
        """Return the function with the models that a job shall have; a text says why there is none.

        What the job describes holds for the jobs after it, too. An orchestrator may name models for any slot.
        """
        try:
            for ref, snapshot in run.snapshots.items():
                self._describe(self._named(ref), snapshot)
            function = self._fleet.functions[name]
            return self._with_models(function, run.models) if run.models else function
        except RefError as error:
            return str(error)

    def _with_models(self, function: Function, named: Iterable[ModelBinding]) -> Function | str:
        slots = {slot.name: slot for slot in function.surveyed.slots}
        for binding in named:
            if binding.slot not in slots:
                there = ", ".join(f"`{slot}`" for slot in slots) or "none"
                return f"no slot `{binding.slot}` in `{function.name}`, there is: {there}"
            slots[binding.slot] = self._filled(slots[binding.slot], self._named(binding.ref))
        chosen = list(slots.values())
        instance = overridden_instance(function.own.instance, function.own.slots, chosen)
        same = instance == function.surveyed.instance
        return function if same else self._fleet.with_models(function, instance, chosen)

    def _filled(self, slot: Slot, named: Wanted) -> Slot:
        """Return a slot with another model, which is loaded as the slot's own binding says."""
        own = slot.wanted
        narrowed = msgspec.structs.replace(
            named,
            dtype=own.dtype,
            subfolder=own.subfolder,
            files=own.files,
            trust_remote_code=own.trust_remote_code,
        )
        return msgspec.structs.replace(slot, wanted=self._fleet.catalog.described(self._pinned(narrowed)))

    def _pinned(self, named: Wanted) -> Wanted:
        """Return a model as its binding pins it, of which a ref on the wire may say less."""
        for bound in self._bound:
            if (bound.provider, bound.wire_ref) == (named.provider, named.wire_ref):
                return msgspec.structs.replace(named, revision=bound.revision, version=bound.version, tag=bound.tag)
        return named

    def _named(self, ref: str) -> Wanted:
        """Return the model that a ref on the wire means; what is told of it from now on calls it so."""
        wanted = wanted_of(ref, self._providers)
        if len(self._spelled) > DIGESTS_KEPT:
            needed = self._told.keys() | {operation.name for operation in self._operations}
            self._spelled = {name: spelled for name, spelled in self._spelled.items() if name in needed}
        self._spelled[wanted.wire_ref] = ref
        return wanted

    def _describe(self, wanted: Wanted, snapshot: Snapshot) -> None:
        digest = digest_of(snapshot)
        if not digest or not self._fleet.catalog.describe(wanted, digest, tuple(snapshot.files)):
            return
        name = wanted.wire_ref
        fleet = self._fleet
        for function in (*fleet.named.values(), *fleet.pinned.values()):  # what named it runs what it came for
            if function.chosen and function not in fleet.superseded and binds(fleet, function, name):
                fleet.superseded.append(function)
                fleet.untidy = True
        self._rebind()
        self._begin_again(name)

    def _rebind(self) -> None:
        """Have functions run with the models that were described."""
        for name, function in list(self._fleet.functions.items()):
            described = self._fleet.catalog.described
            slots = [msgspec.structs.replace(slot, wanted=described(slot.wanted)) for slot in function.own.slots]
            self._fleet.rebind(name, slots)

    # --- operations ---

    def operate(self, op: ModelOp) -> None:
        """Do what an orchestrator wants with a model; at least one event tells it what has become of that."""
        try:
            wanted = self._named(op.ref)
        except RefError as error:
            self._supervisor.log.event("warning", "models", f"an operation on what is no ref: {error}")
            failed = "load_failed" if op.op is ModelOpKind.LOAD else "download_failed"
            self._send(ModelEvent(ref=op.ref, state=ModelState.FAILED, error=failed))
            return
        if op.snapshot is not None:
            self._describe(wanted, op.snapshot)
        self._start(_Operation(op.op, wanted))

    def _start(self, operation: _Operation) -> None:
        match operation.kind:
            case ModelOpKind.DOWNLOAD:
                self._download(operation)
            case ModelOpKind.LOAD:
                self._load(operation)
            case ModelOpKind.UNLOAD:
                self._unload(operation)
            case _:
                text = f"an operation of no kind on `{operation.name}`"
                self._supervisor.log.event("warning", "models", text)

    def _begin_again(self, name: str) -> None:
        """Have what is under way go on for the snapshot that a ref means now."""
        instances = current(self._fleet)
        superseded = [
            each
            for each in self._operations
            if each.kind is not ModelOpKind.UNLOAD and (each.name == name or not instances.issuperset(each.instances))
        ]
        for operation in superseded:
            self._forget(operation)
        for operation in superseded:
            self._start(_Operation(operation.kind, operation.wanted))

    def _begin(self, operation: _Operation) -> None:
        self._operations.append(operation)
        self._supervisor.handle()
        self._seen = (-1, -1)
        self.changed()

    def _download(self, operation: _Operation) -> None:
        if not self._supervisor.models.started:
            self._tell(operation.name, ModelState.FAILED, error="download_failed")
            return
        bound = [slot.wanted for each in binders(self._fleet, operation.name) for slot in each.surveyed.slots]
        named = [each for each in bound if self._fleet.catalog.name_of(each) == operation.name]
        operation.models = list(dict.fromkeys(named)) or [self._fleet.catalog.described(operation.wanted)]
        for each in operation.models:
            self._fleet.catalog.of(each).ordered = True
        self._ask(operation.models)
        self._begin(operation)

    def _ask(self, models: Collection[Wanted]) -> None:
        """Want models now, also those that could not be had just before."""
        for wanted in models:
            model = self._fleet.catalog.of(wanted)
            if isfinite(model.retry_at):
                model.retry_at = 0.0
        self._fleet.catalog.ask([Slot("", wanted) for wanted in models], self._clock(), urgent=False)

    def _load(self, operation: _Operation) -> None:
        functions = binders(self._fleet, operation.name)
        able = [each for each in functions if self._may_run(each)]
        if not able:
            self._tell(operation.name, ModelState.FAILED, error="load_failed")
            return
        operation.instances = list(dict.fromkeys(each.surveyed.instance for each in able))
        operation.models = list(dict.fromkeys(slot.wanted for each in able for slot in each.surveyed.slots))
        for instance in operation.instances:
            self._fleet.loads[instance] = ""
            self._fleet.resting.discard(instance)
            known = self._fleet.instance(instance)
            known.refused = {device: until for device, until in known.refused.items() if not isfinite(until)}
        self._ask(operation.models)
        self._begin(operation)

    def _may_run(self, function: Function) -> bool:
        return any(holds(device, function) and not device.lost for device in self._fleet.devices)

    def _unload(self, operation: _Operation) -> None:
        operation.instances = [each.surveyed.instance for each in binders(self._fleet, operation.name)]
        pinned = kept_by_pins(self._fleet, operation.instances, self._fleet.devices)
        if pinned:
            text = f"the orchestrator wants `{operation.name}` unloaded, which stays: {pinned}"
            self._supervisor.log.event("warning", "models", text)
        if pinned or in_use(self._fleet, operation.name):
            self._tell(operation.name, ModelState.FAILED, error="model_in_use")
            return
        self._supervisor.handle(UnloadAsked(frozenset(operation.instances)))
        self._begin(operation)

    def _look_at(self, operation: _Operation, changed: set[str], failed: set[str], now: float) -> None:
        """End an operation that has come to its end, and see that something was told of its model."""
        error = self._end_of(operation, now)
        if error is None:
            return
        name = operation.name
        self._forget(operation)
        told = failed if error else changed
        if name in told:
            told.remove(name)  # what was told just now answers one operation
        elif error:
            self._tell(name, ModelState.FAILED, error=error)
        else:
            self._tell_place(name)

    def _forget(self, operation: _Operation) -> None:
        self._operations.remove(operation)
        for instance in operation.instances:
            if all(instance not in other.instances for other in self._operations):
                self._fleet.loads.pop(instance, None)
        for wanted in operation.models:
            self._release(wanted)

    def _tell_place(self, name: str) -> None:
        model = self._told.get(name)
        if model is None:
            self._tell(name, ModelState.EVICTED)
        else:
            self._tell(name, _STATES[model.tier], vram_bytes=model.vram_bytes)

    def _end_of(self, operation: _Operation, now: float) -> str | None:
        """Return how an operation failed; empty where it succeeded, None while it is under way."""
        if operation.kind is ModelOpKind.UNLOAD:
            return self._end_of_unload(operation)
        models = [self._fleet.catalog.of(wanted) for wanted in operation.models]
        for model in models:
            if model.state is Coming.FAILED and model.failure is not None and now < model.retry_at:
                return error_of(model.failure)
        if operation.kind is ModelOpKind.DOWNLOAD:
            return "" if all(model.here for model in models) else None
        there = {instance for _, instance in held(self._fleet)}
        missing = [instance for instance in operation.instances if instance not in there]
        for instance in missing:
            if failure := self._fleet.loads.get(instance, "load_failed"):  # somebody wanted it unloaded meanwhile
                return failure
        if not missing:
            return ""
        able = any(self._may_run(each) for each in binders(self._fleet, operation.name))
        return None if able else "load_failed"

    def _end_of_unload(self, operation: _Operation) -> str | None:
        """What a child was just setting up goes as soon as it has, unless a job came for it."""
        children = [device.child for device in self._fleet.devices if device.child is not None]
        if any(child.loading in operation.instances for child in children):
            return None
        if not any(child.loaded.intersection(operation.instances) for child in children if child.serving):
            return ""
        if in_use(self._fleet, operation.name):
            return "model_in_use"
        self._supervisor.handle(UnloadAsked(frozenset(operation.instances)))
        return None

    def _release(self, wanted: Wanted) -> None:
        """Leave a model that was ordered to itself: where no function has it, others may evict it."""
        model = self._fleet.catalog.of(wanted)
        model.ordered = any(wanted in other.models for other in self._operations)
        if model.ordered or binders(self._fleet, model.name):
            return
        if model.snapshot is not None:
            self._fleet.catalog.shelf[model.name] = Stocked(wanted.plain, model.snapshot.size)
        self._fleet.untidy = True
        self._supervisor.handle()
