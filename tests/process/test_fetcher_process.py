"""The supervisor's fetcher: one process that is asked, aborted, killed and replaced."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from gen_worker.models.snapshot import Snapshot, SnapshotEntry
from gen_worker.models.wanted import Wanted
from gen_worker.testing import LoopbackHub, Slow, Stall, Status
from gen_worker.wire.channel import MAX_DESCRIPTORS
from gen_worker.wire.fetching import Fetched, FetchFailed, Fetching, Hold, Keep, Noted
from gen_worker_supervisor.files.fetching import fetcher_environment
from tests.fetchers import Bare, Supervisor, config_for, contents, repository, size_of, supervising, visible
from tests.served import alive, until

pytestmark = pytest.mark.process

TINY = Wanted("hf", "acme/tiny")
TOKEN = "hf_canary_0123456789"


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def supervisor(hub: LoopbackHub, cache: Path, tmp_path: Path) -> Iterator[Supervisor]:
    with supervising(config_for(cache, hub.url, hf_token=hub.token), tmp_path / "log") as supervisor:
        yield supervisor


def test_a_model_is_brought_whole_once_and_leased(hub: LoopbackHub, supervisor: Supervisor) -> None:
    files = repository()
    commit = hub.add_repo("acme/tiny", files)
    first = supervisor.fetched(TINY)
    assert contents(first.snapshot) == files
    assert (first.snapshot.commit, first.fetched_bytes) == (commit, size_of(files))
    second = supervisor.fetched(TINY)
    assert (second.snapshot.key, second.fetched_bytes) == (first.snapshot.key, 0)
    assert [len(supervisor.attached[each.number]) for each in (first, second)] == [1, 1]


def test_a_download_is_noted_with_its_size_as_it_begins_and_what_is_there_is_not(
    hub: LoopbackHub, supervisor: Supervisor
) -> None:
    hub.add_repo("acme/tiny", repository(1_000_000))
    supervisor.fetched(TINY)
    supervisor.fetched(TINY)
    assert [each for each in supervisor.reports if isinstance(each, Noted)] == [
        Noted("info", "downloading `acme/tiny`, 1.9 MiB")
    ]
    kinds = [type(each) for each in supervisor.reports]
    assert kinds.index(Noted) < kinds.index(Fetched)


def test_a_probe_downloads_nothing(hub: LoopbackHub, supervisor: Supervisor) -> None:
    hub.add_repo("acme/tiny", repository(1_000_000))  # 2 MB, of which the header may be looked at
    absent = supervisor.end_of(supervisor.fetch(TINY, probe=True))
    assert isinstance(absent, FetchFailed)
    assert (absent.kind, absent.message) == ("absent", "`acme/tiny` is not on this machine")
    assert hub.wire_bytes("*.safetensors") < 500_000
    hub.fail("api:*", Status(503))  # who fetches what was just looked for does not ask anew what it is
    supervisor.fetched(TINY)
    hub.heal()
    present = supervisor.end_of(supervisor.fetch(TINY, probe=True))
    assert isinstance(present, Fetched)


def test_how_far_a_fetch_is_comes_at_most_ten_times_a_second(hub: LoopbackHub, supervisor: Supervisor) -> None:
    files = repository(500_000)
    hub.add_repo("acme/tiny", files)
    hub.fail("*.safetensors", Slow(1_000_000))
    began = time.monotonic()
    number = supervisor.fetch(TINY)
    assert isinstance(supervisor.end_of(number), Fetched)
    seconds = time.monotonic() - began
    told = [report for report in supervisor.reports if isinstance(report, Fetching)]
    assert 3 <= len(told) <= 10 * seconds + 2
    done = [report.bytes_done for report in told]
    assert done == sorted(done)
    assert 0 < done[-1] <= size_of(files)
    assert {report.bytes_total for report in told} <= {None, size_of(files)}
    assert isinstance(supervisor.reports[-1], Fetched)


def test_an_aborted_fetch_ends_within_200_ms_and_can_be_ordered_again(hub: LoopbackHub, supervisor: Supervisor) -> None:
    files = repository(1_000_000)
    hub.add_repo("acme/tiny", files)
    hub.fail("*.safetensors", Stall(1_500_000, 30.0))
    number = supervisor.fetch(TINY)
    supervisor.until(
        lambda: any(isinstance(each, Fetching) and each.bytes_done > 1_000_000 for each in supervisor.reports),
        what="the stall",
    )
    began = time.monotonic()
    supervisor.abort(number)
    end = supervisor.end_of(number)
    assert time.monotonic() - began < 0.2
    assert isinstance(end, FetchFailed)
    assert (end.kind, end.retryable) == ("canceled", True)
    assert end.message == "the download of `acme/tiny` was canceled"
    hub.heal()
    assert contents(supervisor.fetched(TINY).snapshot) == files


def test_a_fetcher_that_is_killed_is_replaced_and_goes_on_where_it_was(
    hub: LoopbackHub, supervisor: Supervisor
) -> None:
    hub.add_repo("acme/tiny", repository(1_000_000))
    hub.fail("*.safetensors", Slow(2_000_000))
    supervisor.fetch(TINY)
    supervisor.until(lambda: any(isinstance(each, Fetching) for each in supervisor.reports), what="progress")
    first = supervisor.process.pid
    os.kill(first, signal.SIGKILL)
    supervisor.until(lambda: supervisor.lost == 1, what="the loss")
    hub.heal()
    assert contents(supervisor.fetched(TINY).snapshot) == repository(1_000_000)
    assert supervisor.process.pid != first
    assert supervisor.lost == 1
    assert supervisor.events == "died (SIGKILL); another one starts now, nothing is lost"


def test_orders_wait_for_a_fetcher_that_cannot_read_them_or_is_yet_to_come(
    hub: LoopbackHub, supervisor: Supervisor
) -> None:
    hub.add_repo("acme/tiny", repository())
    supervisor.fetched(TINY)
    os.kill(supervisor.process.pid, signal.SIGSTOP)
    began = time.monotonic()
    numbers = [supervisor.fetch(TINY) for _ in range(500)]
    assert time.monotonic() - began < 1.0
    os.kill(supervisor.process.pid, signal.SIGCONT)
    assert all(isinstance(supervisor.end_of(number), Fetched) for number in numbers)
    os.kill(supervisor.process.pid, signal.SIGKILL)
    supervisor.until(lambda: supervisor.lost == 1, what="the first death")
    os.kill(supervisor.process.pid, signal.SIGKILL)
    supervisor.until(lambda: supervisor.lost == 2, what="the second death")
    assert supervisor.process.pid == 0  # the next one starts in a second
    number = supervisor.fetch(TINY)
    supervisor.process.send(Keep(["acme/tiny"]))
    assert isinstance(supervisor.end_of(number), Fetched)


@pytest.mark.promise(39)
def test_nothing_secret_is_in_its_environment_its_command_or_its_log(
    hub: LoopbackHub, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "CIVITAI_API_KEY", "OPENAI_API_KEY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, TOKEN)
    hub.add_repo("acme/tiny", repository(), gated=True)
    with supervising(config_for(cache, hub.url, hf_token=TOKEN), tmp_path / "log") as supervisor:
        failure = supervisor.failed(TINY)
        process = psutil.Process(supervisor.process.pid)
        seen = [json.dumps(process.environ()), *process.cmdline(), supervisor.log, failure.message, failure.hint]
    assert failure.kind == "unauthorized"
    assert not [each for each in seen if TOKEN in each]
    assert fetcher_environment({"PATH": "/bin", "HF_TOKEN": TOKEN, "AUTH_TOKEN": TOKEN}) == {"PATH": "/bin"}


def test_it_loads_nothing_heavy(hub: LoopbackHub, supervisor: Supervisor) -> None:
    hub.add_repo("acme/tiny", repository())
    supervisor.fetched(TINY)
    process = psutil.Process(supervisor.process.pid)
    assert process.memory_info().rss < 60 << 20
    assert not [each.path for each in process.memory_maps() if "torch" in each.path or "numpy" in each.path]
    code = "import gen_worker.fetch.server, sys; print(*sorted({'asyncio', 'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# --- the protocol -----------------------------------------------------------------------------------------------------


def test_the_end_of_its_socket_ends_it(cache: Path) -> None:
    with Bare(config_for(cache)) as bare:
        bare.channel.close()
        assert bare.process.wait(10.0) == 0


def test_a_request_to_end_ends_it_at_once_whatever_it_does(hub: LoopbackHub, cache: Path, tmp_path: Path) -> None:
    hub.add_repo("acme/tiny", repository(1_000_000))
    hub.fail("*.safetensors", Stall(1_500_000, 60.0))
    with supervising(config_for(cache, hub.url), tmp_path / "log") as supervisor:
        supervisor.fetch(TINY)
        supervisor.until(lambda: any(isinstance(each, Fetching) for each in supervisor.reports), what="progress")
        pid = supervisor.process.pid
        began = time.monotonic()
        supervisor.process.close()
        assert time.monotonic() - began < 1.0
        assert not alive(pid)
        assert supervisor.lost == 0
    assert visible(config_for(cache, hub.url)) == []


@pytest.mark.parametrize("frame", [b"", b"\x93\x00\x00\x91\xa5fetch", b"garbage" * 1000])
def test_one_that_is_spoken_to_in_another_language_ends(frame: bytes) -> None:
    with Bare() as bare:
        bare.channel.sock.send(frame)
        assert bare.process.wait(10.0) == (1 if frame else 0)


def test_a_supervisor_that_is_killed_takes_its_fetcher_along(cache: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib; from tests.fetchers import *\n"
        f"config = config_for(pathlib.Path({str(cache)!r}), offline=True)\n"
        f"with supervising(config, pathlib.Path({str(tmp_path / 'log')!r})) as s:\n"
        "    s.failed(Wanted('hf', 'acme/tiny'))\n"
        "    print(s.process.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert alive(pid)
        process.kill()
    until(lambda: not alive(pid), 2.0, what="the fetcher's end")


def test_a_model_of_more_files_than_a_frame_can_name_is_had_without_their_names(
    hub: LoopbackHub, supervisor: Supervisor
) -> None:
    names = {f"{'n' * 240}-{number}.dat" for number in range(300)}
    hub.add_repo("acme/many", dict.fromkeys(names, b"content"))
    fetched = supervisor.fetched(Wanted("hf", "acme/many", files=("*",)))
    assert fetched.snapshot.files == ()
    assert set(os.listdir(fetched.snapshot.path)) == names
    assert len(supervisor.attached[fetched.number]) == 1
    told = "`acme/many` has 300 files, too many to be held in memory: it is loaded from disk"
    assert Noted("info", told) in supervisor.reports
    assert supervisor.lost == 0


# --- holding ----------------------------------------------------------------------------------------------------------


def test_a_held_model_comes_as_sealed_memory_a_few_files_a_frame(supervisor: Supervisor, tmp_path: Path) -> None:
    files = {f"part-{number:02}.bin": os.urandom(1000 + number) for number in range(2 * MAX_DESCRIPTORS + 3)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    snapshot = Snapshot(
        TINY, "key", "c" * 40, str(tmp_path), tuple(SnapshotEntry(name, len(each)) for name, each in files.items())
    )
    number = supervisor.fetch(TINY)
    supervisor.process.send(Hold(number, snapshot))  # they are numbered apart
    frames = supervisor.held(number)
    assert isinstance(frames, list), frames
    assert [len(frame.paths) for frame in frames] == [MAX_DESCRIPTORS, MAX_DESCRIPTORS, 3]
    assert [frame.last for frame in frames] == [False, False, True]
    paths = [path for frame in frames for path in frame.paths]
    held = dict(zip(paths, supervisor.attached[number], strict=True))
    assert {path: os.pread(fd, 10_000, 0) for path, fd in held.items()} == files
    assert all(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE for fd in held.values())


def test_a_model_that_cannot_be_held_is_told(supervisor: Supervisor, tmp_path: Path) -> None:
    snapshot = Snapshot(TINY, "key", "c" * 40, str(tmp_path), (SnapshotEntry("gone.safetensors", 10),))
    supervisor.process.send(Hold(1, snapshot))
    failure = supervisor.held(1)
    assert not isinstance(failure, list)
    assert "`gone.safetensors` of `acme/tiny` cannot be read" in failure.message
