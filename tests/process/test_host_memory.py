"""Models in the host's memory: copied from disk into sealed memory, loaded from a folder that is no copy."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.holding import FILES_LIMIT, hold
from gen_worker.models.errors import ModelError
from gen_worker.models.snapshot import Snapshot, SnapshotEntry
from gen_worker.models.wanted import Wanted
from gen_worker_supervisor.memory.host_memory import HostMemory
from gen_worker_supervisor.memory.keeping import Keeper
from tests.keeping import Kept, host_memory
from tests.served import alive, descriptors, until

pytestmark = pytest.mark.process

WEIGHTS = os.urandom(3 << 20)
FILES = {"model_index.json": b"{}", "unet/weights.safetensors": WEIGHTS, "empty.txt": b""}


def snapshot_of(folder: Path, files: dict[str, bytes], key: str = "acme-tiny") -> Snapshot:
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    entries = tuple(SnapshotEntry(path, len(content)) for path, content in files.items())
    return Snapshot(Wanted("hf", "acme/tiny"), key, "c0ffee", str(folder), entries)


def held(snapshot: Snapshot) -> list[tuple[str, int]]:
    return hold(snapshot, Cancel(), lambda count: None)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    with host_memory(tmp_path / "run" / str(os.getpid()) / "memory", 64 << 20) as kept:
        yield kept


@pytest.fixture
def memory(kept: Kept) -> HostMemory:
    return kept.memory


@pytest.fixture
def keeper(kept: Kept) -> Keeper:
    return kept.keeper


def remember(memory: HostMemory, snapshot: Snapshot) -> str:
    """Hold a snapshot as supervisor and fetcher do, return its view."""
    assert memory.wants(snapshot)
    pairs = held(snapshot)
    memory.add(snapshot, [path for path, _ in pairs], [descriptor for _, descriptor in pairs])
    memory.complete(snapshot.key)
    view = memory.view(snapshot.key)
    assert view is not None
    return view


# --- copies -----------------------------------------------------------------------------------------------------------


def test_what_is_held_is_what_was_read(tmp_path: Path) -> None:
    counts: list[int] = []
    pairs = hold(snapshot_of(tmp_path, FILES), Cancel(), counts.append)
    try:
        assert {path: os.pread(descriptor, 8 << 20, 0) for path, descriptor in pairs} == FILES
    finally:
        for _, descriptor in pairs:
            os.close(descriptor)
    assert sum(counts) == sum(map(len, FILES.values()))


def test_nobody_can_write_or_resize_what_is_held(tmp_path: Path) -> None:
    [(_, descriptor)] = held(snapshot_of(tmp_path, {"a": WEIGHTS}))
    try:
        with pytest.raises(PermissionError):
            os.pwrite(descriptor, b"x", 0)
        for size in (0, 2 * len(WEIGHTS)):
            with pytest.raises(PermissionError):
                os.ftruncate(descriptor, size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        assert not os.get_inheritable(descriptor)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(("content", "told"), [(b"short", "5 bytes, not 9"), (None, "no such file")])
def test_a_damaged_snapshot_is_told_by_its_file_and_leaves_no_descriptor(
    tmp_path: Path, content: bytes | None, told: str
) -> None:
    snapshot = snapshot_of(tmp_path, {"big": WEIGHTS, "small": b"123456789"})
    (tmp_path / "small").unlink()
    if content is not None:
        (tmp_path / "small").write_bytes(content)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ModelError, match=told) as raised:
        held(snapshot)
    assert (raised.value.kind, raised.value.ref, raised.value.file) == ("load_failed", "acme/tiny", "small")
    assert "gen-worker cache verify acme/tiny" in raised.value.hint
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_copy_ends_soon_after_it_is_canceled(tmp_path: Path) -> None:
    with open(tmp_path / "big", "wb") as big:
        big.truncate(8 << 30)  # without a block on the disk, and far more than is copied
    snapshot = Snapshot(Wanted("hf", "acme/big"), "big", "c", str(tmp_path), (SnapshotEntry("big", 8 << 30),))
    cancel, asked = Cancel(), [0.0]

    def ask() -> None:
        asked[0] = time.monotonic()
        cancel.set()

    copied: list[int] = []

    def on_bytes(count: int) -> None:
        copied.append(count)
        if len(copied) == 3:
            threading.Thread(target=ask).start()

    with pytest.raises(ModelError) as raised:
        hold(snapshot, cancel, on_bytes)
    assert raised.value.kind == "canceled"
    assert time.monotonic() - asked[0] < 0.2


def test_of_very_many_files_the_largest_are_held_and_the_rest_lead_to_the_disk(
    tmp_path: Path, memory: HostMemory
) -> None:
    files = {f"{number:03}": bytes([number % 256]) * (number + 1) for number in range(FILES_LIMIT + 20)}
    view = remember(memory, snapshot_of(tmp_path / "disk", files))
    assert {path: Path(view, path).read_bytes() for path in files} == files
    on_disk = [path for path in files if os.readlink(f"{view}/{path}").startswith(str(tmp_path))]
    assert on_disk == sorted(files)[:20]


# --- views ------------------------------------------------------------------------------------------------------------


def test_a_view_is_read_without_the_disk(tmp_path: Path, memory: HostMemory) -> None:
    view = remember(memory, snapshot_of(tmp_path / "disk", FILES))
    for path in FILES:
        (tmp_path / "disk" / path).unlink()
    reader = "import pathlib, sys; sys.stdout.buffer.write(pathlib.Path(sys.argv[1]).read_bytes())"
    command = [sys.executable, "-c", reader, f"{view}/unet/weights.safetensors"]
    assert subprocess.run(command, check=True, capture_output=True).stdout == WEIGHTS


def test_a_model_of_one_file_is_viewed_as_a_file(tmp_path: Path, memory: HostMemory) -> None:
    snapshot = snapshot_of(tmp_path, {"model.safetensors": WEIGHTS})
    snapshot = Snapshot(snapshot.wanted, "one", "1", f"{snapshot.path}/model.safetensors", snapshot.files)
    assert Path(remember(memory, snapshot)).read_bytes() == WEIGHTS


def test_there_is_no_view_before_every_file_has_come(tmp_path: Path, memory: HostMemory) -> None:
    snapshot = snapshot_of(tmp_path / "disk", FILES)
    assert memory.view(snapshot.key) is None
    assert memory.wants(snapshot)
    [first, *_] = pairs = held(snapshot)
    memory.add(snapshot, [first[0]], [first[1]])
    assert memory.view(snapshot.key) is None
    memory.drop(snapshot.key)
    memory.add(snapshot, [path for path, _ in pairs[1:]], [descriptor for _, descriptor in pairs[1:]])  # came too late
    memory.complete(snapshot.key)
    assert memory.view(snapshot.key) is None
    assert memory.used_bytes == 0


def test_a_file_of_another_size_is_not_taken(tmp_path: Path, memory: HostMemory) -> None:
    snapshot = snapshot_of(tmp_path / "disk", {"a": b"right"})
    other = snapshot_of(tmp_path / "other", {"a": b"wrong size"})
    assert memory.wants(snapshot)
    [(path, descriptor)] = held(other)
    memory.add(snapshot, [path], [descriptor])
    memory.complete(snapshot.key)
    view = memory.view(snapshot.key)
    assert view is not None
    assert Path(view, "a").read_bytes() == b"right"


def test_the_least_recently_used_goes_when_another_is_wanted(tmp_path: Path, memory: HostMemory) -> None:
    first, second, third = (
        snapshot_of(tmp_path / key, {"a": bytes(24 << 20)}, key) for key in ("first", "second", "third")
    )
    remember(memory, first)
    view = remember(memory, second)
    assert memory.view("first")
    remember(memory, third)
    assert memory.view("second") is None
    assert not Path(view).exists()
    assert memory.view("first")
    assert memory.used_bytes == 48 << 20


def test_what_is_pinned_stays_and_what_has_no_room_is_not_wanted(tmp_path: Path, memory: HostMemory) -> None:
    first, second = (snapshot_of(tmp_path / key, {"a": bytes(40 << 20)}, key) for key in ("first", "second"))
    remember(memory, first)
    memory.pin("first")
    memory.pin("first")
    memory.unpin("first")
    assert not memory.wants(first)
    assert not memory.wants(second)
    memory.unpin("first")
    assert memory.wants(second)
    assert memory.view("first") is None


def test_what_nobody_loads_is_given_back_the_least_recently_used_first_and_no_more_than_it_takes(
    tmp_path: Path, memory: HostMemory
) -> None:
    pinned, first, second, third = (
        snapshot_of(tmp_path / key, {"a": bytes(12 << 20)}, key) for key in ("pinned", "first", "second", "third")
    )
    views = {each.key: remember(memory, each) for each in (pinned, first, second, third)}
    memory.pin("pinned")
    memory.view("first")
    assert memory.loose_bytes == 36 << 20
    assert [gone.key for gone in memory.give_back(13 << 20)] == ["second", "third"]
    assert {key for key, view in views.items() if Path(view).exists()} == {"pinned", "first"}
    memory.secured = lambda: ["first"]
    assert memory.loose_bytes == 0
    assert memory.give_back(1 << 30) == []
    memory.secured = list
    assert [gone.key for gone in memory.give_back(1 << 30)] == ["first"]
    assert (memory.loose_bytes, memory.used_bytes) == (0, 12 << 20)


def test_nothing_is_wanted_that_the_host_has_no_memory_for(tmp_path: Path) -> None:
    free = [(512 + 41) << 20]
    with host_memory(tmp_path / "run" / "1" / "memory", 64 << 20, lambda: free[0]) as kept:
        memory = kept.memory
        first, second = (snapshot_of(tmp_path / key, {"a": bytes(40 << 20)}, key) for key in ("first", "second"))
        remember(memory, first)
        free[0] = 500 << 20
        assert not memory.wants(second)
        assert memory.view("first")
        free[0] = 513 << 20  # with what goes it is enough
        assert memory.wants(second)


def test_what_is_held_is_no_memory_of_the_supervisor(tmp_path: Path, memory: HostMemory) -> None:
    snapshot = snapshot_of(tmp_path, {"a": bytes(60 << 20)})
    before = resident_bytes()
    remember(memory, snapshot)
    assert resident_bytes() - before < 8 << 20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_what_a_child_has_mapped_outlives_the_drop(tmp_path: Path, memory: HostMemory) -> None:
    view = remember(memory, snapshot_of(tmp_path, FILES))
    with open(f"{view}/unet/weights.safetensors", "rb") as mapped:
        memory.drop("acme-tiny")
        assert mapped.read() == WEIGHTS


def test_nothing_is_left_of_memory_that_was_closed(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "1" / "memory"
    before = len(os.listdir("/proc/self/fd"))
    with host_memory(folder, 64 << 20) as kept:
        remember(kept.memory, snapshot_of(tmp_path / "disk", FILES))
        pid = kept.keeper.pid
        assert alive(pid)
    assert not folder.exists()
    assert not Path(f"/proc/{pid}").exists()
    assert len(os.listdir("/proc/self/fd")) == before


HOLDER = """
import os, sys, time
from pathlib import Path
from tests.keeping import host_memory
holding = host_memory(Path(sys.argv[1]) / str(os.getpid()) / "memory", 1 << 20)
kept = holding.__enter__()
(Path(sys.argv[1]) / str(os.getpid()) / "memory" / "a-view").mkdir()
if sys.argv[2:]:
    kept.keeper.start()
