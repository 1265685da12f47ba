"""One client beside a crowd: thousands of jobs that wait, clients that never read: `python -m benchmarks.crowd`."""

import contextlib
import json
import resource
import socket
import statistics
import time
from collections.abc import Iterator

import psutil

from benchmarks.dispatch import request
from benchmarks.figures import Effort, Figure, Target, figure, main
from benchmarks.load import ask, checked, connection, latencies
from benchmarks.servers import Served, product
from gen_worker.client import Client

SHOWS = "crowd: what thousands of others cost one client"
MIB = 1 << 20
CLIENTS = 1000
QUEUED = 9_900  # of 10,000 that may wait
CANCELS = 50
ROUND_TRIPS = 2000
HOLD = b'{"function":"hold","request_id":"holds","payload":{"prompt":""}}\n'
UNREAD_S = 0.2  # a client that takes nothing for so long has filled what there is
SETTLED_WITHIN_S = 60.0


def measure(effort: Effort) -> list[Figure]:
    """Round trips of one client alone and beside the crowd; what the crowd does to the supervisor."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    samples: dict[str, list[float]] = {}

    def keep(name: str, value: float) -> None:
        samples.setdefault(name, []).append(value)

    for _ in range(effort.rounds):
        with product() as served, Client(served.control) as control:
            keep("alone", p99_ms(served, effort))
            keep("comers", effort.times(CLIENTS) / seconds_to_answer(served, effort.times(CLIENTS)))
            before = psutil.Process(served.pid).memory_info().rss
            with waiting(served, control, effort.times(QUEUED)), rude(served):
                keep("memory", (psutil.Process(served.pid).memory_info().rss - before) / MIB)
                keep("beside", p99_ms(served, effort))
                keep("cancel", cancel_ms(served, effort.times(CANCELS)))
            status = control.list()
            keep("lag p99", (status.loop_lag_p99_s or 0.0) * 1e3)
            keep("lag max", (status.loop_lag_max_s or 0.0) * 1e3)
    return figures(samples)


def figures(samples: dict[str, list[float]]) -> list[Figure]:
    """The samples of all rounds, in words."""
    soon = Target("value", "most", 50.0)
    return [
        figure(
            "`echo-async`, round trip p99 beside the crowd",
            "ms",
            samples["beside"],
            floors=samples["alone"],
            floor_name="alone",
            target=soon,
        ),
        figure("a queued job is canceled, p50", "ms", samples["cancel"], target=soon),
        figure("the supervisor's loop is late, p99", "ms", samples["lag p99"], target=soon),
        figure("the supervisor's loop is late, at most", "ms", samples["lag max"]),
        figure("supervisor, added by the crowd", "MiB", samples["memory"], target=Target("value", "most", 50.0)),
        figure(f"{CLIENTS:,} clients connect, ask and are answered", "clients/s", samples["comers"]),
    ]


def p99_ms(served: Served, effort: Effort) -> float:
    """The round trip that 99 of 100 requests of one client stay below."""
    taken = latencies(served.socket, request("echo-async"), rounds=effort.times(ROUND_TRIPS))
    return statistics.quantiles(taken, n=100)[98] / 1e6


def seconds_to_answer(served: Served, clients: int) -> float:
    """Seconds until so many new clients have connected, all of them, asked, and all have their answers."""
    begin = time.perf_counter()
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(connection(served.socket)) for _ in range(clients)]
        for peer in peers:
            peer.sendall(request("echo"))
        for peer in peers:
            if not peer.recv(MIB).startswith(b'{"ok":true,'):
                raise ValueError("the server refused a request")
        return time.perf_counter() - begin


@contextlib.contextmanager
def waiting(served: Served, control: Client, jobs: int) -> Iterator[None]:
    """So many jobs wait behind one that does not end."""
    with connection(served.socket) as holder, connection(served.socket) as crowd:
        holder.sendall(HOLD)
        lines = (b'{"function":"echo","request_id":"%d","payload":{"prompt":"a"}}\n' % each for each in range(jobs))
        crowd.sendall(b"".join(lines))
        deadline = time.monotonic() + SETTLED_WITHIN_S
        while sum(function.queued for function in control.list().functions) < jobs:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{jobs} jobs do not wait after {SETTLED_WITHIN_S:.0f} s")
        yield


@contextlib.contextmanager
def rude(served: Served) -> Iterator[None]:
    """One client that asks and never reads, and one that never ends its line."""
    with connection(served.socket) as unread, connection(served.socket) as unfinished:
        unfinished.sendall(request("echo")[:20])
        unread.settimeout(UNREAD_S)
        with contextlib.suppress(socket.timeout):
            unread.sendall(request("echo-async") * 100_000)
        yield


def cancel_ms(served: Served, number: int) -> float:
    """How long the middle one of some cancels of jobs that wait takes."""
    taken = []
    with connection(served.socket) as client:
        checked(client, request("echo-async"))
        for each in range(number):
            begin = time.perf_counter()
            answer = json.loads(ask(client, b'{"cancel":{"request_id":"%d"}}\n' % each))
            taken.append(time.perf_counter() - begin)
            if not answer["canceled"]:
                raise ValueError(f"no job {each} was waiting")
    return statistics.median(taken) * 1e3


if __name__ == "__main__":
    main({SHOWS: measure})
