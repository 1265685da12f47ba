"""What `/proc` tells of a process: only what moves is seen to move, and nothing of it is forgotten."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gen_worker_supervisor.processes.proc import Sight, Subject, processes, stat_of
from tests.served import until

pytestmark = pytest.mark.process

# Its first thread computes when it is told to, its second one does what it is told; both tell nothing by themselves.
PROGRAM = """
import os, subprocess, sys, threading

def burn(times=3_000_000):
    for _ in range(times): pass

def work():
    told.write(f"{threading.get_native_id()}\\n"); told.flush()
    for order in orders:
        match order.strip():
            case "burn": burn()
            case "write": os.write(null, b"x" * 100_000)
            case "start": helpers.append(subprocess.Popen(run + [helper], stdin=subprocess.PIPE, stdout=1))
            case "orphan": subprocess.run(run + [parent])
            case "help": helpers[-1].stdin.write(b"\\n"); helpers[-1].stdin.flush(); continue
            case "end": helpers[-1].stdin.close(); helpers.pop().wait()
        told.write("done\\n"); told.flush()

helper = "import sys\\nfor line in sys.stdin:\\n  for _ in range(3_000_000): pass\\n  print('done', flush=True)"
parent = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'for _ in range(30_000_000): pass'])"
run, helpers = [sys.executable, "-c"], []
orders, told, null = sys.stdin, sys.stdout, os.open("/dev/null", os.O_WRONLY)
worker = threading.Thread(target=work)
worker.start()
first = os.open(sys.argv[1], os.O_RDONLY)
while os.read(first, 1): burn()
"""


class Watched:
    """A running program that is looked at."""

    def __init__(self, process: "subprocess.Popen[str]", fifo: str) -> None:
        assert process.stdout is not None
        self.process = process
        self.subject = Subject(process.pid)
        self.thread = int(process.stdout.readline())
        self.first = open(fifo, "w")  # noqa: SIM115 - closed by `watched`
        self._seen: Sight | None = None
        until(self._rests, what="its second thread waiting for an order")

    def _rests(self) -> bool:
        before, self._seen = self._seen, self.look()
        return before == self._seen

    def does(self, order: str) -> None:
        """Have its second thread do something, and wait until that is done."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{order}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def look(self, *, closely: bool = True) -> Sight:
        return self.subject.look(self.thread, processes() if closely else None)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    fifo = str(tmp_path / "first")
    os.mkfifo(fifo)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, fifo],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        found = Watched(process, fifo)
        try:
            yield found
        finally:
            found.first.close()
            os.killpg(process.pid, signal.SIGKILL)


def test_a_thread_that_sleeps_does_not_move_at_all(watched: Watched) -> None:
    before = watched.look()
    after = [watched.look() for _ in range(20)][-1]
    assert after == before
    assert after.state == "S"
    assert after.wchan


def test_what_its_job_thread_does_is_seen_to_the_nanosecond(watched: Watched) -> None:
    before = watched.look(closely=False)
    watched.does("")
    once = watched.look(closely=False)
    assert 0 < once.job_cpu_s - before.job_cpu_s < 0.01
    watched.does("burn")
    assert watched.look(closely=False).job_cpu_s > once.job_cpu_s + 0.02


def test_what_its_first_thread_does_is_not_the_jobs(watched: Watched) -> None:
    before = watched.look()
    watched.first.write("xxx")
    watched.first.flush()
    everything = Subject(watched.process.pid)
    everything.look(0, processes())
    until(lambda: everything.look(0, processes()).cpu_s > 0.05)
    after = watched.look()
    assert (after.job_cpu_s, after.cpu_s, after.io_bytes) == (before.job_cpu_s, before.cpu_s, before.io_bytes)


def test_what_is_read_and_written_is_counted(watched: Watched) -> None:
    before = watched.look()
    watched.does("write")
    assert 100_000 <= watched.look().io_bytes - before.io_bytes < 110_000


def test_a_descendant_counts_and_its_end_takes_nothing_away(watched: Watched) -> None:
    watched.does("start")
    before = watched.look()
    watched.does("help")
    working = watched.look()
    assert working.cpu_s > before.cpu_s + 0.02
    watched.does("end")
    assert watched.look().cpu_s >= working.cpu_s


def test_what_stays_in_its_session_when_its_parent_ended_counts(watched: Watched) -> None:
    before = watched.look()
    watched.does("orphan")
    watched.look()
    until(lambda: watched.look().cpu_s > before.cpu_s + 0.2)


@pytest.mark.parametrize("look", [lambda subject: subject.look(0), lambda subject: subject.glance()])
def test_a_process_that_is_gone_cannot_be_looked_at(look: Callable[[Subject], Sight]) -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    with pytest.raises(OSError, match=str(process.pid)):
        look(Subject(process.pid))


def test_a_name_of_a_process_may_hold_anything() -> None:
    found = stat_of("7 (a) R) (b) S 3 7 5 0 -1 0 0 0 0 0 150 50 0 0 20 0 1 0 4711 0 0")
    assert (found.state, found.parent, found.session, found.cpu_s, found.started) == ("S", 3, 5, 2.0, 4711)
