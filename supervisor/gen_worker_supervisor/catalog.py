"""The models that functions of this supervisor need: which lie on this host, which are to be downloaded, in what order.

Pure: it is told what the fetcher reports and returns what to order from it. Never sends, reads a disk or a clock.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import inf

from gen_worker.models.snapshot import Snapshot
from gen_worker.models.wanted import Slot, Wanted
from gen_worker.wire.fetching import Abort, Fetch, Fetched, FetchFailed, Fetching
from gen_worker.wire.messages import SlotModel
from gen_worker_supervisor.phases import NEXT_MODEL, ModelState, step

RETRY_S = 30.0  # a model that could not be had is not asked for again before
VERIFIED_S = 600.0  # a model that was verified so lately is not damaged, whatever keeps it from being loaded
DEADLY = 3  # fetchers that died of one download, without its getting on

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
    since: float | None = None  # when the fetcher first said how far the download is
    bytes_since: int = 0  # what it said then: parts may have been there before
    deaths: int = 0  # of fetchers that were at it, in a row
    bytes_at_death: int = 0
    verify: bool = False  # it could not be loaded: what is on disk must be hashed
    verified_at: float = -inf
    failure: FetchFailed | None = None
    retry_at: float = 0.0

    def move(self, state: ModelState) -> None:
        """Go to another state of the table."""
        self.state = step(NEXT_MODEL, self.state, state)

    @property
    def here(self) -> bool:
        """Whether it can be loaded."""
        return self.state is ModelState.DISK

    def bytes_per_s(self, now: float) -> float | None:
        """How fast it comes; None while it does not."""
        if self.state is not ModelState.FETCHING:
            return None
        return 0.0 if self.since is None else (self.bytes_done - self.bytes_since) / max(0.001, now - self.since)

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
    derived_root: str = ""  # the folder of copies in another dtype
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

    def orders(self, now: float, awaited: Collection[str] = ()) -> list[Fetch | Abort]:
        """Return what to order now: every look for a model on this host, and as many downloads as there is room for.

        `awaited` are the keys of the models that jobs wait for at the moment. A download that none waits for any more
        makes room for one that some do, and goes on later.
        """
        if not self.pending:
            return []
        self.pending = False
        orders: list[Fetch | Abort] = []
        for model in self.models.values():
            if model.state is ModelState.SEEKING and not model.number:
                orders.append(self._order(model, probe=True))
        under_way = [model for model in self.models.values() if model.state is ModelState.FETCHING]
        queue = [model for model in self.models.values() if model.state is ModelState.QUEUED]
        queue.sort(key=lambda model: (model.wanted.key not in awaited, not model.urgent, model.asked))
        first = sum(model.wanted.key in awaited for model in queue)
        given_up = [model for model in under_way if model.wanted.key not in awaited]
        for model in given_up[: max(0, first - (self.at_once - len(under_way)))]:
            orders.append(Abort(model.number))
            under_way.remove(model)
            _order_again(model)
        self.pending = first > self.at_once - len(under_way)  # until somebody gives up on one under way
        for model in queue[: max(0, self.at_once - len(under_way))]:
            model.move(ModelState.FETCHING)
            model.since = None
            orders.append(self._order(model, probe=False))
        return orders

    def _order(self, model: Model, *, probe: bool) -> Fetch:
        self.number += 1
        model.number = self.number
        return Fetch(model.number, model.wanted, probe=probe, verify=model.verify)

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
                if model.since is None:
                    model.since, model.bytes_since = now, report.bytes_done
                return None
            case Fetched():
                model.move(ModelState.DISK)
                model.snapshot, model.urgent, model.deaths = report.snapshot, False, 0
                model.bytes_done = model.bytes_total = report.snapshot.size
                if model.verify:
                    model.verify, model.verified_at = False, now
            case FetchFailed(kind="absent"):
                model.move(ModelState.QUEUED)
            case FetchFailed(kind="canceled"):
                _order_again(model)  # by nobody here: somebody ends the fetcher
            case FetchFailed():
                self._failed(model, report, now)
        return model

    def _failed(self, model: Model, report: FetchFailed, now: float) -> None:
        model.move(ModelState.FAILED)
        model.failure, model.retry_at, model.urgent, model.deaths = report, now + RETRY_S, False, 0

    def fetcher_lost(self, now: float) -> list[Model]:
        """The fetcher has died: what it was at is ordered from the next one.

        Returns the models that are not, since too many fetchers died while these did not get on; they have failed.
        """
        self.pending = True
        failed = []
        for model in self.models.values():
            if model.state is ModelState.FETCHING and _count_death(model) >= DEADLY:
                self._failed(model, _deadly(model), now)
                failed.append(model)
            _order_again(model)
        return failed

    def damaged(self, slots: Sequence[Slot], now: float) -> bool:
        """Files of these models could not be loaded: look at what is on the disk anew before they are tried again.

        Returns whether that may help: they are verified then, unless that was done just before.
        """
        hope = False
        for slot in slots:
            model = self.of(slot.wanted)
            if model.here:
                model.move(ModelState.COLD)
                model.snapshot = model.derived = None
                model.verify = now - model.verified_at > VERIFIED_S
                hope = hope or model.verify
        return hope

    def learn_derived(self, wanted: Wanted, path: str) -> bool:
        """Load a model from a copy in its dtype from now on; return False when the path is that of no such copy.

        A child names it, which is not believed blindly: others load from it.
        """
        model = self.of(wanted)
        root, _, name = path.rpartition("/")
        if model.snapshot is None or root != self.derived_root or not name.startswith(f"{model.snapshot.key}-"):
            return model.derived == path
        if model.derived is None:
            model.derived = path
        return True

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


def _order_again(model: Model) -> None:
    """Have what the fetcher was at for a model ordered anew."""
    if model.state is ModelState.FETCHING:
        model.move(ModelState.QUEUED)
    model.number = 0


def _count_death(model: Model) -> int:
    """Count a fetcher that died while it downloaded a model; return how many did since that got on."""
    model.deaths = model.deaths + 1 if model.bytes_done <= model.bytes_at_death else 1
    model.bytes_at_death = model.bytes_done
    return model.deaths


def _deadly(model: Model) -> FetchFailed:
    text = f"`{model.wanted.ref}` cannot be downloaded: {DEADLY} fetchers in a row died while they were at it"
    return FetchFailed(0, "download_failed", text, "the log says what they died of", retryable=True)
