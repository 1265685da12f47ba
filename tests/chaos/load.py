"""A steady load: clients that each ask, wait for the one answer, and ask again."""

import itertools
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from gen_worker.client import Client, JobError
from gen_worker.rundir import SupervisorUnreachable
from tests.served import PATIENCE_S, Server, until

PACE_S = 0.008
WINDOW_S = 0.15
WINDOWS = 5
LEEWAY_S = 0.01  # a turn of the scheduler, where two cores have more to do than that
HOPS = 4  # so often a request and its answer wait for a process to be scheduled
RATIO = 1.2


class Answered(NamedTuple):
    """One request and its end; `pid` is of the child that answered it, `late_s` how late its client woke to ask."""

    request_id: str
    asked: float
    took_s: float
    kind: str
    pid: int | None
    late_s: float


class Load:
    """Some clients over NDJSON and some over the control socket."""

    def __init__(
        self, server: Server, *, clients: int = 4, functions: tuple[str, ...] = ("quick",), pace_s: float = PACE_S
    ) -> None:
        self.answers: list[Answered] = []
        self.asked: Counter[str] = Counter()
        self.problems: list[str] = []
        self._server = server
        self._waiting: dict[str, float] = {}
        self._functions = functions
        self._pace_s = pace_s
        self._over = threading.Event()
        ways = itertools.cycle((self._speak_lines, self._speak_control))
        self._threads = [
            threading.Thread(target=next(ways), args=(f"load-{number}",), daemon=True) for number in range(clients)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ask nothing more, and wait for what was asked."""
        self._over.set()
        for thread in self._threads:
            thread.join(2 * PATIENCE_S)

    def lost(self) -> list[str]:
        """Return the requests that have no answer, or another number of them than one."""
        answers = Counter(each.request_id for each in self.answers)
        return [name for name in self.asked | answers if answers[name] != 1 or self.asked[name] != 1]

    def kinds(self) -> Counter[str]:
        """Return how often jobs have ended how."""
        return Counter(each.kind for each in self.answers)

    def between(self, begin: float, end: float) -> list[Answered]:
        """Return what was asked between two moments, and answered."""
        return [each for each in self.answers if begin <= each.asked < end]

    def window(self, begin: float) -> list[Answered]:
        """Wait until a window from a moment on is over, and return what was asked in it, once all of it is answered."""
        self._over.wait(max(0.0, begin + WINDOW_S - time.monotonic()))
        until(lambda: min(self._waiting.values(), default=begin + WINDOW_S) >= begin + WINDOW_S, what="an answer")
        return self.between(begin, begin + WINDOW_S)

    def windows(self, begin: float, end: float) -> list[list[Answered]]:
        """Return the windows from one moment to another, and as many behind it as make several."""
        count = max(WINDOWS, int((end - begin) / WINDOW_S))
        return [self.window(begin + number * WINDOW_S) for number in range(count)]

    def _turns(self, name: str) -> Iterator[tuple[str, str, float]]:
        for number in itertools.count():
            due = time.monotonic() + self._pace_s
            if self._over.wait(self._pace_s):
                return
            late_s = time.monotonic() - due
            request_id = f"{name}-{number}"
            self.asked[request_id] += 1
            self._waiting[name] = time.monotonic()
            yield request_id, self._functions[number % len(self._functions)], late_s
            self._waiting.pop(name)

    def _speak_lines(self, name: str) -> None:
        with self._server.connect() as connection:
            for request_id, function, late_s in self._turns(name):
                began = time.monotonic()
                try:
                    connection.send(function, request_id, text=request_id)
                    frame = connection.frame()
                except (OSError, AssertionError) as error:
                    self.problems.append(f"{request_id}: {error}")
                    return
                took_s = time.monotonic() - began
                pid = frame["events"][-1]["value"]["pid"] if frame["ok"] else None
                kind = "ok" if frame["ok"] else frame["error"]["kind"]
                self.answers.append(Answered(frame["request_id"], began, took_s, kind, pid, late_s))
            if not connection.is_silent():
                self.problems.append(f"{name}: more answers than requests")

    def _speak_control(self, name: str) -> None:
        with Client(self._server.control, name=name) as client:
            for request_id, function, late_s in self._turns(name):
                began = time.monotonic()
                try:
                    pid, kind = (
                        client.submit(function, {"text": request_id}, request_id=request_id).result()["pid"],
                        "ok",
                    )
                except JobError as error:
                    pid, kind = None, error.kind
                except SupervisorUnreachable as error:
                    self.problems.append(f"{request_id}: {error}")
                    return
                self.answers.append(Answered(request_id, began, time.monotonic() - began, kind, pid, late_s))


@contextmanager
def loaded(
    server: Server, *, clients: int = 4, functions: tuple[str, ...] = ("quick",), pace_s: float = PACE_S
) -> Iterator[Load]:
    """Load a server until the body ends; then each request has had exactly one answer."""
    load = Load(server, clients=clients, functions=functions, pace_s=pace_s)
    load.start()
    try:
        yield load
    finally:
        load.stop()
    assert load.problems == []
    assert load.lost() == []


def p99_s(windows: list[list[Answered]]) -> float:
    """Return the time within which 99 of 100 are answered: the median of several windows, each with its own."""
    return _median_p99([[each.took_s for each in window] for window in windows])


def undisturbed(calm: list[list[Answered]], beside: list[list[Answered]]) -> bool:
    """Whether those beside a fault were answered as fast as they are without one.

    What the machine had no core for is not held against them: a client that only sleeps notices that, too.
    """
    starved_s = _median_p99([[each.late_s for each in window] for window in beside])
    return p99_s(beside) <= RATIO * p99_s(calm) + LEEWAY_S + HOPS * starved_s


def _median_p99(windows: list[list[float]]) -> float:
    each = (statistics.quantiles(window, n=100, method="inclusive")[98] for window in windows if len(window) > 1)
    return statistics.median(each)
