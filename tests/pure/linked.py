"""A worker without processes: a host of the pure core, and what its orchestrator is told of models."""

from collections.abc import Callable, Collection, Sequence
from typing import Literal

from gen_worker.models.wanted import Slot, SnapshotFile, Wanted
from gen_worker.wire.fetching import Stocked
from gen_worker.wire.messages import Loaded, Resident, Tier
from gen_worker.wire.scheduler import (
    HelloAck,
    ModelBinding,
    ModelEvent,
    ModelOp,
    ModelOpKind,
    RunJob,
    Snapshot,
    WorkerFrame,
)
from gen_worker.wire.survey import SurveyedFunction
from gen_worker_supervisor.core.actions import Action
from gen_worker_supervisor.core.catalog import Model
from gen_worker_supervisor.core.happenings import Happening
from gen_worker_supervisor.core.state import Child, Device, Fleet, Function, Job
from gen_worker_supervisor.link.models import LinkModels
from tests.pure.host import Host, runs

MIB = 1 << 20
A, B = "a" * 64, "b" * 64


def hub(ref: str, **more: str) -> Wanted:
    """Return a model of the platform's, as a function binds it."""
    return Wanted("tensorhub", ref, **more)  # type: ignore[arg-type]


def bound(name: str, *models: Wanted, overrides: tuple[str, ...] = ()) -> Function:
    """Return a function of a class of its own whose slots `m0`, `m1`… take these models."""
    slots = [Slot(f"m{number}", wanted, overrides) for number, wanted in enumerate(models)]
    title = name.title()
    return Function(SurveyedFunction(name, name, title, title, "sync", "device", False, None, slots))


def gpu(name: str = "cuda:0") -> Device:
    """Return a device whose models are in VRAM."""
    return Device(name, "cuda", 0, vram_total=24 << 30)


def described(digest: str = A, *, stamp: str = "1") -> Snapshot:
    """Return a snapshot of one file, by URLs that end one day."""
    return Snapshot(digest=digest, files=(SnapshotFile("weights", 10, digest, f"https://store/{digest}?{stamp}"),))


class Supplies:
    """What the fetcher and the host's memory would have, as tests say."""

    def __init__(self) -> None:
        self.on_evicted: Callable[[str], None] = lambda ref: None
        self.changes = 0
        self.started = True
        self.held: set[str] = set()
        self.kept: list[str] = []
        self.spared: list[str] = []
        self.stock: Callable[[list[Stocked]], None] | None = None

    def in_memory(self, model: Model) -> bool:
        """Whether a test has put the model into host memory."""
        return model.name in self.held

    def take_stock(self, then: Callable[[list[Stocked]], None]) -> None:
        """Remember who asked."""
        self.stock = then

    def keep(self, refs: list[str], keys: Collection[str]) -> None:
        """Remember what is kept."""
        self.kept, self.spared = refs, list(keys)


class Worker:
    """A host, its models towards an orchestrator, and everything that was said."""

    def __init__(
        self, *functions: Function, devices: int | list[Device] = 1, eager: bool = False, acknowledged: bool = True
    ) -> None:
        self.host = Host(*functions, devices=devices, eager=eager)
        self.host.fleet.booting = False
        self.fleet: Fleet = self.host.fleet
        self.models = Supplies()
        self.log = self
        self.notes: list[str] = []
        self.said: list[WorkerFrame] = []
        self.link = LinkModels(self, self.said.append, lambda: self.host.now)
        self.link.tick()
        if acknowledged:
            self.link.residency()
            self.link.acknowledged(HelloAck())

    def event(self, level: Literal["info", "warning", "error"], source: str, message: str) -> None:
        """Take a line of the log."""
        self.notes.append(message)

    def handle(self, *happenings: Happening) -> None:
        """Do what a supervisor does."""
        self.host.happens(*happenings)

    # --- what happens ---

    def events(self) -> list[ModelEvent]:
        """Return what was said of models since this was called last."""
        self.link.changed()
        said, self.said[:] = list(self.said), []
        assert all(isinstance(each, ModelEvent) for each in said)
        return [each for each in said if isinstance(each, ModelEvent)]

    def told(self) -> list[tuple[str, str, str]]:
        """Return the refs, states and errors that were said since this was called last."""
        return [(each.ref, each.state.name, each.error) for each in self.events()]

    def operates(self, kind: ModelOpKind, ref: str, snapshot: Snapshot | None = None) -> None:
        """Have the orchestrator want something."""
        self.link.operate(ModelOp(op=kind, ref=ref, snapshot=snapshot))

    def function(
        self, name: str, snapshots: dict[str, Snapshot] | None = None, models: Sequence[tuple[str, str]] = ()
    ) -> Function | str:
        """Return what a job of the orchestrator's shall run as."""
        bindings = tuple(ModelBinding(slot=slot, ref=ref) for slot, ref in models)
        run = RunJob(request_id="r", attempt=1, function_name=name, models=bindings, snapshots=snapshots or {})
        return self.link.function_for(run, name)

    def runs(
        self, name: str, snapshots: dict[str, Snapshot] | None = None, models: Sequence[tuple[str, str]] = ()
    ) -> Job:
        """Have the orchestrator run a job."""
        function = self.function(name, snapshots, models)
        assert isinstance(function, Function), function
        return self.host.submit(function=function)

    def brings(self) -> None:
        """Have the fetcher look for everything it was asked for, find nothing, and fetch it."""
        seen = len(self.host.actions)
        for probe in (True, False):
            for order in self.host.ordered(probe=probe):
                model = self.fleet.catalog.models.get(order.wanted.key)
                if model is not None and model.number == order.number and not model.settled:
                    (self.host.absent if probe else self.host.fetched)(order)
        assert len(self.host.actions) > seen, "nothing was to be brought"

    def loads(self, child: Child | None = None, size: int = 5 * MIB) -> list[Action]:
        """Have a child set up what it is told to, with models of this size on the device."""
        child = child or self.host.child()
        instance = child.loading
        assert instance is not None, "nothing is being set up"
        slots = self.fleet.slots_of(instance)
        tier: Tier = "VRAM" if child.device.kind == "cuda" else "RAM"
        residents = [Resident(slot.name, slot.wanted.ref, tier, size) for slot in slots]
        return self.host.reports(child, Loaded(instance, 0.5, residents))

    def serves(self, name: str, snapshots: dict[str, Snapshot]) -> Job:
        """Have a job run for the first time, with all that this takes; it goes on running."""
        job = self.runs(name, snapshots)
        self.brings()
        (started,) = runs(self.loads())
        assert started is job
        self.host.starts(job)
        return job
