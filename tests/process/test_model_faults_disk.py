"""Disks that are full or may not be written, and caches that several have at once."""

import errno
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from gen_worker.fetch.cancel import Cancel
from gen_worker.models.errors import ModelError
from gen_worker.models.wanted import Wanted
from gen_worker.testing import LoopbackHub, NoSize, Slow
from gen_worker.wire.fetching import Evicted, Fetch, Fetched, FetchFailed, Keep, Noted
from tests.fetchers import (
    Bare,
    config_for,
    contents,
    fetcher_for,
    refused,
    repository,
    size_of,
    supervising,
    visible,
)
from tests.served import until

pytestmark = pytest.mark.process

TINY = Wanted("hf", "acme/tiny")
BIG = Wanted("hf", "acme/big")
MEBI = 1 << 20
HEADERS = 1 * MEBI  # of weights that are looked at before they are fetched, at most


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_repo("acme/tiny", repository())
        yield hub


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system in memory."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


# --- full -------------------------------------------------------------------------------------------------------------


@pytest.mark.promise(22)
@pytest.mark.root
def test_what_has_no_room_is_refused_before_a_byte_of_it_comes(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_repo("acme/big", repository(10 * MEBI))
    with mounted(tmp_path / "disk", "size=16m") as disk, fetcher_for(config_for(disk, hub.url)) as fetcher:
        error = refused(fetcher, BIG)
        assert (error.kind, error.ref, error.retryable) == ("insufficient_disk", "acme/big", True)
        assert "16 MiB free" in str(error)
        assert "`gen-worker cache ls`" in error.hint
        assert hub.wire_bytes("acme/big/*") < HEADERS
        assert contents(fetcher.have(TINY).snapshot) == repository()


@pytest.mark.promise(22)
@pytest.mark.root
def test_a_disk_that_fills_up_in_the_middle_is_told_and_others_are_served_on(hub: LoopbackHub, tmp_path: Path) -> None:
    files = repository(10 * MEBI)
    hub.add_repo("acme/big", files)
    hub.fail("acme/big/*", NoSize())
    with mounted(tmp_path / "disk", "size=16m") as disk:
        config = config_for(disk, hub.url)
        with fetcher_for(config) as fetcher:
            error = refused(fetcher, BIG)
            assert (error.kind, error.file) == ("insufficient_disk", "model.safetensors")
            assert "`model.safetensors` of `acme/big`" in str(error)
            assert visible(config) == []
        for part in disk.rglob("*.part*"):
            part.unlink()
        with fetcher_for(config) as fetcher:
            assert contents(fetcher.have(TINY).snapshot) == repository()


def test_the_least_recently_used_model_makes_room_and_it_is_told(hub: LoopbackHub, tmp_path: Path) -> None:
    for name in ("first", "second", "third"):
        hub.add_repo(f"acme/{name}", repository(MEBI, seed=len(name)))
    config = config_for(tmp_path / "cache", hub.url, cache_bytes=5 * MEBI)
    first, second, third = (Wanted("hf", f"acme/{name}") for name in ("first", "second", "third"))
    with supervising(config, tmp_path / "log") as supervisor:
        supervisor.process.send(Keep(["acme/first"]))
        for each in (first, second):
            supervisor.release(supervisor.fetched(each).number)
        supervisor.fetched(third)
        assert [each.ref for each in supervisor.reports if isinstance(each, Evicted)] == ["acme/second"]
        assert isinstance(supervisor.end_of(supervisor.fetch(first, probe=True)), Fetched)
        absent = supervisor.end_of(supervisor.fetch(second, probe=True))
        assert isinstance(absent, FetchFailed)
        assert absent.kind == "absent"


def test_a_model_in_use_is_not_evicted_for_another(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_repo("acme/big", repository(MEBI))
    config = config_for(tmp_path, hub.url, cache_bytes=2 * MEBI)
    with fetcher_for(config) as fetcher:
        held = fetcher.have(TINY)
        assert refused(fetcher, BIG).kind == "insufficient_disk"
        assert contents(held.snapshot) == repository()


# --- read-only --------------------------------------------------------------------------------------------------------


@pytest.mark.promise(29)
@pytest.mark.root
def test_a_cache_that_may_only_be_read_serves_what_it_has_and_says_so(hub: LoopbackHub, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=16m") as disk:
        config = config_for(disk, hub.url)
        with fetcher_for(config) as fetcher:
            fetcher.have(TINY)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        hub.add_repo("acme/big", repository(MEBI))
        with supervising(config, tmp_path / "log") as supervisor:
            assert contents(supervisor.fetched(TINY).snapshot) == repository()
            failure = supervisor.failed(BIG)
            noted = [each.message for each in supervisor.reports if isinstance(each, Noted)]
    assert (failure.kind, failure.retryable) == ("read_only", False)
    assert "`acme/big`" in failure.message
    assert str(disk) in failure.message
    assert "TENSORHUB_CACHE_DIR" in failure.hint
    assert noted == [f"models come from `{disk}` only as it is: it cannot be written"]


@pytest.mark.root
def test_a_cache_in_memory_is_told_at_the_start(hub: LoopbackHub, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=16m") as disk, fetcher_for(config_for(disk / "cache")) as fetcher:
        (warning,) = fetcher.warnings()
    assert "is on a tmpfs" in warning


def test_a_model_of_a_lower_cache_is_used_where_it_lies(hub: LoopbackHub, tmp_path: Path) -> None:
    commit = hub.add_repo("acme/tiny", repository())
    with fetcher_for(config_for(tmp_path / "lower", hub.url)) as fetcher:
        fetcher.have(TINY)
    config = config_for(tmp_path / "cache", hub.url, lower=(str(tmp_path / "lower"),), offline=True)
    with fetcher_for(config) as fetcher:
        for wanted in (TINY, Wanted("hf", "acme/tiny", revision=commit)):
            found = fetcher.have(wanted)
            assert contents(found.snapshot) == repository()
            assert found.snapshot.path.startswith(str(tmp_path / "lower"))


# --- shared -----------------------------------------------------------------------------------------------------------


@pytest.mark.promise(27)
def test_two_processes_that_need_one_model_at_once_download_it_once(hub: LoopbackHub, tmp_path: Path) -> None:
    files = repository(4 * MEBI)
    hub.add_repo("acme/big", files)
    hub.fail("acme/big/*", Slow(16.0 * MEBI))
    config = config_for(tmp_path, hub.url)
    with Bare(config) as one, Bare(config) as other, ThreadPoolExecutor(2) as threads:
        ends = list(threads.map(lambda bare: bare.fetched(BIG), [one, other]))
        assert [contents(end.snapshot) == files for end in ends] == [True, True]
    assert sum(end.fetched_bytes for end in ends) == size_of(files)
    assert hub.wire_bytes("acme/big/*") < size_of(files) + 2 * HEADERS


def test_two_models_that_share_bytes_share_their_download_and_both_count_it(hub: LoopbackHub, tmp_path: Path) -> None:
    weights = repository(4 * MEBI)["model.safetensors"]
    models = {f"acme/{name}": {"config.json": name.encode(), "model.safetensors": weights} for name in ("a", "b")}
    for name, files in models.items():
        hub.add_snapshot(name, files)
    hub.fail("*.safetensors", Slow(16.0 * MEBI))
    counts: dict[str, list[int]] = {name: [] for name in models}
    with fetcher_for(config_for(tmp_path, hub.url)) as fetcher, ThreadPoolExecutor(2) as threads:

        def have(name: str) -> int:
            found = fetcher.have(
                Wanted("tensorhub", name), on_progress=lambda done, total, retries: counts[name].append(done)
            )
            assert contents(found.snapshot) == models[name]
            return found.fetched_bytes

        fetched = sum(threads.map(have, models))
    assert fetched == len(weights) + 2
    for name, files in models.items():
        assert counts[name] == sorted(counts[name])
        assert counts[name][-1] == size_of(files)
        assert len(counts[name]) > 5


def test_the_end_of_one_fetch_does_not_end_another_of_the_same_model(hub: LoopbackHub, tmp_path: Path) -> None:
    files = repository(4 * MEBI)
    hub.add_repo("acme/big", files)
    hub.fail("acme/big/*", Slow(16.0 * MEBI))
    cancel, half = Cancel(), threading.Event()
    with fetcher_for(config_for(tmp_path, hub.url)) as fetcher, ThreadPoolExecutor(2) as threads:

        def told(done: int, total: int | None, retries: int) -> None:
            if done > 4 * MEBI:
                half.set()

        first = threads.submit(fetcher.have, BIG, cancel=cancel, on_progress=told)
        second = threads.submit(fetcher.have, BIG)
        assert half.wait(20.0)
        cancel.set()
        with pytest.raises(ModelError, match="was canceled"):
            first.result(2.0)
        assert contents(second.result(20.0).snapshot) == files


def test_a_process_that_hangs_at_a_download_does_not_hang_the_others(hub: LoopbackHub, tmp_path: Path) -> None:
    files = repository(4 * MEBI)
    hub.add_repo("acme/big", files)
    hub.fail("acme/big/*", Slow(8.0 * MEBI))
    config = config_for(tmp_path, hub.url, stall_timeout_s=0.5)
    with Bare(config) as hanging, fetcher_for(config) as fetcher:
        hanging.channel.send(Fetch(1, BIG))
        until(lambda: list(tmp_path.rglob("*.part")), what="its download")
        assert contents(fetcher.have(BIG).snapshot) == files  # as long as something comes it is waited for
        hub.add_repo("acme/big", repository(4 * MEBI, seed=2))
        assert isinstance(hanging.end(), Fetched)
        hanging.channel.send(Fetch(2, BIG))
        until(lambda: list(tmp_path.rglob("*.part")), what="its second download")
        hanging.process.send_signal(signal.SIGSTOP)
        error = refused(fetcher, BIG)
        assert error.kind == "stalled"
        assert error.file in files  # either of them, whichever it stopped at
        assert str(error) == f"`{error.file}` of `acme/big`: another process is at it, and nothing comes"
        hanging.process.kill()
        assert contents(fetcher.have(BIG).snapshot) == repository(4 * MEBI, seed=2)


def test_an_error_of_the_disk_names_the_model(hub: LoopbackHub, tmp_path: Path) -> None:
    blocked = tmp_path / "cache"
    blocked.write_bytes(b"a file where the cache should be")
    with fetcher_for(config_for(blocked, hub.url)) as fetcher:
        error = refused(fetcher, TINY)
    assert error.kind in ("download_failed", "read_only")
    assert "`acme/tiny`" in str(error)
    assert os.strerror(errno.ENOTDIR).lower() in str(error)
