"""Random faults at random moments: `SOAK_S` says for how long, `CHAOS_SEED` repeats a run."""

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from gen_worker.client import JobError
from tests.chaos.hosts import SERVING, allowed_lag_s, chaotic, until_all_serve
from tests.chaos.load import loaded
from tests.chaos.results import injected, survived
from tests.chaos.traces import role, traces, until_nothing_more
from tests.served import Server, alive, until

pytestmark = [pytest.mark.process, pytest.mark.quiet]

SOAK_S = float(os.environ.get("SOAK_S", "15"))
SEED = int(os.environ.get("CHAOS_SEED", time.time_ns() % 1_000_000))
LONG_S = 300.0  # of less than this a slope means nothing
SLOPE_BYTES = 1_000_000  # in 10 minutes
CLIENTS = 8
PACE_S = 0.02
PAUSE_S = 0.25
MIB = 1 << 20
ENDS = {"ok", "child_died", "quarantined"}  # a job that two faults hit is not run a third time


class Storm:
    """What breaks one thing after the other."""

    def __init__(self, server: Server, rng: random.Random) -> None:
        self._server = server
        self._rng = rng
        self._number = 0
        self._ways: dict[str, tuple[int, Callable[[], None]]] = {
            "a child has SIGKILL": (8, lambda: self._signal(signal.SIGKILL)),
            "a child has SIGSEGV": (8, lambda: self._signal(signal.SIGSEGV)),
            "a child has SIGABRT": (8, lambda: self._signal(signal.SIGABRT)),
            "a child exits": (8, lambda: self._signal(signal.SIGUSR1)),
            "a child is stopped for a while": (4, self._stop),
            "a job that hangs is killed": (4, self._hang),
            "a client leaves its stream": (4, self._leave),
            "a client speaks rubbish": (4, self._babble),
            "the zygote is killed": (1, self._kill_zygote),
        }

    def strike(self) -> None:
        """Break one thing."""
        self._number += 1
        names = list(self._ways)
        (name,) = self._rng.choices(names, [self._ways[each][0] for each in names])
        row = injected(44, f"storm: {name}")
        began = time.monotonic()
        self._ways[name][1]()
        survived(row, time.monotonic() - began)

    def _victim(self) -> int:
        """Return a child that serves: three that die before they do cost a device its place."""
        pids = until(lambda: [each.pid for each in self._server.status().gpus if each.phase in SERVING and each.pid])
        return self._rng.choice(pids)

    def _signal(self, number: int) -> None:
        victim = self._victim()
        with suppress(ProcessLookupError):  # it may have been dying of something else
            os.kill(victim, number)
        until(lambda: not alive(victim), what="the end of a child")

    def _stop(self) -> None:
        victim = self._victim()
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGSTOP)
            began, for_s = time.monotonic(), self._rng.uniform(0, PAUSE_S)
            until(lambda: time.monotonic() > began + for_s)
            os.kill(victim, signal.SIGCONT)

    def _hang(self) -> None:
        job = self._server.client.submit("hold-the-interpreter", {"text": str(self._number)})
        began, for_s = time.monotonic(), self._rng.uniform(0, PAUSE_S)
        until(lambda: time.monotonic() > began + for_s)
        self._server.client.kill(job.request_id, now=True)
        with pytest.raises(JobError):
            job.result()

    def _leave(self) -> None:
        with self._server.connect() as connection:
            connection.send("items", f"left-{self._number}", stream=True, times=100_000, text="x" * 100)
            connection.frame()

    def _babble(self) -> None:
        with self._server.connect() as connection:
            connection.write(self._rng.randbytes(self._rng.randrange(1, 4096)) + b"\n")

    def _kill_zygote(self) -> None:
        children = self._server.pids().values()
        for pid in self._server.processes():
            if role(pid) == "gen_worker_child" and pid not in children:
                os.kill(pid, signal.SIGKILL)


def slope_bytes(samples: list[tuple[float, int]]) -> float:
    """Return by how many bytes memory grows in 10 minutes, by the line nearest to the samples."""
    mean_at = sum(at for at, _ in samples) / len(samples)
    mean = sum(rss for _, rss in samples) / len(samples)
    spread = sum((at - mean_at) ** 2 for at, _ in samples)
    return 600 * sum((at - mean_at) * (rss - mean) for at, rss in samples) / spread


@pytest.mark.promise(44)
@pytest.mark.timeout(SOAK_S + 120)
def test_a_storm_of_faults_loses_no_request_and_leaves_nothing(tmp_path: Path) -> None:
    print(f"CHAOS_SEED={SEED}")
    rng = random.Random(SEED)
    with chaotic(tmp_path, GEN_WORKER_QUARANTINE_S="1") as server:
        with loaded(server, clients=CLIENTS, functions=("quick", "echo", "held"), pace_s=PACE_S) as load:
            until(lambda: len(load.answers) > 100, what="the load")
            before = traces(server)
            storm, samples = Storm(server, rng), []
            whole, began = injected(44, "storm: all of it"), time.monotonic()
            while (now := time.monotonic()) < began + SOAK_S:
                storm.strike()
                pause_s = rng.uniform(0, 2 * PAUSE_S)
                until(lambda: time.monotonic() > now + pause_s)  # noqa: B023 - called before the next turn
                if now > began + SOAK_S / 2:
                    samples.append((now, psutil.Process(server.pid).memory_info().rss))
            until_all_serve(server)
            until_nothing_more(server, before)
            lag_s = server.status().loop_lag_p99_s or 0.0
        grown = slope_bytes(samples)
        measured = f"{load.kinds().total()} jobs, {load.kinds()['ok']} ok; lag p99 {lag_s * 1000:.0f} ms; seed {SEED}"
        if SOAK_S >= LONG_S:
            measured += f"; {grown / 1e6:+.2f} MB in 10 minutes"
        assert set(load.kinds()) <= ENDS
        assert lag_s < allowed_lag_s(load)
        assert SOAK_S < LONG_S or grown < SLOPE_BYTES
        survived(whole, time.monotonic() - began, measured)
