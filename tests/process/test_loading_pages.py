"""Pages of mapped files are entered as a whole."""

import mmap
import os
import re
from pathlib import Path

import pytest

from gen_worker_child.models.pages import populate

pytestmark = pytest.mark.process

SIZE = 16 << 20


def resident_kib(name: str) -> int:
    """Return how much of the mappings whose path holds `name` this process has in its page tables."""
    found, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = name in line
        elif ours and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found


def test_mapped_files_on_disk_are_entered_whole_and_no_others(tmp_path: Path) -> None:
    for name in ("wanted.bin", "other.bin"):
        (tmp_path / name).write_bytes(os.urandom(SIZE))
    with open(tmp_path / "wanted.bin", "rb") as wanted, open(tmp_path / "other.bin", "rb") as other:
        maps = [mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) for file in (wanted, other)]
    populate([tmp_path / "wanted.bin"])
    assert resident_kib("wanted.bin") == SIZE >> 10
    assert resident_kib("other.bin") == 0
    for each in maps:
        each.close()


def test_files_in_memory_are_entered_through_their_links(tmp_path: Path) -> None:
    descriptor = os.memfd_create("held-weights", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, bytes(SIZE))
        link = tmp_path / "weights"
        link.symlink_to(f"/proc/{os.getpid()}/fd/{descriptor}")
        with open(link, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        populate([link])
        assert resident_kib("held-weights") == SIZE >> 10
        mapped.close()
    finally:
        os.close(descriptor)


def test_files_that_are_not_mapped_cost_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    populate([tmp_path / "a"])
