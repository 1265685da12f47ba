"""What the disk cache promises: whole models only, shared bytes once, nothing lost that is in use."""

import fcntl
import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from gen_worker.fetch.cache import locks
from gen_worker.fetch.cache.disk import on_memory
from gen_worker.fetch.cache.store import Found, Store
from gen_worker.fetch.cancel import Cancel
from gen_worker.models.errors import ModelError
from gen_worker.models.manifest import Manifest
from gen_worker.models.selection import SelectionOptions
from gen_worker.models.wanted import Wanted
from tests.cached import (
    FILES,
    TINY,
    commit_of,
    content_of,
    files_below,
    manifest_of,
    present,
    put,
    put_and_leave,
    store_in,
    write,
)

CIVITAI = Wanted("civitai", "4201", version="130072")
MODELSCOPE = Wanted("modelscope", "acme/tiny")
HUB = Wanted("tensorhub", "acme/tiny", tag="prod")
ALL = [TINY, CIVITAI, MODELSCOPE, HUB]


def by_provider(wanted: Wanted) -> str:
    return wanted.provider


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return store_in(tmp_path / "cache")


def found_in(store: Store, wanted: Wanted) -> Found:
    found = store.find(wanted)
    assert found is not None
    return found


# --- found ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ALL, ids=by_provider)
def test_a_published_model_is_found_with_its_content(store: Store, wanted: Wanted) -> None:
    assert store.find(wanted) is None
    key = put_and_leave(store, wanted)
    found = found_in(store, wanted)
    assert content_of(found) == FILES
    assert (found.snapshot.key, found.snapshot.wanted) == (key, wanted)
    os.close(found.lease)


@pytest.mark.parametrize("wanted", [CIVITAI, MODELSCOPE, HUB], ids=by_provider)
def test_what_the_provider_says_no_digest_and_size_of_is_kept_too(store: Store, wanted: Wanted) -> None:
    put_and_leave(store, wanted, digests=False)
    found = found_in(store, wanted)
    assert content_of(found) == FILES
    assert found.snapshot.size == sum(map(len, FILES.values()))
    os.close(found.lease)


def test_a_single_file_of_civitai_is_itself_the_path(store: Store) -> None:
    found = put(store, CIVITAI, {"model.safetensors": b"weights"})
    assert Path(found.snapshot.path).read_bytes() == b"weights"
    os.close(found.lease)


@pytest.mark.parametrize("wanted", ALL, ids=by_provider)
def test_a_model_that_lost_a_file_or_a_byte_is_not_found(store: Store, wanted: Wanted) -> None:
    found = put(store, wanted)
    os.close(found.lease)
    file = Path(found.snapshot.path, "config.json").resolve()
    content = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(content[:-1])
    assert not present(store, wanted)
    file.write_bytes(content)
    assert present(store, wanted)
    file.unlink()
    assert not present(store_in(store.layout.root), wanted)


def test_a_file_cut_short_is_missing_in_the_next_plan(store: Store) -> None:
    found = put(store, TINY)
    os.close(found.lease)
    blob = Path(found.snapshot.path, "config.json").resolve()
    blob.chmod(0o644)
    blob.write_bytes(b"{")
    with store.plan(TINY, manifest_of(TINY, FILES)) as plan:
        assert [(file.path, path) for file, path in plan.missing] == [("config.json", blob)]
        assert not blob.exists()
    assert content_of(put(store, TINY)) == FILES


def test_a_branch_that_moved_is_found_as_what_it_is_now_once_that_is_published(store: Store) -> None:
    put_and_leave(store, TINY)
    newer = {**FILES, "config.json": b"{}"}
    manifest = manifest_of(TINY, newer)
    assert store.find(TINY, manifest) is None
    put_and_leave(store, TINY, newer)
    found = store.find(TINY, manifest)
    assert found is not None
    assert content_of(found) == newer
    os.close(found.lease)


