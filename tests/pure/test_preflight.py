"""What is looked at before a worker starts: the folder of models, and the file system that it is on."""

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gen_worker.cli.failure import Failure
from gen_worker.cli.settings import check_folders
from gen_worker.fetch.config import FetchConfig
from gen_worker.preflight import CacheError, CacheLook, filesystem_of, look_at_cache

NOBODY = 65534
MOUNTS = r"""
22 1 259:1 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p1 rw
23 22 0:21 / /tmp rw,nosuid - tmpfs tmpfs rw,size=16m
24 23 8:1 / /tmp/model_cache rw master:2 - xfs /dev/sdb1 rw
25 22 0:22 / /with\040blank rw - ramfs none rw
26 22 0:23 / /covered rw - ext4 /dev/a rw
27 26 0:24 / /covered rw - tmpfs none rw
not a mount
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me", "ext4"),
        ("/tmp", "tmpfs"),
        ("/tmp/x/y", "tmpfs"),
        ("/tmpx", "ext4"),
        ("/tmp/model_cache/cas", "xfs"),
        ("/with blank/a", "ramfs"),
        ("/covered", "tmpfs"),
    ],
)
def test_a_path_is_on_the_mount_that_is_nearest_above_it(path: str, kind: str) -> None:
    assert filesystem_of(Path(path), MOUNTS) == kind
    assert filesystem_of(Path(path), "") == ""


@pytest.mark.parametrize(("filesystem", "in_memory"), [("tmpfs", True), ("ramfs", True), ("ext4", False), ("", False)])
def test_what_is_kept_in_memory_is_known(filesystem: str, in_memory: bool) -> None:
    assert CacheLook("/c", True, 1, 2, filesystem).in_memory is in_memory


def test_a_folder_of_models_is_made_written_to_and_left_as_it_was(tmp_path: Path) -> None:
    look = look_at_cache(tmp_path / "new" / "cache")
    assert look.writable
    assert 0 < look.free_bytes <= look.total_bytes
    assert os.listdir(tmp_path / "new" / "cache" / "cas") == []


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match=f"models cannot be kept in `{tmp_path}/file`: not a directory") as caught:
        look_at_cache(tmp_path / "file")
    assert "TENSORHUB_CACHE_DIR" in caught.value.hint


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder of a user who may not do everything; the test is that user."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as name:
        if user == 0:
            os.chown(name, NOBODY, NOBODY)
            os.seteuid(NOBODY)
        try:
            yield Path(name)
        finally:
            for folder in Path(name).rglob("*"):
                if folder.is_dir():
                    folder.chmod(0o700)
            os.seteuid(user)


@pytest.mark.promise(29)
def test_a_cache_that_may_only_be_read_is_of_use_when_it_holds_models(unprivileged: Path) -> None:
    records = unprivileged / "cas" / "manifests"
    records.mkdir(parents=True)
    (unprivileged / "cas").chmod(0o500)
    with pytest.raises(CacheError, match=os.strerror(errno.EACCES).lower()):
        look_at_cache(unprivileged)
    (records / "key.json").touch()
    assert not look_at_cache(unprivileged).writable


def test_a_cache_that_may_not_even_be_read_is_refused(unprivileged: Path) -> None:
    (unprivileged / "cas" / "manifests").mkdir(parents=True)
    (unprivileged / "cas" / "manifests" / "key.json").touch()
    (unprivileged / "cas").chmod(0)
    with pytest.raises(CacheError, match=f"models cannot be kept in `{unprivileged}`: permission denied"):
        look_at_cache(unprivileged)


@pytest.mark.parametrize("name", [".", "cas"])
def test_who_looks_after_a_cache_is_told_that_it_may_not_be_read(unprivileged: Path, name: str) -> None:
    (unprivileged / "root" / "cas").mkdir(parents=True)
    (closed := unprivileged / "root" / name).chmod(0)
    with pytest.raises(Failure, match=f"`{closed}` may not be read by user {os.geteuid()}") as caught:
        check_folders(FetchConfig(root=str(unprivileged / "root"), hf_cache=str(unprivileged / "hub")))
    assert "TENSORHUB_CACHE_DIR" in str(caught.value.hint)
