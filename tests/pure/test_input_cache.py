"""Files of payloads are kept for later runs: whole ones only, within a bound, for any process that asks by digest."""

import hashlib
import os
import threading
from io import FileIO
from pathlib import Path

import pytest

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.inputs.cache import ABANDONED_S, PART, InputCache
from gen_worker.models.errors import ModelError


class Kept:
    """A cache of 100 bytes, on a disk of which `spare` bytes have to stay free."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "source"
        self.place = folder / "cache"
        self.complaints: list[str] = []
        self.spare = 0
        self.cache = InputCache(self.place, 100, self.complaints.append, lambda disk: self.spare)

    def keep(self, content: bytes, at: int = 0) -> str:
        self.source.write_bytes(content)
        name = hashlib.sha256(content).hexdigest()
        with FileIO(self.source) as file:
            self.cache.keep(name, file)
        if at:
            os.utime(self.place / name, (at, at))
        return name

    def read(self, name: str) -> bytes | None:
        with self.cache.opened(name) as file:
            return None if file is None else file.readall()

    def names(self) -> set[str]:
        return set(os.listdir(self.place)) if self.place.exists() else set()


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def test_what_is_kept_is_a_copy_for_its_owner_only(kept: Kept) -> None:
    name = kept.keep(b"hello")
    kept.source.write_bytes(b"spoilt")
    assert kept.read(name) == b"hello"
    assert kept.read("0" * 64) is None
    assert (kept.place / name).stat().st_mode & 0o777 == 0o600
    assert kept.place.stat().st_mode & 0o777 == 0o700


def test_what_was_used_longest_ago_goes_first(kept: Kept) -> None:
    old, older = kept.keep(b"a" * 40, at=2000), kept.keep(b"b" * 40, at=1000)
    assert kept.read(older) is not None  # so it is not the oldest any more
    young = kept.keep(b"c" * 40)
    assert kept.names() == {older, young}
    assert kept.read(old) is None


def test_one_that_is_longer_than_all_room_costs_the_others_nothing(kept: Kept) -> None:
    small = kept.keep(b"small")
    kept.keep(b"x" * 101)
    assert kept.names() == {small}


def test_a_disk_that_is_nearly_full_is_left_as_it_is(kept: Kept) -> None:
    kept.spare = 1 << 62
    kept.keep(b"hello")
    assert (kept.names(), kept.complaints) == (set(), [])


def test_what_is_kept_goes_from_a_full_disk_oldest_first_and_from_no_other(kept: Kept) -> None:
    device = kept.source.parent.stat().st_dev
    assert not kept.cache.give_room(1, device)  # nothing was kept yet
    names = [kept.keep(bytes([at]) * 30, at=1000 + at) for at in range(3)]
    assert not kept.cache.give_room(1, device + 1)
    assert kept.cache.give_room(31, device)
    assert kept.names() == {names[2]}
    assert kept.cache.give_room(1 << 40, device)
    assert not kept.cache.give_room(1, device)


def test_what_leads_elsewhere_is_none_of_ours(kept: Kept) -> None:
    name = kept.keep(b"hello")
    (kept.place / name).unlink()
    (kept.place / name).symlink_to(kept.source)
    assert kept.read(name) is None
    (kept.place / name).unlink()
    os.mkfifo(kept.place / name)
    assert kept.read(name) is None


def test_what_killed_processes_have_left_goes_when_nobody_can_be_writing_it(kept: Kept) -> None:
    kept.keep(b"hello")
    for name, age in (("old", 2 * ABANDONED_S), ("young", 0.0)):
        part = kept.place / f"{PART}{name}"
        part.touch()
        os.utime(part, (part.stat().st_mtime - age,) * 2)
    kept.keep(b"world")
    assert {name for name in kept.names() if name.startswith(PART)} == {f"{PART}young"}


def test_trouble_is_told_once_and_costs_nobody_a_file(kept: Kept) -> None:
    kept.place.write_text("in the way")
    kept.keep(b"hello")
    kept.keep(b"world")
    assert kept.complaints == [f"files of payloads cannot be kept in `{kept.place}` for later runs: file exists"]


def test_who_wants_what_another_fetches_waits_for_that_and_no_longer_than_it_wants(kept: Kept) -> None:
    cancel, turns = Cancel(), []
    first, second = threading.Event(), threading.Event()

    def fetch() -> None:
        with kept.cache.turn("a", Cancel()):
            first.set()
            assert second.wait(10)
            turns.append("first")

    thread = threading.Thread(target=fetch)
    thread.start()
    assert first.wait(10)
    cancel.set()
    with pytest.raises(ModelError), kept.cache.turn("a", cancel):
        turns.append("canceled")
    with kept.cache.turn("b", Cancel()):
        turns.append("other")
    second.set()
    with kept.cache.turn("a", Cancel()):
        turns.append("second")
    thread.join()
    assert turns == ["other", "first", "second"]
