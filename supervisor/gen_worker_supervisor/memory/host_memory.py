"""Models held in this host's memory: they outlive the children that load them, and need no disk to be loaded again.

A view is a folder of links to sealed memory, which a process of its own holds open, the keeper. So whatever loads from
files loads from it. Nothing here is mapped or read: what a view holds counts for the host, not for any process.
"""

import fcntl
import os
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import reduce
from itertools import islice
from pathlib import Path

from gen_worker.models.snapshot import Snapshot, SnapshotEntry
from gen_worker.rundir import make_private
from gen_worker_supervisor.core.evidence import Room
from gen_worker_supervisor.memory.keeper import capacity
from gen_worker_supervisor.memory.keeping import Keeper
from gen_worker_supervisor.memory.usage import rooms, tightest
from gen_worker_supervisor.processes.proc import ROOT

FOLDER = "memory"  # in the supervisor's folder of the run directory
_LEAST_LEFT = 2 << 30
_LEFT_SHARE = 0.2
LAST_BYTES = 512 << 20  # that no copy takes, whatever the budget: the kernel would kill somebody for them


# --- how much ---------------------------------------------------------------------------------------------------------


def default_budget(root: Path = ROOT) -> int:
    """Return the bytes of this host's memory that models may take: half of what is free, and never the last of it.

    What is free is the least that the kernel and the cgroups say. `root` is where `/proc` and `/sys` are.
    """
    return min((_share(room) for room in rooms(root)), default=0)


def free_bytes_now(root: Path = ROOT) -> int:
    """Return the bytes of memory that are free at the moment, the least that the kernel and the cgroups say."""
    room = tightest(root)
    return 0 if room is None else room.free


