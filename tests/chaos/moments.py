"""The moments of a job's life at which something can be broken, each brought about and then held.

A moment is a context: inside it the child whose pid it gives is right there. The body breaks something; what is
promised of the job is checked as the context ends.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from tests.served import Server, text_of, until

MIB = 1 << 20
ITEMS = 3
QUICK_ONES = 12
BEHIND = 8

Moment = Callable[[Server, str], AbstractContextManager[int]]


@contextmanager
def idle(server: Server, name: str) -> Iterator[int]:
    """A child has nothing to do."""
    yield next(iter(server.pids().values()))


@contextmanager
def started(server: Server, name: str) -> Iterator[int]:
    """A handler runs."""
    with server.connect() as connection:
        connection.send("gated", name, text=name, gate=name)
        server.until_running(name)
        yield server.homes(name)[0]
        server.until_running(name, times=2)
        server.open(name)
        assert text_of(connection.frame()) == name


@contextmanager
def leased(server: Server, name: str) -> Iterator[int]:
    """Jobs were given to a child that works at another one."""
    server.open("open")
    with server.connect() as quick:
        for number in range(QUICK_ONES):
            quick.send("held", f"{name}-quick-{number}", gate="open")
        quick.frames(QUICK_ONES)
        for number in range(QUICK_ONES):
            quick.send("echo", f"{name}-echo-{number}")
        quick.frames(QUICK_ONES)
    children = len(server.pids())
    with server.connect() as connection:
        busy = [f"{name}-held-{number}" for number in range(children)]
        for each in busy:
            connection.send("held", each, text=each, gate=name)
        server.until_running(*busy)
        behind = [f"{name}-behind-{number}" for number in range(BEHIND)]
        for each in behind:
            connection.send("echo", each, text=each)
        until(lambda: max(device.jobs for device in server.devices().values()) > 1, what="a job leased ahead")
        yield most_laden(server)
        server.open(name)
        answers = connection.frames(len(busy) + len(behind))
        assert {each: text_of(answer) for each, answer in answers.items()} == {each: each for each in busy + behind}


def most_laden(server: Server) -> int:
    device = max(server.devices().values(), key=lambda device: device.jobs)
    assert device.pid is not None
    return device.pid


@contextmanager
def streaming(server: Server, name: str) -> Iterator[int]:
    """Some items of a stream have left."""
    with server.connect() as connection:
        connection.send("items", name, stream=True, text=name, times=ITEMS, gate=name)
        for _ in range(ITEMS):
            assert connection.frame()["event"] == "yield"
        yield server.homes(name)[0]
        while (frame := connection.frame()).get("event") == "yield":
            pass
        assert frame["error"]["kind"] == "retryable"
        assert server.runs()[name] == 1


@contextmanager
def loading(server: Server, name: str) -> Iterator[int]:
    """An instance is being set up."""
    with server.connect() as connection:
        connection.send("heavy", name, text=name)
        mark, *_ = until(lambda: list(server.folder.glob("loading-*")), what="the load")
        yield int(mark.name.rpartition("-")[2])
        server.open("weights")
        assert text_of(connection.frame()) == name


@contextmanager
def saving(server: Server, name: str) -> Iterator[int]:
    """A file is being saved."""
    with server.connect() as connection:
        connection.send("saving", name, text=f"{name}.bin", times=2 * MIB, gate=name)
        until(lambda: list((server.folder / "outputs").rglob(f"{name}.bin")), what="the first copy")
        yield server.homes(name)[0]
        server.until_running(name, times=2)
        server.open(name)
        assert connection.frame()["ok"]
    (kept,) = (server.folder / "outputs").rglob(f"{name}.bin")
    assert kept.stat().st_size == 2 * MIB


@contextmanager
def answering(server: Server, name: str) -> Iterator[int]:
    """A large output is on its way."""
    with server.connect() as connection:
        connection.send("large", name, times=4 * MIB)
        server.until_running(name)
        yield server.homes(name)[0]
        assert len(text_of(connection.frame())) == 4 * MIB


MOMENTS: tuple[Moment, ...] = (idle, leased, started, streaming, loading, saving, answering)
