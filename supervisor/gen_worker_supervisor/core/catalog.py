"""The models that functions of this supervisor need: which lie on this host, which are to be downloaded, in what order.

Pure: it is told what the fetcher reports and returns what to order from it. Never sends, reads a disk or a clock.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import inf

import msgspec

from gen_worker.models.errors import ModelErrorKind
from gen_worker.models.snapshot import Snapshot
from gen_worker.models.wanted import Slot, SnapshotFile, Wanted
from gen_worker.wire.fetching import Abort, Fetch, Fetched, FetchFailed, Fetching, Stocked
from gen_worker.wire.messages import SlotModel
from gen_worker_supervisor.core.phases import NEXT_MODEL, ModelState, step

RETRY_S = 30.0  # a model that could not be had is not asked for again before
REFUSED_S = 600.0  # nor one that its provider refused, where no job waits for it
VERIFIED_S = 600.0  # a model that was verified so lately is not damaged, whatever keeps it from being loaded
DIGESTS_KEPT = 4096  # refs that were described, before those that mean nothing here are forgotten
DESCRIBED_KEPT = 64  # snapshots that were described and that nobody wants yet
DEADLY = 3  # fetchers that died of one download, without its getting on

_UNDER_WAY = (ModelState.SEEKING, ModelState.FETCHING)
_REFUSED: frozenset[ModelErrorKind] = frozenset(("unauthorized", "gated", "not_found", "file_not_found"))
"""What a signed URL of an orchestrator's comes to when its time is over: only new ones help."""


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
    counted: int = 0  # bytes of the order under way that are in the catalog's `downloaded_bytes`
    deaths: int = 0  # of fetchers that were at it, in a row
    bytes_at_death: int = 0
    verify: bool = False  # it could not be loaded: what is on disk must be hashed
    verified_at: float = -inf
    failure: FetchFailed | None = None
    retry_at: float = 0.0
    name: str = ""  # its ref as an orchestrator writes it
    ordered: bool = False  # it is to be on this host whether a function has it or not
    files: tuple[SnapshotFile, ...] = ()  # what it consists of, as an orchestrator says
    ordered_by: tuple[SnapshotFile, ...] = ()  # what was said of it when the order under way was made

    def __post_init__(self) -> None:
        self.name = self.name or self.wanted.wire_ref

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
    orchestrated: bool = False  # somebody may yet say what a model of the platform's hub consists of
    models: dict[str, Model] = field(default_factory=dict)  # by `Wanted.key`
    shelf: dict[str, Stocked] = field(default_factory=dict)  # what lies in caches though no function has it, by name
    digests: dict[tuple[str, str], str] = field(default_factory=dict)  # of what was described, by provider and ref
    _files: dict[str, tuple[SnapshotFile, ...]] = field(default_factory=dict)  # what was described, by the digest
    number: int = 0
    asked: int = 0
    pending: bool = False  # something may have to be ordered
    downloaded_bytes: int = 0  # that came over the network, of whatever

    def of(self, wanted: Wanted) -> Model:
        """Return what is known of a model."""
        return self.models.setdefault(wanted.key, Model(wanted))

    def describe(self, wanted: Wanted, digest: str, files: tuple[SnapshotFile, ...]) -> bool:
        """Learn what an orchestrator says that a model consists of: it holds for all that its ref means from now on.

        URLs replace those that it named before. Returns whether the model has come to mean other files.
        """
        named = (wanted.provider, wanted.wire_ref)
        changed = self.digests.get(named) != digest
        self.digests[named] = digest
        if len(self.digests) > DIGESTS_KEPT:
            self._forget_digests(digest)
        if files:
            self._files.pop(digest, None)
            self._files[digest] = files  # last, as those that were named first are forgotten first
            if len(self._files) > len(self.models) + 2 * DESCRIBED_KEPT:
                self._forget_files()
            for model in self.models.values():
                if model.wanted.digest == digest and model.files != files:
                    _renew(model, files)
        return changed

    def _forget_digests(self, but: str) -> None:
        """Forget what was described and is neither needed nor here."""
        names = self.shelf.keys() | {model.name for model in self.models.values()}
        self.digests = {named: each for named, each in self.digests.items() if named[1] in names or each == but}

    def _forget_files(self) -> None:
        """Forget what was described longest ago and no model here is made of."""
        digests = {model.wanted.digest for model in self.models.values()}
        unused = [digest for digest in self._files if digest not in digests]
        for digest in unused[: max(0, len(unused) - DESCRIBED_KEPT)]:
            del self._files[digest]

    def described(self, wanted: Wanted) -> Wanted:
        """Return a model as an orchestrator described it; itself where none did."""
        digest = self.digests.get((wanted.provider, wanted.wire_ref))
        if digest is None:
            return wanted
        tag = wanted.tag or ("prod" if wanted.provider == "tensorhub" and not wanted.digest else "")
        meant = msgspec.structs.replace(wanted, provider="tensorhub", digest=digest, tag=tag)
        model = self.of(meant)
        model.name = wanted.wire_ref
        model.files = model.files or self._files.get(digest, ())
        return meant

    def description(self, order: Fetch | Abort) -> tuple[SnapshotFile, ...]:
        """Return what an orchestrator says of the model that is ordered."""
        return self.of(order.wanted).files if isinstance(order, Fetch) else ()

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
            due = model.retry_at if urgent else again_at(model)
            if model.state is ModelState.COLD or (model.state is ModelState.FAILED and now >= due):
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
        model.number, model.ordered_by, model.counted = self.number, model.files, 0
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
                self._count(model, report.bytes_done - model.bytes_since)
                return None
            case Fetched():
                model.move(ModelState.DISK)
                self._count(model, report.fetched_bytes)
                model.snapshot, model.urgent, model.deaths = report.snapshot, False, 0
                model.bytes_done = model.bytes_total = report.snapshot.size
                if model.verify:
                    model.verify, model.verified_at = False, now
            case FetchFailed(kind="absent"):
                model.move(ModelState.QUEUED)
            case FetchFailed(kind="canceled"):
                _order_again(model)  # by nobody here: somebody ends the fetcher
            case FetchFailed():
                self._refused(model, report, now)
        return model

    def _count(self, model: Model, received: int) -> None:
        """Learn how much of an order has come over the network; a part that is fetched again counts once."""
        more = max(0, received - model.counted)
        model.counted += more
        self.downloaded_bytes += more

    def _refused(self, model: Model, report: FetchFailed, now: float) -> None:
        """Learn why a model did not come; where its URLs were over and there are new ones, it is ordered again."""
        if model.files and report.kind in _REFUSED:
            report = FetchFailed(report.number, "url_expired", report.message, report.hint, retryable=True)
        if report.kind == "url_expired" and model.ordered_by is not model.files:
            _order_again(model)
            return
        undescribed = self.orchestrated and report.kind == "not_configured" and model.wanted.provider == "tensorhub"
        self._failed(model, _undescribed(model) if undescribed else report, now)
        if undescribed:
            model.retry_at = inf

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
        self._forget_files()
        left = {model.snapshot.key for model in self.models.values() if model.snapshot is not None}
        for model in gone:
            if model.snapshot is not None and model.snapshot.key not in left:
                yield model.snapshot.key

    def name_of(self, wanted: Wanted) -> str:
        """Return the ref by which an orchestrator means a model."""
        model = self.models.get(wanted.key)
        return wanted.wire_ref if model is None else model.name

    def means(self, key: str) -> bool:
        """Whether a model that is here is the snapshot of that key."""
        return any(model.snapshot is not None and model.snapshot.key == key for model in self.models.values())

    def shelve(self, wanted: Iterable[Wanted]) -> Iterator[str]:
        """Hold models on the disk no longer that are here; return the keys of their snapshots that nobody else means.

        They are looked for when they are asked for again.
        """
        gone = []
        for each in wanted:
            model = self.models.get(each.key)
            if model is not None and model.snapshot is not None and model.here:
                self.shelf[model.name] = Stocked(each.plain, model.snapshot.size)
                gone.append(model.snapshot.key)
                model.move(ModelState.COLD)
                model.snapshot = model.derived = None
        yield from dict.fromkeys(key for key in gone if not self.means(key))

    def again(self, model: Model) -> None:
        """Have a model that failed ordered again."""
        model.retry_at = 0.0
        model.failure = None
        model.move(ModelState.SEEKING)
        model.number = 0
        self.pending = True

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


def again_at(model: Model) -> float:
    """Return when a model that has failed is asked for again although no job waits for it."""
    refused = model.failure is not None and not model.failure.retryable
    return model.retry_at + (REFUSED_S - RETRY_S if refused else 0.0)


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


def _renew(model: Model, files: tuple[SnapshotFile, ...]) -> None:
    """Have a model come by new URLs, also where the old ones were over or there were none."""
    model.files = files
    if model.failure is not None and model.failure.kind in ("url_expired", "not_configured"):
        model.retry_at = 0.0


def _undescribed(model: Model) -> FetchFailed:
    text = f"`{model.wanted.ref}` is not on this host, and its orchestrator has not said what it consists of"
    return FetchFailed(0, "not_configured", text, "it comes with a snapshot, or from `COZY_HUB_URL`", retryable=True)


def _deadly(model: Model) -> FetchFailed:
    text = f"`{model.wanted.ref}` cannot be downloaded: {DEADLY} fetchers in a row died while they were at it"
    return FetchFailed(0, "download_failed", text, "the log says what they died of", retryable=True)
