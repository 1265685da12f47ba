"""What the supervisor has its hands on: views that last as long as what was loaded from them, orders that cannot go."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from gen_worker.models.snapshot import Snapshot, SnapshotEntry
from gen_worker.models.wanted import Wanted
from gen_worker.wire.fetching import Fetch, Fetched, FetchFailed, Held, Hold, HoldFailed
from gen_worker.wire.messages import SlotModel
from gen_worker_supervisor.core.catalog import Model
from gen_worker_supervisor.core.happenings import Happening
from gen_worker_supervisor.core.phases import ModelState
from gen_worker_supervisor.files.models import LISTED_FILES, ModelSupply
from gen_worker_supervisor.logs.log import Log, Look
from gen_worker_supervisor.memory.host_memory import HostMemory
from gen_worker_supervisor.memory.keeping import Keeper
from tests.fetchers import Supervisor, config_for
from tests.keeping import host_memory
from tests.served import alive

pytestmark = pytest.mark.process

TINY = Wanted("hf", "acme/tiny")


class Supply:
    """A supply whose fetcher is a real one."""

    def __init__(self, folder: Path, budget_bytes: int) -> None:
        self.supervisor = Supervisor(config_for(folder / "cache"), folder / "log")
        self._out = os.open(folder / "supply.log", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
        self.log = Log(Look(), self._out)
        self.happened: list[Happening] = []
        self.supply = ModelSupply(self.log, self.happened.append)
        self.views = folder / "run" / str(os.getpid()) / "memory"
        self.keeper = Keeper(self.supervisor.reaper, self.supply.on_keeper_lost)
        self.memory = HostMemory(self.views, budget_bytes, self.keeper)
        self.supervisor.process.start()
        self.supply.start(lambda: self.supervisor.process, self.memory)
        self._folder = folder

    def model(self, name: str, size: int = 10) -> Model:
        """Return a model on disk."""
        folder = self._folder / name
        folder.mkdir()
        (folder / "weights").write_bytes(name[:1].encode() * size)
        wanted = Wanted("hf", f"acme/{name}")
        entries = (SnapshotEntry("weights", size),)
        return Model(wanted, ModelState.DISK, snapshot=Snapshot(wanted, name, "c0", str(folder), entries))

    def use(self, number: int, model: Model) -> None:
        """Have a model copied into memory that a child has loaded, as far as there is room; wait for it."""
        self.supply.used([model])
        self.relay(number)

    def relay(self, number: int) -> None:
        """Pass on what the fetcher says of a hold."""
        found = self.supervisor.held(number)
        for report in [found] if isinstance(found, HoldFailed) else found:
            self.supply.on_report(report, self.supervisor.attached.pop(number, []))

    def close(self) -> None:
        """Let go of everything."""
        self.supply.close()
        self.supervisor.close()
        self.log.close()
        os.close(self._out)


@pytest.fixture
def supply(tmp_path: Path) -> Iterator[Supply]:
    supply = Supply(tmp_path, 15)
    yield supply
    supply.close()


def slot(model: Model) -> SlotModel:
    return SlotModel("model", model.wanted.ref, model.path, model.key)


# --- views ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["unloaded", "child_gone", "built_or_failed"])
def test_a_view_outlives_every_model_that_wants_its_room_until_what_was_loaded_from_it_is_gone(
    supply: Supply, end: str
) -> None:
    first, second = supply.model("first"), supply.model("second")
    supply.use(1, first)
    (loaded,) = supply.supply.load_begins(7, [slot(first)], "First")
    assert loaded.path.startswith(str(supply.views))
    if end != "built_or_failed":
        supply.supply.load_ends(7, "First", {"model"})
        supply.supply.load_ends(7, "Other", ())
        supply.supply.unloaded(8, "First")
        supply.supply.child_gone(8)
    supply.supply.used([second])
    assert Path(loaded.path, "weights").read_bytes() == b"f" * 10
    match end:
        case "unloaded":
            supply.supply.unloaded(7, "First")
        case "child_gone":
            supply.supply.child_gone(7)
        case _:
            supply.supply.load_ends(7, "First", ())
    supply.use(2, second)
    assert supply.supply.in_memory(second)
    assert not supply.supply.in_memory(first)


def test_a_run_directory_without_room_costs_the_copy_and_nothing_else(supply: Supply) -> None:
    model = supply.model("first")
    supply.supply.used([model])
    (supply.views / model.key).write_text("in the way of its links, as a full file system is")
    supply.relay(1)
    assert not supply.supply.in_memory(model)
    assert supply.memory.used_bytes == 0
    assert supply.log.events[-1].message.startswith("`acme/first` stays on disk only: ")


def test_descriptors_after_one_that_cannot_be_linked_are_closed(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with host_memory(tmp_path / "run" / "1" / "memory", 1 << 20) as kept:
        entries = tuple(SnapshotEntry(f"f{number}", 4) for number in range(8))
        snapshot = Snapshot(TINY, "key", "c0", "/nowhere", entries)
        assert kept.memory.wants(snapshot)
        descriptors = [os.memfd_create("x", os.MFD_CLOEXEC) for _ in entries]
        for descriptor in descriptors:
            os.ftruncate(descriptor, 4)
        (tmp_path / "run/1/memory/key").mkdir()
        (tmp_path / "run/1/memory/key/f3").write_text("in the way")
        with pytest.raises(FileExistsError):
            kept.memory.add(snapshot, [entry.path for entry in entries], descriptors)
        kept.memory.drop("key")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_model_that_was_brought_anew_is_not_loaded_from_the_copy_of_its_damaged_files(supply: Supply) -> None:
    model = supply.model("first")
    assert model.snapshot is not None
    supply.use(1, model)
    (before,) = supply.supply.load_begins(7, [slot(model)], "First")
    supply.supply.on_report(Fetched(1, model.snapshot, 0), [])  # it was found as it is
    assert supply.supply.in_memory(model)
    supply.supply.on_report(Fetched(2, model.snapshot, 10), [])
    assert not supply.supply.in_memory(model)
    assert supply.supply.load_begins(8, [slot(model)], "First") == [slot(model)]
    assert Path(before.path, "weights").exists()  # somebody has its path
    supply.supply.unloaded(7, "First")
    assert not Path(before.path).exists()
    assert supply.memory.used_bytes == 0


def test_a_copy_that_is_being_made_of_damaged_files_is_dropped(supply: Supply) -> None:
    model = supply.model("first")
    assert model.snapshot is not None
    supply.supply.used([model])
    supply.supply.on_report(Fetched(1, model.snapshot, 10), [])
    supply.relay(1)
    assert not supply.supply.in_memory(model)
    supply.use(2, model)
    assert supply.supply.in_memory(model)


def test_a_keeper_that_dies_costs_a_load_from_the_disk_and_nothing_else(supply: Supply) -> None:
    first, second = supply.model("first", 5), supply.model("second", 5)
    supply.use(1, first)
    supply.use(2, second)
    (loaded,) = supply.supply.load_begins(7, [slot(first)], "First")
    assert not supply.supply.vanished(7, "First")
    dead = supply.keeper.pid
    os.kill(dead, signal.SIGKILL)
    supply.supervisor.until(lambda: "keeper: died (SIGKILL)" in told(supply), what="the news of its death")
    assert not alive(dead)
    assert supply.supply.vanished(7, "First")
    assert not supply.supply.vanished(7, "Second")
    assert Path(loaded.path, "weights").read_bytes() == b"fffff"
    assert supply.supply.load_begins(8, [slot(second)], "Second") == [slot(second)]
    assert supply.memory.used_bytes == 0
    supply.supply.load_ends(7, "First", ())
    assert not list(supply.views.iterdir())
    supply.use(3, first)
    supply.use(4, second)
    assert supply.supply.in_memory(first)
    assert supply.supply.in_memory(second)
    (again,) = supply.supply.load_begins(7, [slot(first)], "First")
    assert again.path.startswith(str(supply.views))
    assert not supply.supply.vanished(7, "First")


def test_a_copy_whose_keeper_dies_while_it_is_made_is_dropped_and_leaves_nothing(supply: Supply) -> None:
    model = supply.model("first")
    supply.supply.used([model])
    os.kill(supply.keeper.pid, signal.SIGKILL)
    supply.supervisor.until(lambda: "keeper: died" in told(supply), what="the news of its death")
    before = len(os.listdir("/proc/self/fd"))
    assert isinstance(supply.supervisor.held(1), list)
    supply.relay(1)
    assert len(os.listdir("/proc/self/fd")) == before
    assert not supply.supply.in_memory(model)
    assert "is in host memory" not in told(supply)
    supply.use(2, model)
    assert supply.supply.in_memory(model)


def told(supply: Supply) -> str:
    return "\n".join(f"{event.source}: {event.message}" for event in supply.log.events)


# --- orders -----------------------------------------------------------------------------------------------------------


def test_a_copy_with_more_files_than_any_has_is_not_held(supply: Supply, tmp_path: Path) -> None:
    model = supply.model("first")
    derived = tmp_path / "first-fp32"
    derived.mkdir()
    for number in range(LISTED_FILES + 1):
        (derived / str(number)).touch()
    model.derived = str(derived)
    supply.supply.used([model])
    assert supply.memory.used_bytes == 0


def test_a_copy_is_held_with_its_regular_files_alone(supply: Supply, tmp_path: Path) -> None:
    model = supply.model("first")
    derived = tmp_path / "first-fp32"
    (derived / "unet").mkdir(parents=True)
    (derived / "unet/weights").write_bytes(b"copied")
    (derived / "link").symlink_to("/etc/passwd")
    model.derived = str(derived)
    supply.use(1, model)
    (loaded,) = supply.supply.load_begins(1, [slot(model)], "First")
    assert {str(path.relative_to(loaded.path)) for path in Path(loaded.path).rglob("*")} == {"unet", "unet/weights"}


def test_a_copy_that_went_away_is_no_matter(supply: Supply, tmp_path: Path) -> None:
    model = supply.model("first")
    model.derived = str(tmp_path / "first-gone")
    supply.supply.used([model])
    assert supply.memory.used_bytes == 0


def test_an_order_that_is_too_long_for_a_frame_fails_alone(supply: Supply, tmp_path: Path) -> None:
    process, supervisor = supply.supervisor.process, supply.supervisor
    entries = tuple(SnapshotEntry(f"{'n' * 200}{number}", 1) for number in range(1000))
    process.send(Hold(1, Snapshot(TINY, "key", "c0", str(tmp_path), entries)))
    process.send(Hold(2, Snapshot(TINY, "key", "c0", str(tmp_path), (SnapshotEntry("\udcff", 1),))))
    process.send(Fetch(3, Wanted("hf", "acme/tiny", files=("n" * 70_000,))))
    (tmp_path / "small").write_bytes(b"1")
    process.send(Hold(4, Snapshot(TINY, "key", "c0", str(tmp_path), (SnapshotEntry("small", 1),))))
    for number in (1, 2):
        assert isinstance(supervisor.held(number), HoldFailed)
    failure = supervisor.end_of(3)
    assert isinstance(failure, FetchFailed)
    assert (failure.kind, failure.retryable) == ("too_large", False)
    held = supervisor.held(4)
    assert isinstance(held, list)
    assert isinstance(held[0], Held)
    assert supervisor.lost == 0


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_of_more_refs_than_a_frame_has_room_for_the_first_are_kept(supply: Supply) -> None:
    refs = [f"acme/model-{number:05d}" for number in range(10_000)]
    supply.supply.keep(refs, [])
    model = supply.model("first")
    supply.use(1, model)  # the fetcher lives, and obeys
    assert supply.supply.in_memory(model)
    assert supply.supervisor.lost == 0
    assert "dropped" not in supply.supervisor.log
