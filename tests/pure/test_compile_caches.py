"""Folders for what compilers make: whose they are, what they are called, and which go when there is no room."""

import shutil
import threading
from pathlib import Path

import pytest

from gen_worker.compile_caches import (
    COMPILED,
    UNUSED_S,
    CompileCaches,
    Compiled,
    compiled,
    key_of,
    surplus,
    tidy,
    variables,
)
from gen_worker_supervisor.core.state import Device
from gen_worker_supervisor.processes.environment import child_environment

NAMES = {"TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"}
CUDA = {"CUDA_CACHE_PATH", "CUDA_CACHE_MAXSIZE"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    caches = CompileCaches(tmp_path / "compiled")
    caches.open(["90", "89"])
    caches.close()
    return caches.root


def test_kinds_of_devices_have_folders_of_their_own(root: Path) -> None:
    assert {each.name for each in root.iterdir()} == {key_of("90"), key_of("89")}
    assert key_of("90").startswith("sm90-")
    assert key_of("").startswith("cpu-")
    assert root.stat().st_mode & 0o777 == 0o700


def test_a_child_is_told_the_folders_of_its_device(root: Path) -> None:
    gpu = Device("cuda:0", "cuda", index=0, uuid="GPU-0", sm="90")
    seen = child_environment({COMPILED: str(root)}, gpu)
    assert seen.keys() >= NAMES | CUDA
    assert all(Path(seen[name]).parent == root / key_of("90") for name in NAMES | {"CUDA_CACHE_PATH"})
    assert COMPILED not in seen
    assert not child_environment({}, gpu).keys() & (NAMES | CUDA)


def test_what_the_author_has_set_stays(root: Path) -> None:
    given = {"TRITON_CACHE_DIR": "/mine", "CUDA_CACHE_PATH": "/mine"}
    assert variables(str(root), "90", given).keys() == {"TORCHINDUCTOR_CACHE_DIR"}


def test_a_folder_that_could_not_be_made_is_not_told(root: Path) -> None:
    assert variables(str(root), "75", {}) == {}


@pytest.mark.parametrize(
    ("most_bytes", "going"),
    [(100, ["old"]), (20, ["old", "middle"]), (15, ["old", "middle", "fresh"]), (0, ["old", "middle", "fresh"])],
)
def test_the_longest_unused_go_first_and_nothing_that_is_used(most_bytes: int, going: list[str]) -> None:
    now = 10 * UNUSED_S
    found = [
        Compiled("old", 10, now - 2 * UNUSED_S, False),
        Compiled("fresh", 10, now - 1, False),
        Compiled("middle", 10, now - 60, False),
        Compiled("used", 10, 0.0, True),
    ]
    assert surplus(found, most_bytes, now) == going


def test_what_a_supervisor_holds_stays_until_it_ends(root: Path) -> None:
    (root / key_of("90") / "inductor/kernel.so").write_bytes(bytes(1000))
    holding = CompileCaches(root)
    holding.open(["90"])
    (used,) = [each for each in compiled(root) if each.in_use]
    assert (used.key, used.bytes) == (key_of("90"), 1000)
    assert tidy(root, 0) == [key_of("89")]
    holding.close()
    assert tidy(root, 0) == [key_of("90")]
    assert compiled(root) == []


def test_folders_that_another_supervisor_removes_meanwhile_are_passed_over(root: Path) -> None:
    passing = [root / f"passing-{number}" for number in range(200)]

    def remove_all() -> None:
        for each in passing:
            shutil.rmtree(each, ignore_errors=True)

    for each in passing:
        each.mkdir()
    other = threading.Thread(target=remove_all)
    other.start()
    assert {each.key for each in compiled(root)} >= {key_of("90"), key_of("89")}
    other.join()
