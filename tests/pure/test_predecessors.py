"""Whose processes and folder are removed after a supervisor was killed: nobody's of whom that is not certain."""

import socket
from pathlib import Path

import pytest

from gen_worker.rundir import CONTROL, SupervisorFile
from gen_worker_supervisor.processes.predecessors import here, mark_of, surely_gone

MARK = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir(mode=0o700)
    return tmp_path / "run"


def killed(run_dir: Path, pid: int, boot_id: str, host: str) -> Path:
    """Leave a folder as a supervisor does that was killed."""
    folder = run_dir / str(pid)
    folder.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(str(folder / CONTROL))
    SupervisorFile(pid, boot_id, str(folder / CONTROL), None, 1, host).write(folder)
    return folder


@pytest.mark.promise(13)
def test_a_killed_supervisor_of_this_host_is_gone(run_dir: Path) -> None:
    folder = killed(run_dir, 7, MARK, here())
    assert list(surely_gone(run_dir)) == [folder]


@pytest.mark.promise(13)
@pytest.mark.parametrize("boot_id", ["", "0", MARK[:-1], MARK.upper(), f"{MARK}\n", "/"])
def test_a_mark_that_others_may_have_ends_nobody(run_dir: Path, boot_id: str) -> None:
    killed(run_dir, 7, boot_id, here())
    assert surely_gone(run_dir) == {}


@pytest.mark.promise(13)
@pytest.mark.parametrize("host", ["", "another kernel"])
def test_a_supervisor_of_another_host_that_shares_the_folder_is_left_alone(run_dir: Path, host: str) -> None:
    killed(run_dir, 7, MARK, host)
    assert surely_gone(run_dir) == {}


def test_where_nothing_tells_one_host_from_another_nobody_is_gone(tmp_path: Path) -> None:
    assert here(tmp_path) == ""
    (tmp_path / "proc/5").mkdir(parents=True)
    assert mark_of(5, tmp_path) is None
    (tmp_path / "proc/5/environ").write_bytes(b"A=b\0")
    assert mark_of(5, tmp_path) is None