def _share(room: Room) -> int:
    """Return what may be taken of a memory: half of what is free, as long as 2 GiB and a fifth of all stay free."""
    left = max(_LEAST_LEFT, int(room.limit * _LEFT_SHARE))
    return max(0, min(room.free // 2, room.free - left))


# --- what is held ----------------------------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class Cost:
    """What holding takes of the host."""

    size_bytes: int
    descriptors: int

    def plus(self, other: "Cost") -> "Cost":
        """Return what both take together."""
        return Cost(self.size_bytes + other.size_bytes, self.descriptors + other.descriptors)

    def less(self, other: "Cost") -> "Cost":
        """Return what this takes more than the other."""
        return Cost(self.size_bytes - other.size_bytes, self.descriptors - other.descriptors)

    def within(self, limit: "Cost") -> bool:
        """Whether the limit allows it."""
        return self.size_bytes <= limit.size_bytes and self.descriptors <= limit.descriptors


@dataclass(slots=True, eq=False)
class _Held:
    snapshot: Snapshot
    cost: Cost
    complete: bool = False
    stale: bool = False
    gone: bool = False  # its keeper died: what was in memory is on the disk alone
    pins: int = 0
    numbers: dict[str, int] = field(default_factory=dict)  # of the keeper's descriptors, by path


def dropped_for(cost: Cost, held: Iterable[tuple[str, Cost, bool]], limit: Cost) -> list[str] | None:
    """Return what must go so that something of this cost can be held; None when it cannot be held at all.

    `held` is everything that is there, the least recently used first, each with whether it may go.
    """
    everything = list(held)
    used = reduce(Cost.plus, (each for _, each, _ in everything), cost)
    going = []
    for key, each, may_go in everything:
        if used.within(limit):
            break
        if may_go:
            going.append(key)
            used = used.less(each)
    return going if used.within(limit) else None


class HostMemory:
    """The models that one supervisor holds in memory, within a budget; the least recently used go first."""

    def __init__(
        self,
        folder: Path,
        budget_bytes: int,
        keeper: Keeper,
        free_bytes: Callable[[], int] = free_bytes_now,
        *,
        last_bytes: int = LAST_BYTES,
    ) -> None:
        """Make the views in `folder`, which is this object's alone, and remove those that dead supervisors left.

        The keeper is this object's too. Its death is to be told by `void`. `last_bytes` of what is free are left to
        others, whatever the budget.
        """
        self._folder = folder
        self._keeper = keeper
        self._free_bytes = free_bytes
        self._limit = Cost(budget_bytes, capacity())
        self._last_bytes = last_bytes
        self._held: OrderedDict[str, _Held] = OrderedDict()  # the least recently used first
        self._spared: frozenset[str] = frozenset()
        self.secured: Callable[[], Collection[str]] = lambda: ()
        """Returns the keys of the models that make room for nobody."""

        self._freeing: list[threading.Thread] = []
        self._claim = _claimed(folder)
        _remove_abandoned(folder)

    @property
    def budget_bytes(self) -> int:
        """What all models together may take."""
        return self._limit.size_bytes

    @property
    def used_bytes(self) -> int:
        """What is held, and what is being copied."""
        return sum(held.cost.size_bytes for held in self._held.values())

    @property
    def loose_bytes(self) -> int:
        """What could be given back at once: of what is held, that which nobody loads."""
        secured = self.secured()
        return sum(held.cost.size_bytes for key, held in self._held.items() if _may_go(held) and key not in secured)

    def give_back(self, size: int) -> list[Snapshot]:
        """Let go of so many bytes at least, if there are; return what went, the least recently used first."""
        gone: list[Snapshot] = []
        secured = self.secured()
        for key, held in self._by_use():
            if sum(each.size for each in gone) >= size:
                break
            if _may_go(held) and key not in secured:
                gone.append(held.snapshot)
                self.drop(key)
        return gone

    def _by_use(self) -> list[tuple[str, _Held]]:
        """Return all that is held in the order in which it goes."""
        return sorted(self._held.items(), key=lambda each: each[0] in self._spared)

    def spare(self, keys: Collection[str]) -> None:
        """Let go of these models only after all others; replaces those before."""
        self._spared = frozenset(keys)

    def view(self, key: str) -> str | None:
        """Return what can be loaded from in place of the snapshot's `path`; counts as a use.

        None when it is not held, or not yet complete. What is loaded from must be pinned meanwhile.
        """
        held = self._held.get(key)
        if held is None or not held.complete or held.stale or not self._is_there(held):
            return None
        self._held.move_to_end(key)
        folder = self._folder / key
        files = held.snapshot.files
        return str(folder / files[0].path if os.path.isfile(held.snapshot.path) else folder)

    def holds(self, key: str) -> bool:
        """Whether there is a view; asking is no use of it."""
        held = self._held.get(key)
        return held is not None and held.complete and not held.stale

    def lost(self, key: str) -> bool:
        """Whether what is pinned has left the memory all the same, as its keeper died."""
        held = self._held.get(key)
        return held is not None and (held.gone or not self._is_there(held))

    def wants(self, snapshot: Snapshot) -> bool:
        """Whether the snapshot is now to be copied into memory, by the fetcher.

        When it is, room was made for it, and its bytes count from now on, until `drop`. Nothing is wanted that the host
        has no memory for at the moment.
        """
        if snapshot.key in self._held or not snapshot.files:
            return False
        cost = Cost(snapshot.size, min(len(snapshot.files), self._limit.descriptors))
        secured = self.secured()
        order = ((key, each.cost, _may_go(each) and key not in secured) for key, each in self._by_use())
        going = dropped_for(cost, order, self._limit)
        if going is None:
            return False
        given_back = sum(self._held[key].cost.size_bytes for key in going)
        if snapshot.size > self._free_bytes() + given_back - self._last_bytes:
            return False
        for key in going:
            self.drop(key)
        self._held[snapshot.key] = _Held(snapshot, cost)
        with suppress(OSError):  # whoever adds is told of it; this is only for its being there by then
            self._keeper.start()
        return True

    def add(self, snapshot: Snapshot, paths: Sequence[str], descriptors: Sequence[int]) -> None:
        """Take the descriptors of some files of a snapshot that was wanted; those of any other are closed.

        Raises OSError when the run directory has no room for links, or there is no keeper; what is not yet held is
        closed then.
        """
        held = self._held.get(snapshot.key)
        sizes = {entry.path: entry.size for entry in snapshot.files}
        for at, (path, descriptor) in enumerate(zip(paths, descriptors, strict=True)):
            if (
                held is None
                or path in held.numbers
                or len(held.numbers) == held.cost.descriptors
                or os.fstat(descriptor).st_size != sizes.get(path, -1)
            ):
                self._free([descriptor])
                continue
            try:
                number = held.numbers[path] = self._keeper.hold(descriptor)
                self._link(snapshot.key, path, self._keeper.place(number))
            except OSError:
                self._free(list(descriptors[at:]))
                raise
            os.close(descriptor)

    def complete(self, key: str) -> None:
        """All files that are held have come: from now on there is a view. The others lead to the disk.

        Raises OSError as `add` does.
        """
        held = self._held.get(key)
        if held is None:
            return
        for entry in held.snapshot.files:
            if entry.path not in held.numbers:
                self._link(key, entry.path, os.path.realpath(held.snapshot.source(entry)))
        if held.numbers:
            self._keeper.confirm()
        held.complete = True

    def drop(self, key: str) -> None:
        """Let go of a model, or of what has come of it; what a child has mapped of it stays the child's."""
        held = self._held.pop(key, None)
        if held is not None:
            shutil.rmtree(self._folder / key, ignore_errors=True)
            self._keeper.drop(list(held.numbers.values()))

    def void(self) -> None:
        """The keeper has died: nothing is in memory any more. The links of what is pinned lead to the disk now."""
        for key, held in list(self._held.items()):
            if not held.pins:
                self.drop(key)
                continue
            for entry in held.snapshot.files:
                if held.numbers.pop(entry.path, None) is not None:
                    with suppress(OSError):  # the run directory is full: whoever opens it sees a vanished file
                        self._lead_to_disk(key, held.snapshot, entry)
            held.cost, held.stale, held.gone = Cost(0, 0), True, True

    def replace(self, key: str) -> None:
        """What the key names was brought to the disk anew: the copy may be of damaged files, and nobody gets it now.

        It goes as soon as nobody has it pinned.
        """
        held = self._held.get(key)
        if held is not None and held.pins:
            held.stale = True
        else:
            self.drop(key)

    def pin(self, key: str) -> None:
        """Keep a model until it is unpinned as often as it was pinned."""
        if held := self._held.get(key):
            held.pins += 1

    def unpin(self, key: str) -> None:
        """Take back one `pin`."""
        held = self._held.get(key)
        if held is not None and held.pins:
            held.pins -= 1
            if held.stale and not held.pins:
                self.drop(key)

    def close(self) -> None:
        """Let go of everything, and leave nothing in the run directory."""
        for key in list(self._held):
            self.drop(key)
        self._keeper.close()
        for thread in self._freeing:
            thread.join()
        shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._claim)

    def _link(self, key: str, path: str, target: str) -> None:
        link = self._folder / key / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)

    def _lead_to_disk(self, key: str, snapshot: Snapshot, entry: SnapshotEntry) -> None:
        """Replace a link that led to memory; nobody finds nothing there meanwhile."""
        link = self._folder / ".link"
        link.symlink_to(os.path.realpath(snapshot.source(entry)))
        link.replace(self._folder / key / entry.path)

    def _is_there(self, held: _Held) -> bool:
        """Whether the keeper has what it holds: it lets go of everything at once."""
        return all(self._keeper.holds(number) for number in islice(held.numbers.values(), 1))

    def _free(self, descriptors: list[int]) -> None:
        """Close descriptors in a thread: the system takes 40 ms for each GB, which the caller's loop has not."""
        if not descriptors:
            return
        self._freeing = [thread for thread in self._freeing if thread.is_alive()]
        thread = threading.Thread(target=_close, args=(descriptors,), name="freeing memory", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread can be had: better late than never
            _close(descriptors)
        else:
            self._freeing.append(thread)


def _may_go(held: _Held) -> bool:
    return held.complete and not held.pins


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


# --- what dead supervisors left ---------------------------------------------------------------------------------------


def _claimed(folder: Path) -> int:
    """Make the folder, empty; return a lock that says as long as this process lives that it is in use."""
    while True:
        make_private(folder)
        claim = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        fcntl.flock(claim, fcntl.LOCK_EX)  # whoever sweeps lets go of it soon
        if folder.exists() and os.path.samestat(folder.stat(), os.fstat(claim)):
            break
        os.close(claim)  # another supervisor took it for abandoned before it was locked
    for left in folder.iterdir():  # by a dead supervisor that had our pid
        shutil.rmtree(left)
    return claim


def _remove_abandoned(own: Path) -> None:
    """Remove the views of supervisors that were killed: those that nobody holds a lock on."""
    for folder in own.parent.parent.glob(f"*/{own.name}"):
        with suppress(OSError):  # it went away meanwhile, or is none of ours
            claim = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(claim)