print("ready", flush=True)
time.sleep(60)
"""


def test_the_views_of_a_killed_supervisor_go_at_the_next_start_and_those_of_a_live_one_stay(tmp_path: Path) -> None:
    holders = [
        subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE) for _ in range(2)
    ]
    try:
        dead, living = holders
        for holder in holders:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"ready\n"
        dead.send_signal(signal.SIGKILL)
        dead.wait(10)
        with host_memory(tmp_path / str(os.getpid()) / "memory", 1 << 20):
            assert not (tmp_path / str(dead.pid) / "memory").exists()
            assert (tmp_path / str(living.pid) / "memory" / "a-view").exists()
    finally:
        for holder in holders:
            holder.kill()
            holder.wait(10)
            assert holder.stdout is not None
            holder.stdout.close()


def test_memory_is_given_back_soon(tmp_path: Path, memory: HostMemory, keeper: Keeper) -> None:
    snapshot = snapshot_of(tmp_path, {"a": bytes(60 << 20)})
    remember(memory, snapshot)
    assert (held_by(keeper.pid), held_by(os.getpid())) == (1, 0)
    memory.drop(snapshot.key)
    until(lambda: not held_by(keeper.pid), 5, what="the memory's last descriptor being closed")


def held_by(pid: int) -> int:
    """Count a process's descriptors of models."""
    return sum("memfd:gen-worker acme/tiny" in target for target in descriptors(pid))


