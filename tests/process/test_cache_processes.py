"""Many processes share one disk cache: nobody sees half a model, nobody loses one that is in use, none waits for ever.

The processes here are this file, run with what to do.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from gen_worker.fetch.cache import locks
from gen_worker.fetch.cache.disk import on_memory
from gen_worker.fetch.cache.store import Found
from gen_worker.fetch.cancel import Cancel
from gen_worker.models.errors import ModelError
from gen_worker.models.wanted import Wanted
from gen_worker.testing import make_tiny
from tests.cached import FILES, TINY, content_of, files_below, manifest_of, present, put, put_and_leave, store_in, write
from tests.served import until

pytestmark = pytest.mark.process

ROUNDS = 40
SHARED = {"shared.bin": b"s" * 3000}


def model(number: int) -> tuple[Wanted, dict[str, bytes]]:
    """Return a model of which one file is in all others, too."""
    wanted = Wanted("hf" if number % 2 else "tensorhub", f"acme/model-{number}")
    return wanted, {**SHARED, "own.bin": bytes([number]) * 2000, f"unet/{number}.json": b"{}"}


@contextmanager
def process(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run a part of this file in a process of its own, which ends with the block."""
    started = subprocess.Popen(
        [sys.executable, "-m", "tests.process.test_cache_processes", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    try:
        yield started
    finally:
        started.kill()
        started.wait()
        for stream in (started.stdout, started.stdin):
            assert stream is not None
            stream.close()


def said(started: subprocess.Popen[str]) -> str:
    assert started.stdout is not None
    return started.stdout.readline().strip()


# --- what the processes do --------------------------------------------------------------------------------------------


def churn(root: Path, seed: int) -> None:
    """Publish, read and evict models in no order; say how often, or what was wrong."""
    chance, store = random.Random(seed), store_in(root)
    seen = 0
    for _round in range(ROUNDS):
        wanted, files = model(chance.randrange(5))
        if chance.random() < 0.4:
            found = store.find(wanted)
            if found is not None:
                store.evict([found.snapshot.key])  # it is in use: by this process
                check(found, files)
                store.evict([found.snapshot.key])
            continue
        check(put(store, wanted, files), files)
        seen += 1
    print(seen, flush=True)


def check(found: Found, files: dict[str, bytes]) -> None:
    if content_of(found) != files:
        raise AssertionError(f"{found.snapshot.wanted.ref} is not what was published")
    os.close(found.lease)


def publish_for_ever(root: Path) -> None:
    """Publish and evict one model after the other until killed."""
    store = store_in(root)
    print("begun", flush=True)
    while True:
        for number in range(4):
            wanted, files = model(number)
            store.evict([put_and_leave(store, wanted, files)])


def hold(root: Path) -> None:
    """Use a model until told to stop."""
    store = store_in(root)
    found = put(store, TINY)
    print(found.snapshot.key, flush=True)
    sys.stdin.readline()
    os.close(found.lease)


def lock(root: Path, blob: str) -> None:
    """Hold the lock of a blob until killed."""
    with store_in(root).locked(Path(blob), Cancel()):
        print("locked", flush=True)
        sys.stdin.readline()


def add(file: Path, count: str) -> None:
    """Add to a number under a lock whose file is removed each time."""
    for _round in range(ROUNDS):
        held = locks.acquire(file)
        before = int(Path(count).read_text())
        os.sched_yield()
        Path(count).write_text(str(before + 1))
        locks.discard(file, held)


READER = """
import sys
from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download
here = {"cache_dir": sys.argv[1], "local_files_only": True}
print(snapshot_download("acme/tiny", allow_patterns=["*.json", "*.safetensors"], **here))
print(open(hf_hub_download("acme/tiny", "config.json", **here)).read())
found = scan_cache_dir(sys.argv[1])
print(len(found.warnings), [repo.repo_id for repo in found.repos], found.size_on_disk)
"""


PIPELINE_READER = """
import sys
import torch
from diffusers import DiffusionPipeline
here = {"cache_dir": sys.argv[1], "local_files_only": True}
made = DiffusionPipeline.from_pretrained("acme/tiny", dtype=torch.float16, use_safetensors=True, **here)
print(type(made).__name__, made.unet.dtype)
"""


# --- what is promised -------------------------------------------------------------------------------------------------


@pytest.mark.promise(27)
def test_processes_that_publish_read_and_evict_at_once_never_see_half_a_model(tmp_path: Path) -> None:
    with ExitStack() as running:
        for each in [running.enter_context(process("churn", tmp_path, seed)) for seed in (1, 2, 3)]:
            assert int(said(each)) > 0
            assert each.wait(20) == 0
    store = store_in(tmp_path)
    for number in range(5):
        wanted, files = model(number)
        if present(store, wanted):
            check(put(store, wanted, files), files)
    store.evict([each.record.key for each in store.listed()])
    store.sweep(older_s=-1.0)
    assert files_below(tmp_path) == ["cas/ref-index.json", "hub/CACHEDIR.TAG"]


@pytest.mark.promise(28)
def test_a_process_killed_at_any_moment_leaves_each_model_whole_or_unseen(tmp_path: Path) -> None:
    chance = random.Random(7)
    store = store_in(tmp_path)
    for _life in range(15):
        with process("publish_for_ever", tmp_path) as doomed:
            assert said(doomed) == "begun"
            time.sleep(chance.random() * 0.02)  # this is when it dies, not what is waited for
            doomed.send_signal(signal.SIGKILL)
            doomed.wait()
        for number in range(4):
            wanted, files = model(number)
            for manifest in (None, manifest_of(wanted, files)):
                found = store.find(wanted, manifest)
                if found is not None:
                    check(found, files)
        for listed in store.listed():
            assert store.damaged(listed.record) == []
    for number in range(4):  # and nothing that was left stands in the way
        wanted, files = model(number)
        check(put(store, wanted, files), files)
    store.evict([each.record.key for each in store.listed()])
    store.sweep(older_s=-1.0)
    assert files_below(tmp_path) == ["cas/ref-index.json", "hub/CACHEDIR.TAG"]


@pytest.mark.promise(27)
def test_a_model_that_another_process_uses_is_not_evicted_until_it_ends(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    with process("hold", tmp_path) as user:
        key = said(user)
        [listed] = store.listed()
        assert (listed.record.key, listed.in_use, store.users(listed.record)) == (key, True, [user.pid])
        assert store.evict([key]) == []
        assert present(store, TINY)
        user.kill()
        user.wait()
    assert until(lambda: store.evict([key]))


def test_who_waits_for_a_blob_gets_it_when_its_writer_dies(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    wanted, files = model(0)
    with store.plan(wanted, manifest_of(wanted, files)) as plan:
        blob = plan.missing[0][1]
        with process("lock", tmp_path, blob) as writer:
            assert said(writer) == "locked"
            cancel = Cancel()
            cancel.set()
            with pytest.raises(ModelError) as told, store.locked(blob, cancel):
                pass
            assert told.value.kind == "canceled"
            writer.kill()
            with store.locked(blob, Cancel()):
                write(blob, files["shared.bin"])


def test_a_lock_file_that_is_removed_is_never_held_by_two(tmp_path: Path) -> None:
    file, count = tmp_path / "the.lock", tmp_path / "count"
    count.write_text("0")
    with process("add", file, count) as one, process("add", file, count) as two:
        for each in (one, two):
            assert each.wait(20) == 0
    assert int(count.read_text()) == 2 * ROUNDS


@pytest.mark.needs("huggingface_hub")
def test_hugging_face_libraries_read_offline_what_was_published(tmp_path: Path) -> None:
    found = put(store_in(tmp_path), TINY)
    os.close(found.lease)
    done = subprocess.run(
        [sys.executable, "-c", READER, str(tmp_path / "hub")],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
    )
    assert done.stdout.splitlines() == [
        found.snapshot.path,
        '{"model_type": "tiny"}',
        f"0 ['acme/tiny'] {found.snapshot.size}",
    ], done.stderr


@pytest.mark.needs("torch", "diffusers", "transformers")
def test_diffusers_loads_offline_by_its_name_what_was_published(tmp_path: Path) -> None:
    made = make_tiny("sdxl", tmp_path / "made", dtype="fp16")
    files = {str(path.relative_to(made)): path.read_bytes() for path in made.rglob("*") if path.is_file()}
    put_and_leave(store_in(tmp_path), TINY, files)
    done = subprocess.run(
        [sys.executable, "-c", PIPELINE_READER, str(tmp_path / "hub")],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
    )
    assert done.stdout.splitlines() == ["StableDiffusionXLPipeline torch.float16"], done.stderr


@pytest.mark.needs("huggingface_hub")
def test_what_hugging_face_libraries_fetched_is_found_and_not_evicted(tmp_path: Path) -> None:
    made = put(store_in(tmp_path / "made"), TINY)  # what they leave looks the same, without records
    os.close(made.lease)
    store = store_in(tmp_path / "own", hub=tmp_path / "made" / "hub")
    found = store.find(TINY)
    assert found is not None
    assert content_of(found) == content_of(made)
    os.close(found.lease)
    assert store.entries() == []
    assert present(store, TINY)


@pytest.mark.needs("filelock")
def test_hugging_face_libraries_and_a_download_here_wait_for_each_other(tmp_path: Path) -> None:
    from filelock import FileLock, Timeout

    store = store_in(tmp_path)
    blob = store.layout.repository("acme/tiny") / "blobs" / ("a" * 40)
    theirs = FileLock(tmp_path / "hub" / ".locks" / "models--acme--tiny" / f"{blob.name}.lock")
    with store.locked(blob, Cancel()), pytest.raises(Timeout):
        theirs.acquire(timeout=0)
    with theirs:
        assert locks.is_held(store.layout.blob_lock(blob))


def test_a_model_that_the_cache_of_another_root_uses_is_not_evicted(tmp_path: Path) -> None:
    one, other = (store_in(tmp_path / name, hub=tmp_path / "hub") for name in ("one", "other"))
    key = put_and_leave(one, TINY)
    found = other.find(TINY)
    assert found is not None
    assert one.evict([key]) == []
    assert content_of(found)
    os.close(found.lease)
    assert one.evict([key])
    assert not present(other, TINY)


# --- disks ------------------------------------------------------------------------------------------------------------


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", *options, str(folder)], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(file: Path) -> None:
    """Write until there is no space."""
    with open(file, "wb", buffering=0) as filler:
        while True:
            filler.write(b"f" * 4096)


@pytest.mark.root
def test_a_read_only_cache_is_used_and_what_is_missing_says_so(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    put_and_leave(store_in(cache), TINY)
    with mounted(cache, "--bind", str(cache)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(cache)], check=True)
        store = store_in(cache)
        found = store.find(TINY)
        assert found is not None
        assert [each.in_use for each in store.listed()] == [True]
        assert present(store, TINY)
        os.close(found.lease)
        assert not present(store, Wanted("tensorhub", "acme/other"))
        with pytest.raises(ModelError, match=f"only be read: `{cache}`") as told:
            put(store, Wanted("tensorhub", "acme/other"))
        assert (told.value.kind, told.value.retryable) == ("read_only", False)
        with pytest.raises(ModelError, match="cannot be removed: the cache may only be read") as told:
            store.evict([found.snapshot.key])
        assert told.value.kind == "read_only"


@pytest.mark.root
def test_blobs_on_another_disk_are_linked_to_symbolically(tmp_path: Path) -> None:
    wanted, files = model(0)
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=8m", "tmpfs") as disk:
        (tmp_path / "cas").mkdir()
        (tmp_path / "cas" / "blobs").symlink_to(disk)
        store = store_in(tmp_path)
        found = put(store, wanted, files)
        assert Path(found.snapshot.path, "own.bin").is_symlink()
        assert content_of(found) == files
        assert store.evict([found.snapshot.key]) == []
        os.close(found.lease)
        assert store.evict([found.snapshot.key]) == [(wanted.ref, found.snapshot.size)]
        assert files_below(disk) == []


@pytest.mark.promise(22)
@pytest.mark.root
def test_a_full_disk_is_told_before_a_byte_and_makes_room_where_it_can(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=8m", "tmpfs") as small:
        assert on_memory(small / "cache")
        store = store_in(small / "cache", free_bytes=1 << 20)
        first, second, big = (Wanted("tensorhub", f"acme/{name}") for name in ("first", "second", "big"))
        put_and_leave(store, first, {"w": b"1" * (4 << 20)})
        found = put(store, second, {"w": b"2" * (4 << 20)})
        assert not present(store, first)
        with pytest.raises(ModelError, match="`acme/big`: 5 MiB are to be written and 1 MiB left free") as told:
            store.make_room(5 << 20, ref=big.ref)
        assert told.value.kind == "insufficient_disk"
        assert content_of(found) == {"w": b"2" * (4 << 20)}
        os.close(found.lease)


@pytest.mark.root
def test_a_disk_that_fills_up_meanwhile_loses_nothing_that_was_there(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=2m", "tmpfs") as small:
        store = store_in(small / "cache")
        put_and_leave(store, TINY)
        with pytest.raises(OSError, match="No space"):
            fill(small / "filler")
        assert present(store, TINY)
        wanted, files = model(0)
        with pytest.raises(ModelError) as told:
            store.plan(wanted, manifest_of(wanted, files))
        assert told.value.kind == "insufficient_disk"
        assert "`acme/model-0`" in str(told.value)
        (small / "filler").unlink()
        check(put(store, wanted, files), files)
        check(put(store, TINY), dict(FILES))


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]), *(int(each) if each.isdigit() else each for each in sys.argv[3:]))
