"""How a person names a moment, and how a line of the log reads."""

from pathlib import Path

import pytest

from gen_worker.cli.failure import Failure
from gen_worker.cli.log_reading import Meant, kept, limited
from gen_worker.cli.logs import text_of
from gen_worker.cli.since import clock, moment
from gen_worker.line_files import name_of
from gen_worker.log_files import Line, encode, folder_in

NOW = 1_795_370_187.25  # 2026-11-22T17:56:27.25Z


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("10m", NOW - 600),
        ("1h30m", NOW - 5400),
        ("2d", NOW - 172_800),
        ("90s", NOW - 90),
        ("1795370000", 1_795_370_000.0),
        ("1795370000.5", 1_795_370_000.5),
        ("2026-11-22T17:56:00", 1_795_370_160.0),
        ("2026-11-22T17:56:00Z", 1_795_370_160.0),
        ("2026-11-22 18:56:00+01:00", 1_795_370_160.0),
    ],
)
def test_a_moment_is_so_long_ago_or_a_date_or_a_number(text: str, found: float) -> None:
    assert moment(text, NOW) == found


@pytest.mark.parametrize("text", ["", "yesterday", "-5", "10x", "nan", "inf", "1e300", "2026-13-01"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(Failure, match="is no moment"):
        moment(text, NOW)


def test_a_time_has_its_date_where_that_is_not_todays() -> None:
    assert clock(NOW, NOW + 60) == "17:56:27.250Z"
    assert clock(NOW - 86_400, NOW) == "2026-11-21 17:56:27.250Z"


def test_a_line_says_when_who_whose_and_how_grave_it_is() -> None:
    line = Line(NOW, "warning", "cuda:0", "careful\nlook", "r1", "cuda:0", 7)
    assert text_of(line, NOW) == "17:56:27.250Z cuda:0 job=r1 warning: careful\n  look"
    assert text_of(Line(NOW, "info", "serve", "ready"), NOW) == "17:56:27.250Z serve ready"
    painted = text_of(line, NOW, colour=True)
    assert painted == "\x1b[2m17:56:27.250Z\x1b[0m cuda:0 job=r1 \x1b[33mwarning:\x1b[0m careful\n  look"


def test_no_line_can_steer_the_terminal_of_who_reads_it() -> None:
    line = Line(NOW, "info", "cpu:0\x1b[2J", "\x1b[2Jgone\rforged", "r\x9b", "cpu:0")
    assert not any(sign in text_of(line, NOW) for sign in "\x1b\r\x9b")


class Files:
    """The files of several supervisors in one run directory."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = folder_in(run_dir)
        self.folder.mkdir(mode=0o700)

    def write(self, boot_id: str, begun: str, *lines: Line) -> None:
        (self.folder / name_of(begun, boot_id, 1)).write_bytes(b"".join(encode(line) + b"\n" for line in lines))


def line(seq: int, ts: float, message: str = "x", job: str | None = None) -> Line:
    return Line(ts, "info", "cpu:0", message, job, "cpu:0", seq)


def test_of_the_live_supervisor_the_files_have_what_it_does_not_remember_and_of_dead_ones_what_is_older(
    tmp_path: Path,
) -> None:
    files = Files(tmp_path)
    files.write("a" * 32, "20261122-000001", line(1, 10.0, "dead 1"), line(2, 90.0, "dead 2"))
    files.write("b" * 32, "20261122-000002", line(1, 50.0, "own 1"), line(2, 60.0, "own 2"), line(3, 70.0, "own 3"))
    found = kept(tmp_path, Meant(), "b" * 32, line(3, 70.0))
    assert [told.line.message for told in found] == ["dead 1", "own 1", "own 2"]


def test_only_lines_that_are_meant_are_read(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.write(
        "a" * 32,
        "20261122-000001",
        line(1, 10.0, "out of MEMORY", "r1"),
        line(2, 20.0, "out of memory", "r2"),
        line(3, 30.0, "fine", "r1"),
        Line(40.0, "error", "serve", "broke", seq=4, event=True),
    )

    def found(meant: Meant) -> list[int]:
        return [told.line.seq for told in kept(tmp_path, meant)]

    assert found(Meant(grep="Memory")) == [1, 2]
    assert found(Meant(request_id="r1", since=20.0)) == [3]
    assert found(Meant(events=True)) == [4]
    assert found(Meant(level="warning")) == [4]
    assert found(Meant(device="cpu:0")) == [1, 2, 3]
    assert [told.line.seq for told in limited(kept(tmp_path, Meant()), 2)] == [3, 4]
    assert limited(kept(tmp_path, Meant()), 0) == []