def test_what_a_branch_meant_before_is_listed_by_its_commit_and_goes_first(tmp_path: Path) -> None:
    store = store_in(tmp_path, cache_bytes=3 * len(FILES["model.safetensors"]))
    put_and_leave(store, TINY)
    put_and_leave(store, HUB, {"other": b"o" * 100})
    put_and_leave(store, TINY, {**FILES, "model.safetensors": FILES["model.safetensors"][::-1]})
    before = f"acme/tiny@{manifest_of(TINY, FILES).commit[:12]}"
    assert [each.refs for each in store.listed()] == [("acme/tiny",), (HUB.ref,), (before,)]
    assert store.make_room(len(FILES["model.safetensors"])) == [(before, len(FILES["model.safetensors"]))]
    assert present(store, TINY)


def test_two_wishes_that_come_to_the_same_files_have_one_snapshot(store: Store) -> None:
    named = Wanted("hf", "acme/tiny", revision="main")
    assert put_and_leave(store, TINY) == put_and_leave(store, named)
    assert [each.refs for each in store.listed()] == [("acme/tiny", "acme/tiny@main")]


def test_bytes_that_two_models_share_are_there_once(store: Store) -> None:
    put_and_leave(store, HUB)
    other = Wanted("tensorhub", "acme/other")
    with store.plan(other, manifest_of(other, FILES)) as plan:
        assert (plan.missing, plan.missing_bytes) == ([], 0)
    put_and_leave(store, other, {**FILES, "extra.txt": b"more"})
    assert store.used() == sum(map(len, FILES.values())) + 4


def test_what_lies_in_a_part_is_not_charged_again(store: Store) -> None:
    files = {"weights.safetensors": b"w" * (1 << 20)}
    with store.plan(TINY, manifest_of(TINY, files)) as plan:
        [(_file, blob)] = plan.missing
        assert plan.missing_bytes == 1 << 20
        blob.parent.mkdir(parents=True)
        blob.with_name(f"{blob.name}.part").write_bytes(b"w" * (768 << 10))
        assert plan.missing_bytes == 256 << 10


def test_blobs_cannot_be_written_by_who_loads_them(store: Store) -> None:
    found = put(store, HUB)
    for file in found.snapshot.files:
        assert Path(found.snapshot.path, file.path).stat().st_mode & 0o777 == 0o444
    os.close(found.lease)


def test_publishing_what_is_not_there_whole_is_refused(store: Store) -> None:
    manifest = manifest_of(TINY, FILES)
    with store.plan(TINY, manifest) as plan:
        for file, blob in plan.missing[:1]:
            write(blob, FILES[file.path])
        with pytest.raises(ModelError, match="are gone") as told:
            store.publish(TINY, manifest)
    assert told.value.retryable
    assert not present(store, TINY)
    assert store.listed() == []


# --- evicted ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ALL, ids=by_provider)
def test_an_evicted_model_leaves_nothing_behind(store: Store, wanted: Wanted) -> None:
    key = put_and_leave(store, wanted)
    assert store.evict([key]) == [(wanted.ref, sum(map(len, FILES.values())))]
    assert not present(store, wanted)
    left = files_below(store.layout.root)
    assert left in (["cas/ref-index.json"], ["cas/ref-index.json", "hub/CACHEDIR.TAG"])


def test_what_is_in_use_is_not_evicted_until_the_last_copy_of_its_lease_is_closed(store: Store) -> None:
    found = put(store, TINY)
    copy = os.dup(found.lease)
    os.close(found.lease)
    assert store.evict([found.snapshot.key]) == []
    assert content_of(found) == FILES
    os.close(copy)
    assert store.evict([found.snapshot.key])


def test_models_of_one_commit_share_a_folder_and_go_one_by_one(store: Store) -> None:
    digest = "blake3:" + "a" * 64
    whole = Wanted("tensorhub", "acme/tiny", digest=digest)
    part = Wanted("tensorhub", "acme/tiny", digest=digest, files=("*.json",))
    key = put_and_leave(store, whole)
    part_key = put_and_leave(store, part, {"config.json": FILES["config.json"]})
    assert store.evict([key]) == [(whole.ref, len(FILES["model.safetensors"]))]
    found = found_in(store, part)
    assert content_of(found) == {"config.json": FILES["config.json"]}
    os.close(found.lease)
    assert store.evict([part_key])
    assert files_below(store.layout.root) == ["cas/ref-index.json"]


