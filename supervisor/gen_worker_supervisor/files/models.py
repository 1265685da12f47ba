"""What the catalog's orders and a child's loads need of the world: the fetcher, leases on snapshots, host memory.

Judgement is in `catalog`; which model goes where is `decide`'s.
"""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import accumulate, islice

import msgspec

from gen_worker.models.snapshot import Snapshot, SnapshotEntry
from gen_worker.models.wanted import SnapshotFile
from gen_worker.wire.channel import close_all
from gen_worker.wire.fetching import (
    Abort,
    Evicted,
    Fetch,
    Fetched,
    FetchFailed,
    Fetching,
    FetchReport,
    Held,
    Hold,
    HoldFailed,
    Keep,
    Noted,
    Stock,
    Stocked,
    TakeStock,
)
from gen_worker.wire.messages import SlotModel
from gen_worker_supervisor.core.catalog import Model
from gen_worker_supervisor.core.happenings import FetcherLost, FetcherReported, Happening
from gen_worker_supervisor.files.fetching import FetcherProcess
from gen_worker_supervisor.logs.log import Log
from gen_worker_supervisor.memory.host_memory import HostMemory

KEEP_BYTES = 60 << 10  # of refs in a frame
REF_BYTES = 5  # that a frame takes for the length of each
LISTED_FILES = 1000  # of a derived snapshot; listing them takes the loop 2 ms


