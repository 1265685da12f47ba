"""Where files of payloads lie in a folder of runs: each run's own place, which is removed whatever happens."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gen_worker.scratch import PREFIX, claimed_folder, remove_abandoned
from gen_worker_supervisor.files.input_folders import InputFolders
from tests.served import until


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def folders(runs: Path) -> Iterator[InputFolders]:
    made = InputFolders()
    made.lie_in(runs)
    yield made
    made.close()
    assert list(runs.iterdir()) == []


def killed(runs: Path, *run_ids: str) -> None:
    """Leave what a worker leaves that is killed while these runs have files."""
    made = InputFolders()
    made.lie_in(runs)
    for run_id in run_ids:
        (made.new(run_id) / "file").write_text("left")
    os.close(made._claim)
    made._remover.shutdown()


def names(runs: Path) -> set[str]:
    return {each for each in os.listdir(runs) if not each.startswith(PREFIX)}


def test_a_run_has_a_folder_of_its_name_while_it_lives(folders: InputFolders, runs: Path) -> None:
    folder = folders.new("r-1")
    assert folder == runs / "r-1" / "inputs"
    assert folder.stat().st_mode & 0o777 == 0o700
    folders.remove(folder)
    until(lambda: names(runs) == set())


def test_two_runs_of_one_name_do_not_share_a_folder(folders: InputFolders, runs: Path) -> None:
    first, second = folders.new("a/b"), folders.new("a b")
    assert first != second
    folders.remove(first)
    until(lambda: names(runs) == {second.parent.name})


def test_workers_that_share_a_folder_of_runs_take_no_name_of_each_other(folders: InputFolders, runs: Path) -> None:
    others = [runs / name for name in ("one", "one-1", "one-2")]
    for other in others:
        other.mkdir(parents=True)
    made = {folders.new("one").parent, folders.new("one").parent}
    assert len(made) == 2
    assert not made.intersection(others)
    for other in others:
        other.rmdir()


@pytest.mark.parametrize("run_id", ["cache", f"{PREFIX}x", "..", ".", "", "../../x", "x" * 300])
def test_no_run_takes_the_place_of_something_else(folders: InputFolders, runs: Path, run_id: str) -> None:
    folder = folders.new(run_id)
    assert folder.parent.parent == runs
    assert not folder.parent.name.startswith(("cache", PREFIX))
    assert len(folder.parent.name) < 100


def test_what_a_killed_worker_left_is_removed_and_nothing_else(runs: Path) -> None:
    runs.mkdir()
    killed(runs, "left", f"{PREFIX}odd", "inputs")
    (runs / "stranger" / "inputs").mkdir(parents=True)
    (runs / "cache").mkdir()
    living = InputFolders()
    living.lie_in(runs)
    mine = living.new("mine")
    other = InputFolders()
    other.lie_in(runs)
    until(lambda: names(runs) == {"mine", "stranger", "cache"})
    other.close()
    assert mine.is_dir()
    living.close()
    assert names(runs) == {"stranger", "cache"}


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("in the way")
    folders = InputFolders()
    folders.lie_in(tmp_path / "runs")
    with pytest.raises(OSError, match="exists"):
        folders.new("r")
    folders.close()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a folder another user's")
def test_a_folder_of_another_user_is_not_used(runs: Path) -> None:
    runs.mkdir()
    os.chown(runs, 4711, 4711)
    folders = InputFolders()
    folders.lie_in(runs)
    with pytest.raises(PermissionError):
        folders.new("r")
    folders.close()
    shutil.rmtree(runs)


def own_of(runs: Path) -> Path:
    """The folder in which entries say what is its worker's."""
    (own,) = (each for each in runs.iterdir() if each.name.startswith(PREFIX))
    return own


def test_a_run_whose_folder_cannot_be_made_leaves_nothing(folders: InputFolders, runs: Path) -> None:
    folders.remove(folders.new("one"))
    until(lambda: list(own_of(runs).iterdir()) == [])
    (own_of(runs) / "two").symlink_to(runs / "no" / "where")
    with pytest.raises(FileNotFoundError):
        folders.new("two")
    assert names(runs) == set()


@pytest.mark.parametrize("in_runs", [True, False])
def test_whoever_tidies_up_among_temporary_files_costs_no_later_job(
    in_runs: bool, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folders = InputFolders()
    if in_runs:
        folders.lie_in(runs)
    folders.remove(folders.new("one"))
    place = runs if in_runs else tmp_path
    until(lambda: list(own_of(place).iterdir()) == [])
    own_of(place).rmdir()
    assert folders.new("two").is_dir()
    until(lambda: own_of(place).is_dir())
    own_of(place).rename(tmp_path / "away")
    folders.close()


def test_a_folder_that_is_swept_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = tempfile.mkdtemp
    made: list[str] = []

    def swept_at_once(**options: Any) -> str:
        made.append(make(**options))
        if len(made) == 1:
            remove_abandoned(tmp_path)
        return made[-1]

    monkeypatch.setattr("tempfile.mkdtemp", swept_at_once)
    folder, claim = claimed_folder(tmp_path)
    os.close(claim)
    assert list(tmp_path.iterdir()) == [folder] == [Path(made[1])]
