"""Children that end at every moment of a job's life, under load: one answer each, and nothing of anybody else's."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.chaos.hosts import chaotic, steady, unaffected, until_all_serve
from tests.chaos.load import Answered, Load, p99_s, undisturbed
from tests.chaos.moments import MOMENTS, Moment
from tests.chaos.results import injected, survived
from tests.chaos.traces import traces, until_nothing_more
from tests.served import Server, alive, until

pytestmark = [pytest.mark.process, pytest.mark.quiet]

READY_S = 2.0
FAULTS = {
    "SIGKILL": signal.SIGKILL,
    "SIGSEGV": signal.SIGSEGV,
    "SIGABRT": signal.SIGABRT,
    "exit": signal.SIGUSR1,
}


@contextmanager
def at(moment: Moment) -> Iterator[None]:
    """Say at which moment it was that the body failed."""
    try:
        yield
    except AssertionError as error:
        error.add_note(f"at the moment `{moment.__name__}`")
        raise


def break_at(server: Server, load: Load, moment: Moment, name: str, number: int) -> tuple[float, list[Answered]]:
    """End a child at a moment; return how long its device had none, and what was answered meanwhile beside it."""
    with moment(server, name) as victim:
        others = {device: pid for device, pid in server.pids().items() if pid != victim}
        began = time.monotonic()
        os.kill(victim, number)
        until(lambda: not alive(victim), what="the end of the child")
    until(lambda: victim not in server.pids().values(), what="the news of it")
    until_all_serve(server)
    took_s = time.monotonic() - began
    assert took_s < READY_S
    assert {device: pid for device, pid in server.pids().items() if device in others} == others
    return took_s, unaffected(server, load.window(began))


@pytest.mark.promise(1, 47, 48)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_child_that_ends_at_any_moment_costs_its_job_no_more_than_a_rerun(tmp_path: Path, fault: str) -> None:
    with chaotic(tmp_path) as server, steady(server) as load:
        before = traces(server)
        calm: list[list[Answered]] = []
        beside: list[list[Answered]] = []
        for moment in MOMENTS:
            calm.append(load.window(time.monotonic()))
            row = injected(1, f"a child ends by {fault}")
            with at(moment):
                took_s, answers = break_at(server, load, moment, f"{fault}-{moment.__name__}", FAULTS[fault])
                until_nothing_more(server, before)
            survived(row, took_s)
            beside.append(answers)
        row.measured = f"p99 {p99_s(calm) * 1000:.0f} ms, beside it {p99_s(beside) * 1000:.0f} ms"
        assert undisturbed(calm, beside), row.measured
