"""A server of the endpoint that waits at every moment, and what is watched while something of it is broken."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.load import Answered, Load, loaded, p99_s, undisturbed
from tests.chaos.results import injected, survived
from tests.chaos.traces import traces, until_nothing_more
from tests.served import Server, serving, until

CHILDREN = 3
CALM = 5
LAG_S = 0.05
SERVING = ("ready", "busy", "loading")


@contextmanager
def chaotic(folder: Path, *arguments: str, devices: str = f"cpu:{CHILDREN}", **variables: str) -> Iterator[Server]:
    """Serve with a temporary folder of its own."""
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    given = {"TMPDIR": str(temporary), **variables}
    with serving(folder, "--no-stdin", *arguments, module="chaotic", devices=devices, variables=given) as server:
        yield server


def allowed_lag_s(load: Load) -> float:
    """Return how late a loop may be: as promised, or three times as late as this machine wakes others."""
    late = sorted(answer.late_s for answer in load.answers)
    return max(LAG_S, 3 * late[int(0.99 * (len(late) - 1))]) if late else LAG_S


@contextmanager
def steady(server: Server) -> Iterator[Load]:
    """Load a server; every request of that ends well and the loop is never late."""
    with loaded(server) as load:
        until(lambda: len(load.answers) > 100, what="the load")
        yield load
        lag_s = server.status().loop_lag_p99_s
    assert set(load.kinds()) == {"ok"}
    assert lag_s is not None
    assert lag_s < allowed_lag_s(load)


@contextmanager
def breaking(server: Server, load: Load, promise: int, fault: str) -> Iterator[None]:
    """Break something in the body: nothing is left behind, and who has no part in it does not notice."""
    before = traces(server)
    calm = [load.window(time.monotonic()) for _ in range(CALM)]
    row = injected(promise, fault)
    began = time.monotonic()
    yield
    took_s = time.monotonic() - began
    until_all_serve(server)
    until_nothing_more(server, before)
    beside = [unaffected(server, window) for window in load.windows(began, began + took_s)]
    assert undisturbed(calm, beside), (p99_s(calm), p99_s(beside))
    survived(row, took_s, f"p99 {p99_s(calm) * 1000:.0f} ms, beside it {p99_s(beside) * 1000:.0f} ms")


def unaffected(server: Server, window: list[Answered]) -> list[Answered]:
    """Return what did not have to run again."""
    runs = server.runs()
    return [each for each in window if runs[each.request_id] == 1]


def until_all_serve(server: Server) -> None:
    """Wait until every device has a child that takes jobs."""
    until(lambda: all(device.phase in SERVING for device in server.status().gpus), what="a child on every device")