def test_what_a_plan_counts_on_is_not_evicted_before_it_is_closed(store: Store) -> None:
    key = put_and_leave(store, HUB)
    other = Wanted("tensorhub", "acme/other")
    manifest = manifest_of(other, FILES)
    with store.plan(other, manifest) as plan:
        assert plan.missing == []
        assert store.evict([key]) == [(HUB.ref, 0)]
        found = store.publish(other, manifest)
    assert content_of(found) == FILES
    os.close(found.lease)


def test_room_is_made_by_what_was_used_least_recently(tmp_path: Path) -> None:
    store = store_in(tmp_path, cache_bytes=12_000)
    for name in ("one", "two"):
        put_and_leave(store, Wanted("tensorhub", f"acme/{name}"), {"w": name.encode() * 1000})
    ledger = json.loads(store.layout.ledger.read_text())
    for row in ledger.values():
        row["last_used"] -= 1000.0 if row["ref"] == "acme/two" else 500.0
    store.layout.ledger.write_text(json.dumps(ledger))
    assert store.make_room(6000) == []
    assert store.make_room(7000) == [("acme/two", 3000)]


def test_a_kept_model_goes_last(tmp_path: Path) -> None:
    store = store_in(tmp_path, cache_bytes=7_000)
    put_and_leave(store, HUB, {"w": b"1" * 3000})
    put_and_leave(store, Wanted("tensorhub", "acme/other"), {"w": b"2" * 3000})
    assert store.make_room(2000, [HUB.ref]) == [("acme/other", 3000)]
    assert store.make_room(5000, [HUB.ref]) == [(HUB.ref, 3000)]


def test_more_than_the_cache_may_hold_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    store = store_in(tmp_path, cache_bytes=7_000)
    put_and_leave(store, HUB, {"w": b"1" * 3000})
    with pytest.raises(ModelError, match="may hold 6 KiB") as told:
        store.make_room(9000, ref="acme/big")
    assert (told.value.kind, told.value.ref) == ("insufficient_disk", "acme/big")
    assert present(store, HUB)


def test_more_than_the_disk_has_is_refused_with_its_figures_before_a_byte(store: Store) -> None:
    put_and_leave(store, HUB)
    with pytest.raises(ModelError, match=r"`acme/big`: 1048576\.0 GiB are to be written .* free, and 4 KiB") as told:
        store.make_room(1 << 50, ref="acme/big")
    assert told.value.kind == "insufficient_disk"
    assert "cache ls" in told.value.hint
    assert present(store, HUB)


def test_a_copy_in_another_dtype_counts_with_its_model_and_goes_with_it(store: Store) -> None:
    found = put(store, TINY)
    copy = store.layout.derived / f"{found.snapshot.key}-bf16"
    copy.mkdir(parents=True)
    (copy / "model.safetensors").write_bytes(b"w" * 100)
    [entry] = store.entries()
    assert (entry.size, entry.in_use) == (found.snapshot.size + 100, True)
    assert store.evict([found.snapshot.key]) == []
    assert copy.exists()
    os.close(found.lease)
    assert store.evict([found.snapshot.key]) == [("acme/tiny", found.snapshot.size + 100)]
    assert os.listdir(store.layout.derived) == []


