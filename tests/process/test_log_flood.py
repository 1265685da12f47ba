"""A log that is told more than it can keep: what is missing is counted, and that is said now and then only."""

import re
import time
from pathlib import Path

import pytest

from gen_worker_supervisor.logs.log import DROPPED_EVERY_S, Log

pytestmark = [pytest.mark.process, pytest.mark.quiet]

LINES = 200_000
DROPPED = re.compile(r"\[log\] (\d+) older lines dropped: they came faster than they could be kept")


def test_of_a_flood_the_oldest_lines_go_and_how_many_is_said_once_a_second(tmp_path: Path) -> None:
    began = time.monotonic()
    with (tmp_path / "stderr").open("wb") as stderr:
        log = Log(fd=stderr.fileno())
        for number in range(LINES):
            log.printed("cpu:0", None, f"line {number}")
        log.close(60.0)
    took_s = time.monotonic() - began
    written = (tmp_path / "stderr").read_text().splitlines()
    missing = [int(found[1]) for line in written if (found := DROPPED.fullmatch(line))]
    lines = [line for line in written if line.startswith("[cpu:0] line ")]
    assert missing, "it was no flood"
    assert len(missing) <= took_s / DROPPED_EVERY_S + 2
    assert len(lines) + sum(missing) == LINES
    assert lines[-1] == f"[cpu:0] line {LINES - 1}"
