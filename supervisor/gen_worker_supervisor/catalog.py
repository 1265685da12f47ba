"""The models that functions of this supervisor need: which lie on this host, which are to be downloaded, in what order.

Pure: it is told what the fetcher reports and returns what to order from it. Never sends, reads a disk or a clock.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from gen_worker.models.snapshot import Snapshot
from gen_worker.models.wanted import Slot, Wanted
from gen_worker.wire.fetching import Fetch, Fetched, FetchFailed, Fetching
from gen_worker.wire.messages import SlotModel
from gen_worker_supervisor.phases import NEXT_MODEL, ModelState, step

RETRY_S = 30.0  # a model that could not be had is not asked for again before

_UNDER_WAY = (ModelState.SEEKING, ModelState.FETCHING)


@dataclass(slots=True, eq=False)
class Model:
    """One model, and how far it is on its way to this host."""

    wanted: Wanted
    state: ModelState = ModelState.COLD
    number: int = 0  # of the order that is under way
    urgent: bool = False  # a job waits for it
    asked: int = 0  # the later, the more models were asked for before it
    snapshot: Snapshot | None = None
    derived: str | None = None  # a snapshot of it in the dtype that its binding asks for
    bytes_done: int = 0
    bytes_total: int | None = None
    retries: int = 0
    since: float = 0.0  # when its download began
    failure: FetchFailed | None = None
    retry_at: float = 0.0

    def move(self, state: ModelState) -> None:
        """Go to another state of the table."""
        self.state = step(NEXT_MODEL, self.state, state)

    @property
    def here(self) -> bool:
        """Whether it can be loaded."""
        return self.state is ModelState.DISK

    @property
    def settled(self) -> bool:
        """Whether nothing about it is under way."""
        return self.state in (ModelState.COLD, ModelState.DISK, ModelState.FAILED)

    @property
    def key(self) -> str:
        """What names the content that is loaded: of the derived snapshot, when there is one."""
        assert self.snapshot is not None
        return self.snapshot.key if self.derived is None else self.derived.rpartition("/")[2]

    @property
    def path(self) -> str:
        """The folder or file that holds the content."""
        assert self.snapshot is not None
        return self.derived or self.snapshot.path


@dataclass(slots=True, eq=False)
class Catalog:
    """All models that somebody asked for."""

    at_once: int = 2
    allow_pickle: tuple[str, ...] = ()  # globs of the refs whose weights may be pickles
    models: dict[str, Model] = field(default_factory=dict)  # by `Wanted.key`
    number: int = 0
    asked: int = 0
    pending: bool = False  # something may have to be ordered

    def of(self, wanted: Wanted) -> Model:
        """Return what is known of a model."""
        return self.models.setdefault(wanted.key, Model(wanted))

    def ready(self, slots: Sequence[Slot]) -> bool:
        """Whether every slot's model can be loaded."""
        return all(self.of(slot.wanted).here for slot in slots)

    def slot_models(self, slots: Sequence[Slot]) -> list[SlotModel]:
        """Return where each slot's model lies, all of which are ready."""
        return [self._slot_model(slot, self.of(slot.wanted)) for slot in slots]

    def _slot_model(self, slot: Slot, model: Model) -> SlotModel:
        wanted = slot.wanted
        subfolder = wanted.subfolder if model.derived is None else ""  # a derived snapshot holds that part alone
        pickle = any(fnmatchcase(name, glob) for name in (wanted.ref, wanted.repo) for glob in self.allow_pickle)
        return SlotModel(slot.name, wanted.ref, model.path, model.key, wanted.dtype, subfolder, pickle)

    def ask(self, slots: Sequence[Slot], now: float, *, urgent: bool) -> None:
        """Want the models of these slots; those a job waits for are downloaded first."""
        for slot in slots:
            model = self.of(slot.wanted)
            if urgent and not model.urgent:
                model.urgent = True
            if model.state is ModelState.COLD or (model.state is ModelState.FAILED and now >= model.retry_at):
                model.move(ModelState.SEEKING)
                self.asked += 1
                model.asked, model.number, model.failure = self.asked, 0, None
                self.pending = True

    def orders(self, now: float) -> list[Fetch]:
        """Return what to order now: every look for a model on this host, and as many downloads as there is room for."""
        if not self.pending:
            return []
        self.pending = False
        orders = []
        for model in self.models.values():
            if model.state is ModelState.SEEKING and not model.number:
                orders.append(self._order(model, probe=True))
        free = self.at_once - sum(model.state is ModelState.FETCHING for model in self.models.values())
        queue = [model for model in self.models.values() if model.state is ModelState.QUEUED]
        for model in sorted(queue, key=lambda model: (not model.urgent, model.asked))[: max(0, free)]:
            model.move(ModelState.FETCHING)
            model.since = now
            orders.append(self._order(model, probe=False))
        return orders

    def _order(self, model: Model, *, probe: bool) -> Fetch:
        self.number += 1
        model.number = self.number
        return Fetch(model.number, model.wanted, probe=probe)

    def reported(self, report: Fetching | Fetched | FetchFailed, now: float) -> Model | None:
        """Learn what became of an order; return the model whose state changed."""
        model = next((each for each in self.models.values() if each.number == report.number), None)
        if model is None or model.state not in _UNDER_WAY:
            return None  # the fetcher's predecessor was asked for it
        self.pending = True
        match report:
            case Fetching():
                model.bytes_done, model.bytes_total = report.bytes_done, report.bytes_total
                model.retries = report.retries
                return None
            case Fetched():
                model.move(ModelState.DISK)
                model.snapshot, model.urgent = report.snapshot, False
                model.bytes_done = model.bytes_total = report.snapshot.size
            case FetchFailed(kind="absent"):
                model.move(ModelState.QUEUED)
            case FetchFailed():
                model.move(ModelState.FAILED)
                model.failure, model.retry_at, model.urgent = report, now + RETRY_S, False
        return model

    def fetcher_lost(self) -> None:
        """The fetcher has died: everything that it was at is ordered from the next one."""
        for model in self.models.values():
            if model.state is ModelState.FETCHING:
                model.move(ModelState.QUEUED)
            model.number = 0
        self.pending = True

    def damaged(self, slots: Sequence[Slot]) -> None:
        """Files of these models could not be loaded: look at what is on the disk anew before they are tried again."""
        for slot in slots:
            model = self.of(slot.wanted)
            if model.here:
                model.move(ModelState.COLD)
                model.snapshot = model.derived = None

    def forget(self, wanted: Iterable[Wanted]) -> Iterator[str]:
        """Forget models; return the keys of the snapshots that nobody else means."""
        gone = [self.models.pop(each.key) for each in wanted if each.key in self.models]
        left = {model.snapshot.key for model in self.models.values() if model.snapshot is not None}
        for model in gone:
            if model.snapshot is not None and model.snapshot.key not in left:
                yield model.snapshot.key

    def failure(self, slots: Sequence[Slot], now: float) -> FetchFailed | None:
        """Return why the models of these slots cannot be had for now."""
        for slot in slots:
            model = self.of(slot.wanted)
            if model.state is ModelState.FAILED and model.failure is not None and now < model.retry_at:
                return model.failure
        return None

    def under_way(self) -> Iterator[Model]:
        """Return the models that are being downloaded, or wait for that."""
        for model in self.models.values():
            if model.state in (ModelState.QUEUED, ModelState.FETCHING):
                yield model