# --- who holds it -----------------------------------------------------------------------------------------------------


def test_what_is_dropped_and_held_in_turns_takes_no_more_than_is_held(
    tmp_path: Path, memory: HostMemory, keeper: Keeper
) -> None:
    for number in range(20):
        snapshots = [snapshot_of(tmp_path / key, {key: key.encode() * 9, "b": b"b"}, key) for key in "xyz"]
        views = [remember(memory, snapshot) for snapshot in snapshots]
        for snapshot, view in zip(snapshots, views, strict=True):
            assert Path(view, snapshot.key).read_bytes() == snapshot.key.encode() * 9
        memory.drop("xyz"[number % 3])
        for key in {*"xyz"} - {"xyz"[number % 3]}:
            assert Path(memory.view(key) or "gone", key).read_bytes() == key.encode() * 9
            memory.drop(key)
    until(lambda: not held_by(keeper.pid), what="everything being closed")
    assert all(int(name) < 64 for name in os.listdir(f"/proc/{keeper.pid}/fd"))


def test_the_memory_of_a_keeper_that_died_is_no_view_and_the_next_one_holds_again(tmp_path: Path, kept: Kept) -> None:
    memory, keeper = kept.memory, kept.keeper
    pinned, other = (snapshot_of(tmp_path / key, FILES, key) for key in ("pinned", "other"))
    view = remember(memory, pinned)
    remember(memory, other)
    memory.pin("pinned")
    first = keeper.pid
    os.kill(first, signal.SIGKILL)
    until(lambda: memory.view("other") is None, what="its memory being gone")
    assert memory.lost("pinned")
    until(lambda: not alive(first), what="its death")
    with pytest.raises(OSError, match="the keeper of models' memory died"):
        keeper.confirm()
    kept.until(lambda: not keeper.pid, what="the news of it")
    assert memory.used_bytes == 0
    assert {path: Path(view, path).read_bytes() for path in FILES} == FILES  # who has its path reads it from the disk
    assert memory.view("pinned") is None
    assert not memory.wants(pinned)  # not before its path is given back
    assert Path(remember(memory, other), "model_index.json").read_bytes() == b"{}"
    assert keeper.pid not in (0, first)
    memory.unpin("pinned")
    assert not Path(view).exists()
    remember(memory, pinned)
    assert not memory.lost("pinned")


