"""Whole commands, from their start to their end, beside a bare interpreter: `python -m benchmarks.cli`."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.figures import Effort, Figure, Target, figure, main
from benchmarks.floors import seconds_of
from benchmarks.servers import HERE, Served, product

SHOWS = "cli: how long a whole command takes"
FLOOR = "`python -c pass`"
REPEAT = 5  # in one round
ENDPOINTS = HERE / "endpoint"
GEN_WORKER = str(Path(sys.executable).with_name("gen-worker"))
IMPORT = "`import gen_worker`"
EVERY_NAME = "`from gen_worker import *`"
TARGETS = {"`gen-worker --help`": Target("value", "most", 150.0)}


def measure(effort: Effort) -> list[Figure]:
    """Each command many times, one after the other, so that all meet the same weather."""
    with product() as served:
        commands = commands_of(served)
        for once in commands.values():
            once()  # not counted: the first run of a new checkout compiles
        taken: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(effort.rounds * effort.times(REPEAT)):
            for name, once in commands.items():
                taken[name].append(once() * 1e3)
    bare = taken.pop(FLOOR)
    figures = [
        figure(name, "ms", values, floors=bare, floor_name=FLOOR, target=TARGETS.get(name))
        for name, values in taken.items()
    ]
    for name in (IMPORT, EVERY_NAME):
        added = [with_it - without for with_it, without in zip(taken[name], bare, strict=True)]
        figures.append(figure(f"{name}, added", "ms", added, target=Target("value", "most", 60.0)))
    return figures


def commands_of(served: Served) -> dict[str, Callable[[], float]]:
    """What to run, by what the figure is called."""
    request = ("prompt=a lighthouse at dusk, in oil",)
    return {
        FLOOR: partial(seconds_of, sys.executable, "-c", "pass"),
        IMPORT: partial(seconds_of, sys.executable, "-c", "import gen_worker"),
        EVERY_NAME: partial(seconds_of, sys.executable, "-c", "from gen_worker import *"),
        "`gen-worker --help`": partial(seconds_of, GEN_WORKER, "--help"),
        "`gen-worker run`": partial(
            seconds_of, GEN_WORKER, "run", "--module", "echoes", "--method", "echo", *request, cwd=ENDPOINTS
        ),
        "`gen-worker invoke`": partial(
            seconds_of, GEN_WORKER, "invoke", "echo", *request, "--socket", served.socket, cwd=ENDPOINTS
        ),
        "`gen-worker ps --json`": partial(
            seconds_of, GEN_WORKER, "ps", "--json", "--socket", served.control, cwd=ENDPOINTS
        ),
    }


if __name__ == "__main__":
    main({SHOWS: measure})