def test_a_copy_whose_model_is_gone_is_evicted_and_one_that_is_being_made_is_not(store: Store) -> None:
    for name in ("gone-bf16", "other-bf16.building.1"):
        (store.layout.derived / name).mkdir(parents=True)
        (store.layout.derived / name / "model.safetensors").write_bytes(b"w" * 100)
    held = os.open(store.layout.derived / "other-bf16.building.1", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    assert store.evict([each.key for each in store.entries()]) == [("gone-bf16", 100)]
    store.sweep(older_s=-1.0)
    assert os.listdir(store.layout.derived) == ["other-bf16.building.1"]
    os.close(held)


# --- swept ------------------------------------------------------------------------------------------------------------


def test_what_nobody_finishes_is_swept_and_what_is_being_made_is_not(store: Store) -> None:
    key = put_and_leave(store, TINY)
    manifest = manifest_of(HUB, FILES)
    with store.plan(HUB, manifest) as plan:
        (_one, blob), (_two, other) = plan.missing
        write(blob, b"x" * 10)
        dead = blob.with_name("0" * 64 + ".part")
        for path in (dead, other.with_name(f"{other.name}.part")):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x" * 4096)
        building = store.layout.cas / "snapshots" / ("b" * 64 + ".building")
        building.mkdir(parents=True)
        with store.locked(other, Cancel()):
            assert store.sweepable(older_s=-1.0) == 4096 + 10  # and tells of more than it does: the blob has a plan
            assert store.sweep(older_s=-1.0) == 4096
        assert blob.exists()
        assert other.with_name(f"{other.name}.part").exists()
        assert not dead.exists()
        assert not building.exists()
    freed = store.sweepable(older_s=-1.0)
    assert store.sweep(older_s=-1.0) == freed == 4096 + 10
    assert not blob.exists()
    assert [each.record.key for each in store.listed()] == [key]
    assert present(store, TINY)


def test_what_is_young_is_not_swept(store: Store) -> None:
    blob = store.layout.cas / "blobs" / "blake3" / "00" / "00" / ("0" * 64)
    write(blob, b"young")
    assert store.sweep() == 0
    assert blob.exists()


def test_a_plan_that_cannot_be_read_takes_no_other_one_with_it(store: Store) -> None:
    key = put_and_leave(store, HUB)
    with store.plan(HUB, manifest_of(HUB, FILES)), ExitStack() as held:
        for name in ("0.json", "zz.json"):  # whatever the order is that a folder is listed in
            unread = store.layout.plans / name
            held.callback(os.close, locks.acquire(unread))
            unread.write_bytes(b'{"\xff')
        assert store.evict([key])
        os.close(store.publish(HUB, manifest_of(HUB, FILES)).lease)
    assert present(store, HUB)


def test_a_commit_that_the_cache_of_another_root_uses_in_part_is_not_evicted(tmp_path: Path) -> None:
    one, other = (store_in(tmp_path / name, hub=tmp_path / "hub") for name in ("one", "other"))
    files = {"a.json": b"1", "b.json": b"2", "c.json": b"3"}
    whole = manifest_of(TINY, files)
    put_and_leave(store_in(tmp_path / "whole", hub=tmp_path / "hub"), TINY, files)

    def part(store: Store, *paths: str) -> Found:
        wanted = Wanted("hf", TINY.repo, files=paths)
        kept = tuple(file for file in whole.files if file.path in paths)
        return store.publish(wanted, Manifest(wanted.ref, whole.commit, kept, listing=whole.files))

    ours, theirs = part(one, "a.json", "b.json"), part(other, "b.json", "c.json")
    os.close(ours.lease)
    assert one.evict([ours.snapshot.key]) == []
    assert content_of(theirs) == {"b.json": b"2", "c.json": b"3"}
    os.close(theirs.lease)
    assert one.evict([ours.snapshot.key])


# --- the ledger -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [b"", b"{", b"[1, 2]", b'{"a": 1}', b'{"\xff": {}}', b'{"a":' * 100_000, None])
def test_a_ledger_that_is_damaged_or_gone_is_made_anew(store: Store, damage: bytes | None) -> None:
    put_and_leave(store, HUB)
    put_and_leave(store, TINY)
    if damage is None:
        store.layout.ledger.unlink()
    else:
        store.layout.ledger.write_bytes(damage)
    again = store_in(store.layout.root)
    put_and_leave(again, CIVITAI)
    assert present(again, HUB)
    assert present(again, TINY)
    assert len(json.loads(store.layout.ledger.read_text())) == 3


@pytest.mark.parametrize("damage", [b"{", b'{"\xff": {}}', b'{"a":' * 100_000])
def test_a_record_that_is_damaged_is_made_anew_with_its_model(store: Store, damage: bytes) -> None:
    key = put_and_leave(store, HUB)
    put_and_leave(store, TINY)
    for each in (store.layout.record(key), store.layout.repository(TINY.repo) / "trees" / f"{commit_of(FILES)}.json"):
        each.write_bytes(damage)
    assert not present(store, HUB)
    assert present(store, TINY)
    put_and_leave(store, HUB)
    assert present(store, HUB)


def test_a_ledger_that_another_process_keeps_locked_is_waited_for_until_canceled_or_too_long(tmp_path: Path) -> None:
    store = store_in(tmp_path, stall_timeout_s=0.05)
    patient = store_in(tmp_path)
    put_and_leave(store, TINY)
    lock = locks.acquire(store.layout.locks / "ref-index.lock")
    found = found_in(store, TINY)
    os.close(found.lease)
    age(store, TINY, 100.0)
    assert present(store, TINY)  # though it cannot be noted that it is used
    canceled = Cancel()
    canceled.set()
    for wait in (
        lambda cancel: patient.plan(HUB, manifest_of(HUB, FILES), cancel),
        lambda cancel: patient.publish(TINY, manifest_of(TINY, FILES), cancel),
        lambda cancel: patient.make_room(1 << 60, cancel=cancel),
    ):
        with pytest.raises(ModelError) as told:
            wait(canceled)
        assert told.value.kind == "canceled"
    with pytest.raises(ModelError, match=f"process {os.getpid()} has kept") as told:
        store.plan(HUB, manifest_of(HUB, FILES))
    assert told.value.kind == "stalled"
    os.close(lock)


def age(store: Store, wanted: Wanted, seconds: float) -> None:
    """Have a model be used last so long ago."""
    rows = json.loads(store.layout.ledger.read_text())
    rows[wanted.key]["last_used"] -= seconds
    store.layout.ledger.write_text(json.dumps(rows))


def test_files_that_other_options_chose_are_told_from_those_of_now(tmp_path: Path) -> None:
    store, other = store_in(tmp_path), store_in(tmp_path, selection=SelectionOptions(full_repo=True))
    put_and_leave(store, TINY)
    for _again in range(2):
        for each, same in ((store, True), (other, False)):
            found = found_in(each, TINY)
            assert found.same_options is same
            os.close(found.lease)
            age(store, TINY, 100.0)
    resolved = other.find(TINY, manifest_of(TINY, FILES))  # they come to the same files
    assert resolved is not None
    os.close(resolved.lease)
    found = found_in(other, TINY)
    assert found.same_options
    os.close(found.lease)


def test_what_is_not_understood_of_a_ledger_stays(store: Store) -> None:
    put_and_leave(store, HUB)
    ledger = json.loads(store.layout.ledger.read_text())
    ledger[HUB.key]["color"] = "blue"
    ledger["elsewhere"] = {"path": "/x", "bytes": 3}
    store.layout.ledger.write_text(json.dumps(ledger))
    put_and_leave(store, TINY)
    ledger = json.loads(store.layout.ledger.read_text())
    assert ledger[HUB.key]["color"] == "blue"
    assert ledger["elsewhere"] == {"path": "/x", "bytes": 3}


@pytest.mark.parametrize("key", ["../../../etc/passwd", "/etc/passwd", "", 7, None])
def test_a_ledger_cannot_lead_outside_the_cache(store: Store, key: object) -> None:
    put_and_leave(store, HUB)
    ledger = json.loads(store.layout.ledger.read_text())
    ledger[HUB.key]["key"] = key
    store.layout.ledger.write_text(json.dumps(ledger))
    assert not present(store, HUB)


@pytest.mark.parametrize(
    "change",
    [
        {"key": "../../evil"},
        {"repo": "../evil", "provider": "hf"},
        {"commit": "../../evil"},
        {"files": [{"path": "../../../etc/passwd", "size": 3}]},
        {"files": [{"path": "x", "algorithm": "blake3", "digest": "../../../../../../etc/passwd"}]},
        {"files": 7},
    ],
)
def test_a_record_that_leads_outside_the_cache_counts_for_nothing(store: Store, change: dict[str, object]) -> None:
    key = put_and_leave(store, HUB)
    record = store.layout.record(key)
    record.write_text(json.dumps({**json.loads(record.read_text()), **change}))
    assert not present(store, HUB)
    assert store.listed() == []
    assert store.entries() == []
    put_and_leave(store, HUB)
    assert present(store, HUB)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wanted",
    [
        Wanted("hf", "../evil"),
        Wanted("hf", "a/b/c"),
        Wanted("hf", "acme/tiny", revision="../../x"),
        Wanted("modelscope", "acme/.."),
    ],
)
def test_a_name_that_leads_elsewhere_is_refused_or_not_found(store: Store, wanted: Wanted) -> None:
    assert store.find(wanted) is None
    with pytest.raises(ModelError) as told:
        put(store, wanted)
    assert told.value.kind == "bad_manifest"
    outside = [path for path in store.layout.root.parent.iterdir() if path != store.layout.root]
    assert outside == []


