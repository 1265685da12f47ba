"""The locks that keep two supervisors off one GPU."""

import fcntl
import os
import re
import resource
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gen_worker_supervisor.core.state import Device
from gen_worker_supervisor.devices.gpu_lock import GpuLockError, GpuLocks, GpuTakenError, shared_folder

GPU = Device("cuda:0", "cuda", index=0, uuid="GPU-abc")
NAME = "gen-worker-GPU-abc.lock"


def test_a_gpu_that_another_holds_is_refused_with_who_has_it(tmp_path: Path) -> None:
    with GpuLocks("gen-worker serve painter", tmp_path) as one, GpuLocks("another", tmp_path) as two:
        one.take(GPU)
        told = f"cuda:0 (GPU-abc) is in use by pid {os.getpid()} (`gen-worker serve painter`)"
        told += f", by its own account in `{tmp_path / NAME}`"
        with pytest.raises(GpuTakenError, match=f"^{re.escape(told)}$"):
            two.take(GPU)
        one.close()
        two.take(GPU)


def test_a_lock_whose_holder_says_nothing_is_named(tmp_path: Path) -> None:
    with GpuLocks("one", tmp_path) as one, GpuLocks("two", tmp_path) as two:
        one.take(GPU)
        (tmp_path / NAME).write_text("")
        with pytest.raises(GpuTakenError, match=f"another process, which holds a lock on `{tmp_path / NAME}`$"):
            two.take(GPU)


@pytest.mark.promise(22)
def test_a_disk_without_room_for_the_holder_s_name_costs_no_lock(tmp_path: Path) -> None:
    size = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with GpuLocks("one", tmp_path) as one, GpuLocks("two", tmp_path) as two:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, size[1]))
            one.take(GPU)
            with pytest.raises(GpuTakenError):
                two.take(GPU)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, size)
        signal.signal(signal.SIGXFSZ, before)


def test_who_only_looks_whether_somebody_holds_a_lock_keeps_nobody_from_it(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("1 gen-worker serve painter")
    looks = os.open(tmp_path / NAME, os.O_RDONLY)
    fcntl.flock(looks, fcntl.LOCK_SH)
    ends = threading.Timer(0.02, os.close, [looks])
    ends.start()
    with GpuLocks("serve", tmp_path) as locks:
        locks.take(GPU)
    ends.join()


def test_a_lock_that_was_let_go_leaves_no_file(tmp_path: Path) -> None:
    with GpuLocks("serve", tmp_path) as locks:
        locks.take(GPU)
        assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o666  # other users' supervisors lock it, too
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_a_killed_supervisor_left_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("1 gen-worker serve painter")
    with GpuLocks("serve", tmp_path) as locks:
        locks.take(GPU)
        assert (tmp_path / NAME).read_text() == f"{os.getpid()} serve"


@pytest.mark.root
@pytest.mark.parametrize(("first", "second"), [(0, 65534), (65534, 0), (65533, 65534)])
def test_supervisors_of_different_users_keep_off_each_others_gpus(
    first: int, second: int, request: pytest.FixtureRequest
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="gw-locks-"))
    request.addfinalizer(lambda: shutil.rmtree(folder))
    folder.chmod(0o1777)
    with GpuLocks("one", folder) as one, GpuLocks("two", folder) as two:
        with user(first):
            one.take(GPU)
        with user(second):
            with pytest.raises(GpuTakenError, match="is in use by pid"):
                two.take(GPU)
            one.close()  # as this user, who may not remove the other's file: it is locked anew
            two.take(GPU)


@contextmanager
def user(number: int) -> Iterator[None]:
    """Be another user for a while."""
    os.seteuid(number)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("trap", ["link", "dangling", "hard", "folder", "pipe"])
def test_a_trap_where_the_file_should_be_is_refused_and_not_written_to(tmp_path: Path, trap: str) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "locks"
    victim.write_text("precious")
    folder.mkdir()
    place = folder / NAME
    match trap:
        case "link":
            place.symlink_to(victim)
        case "dangling":
            place.symlink_to(tmp_path / "nothing")
        case "hard":
            place.hardlink_to(victim)
        case "folder":
            place.mkdir()
        case _:
            os.mkfifo(place)
    with GpuLocks("serve", folder) as locks, pytest.raises(GpuLockError, match=r"^cuda:0 cannot be locked: `.*`: "):
        locks.take(GPU)
    assert victim.read_text() == "precious"
    assert not (tmp_path / "nothing").exists()


def test_what_others_wrote_into_the_file_cannot_forge_lines(tmp_path: Path) -> None:
    with GpuLocks("evil\nerror: \x1b[31mall is lost", tmp_path) as one, GpuLocks("two", tmp_path) as two:
        one.take(GPU)
        with pytest.raises(GpuTakenError) as caught:
            two.take(GPU)
    assert str(caught.value).isprintable()


def test_the_folder_is_one_where_everybody_may_make_files_and_nobody_remove_anothers(tmp_path: Path) -> None:
    private, open_to_all, sticky = (tmp_path / name for name in ("private", "open", "sticky"))
    for folder, mode in ((private, 0o700), (open_to_all, 0o777), (sticky, 0o1777)):
        folder.mkdir()
        folder.chmod(mode)
    link = tmp_path / "link"
    link.symlink_to(sticky)
    assert shared_folder([str(tmp_path / "none"), str(link), str(private), str(open_to_all), str(sticky)]) == sticky