class ModelSupply:
    """The models on this host, as far as the supervisor has its hands on them."""

    def __init__(self, log: Log, on: Callable[[Happening], None]) -> None:
        self._log = log
        self._on = on
        self._fetcher: Callable[[], FetcherProcess] | None = None
        self._memory: HostMemory | None = None
        self._leases: dict[str, int] = {}  # by the key of the snapshot
        self._holding: dict[int, Snapshot] = {}  # what the fetcher copies into memory, by the order's number
        self._number = 0
        self._kept: list[str] = []
        self._stock: list[Stocked] = []
        self._on_stock: Callable[[list[Stocked]], None] | None = None
        self.on_evicted: Callable[[str], None] = lambda ref: None
        """Is told the ref of each model that goes from the disk."""
        self.secured: Callable[[], Collection[str]] = lambda: ()
        """Returns the keys of the models that leave the host's memory for nobody."""
        self.changes = 0
        """Counts what comes into host memory, and what goes."""
        self._pins: dict[tuple[int, str], dict[str, str]] = {}  # keys of views by slot, of an instance in a child

    def start(self, fetcher: Callable[[], FetcherProcess], memory: HostMemory) -> None:
        """Work with a fetcher, which is there once it is asked for; what it reports goes to `on_report`."""
        self._fetcher, self._memory = fetcher, memory
        memory.secured = lambda: self.secured()

    @property
    def fetcher(self) -> FetcherProcess:
        """The fetcher."""
        assert self._fetcher is not None
        return self._fetcher()

    @property
    def memory(self) -> HostMemory:
        """The host's memory."""
        assert self._memory is not None
        return self._memory

    @property
    def memory_use(self) -> tuple[int | None, int | None]:
        """The bytes of host memory that models take, and what they may; None where no function has any."""
        return (None, None) if self._memory is None else (self._memory.used_bytes, self._memory.budget_bytes)

    @property
    def loose_bytes(self) -> int:
        """What models in host memory could give back at once."""
        return 0 if self._memory is None else self._memory.loose_bytes

    def give_back(self, size: int) -> None:
        """Let go of models in host memory, of so many bytes at least: they are loaded from the disk then."""
        for snapshot in [] if self._memory is None else self._memory.give_back(size):
            self.changes += 1
            text = f"`{snapshot.wanted.ref}` leaves host memory, {snapshot.size / (1 << 20):.0f} MiB: it is short"
            self._log.event("warning", "models", text)

    def in_memory(self, model: Model) -> bool:
        """Whether a model could be loaded without the disk."""
        return self._memory is not None and model.here and self._memory.holds(model.key)

    @property
    def started(self) -> bool:
        """Whether models can be had, as where functions have some, or somebody may want any."""
        return self._fetcher is not None

    def order(self, order: Fetch | Abort, described: tuple[SnapshotFile, ...] = ()) -> None:
        """Send the fetcher an order, with what an orchestrator says that the model consists of."""
        if not described or not isinstance(order, Fetch):
            self.fetcher.send(order)
            return
        try:
            descriptor = os.memfd_create("snapshot", os.MFD_CLOEXEC)
        except OSError as error:  # no descriptor left
            text = f"`{order.wanted.ref}` cannot be ordered: {(error.strerror or str(error)).lower()}"
            self._on(FetcherReported(FetchFailed(order.number, "download_failed", text, "try again", retryable=True)))
            return
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(described))
            file.flush()
            self.fetcher.send(order, [descriptor])

    def keep(self, refs: list[str], keys: Collection[str]) -> None:
        """Have these refs go from the disk after all others, and what has these keys from the host's memory.

        Of more refs than a frame has room for the first ones count.
        """
        self.memory.spare(keys)
        lengths = accumulate(len(ref.encode()) + REF_BYTES for ref in refs)
        told = [ref for ref, length in zip(refs, lengths, strict=True) if length <= KEEP_BYTES]
        if told != self._kept:
            self._kept = told
            self.fetcher.send(Keep(told))

    def take_stock(self, then: Callable[[list[Stocked]], None]) -> None:
        """Have the fetcher say once what lies in the caches."""
        self._on_stock = then
        self._stock = []
        self.fetcher.send(TakeStock())

    def on_report(self, report: FetchReport, descriptors: list[int]) -> None:
        """Take what the fetcher says, and the descriptors that came with it."""
        match report:
            case Fetched(snapshot=snapshot):
                self._take_lease(snapshot.key, descriptors)
                if report.fetched_bytes:
                    self._replaced(snapshot.key)
                self._on(FetcherReported(report))
            case Fetching() | FetchFailed():
                self._on(FetcherReported(report))
            case Held(number, paths, last):
                self._held(number, paths, descriptors, last=last)
            case HoldFailed(number, message):
                self._not_held(number, message)
            case Stock(models, last):
                self._stocked(models, last=last)
            case Evicted(ref, size):
                self.on_evicted(ref)
                self._log.event("info", "models", f"`{ref}` evicted from the disk, {size / (1 << 20):.0f} MiB")
            case Noted(level, message):
                self._log.event("warning" if level == "warning" else "info", "models", message)

    def on_lost(self) -> None:
        """The fetcher has died and another one starts."""
        for snapshot in self._holding.values():
            self.memory.drop(snapshot.key)
        self._holding.clear()
        self.changes += 1
        if self._on_stock is not None:
            self.take_stock(self._on_stock)
        self._on(FetcherLost())

    def on_keeper_lost(self, cause: str) -> None:
        """The keeper of models' memory has died, and what it held with it; loads come from the disk meanwhile."""
        self._holding.clear()
        self.memory.void()
        self.changes += 1
        self._log.event("warning", "keeper", f"died ({cause}); models are loaded from the disk, and kept again then")

    def _stocked(self, models: list[Stocked], *, last: bool) -> None:
        self._stock += models
        if last and self._on_stock is not None:
            then, self._on_stock = self._on_stock, None
            then(self._stock)
            self._stock = []

    def _take_lease(self, key: str, descriptors: Sequence[int]) -> None:
        if not descriptors:
            return
        if key in self._leases:
            close_all(descriptors)
        else:
            self._leases[key] = descriptors[0]
            close_all(descriptors[1:])

    def _replaced(self, key: str) -> None:
        """Let go of copies of what was on disk before, also of those that are being made."""
        for number, snapshot in list(self._holding.items()):
            if snapshot.key == key:
                del self._holding[number]
        self.memory.replace(key)
        self.changes += 1

    def _held(self, number: int, paths: list[str], descriptors: list[int], *, last: bool) -> None:
        snapshot = self._holding.get(number)
        if snapshot is None:
            close_all(descriptors)
            return
        try:
            self.memory.add(snapshot, paths, descriptors)
            if last:
                self.memory.complete(snapshot.key)
        except OSError as error:  # the run directory is full, or the keeper has died
            self._not_held(number, (error.strerror or str(error)).lower())
            return
        self.changes += 1
        if last:
            del self._holding[number]
            told = f"`{snapshot.wanted.ref}` is in host memory, {snapshot.size / (1 << 20):.0f} MiB"
            self._log.event("info", "models", told)

    def _not_held(self, number: int, reason: str) -> None:
        """Let go of what has come of a copy, whose later frames are of no use."""
        snapshot = self._holding.pop(number, None)
        if snapshot is not None:
            self.memory.drop(snapshot.key)
            self._log.event("warning", "models", f"`{snapshot.wanted.ref}` stays on disk only: {reason}")

    # --- loads ---

    def load_begins(self, generation: int, models: Iterable[SlotModel], instance: str) -> list[SlotModel]:
        """Return the models with the quickest places to load them from.

        These stay until `load_ends`; where the author was given a path, as long as the instance.
        """
        self.unloaded(generation, instance)
        chosen = []
        for model in models:
            view = self.memory.view(model.key)
            if view is not None:
                self.memory.pin(model.key)
                self._pins.setdefault((generation, instance), {})[model.slot] = model.key
                model = msgspec.structs.replace(model, path=view)
            chosen.append(model)
        return chosen

    def load_ends(self, generation: int, instance: str, paths: Collection[str]) -> None:
        """A child has loaded what it was to load, or will not; `paths` are the slots that read their files later."""
        pins = self._pins.get((generation, instance), {})
        for slot in [slot for slot in pins if slot not in paths]:
            self.memory.unpin(pins.pop(slot))

    def loads_from_memory(self, generation: int, instance: str) -> bool:
        """Whether some model of what a child loads comes from the host's memory."""
        return bool(self._pins.get((generation, instance)))

    def vanished(self, generation: int, instance: str) -> bool:
        """Whether something that a child was loading from has left the memory with its keeper."""
        return any(self.memory.lost(key) for key in self._pins.get((generation, instance), {}).values())

    def unloaded(self, generation: int, instance: str) -> None:
        """A child holds an instance no longer."""
        for key in self._pins.pop((generation, instance), {}).values():
            self.memory.unpin(key)

    def child_gone(self, generation: int) -> None:
        """A child holds nothing any more."""
        for each, instance in list(self._pins):
            if each == generation:
                self.unloaded(generation, instance)

    def used(self, models: Iterable[Model]) -> None:
        """Have models that a child has loaded copied into host memory, as far as that has room."""
        for model in models:
            snapshot = _content(model)
            if snapshot is not None and self.memory.wants(snapshot):
                self._number += 1
                self.changes += 1  # others may have had to go for it
                self._holding[self._number] = snapshot
                self.fetcher.send(Hold(self._number, snapshot))

    def let_go(self, key: str) -> None:
        """Hold a snapshot no longer, neither on disk nor in memory."""
        if key in self._leases:
            os.close(self._leases.pop(key))
        self.memory.drop(key)
        self.changes += 1

    def close(self) -> None:
        """Let go of every lease and of the memory."""
        close_all(list(self._leases.values()))
        self._leases.clear()
        if self._memory is not None:
            self._memory.close()


def _content(model: Model) -> Snapshot | None:
    """Return what is loaded for a model: its snapshot, or the one that was derived of it, None when that is odd."""
    if model.snapshot is None or model.derived is None:
        return model.snapshot
    try:
        files = tuple(islice(_files(model.derived), LISTED_FILES + 1))
    except OSError:
        return None  # it went away, and is made anew by the next load
    if len(files) > LISTED_FILES:
        return None
    return msgspec.structs.replace(model.snapshot, key=model.key, path=model.derived, files=files)


def _files(folder: str, below: str = "") -> Iterator[SnapshotEntry]:
    """Return the regular files of a folder; looks at no more of it than is asked for."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path, f"{below}{entry.name}/")
            elif entry.is_file(follow_symlinks=False):
                yield SnapshotEntry(below + entry.name, entry.stat().st_size)