# --- lower and read-only ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ALL, ids=by_provider)
def test_a_model_in_a_lower_cache_is_used_where_it_lies(tmp_path: Path, wanted: Wanted) -> None:
    put_and_leave(store_in(tmp_path / "image"), wanted)
    before = files_below(tmp_path / "image", but=())
    store = store_in(tmp_path / "own", lower=(tmp_path / "image",))
    for manifest in (None, manifest_of(wanted, FILES)):
        found = store.find(wanted, manifest)
        assert found is not None
        assert found.snapshot.path.startswith(str(tmp_path / "image"))
        assert content_of(found) == FILES
        os.close(found.lease)
    assert files_below(tmp_path / "image", but=()) == before
    assert not (tmp_path / "own").exists()


def test_a_folder_of_hugging_face_libraries_is_a_lower_cache_too(tmp_path: Path) -> None:
    put_and_leave(store_in(tmp_path / "made"), TINY)
    shutil.move(tmp_path / "made" / "hub", tmp_path / "image")
    store = store_in(tmp_path / "own", lower=(tmp_path / "image",))
    assert present(store, TINY)
    assert present(store, Wanted("hf", "acme/tiny", revision=commit(tmp_path)))
    assert not present(store, Wanted("hf", "acme/other"))


def commit(folder: Path) -> str:
    return (folder / "image" / "models--acme--tiny" / "refs" / "main").read_text()


