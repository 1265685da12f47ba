"""Files of lines: how they are called and read, when the next one begins, which go when there are too many."""

import os
import resource
from pathlib import Path

import pytest

from gen_worker.line_files import LineFileError, files_in, is_written, keep_within, lines_of, name_of
from gen_worker_supervisor.logs.log_files import LineFiles

BOOT = "0123456789abcdef"


def written(folder: Path, name: str, size: int, *, age_s: float = 0.0) -> Path:
    path = folder / name
    path.write_bytes(b"x" * (size - 1) + b"\n")
    os.utime(path, (1000.0 - age_s, 1000.0 - age_s))
    return path


def content(folder: Path) -> bytes:
    return b"".join(line for file in files_in(folder) for line in lines_of(file))


class Files:
    """The files of a supervisor, and what it complained of."""

    def __init__(self, folder: Path, limit_bytes: int, boot_id: str = BOOT) -> None:
        self.complaints: list[str] = []
        self.files = LineFiles(folder, limit_bytes, boot_id, self.complaints.append)


def test_files_come_in_the_order_of_time_and_nothing_else_is_one(tmp_path: Path) -> None:
    names = [name_of("20261122-131502", BOOT, 2), name_of("20251122-131502", "f" * 32, 1), "x.jsonl", "notes"]
    for name in names:
        written(tmp_path, name, 2)
    assert [file.path.name for file in files_in(tmp_path)] == [names[1], names[0]]
    assert [(file.boot, file.number) for file in files_in(tmp_path)] == [("ffffffff", 1), ("01234567", 2)]
    assert files_in(tmp_path / "none") == []


@pytest.mark.promise(37)
def test_a_folder_that_anybody_may_write_to_is_not_believed(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(LineFileError, match="not a folder of this user alone"):
        files_in(tmp_path)


def test_half_a_line_and_a_link_are_not_read(tmp_path: Path) -> None:
    (tmp_path / name_of("20261122-131502", BOOT, 1)).write_bytes(b"whole\nhal")
    (tmp_path / "secret").write_bytes(b"secret\n")
    (tmp_path / name_of("20261122-131502", BOOT, 2)).symlink_to(tmp_path / "secret")
    whole, link = files_in(tmp_path)
    assert list(lines_of(whole)) == [b"whole\n"]
    with pytest.raises(LineFileError):
        list(lines_of(link))


def test_what_was_written_longest_ago_goes_first(tmp_path: Path) -> None:
    oldest = written(tmp_path, name_of("20261122-131504", BOOT, 1), 100, age_s=3)
    middle = written(tmp_path, name_of("20261122-131503", BOOT, 2), 100, age_s=2)
    newest = written(tmp_path, name_of("20261122-131502", BOOT, 3), 100, age_s=1)
    assert keep_within(tmp_path, 250) == 200
    assert [path.exists() for path in (oldest, middle, newest)] == [False, True, True]


def test_a_file_that_a_supervisor_still_writes_stays(tmp_path: Path) -> None:
    one = Files(tmp_path / "logs", 800)
    one.files.write(b"x" * 60 + b"\n")
    (file,) = files_in(tmp_path / "logs")
    assert is_written(file.path)
    other = Files(tmp_path / "logs", 800, "f" * 32)
    for _ in range(50):
        other.files.write(b"y" * 60 + b"\n")
    assert file.path.exists()
    one.files.write(b"more\n")
    assert list(lines_of(file))[-1] == b"more\n"
    one.files.close()
    assert not is_written(file.path)
    other.files.write(b"y" * 60 + b"\n")
    other.files.close()


def test_all_files_together_take_no_more_than_the_limit_and_the_last_lines_are_there(tmp_path: Path) -> None:
    kept = Files(tmp_path / "logs", 8000)
    for number in range(1000):
        kept.files.write(b"line %04d of a thousand lines\n" % number)
    kept.files.close()
    text = content(tmp_path / "logs")
    assert 6000 < len(text) <= 8000
    assert text.endswith(b"line 0999 of a thousand lines\n")
    modes = {file.path.stat().st_mode & 0o777 for file in files_in(tmp_path / "logs")}
    assert (modes, (tmp_path / "logs").stat().st_mode & 0o777) == ({0o600}, 0o700)


def test_who_removes_the_files_of_a_live_supervisor_gets_new_ones(tmp_path: Path) -> None:
    kept = Files(tmp_path / "logs", 8000)
    kept.files.write(b"one\n")
    for file in files_in(tmp_path / "logs"):
        file.path.unlink()
    (tmp_path / "logs").rmdir()
    kept.files.write(b"two\n")
    kept.files.close()
    assert content(tmp_path / "logs") == b"two\n"
    assert kept.complaints == []


def test_what_cannot_be_written_is_said_once_and_holds_nobody(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("in the way")
    kept = Files(tmp_path / "logs", 8000)
    for _ in range(3):
        kept.files.write(b"one\n")
    assert kept.files.lost == 12
    (complaint,) = kept.complaints
    assert complaint.startswith("nothing more is kept: ")
    assert str(tmp_path / "logs") in complaint


def test_a_full_disk_is_not_littered_with_empty_files(tmp_path: Path) -> None:
    kept = Files(tmp_path / "logs", 8000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        kept.files.write(b"one\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (kept.files.lost, len(kept.complaints), files_in(tmp_path / "logs")) == (4, 1, [])
