"""A module whose import does not end: who looks at it is told, and can ask where it is."""

import os
import re
import signal
import threading
from pathlib import Path

import pytest

from gen_worker.cli.patience import told_when_long
from gen_worker.discovery.process import ask
from tests.served import until

pytestmark = pytest.mark.process

SLOW = """
import os, sys, time
print("begun", file=sys.stderr, flush=True)
while not os.path.exists("{gate}"):
    time.sleep(0.01)
from gen_worker import RequestContext, endpoint
import msgspec

class Empty(msgspec.Struct):
    pass

@endpoint
def f(ctx: RequestContext, payload: Empty) -> Empty:
    return payload
"""


def test_an_import_that_takes_long_is_told_of_and_shows_where_it_is(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    gate = tmp_path / "gate"
    (tmp_path / "slow.py").write_text(SLOW.format(gate=gate))
    answers: list[bytes] = []
    asking = threading.Thread(target=lambda: answers.append(ask("slow", [str(tmp_path)], notice_s=0.5)))
    asking.start()
    said = ""

    def has_said(words: str) -> str:
        nonlocal said
        said += capfd.readouterr().err
        return said if words in said else ""

    until(lambda: has_said("still importing `slow`\n"), what="the notice")
    found = re.search(r"hint: `kill -USR1 (\d+)` shows where it is\n", said)
    assert found is not None
    until(lambda: has_said("begun"), what="the import")
    os.kill(int(found[1]), signal.SIGUSR1)
    until(lambda: has_said('slow.py", line 5 in <module>'), what="where it is")
    gate.touch()
    asking.join(10)
    assert b'"f"' in answers[0]


def test_who_waits_for_run_to_import_is_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    with told_when_long("importing `slow`", notice_s=0.05):
        until(lambda: capfd.readouterr().err == "still importing `slow`\nhint: Ctrl-C ends it\n", what="the notice")
    with told_when_long("importing `quick`", notice_s=60):
        pass
    assert [each.name for each in threading.enumerate() if isinstance(each, threading.Timer) and each.is_alive()] == []
    assert capfd.readouterr().err == ""