def test_a_damaged_model_of_a_lower_cache_is_not_looked_for_there_again(tmp_path: Path) -> None:
    found = put(store_in(tmp_path / "image"), HUB)
    os.close(found.lease)
    file = Path(found.snapshot.path, "config.json")
    content = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(content[::-1])
    store = store_in(tmp_path / "own", lower=(tmp_path / "image",))
    assert present(store, HUB)
    assert store.find_verified(HUB) is None
    assert not present(store, HUB)
    put_and_leave(store, HUB)
    assert present(store, HUB)


# --- damaged ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ALL, ids=by_provider)
def test_damaged_files_are_found_and_fetched_again_and_no_others(store: Store, wanted: Wanted) -> None:
    found = put(store, wanted)
    os.close(found.lease)
    damaged = Path(found.snapshot.path, "config.json").resolve()
    content = damaged.read_bytes()
    damaged.chmod(0o644)
    damaged.write_bytes(content[::-1])
    assert present(store, wanted)  # sizes say nothing of that
    assert store.find_verified(wanted) is None
    assert not present(store, wanted)
    with store.plan(wanted, manifest_of(wanted, FILES)) as plan:
        assert [file.path for file, _blob in plan.missing] == ["config.json"]
    again = put(store, wanted)
    assert content_of(again) == FILES
    os.close(again.lease)


def test_a_model_without_damage_is_not_forgotten(store: Store) -> None:
    found = put(store, TINY)
    os.close(found.lease)
    read: list[int] = []
    again = store.find_verified(TINY, on_bytes=read.append)
    assert again is not None
    assert sum(read) == again.snapshot.size
    os.close(again.lease)


