"""What a download makes of a disk that is full, or cannot be written."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gen_worker.models.errors import ModelError
from gen_worker.testing import LoopbackHub
from tests.downloading import PIECE, Downloads, content_of, listed

pytestmark = pytest.mark.process

CONTENT = content_of(40 * PIECE)


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, timeout=10)
    if mounted.returncode:
        pytest.skip("needs to be allowed to mount")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True, timeout=10)


@pytest.mark.promise(22)
@pytest.mark.root
def test_a_disk_that_fills_up_is_told_and_what_came_is_kept(hub: LoopbackHub, small_disk: Path) -> None:
    file = listed(hub, CONTENT)
    downloads = Downloads(small_disk)
    with pytest.raises(ModelError) as caught:
        downloads.run(file)
    assert caught.value.kind == "insufficient_disk"
    assert caught.value.retryable
    assert downloads.told.retries == 0
    assert not downloads.to.exists()
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True, timeout=10)
    assert Downloads(small_disk).run(file) < len(CONTENT) - 4 * PIECE
    assert downloads.to.read_bytes() == CONTENT


@pytest.mark.promise(29)
@pytest.mark.root
def test_a_disk_that_is_read_only_is_told(hub: LoopbackHub, small_disk: Path) -> None:
    file = listed(hub, CONTENT)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True, timeout=10)
    with pytest.raises(ModelError) as caught:
        Downloads(small_disk).run(file)
    assert caught.value.kind == "read_only"
    assert str(small_disk) in str(caught.value)
    assert hub.requests == []


@pytest.mark.promise(37)
def test_a_link_where_the_part_should_be_is_not_followed(hub: LoopbackHub, tmp_path: Path) -> None:
    file = listed(hub, CONTENT)
    downloads = Downloads(tmp_path / "cache")
    downloads.folder.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    os.symlink(victim, downloads.folder / "blob.part")
    with pytest.raises(ModelError):
        downloads.run(file)
    (downloads.folder / "blob.part").unlink()
    os.symlink(victim, downloads.folder / "blob.part.map")
    downloads.run(file)
    assert downloads.names == ["blob"]
    assert victim.read_text() == "untouched"