def test_a_keeper_that_does_not_answer_costs_a_copy_one_second(
    tmp_path: Path, memory: HostMemory, keeper: Keeper
) -> None:
    remember(memory, snapshot_of(tmp_path / "first", FILES, "first"))
    snapshot = snapshot_of(tmp_path / "second", FILES, "second")
    assert memory.wants(snapshot)
    pid = keeper.pid
    os.kill(pid, signal.SIGSTOP)
    pairs = held(snapshot)
    memory.add(snapshot, [path for path, _ in pairs], [descriptor for _, descriptor in pairs])
    before = time.monotonic()
    with pytest.raises(OSError, match="does not answer"):
        memory.complete("second")
    assert time.monotonic() - before < 2.0
    assert memory.view("second") is None
    until(lambda: not alive(pid), what="its end")


def test_a_keeper_ends_with_its_supervisor_and_has_nothing_of_its_environment(tmp_path: Path) -> None:
    environment = {**os.environ, "SECRET": "canary"}
    command = [sys.executable, "-c", HOLDER, str(tmp_path), "holds"]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        [keeper] = map(int, Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split())
        until(lambda: "keeper.py" in Path(f"/proc/{keeper}/cmdline").read_text(), what="its start")
        assert b"canary" not in Path(f"/proc/{keeper}/environ").read_bytes()
        assert os.getsid(keeper) == keeper
        holder.kill()
        holder.wait(10)
        until(lambda: not alive(keeper), what="its end")
    finally:
        holder.kill()
        holder.wait(10)
        assert holder.stdout is not None
        holder.stdout.close()