def test_all_models_that_share_a_damaged_file_are_forgotten(store: Store) -> None:
    found = put(store, HUB)
    os.close(found.lease)
    other = Wanted("tensorhub", "acme/other")
    put_and_leave(store, other, {**FILES, "extra.txt": b"more"})
    file = Path(found.snapshot.path, "config.json")
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[::-1])
    assert store.find_verified(HUB) is None
    assert not present(store, HUB)
    assert not present(store, other)


def test_damaged_files_that_hugging_face_libraries_fetched_are_fetched_again(tmp_path: Path) -> None:
    os.close(put(store_in(tmp_path / "other", hub=tmp_path / "hub"), TINY).lease)
    store = store_in(tmp_path / "own", hub=tmp_path / "hub")
    found = found_in(store, TINY)
    os.close(found.lease)
    damaged = Path(found.snapshot.path, "config.json").resolve()
    damaged.chmod(0o644)
    damaged.write_bytes(damaged.read_bytes()[::-1])
    assert store.find_verified(TINY) is None
    again = put(store, TINY)
    assert content_of(again) == FILES
    os.close(again.lease)


@pytest.mark.parametrize("listing", [True, False])
def test_a_copy_of_hugging_faces_layout_without_its_links_is_used(tmp_path: Path, listing: bool) -> None:
    made = put(store_in(tmp_path / "made"), TINY)
    os.close(made.lease)
    shutil.copytree(tmp_path / "made" / "hub", tmp_path / "own" / "hub")  # links are followed
    store = store_in(tmp_path / "own")
    shutil.rmtree(store.layout.repository(TINY.repo) / "blobs")
    if not listing:
        shutil.rmtree(store.layout.repository(TINY.repo) / "trees")
    found = found_in(store, TINY)
    assert content_of(found) == FILES
    os.close(found.lease)
    if not listing:  # nobody knows its digests: it is used, and others look after it
        assert not store.layout.records.exists()
        return
    [listed] = store.listed()
    assert store.damaged(listed.record) == []
    assert store.evict([listed.record.key]) == [(TINY.ref, listed.size)]
    assert files_below(tmp_path / "own") == ["cas/ref-index.json", "hub/CACHEDIR.TAG"]


def test_a_reading_that_is_canceled_leaves_its_model_and_no_lease(store: Store) -> None:
    key = put_and_leave(store, TINY)
    cancel = Cancel()
    cancel.set()
    with pytest.raises(ModelError, match="canceled"):
        store.find_verified(TINY, cancel=cancel)
    assert store.evict([key])


def test_a_blob_that_others_laid_there_is_read_before_it_is_used(store: Store) -> None:
    manifest = manifest_of(TINY, FILES)
    blobs = store.layout.repository(TINY.repo) / "blobs"
    good, bad = manifest.files
    write(blobs / good.etag, FILES[good.path])
    write(blobs / bad.etag, FILES[bad.path][::-1])
    with store.plan(TINY, manifest) as plan:
        assert [file.path for file, _blob in plan.missing] == [bad.path]
    found = put(store, TINY)
    assert content_of(found) == FILES
    os.close(found.lease)


def test_a_blob_that_was_verified_when_it_was_made_is_not_read_again(store: Store) -> None:
    manifest = manifest_of(TINY, FILES)
    with store.plan(TINY, manifest) as plan:
        for file, blob in plan.missing:
            with store.locked(blob, Cancel()):
                write(blob, FILES[file.path][::-1])
    with store.plan(TINY, manifest) as plan:
        assert plan.missing == []


# --- where it lies ----------------------------------------------------------------------------------------------------


def test_a_cache_in_memory_is_known_as_one(tmp_path: Path) -> None:
    if not os.path.ismount("/dev/shm"):
        pytest.skip("there is no /dev/shm")
    assert on_memory(Path("/dev/shm/gen-worker-none/yet"))
    assert not on_memory(Path("/proc/self"))
