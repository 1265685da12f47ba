"""Small jobs through the product, beside the bare pair: `python -m benchmarks.dispatch`."""

import statistics

from benchmarks.figures import Effort, Figure, Target, figure, main
from benchmarks.load import latencies, throughput
from benchmarks.servers import bare_pair, product

SHOWS = "dispatch: what it costs to send a small job"
CLIENTS = 64
ROUND_TRIPS = 2000
MILLISECONDS = 1000
ROUNDS = 3  # for each of another benchmark: short ones, as the scheduler changes its mind every few seconds
PAIR = "bare pair"


def request(function: str) -> bytes:
    """One line of NDJSON."""
    return b'{"function":"%b","payload":{"prompt":"a lighthouse at dusk, in oil"}}\n' % function.encode()


def measure(effort: Effort) -> list[Figure]:
    """Latency at one client and jobs per second at many, for the sync and the async function."""
    samples: dict[tuple[str, str], list[float]] = {}
    with bare_pair() as pair, product() as served:
        servers = {PAIR: (pair, "echo"), "echo": (served.socket, "echo"), "echo-async": (served.socket, "echo-async")}
        for _ in range(effort.rounds * effort.times(ROUNDS)):
            for name, (path, function) in servers.items():
                taken = latencies(path, request(function), rounds=effort.times(ROUND_TRIPS))
                samples.setdefault((name, "p50"), []).append(statistics.median(taken) / 1e3)
                samples.setdefault((name, "p99"), []).append(statistics.quantiles(taken, n=100)[98] / 1e3)
            for name, (path, function) in servers.items():
                rate = throughput(path, request(function), clients=CLIENTS, seconds=effort.times(MILLISECONDS) / 1000)
                samples.setdefault((name, "rate"), []).append(rate)
    return [
        figure(
            f"`{name}`, {what}",
            unit,
            samples[name, key],
            floors=samples[PAIR, key],
            floor_name=PAIR,
            target=target if name == "echo" else None,
        )
        for key, what, unit, target in (
            ("p50", "round trip p50, 1 client", "µs", Target("ratio", "most", 2.0)),
            ("p99", "round trip p99, 1 client", "µs", None),
            ("rate", f"{CLIENTS} clients", "jobs/s", Target("ratio", "least", 0.5)),
        )
        for name in ("echo", "echo-async")
    ]


if __name__ == "__main__":
    main({SHOWS: measure})
