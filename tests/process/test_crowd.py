"""A crowd of clients, some of them rude: everyone is answered once, in time, and the supervisor stays small."""

import json
import resource
import select
import socket
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.served import Serve, Server, connected, descriptors, private_bytes, text_of, until

pytestmark = [pytest.mark.process, pytest.mark.quiet]

MIB = 1 << 20
CROWD = 1000
QUEUED = 10_000
LAG_S = 0.05
ANSWERED_WITHIN_S = 60.0


@pytest.fixture(autouse=True)
def _many_descriptors() -> Iterator[None]:
    """A thousand sockets, and a server that inherits the right to as many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4 * CROWD:
        pytest.skip(f"needs {4 * CROWD} descriptors, `ulimit -Hn` is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4 * CROWD), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def line(function: str, request_id: str, **payload: object) -> bytes:
    """Return a request."""
    return json.dumps({"function": function, "request_id": request_id, "payload": payload}).encode() + b"\n"


class Crowd:
    """Many connections, and what was answered on them."""

    def __init__(self, sockets: list[socket.socket], poll: select.epoll) -> None:
        self.sockets = sockets
        self.answers: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self._poll = poll
        self._rest = {sock.fileno(): b"" for sock in sockets}
        self._by_fd = {sock.fileno(): sock for sock in sockets}

    def take(self, number: int) -> None:
        """Read until so many answers have come in all."""
        deadline = time.monotonic() + ANSWERED_WITHIN_S
        while sum(self.answers.values()) < number:
            assert time.monotonic() < deadline, f"{sum(self.answers.values())} answers of {number}"
            for fd, _ in self._poll.poll(1.0):
                self._read(fd)

    def _read(self, fd: int) -> None:
        data = self._by_fd[fd].recv(MIB)
        assert data, "the server closed a connection"
        *lines, self._rest[fd] = (self._rest[fd] + data).split(b"\n")
        for each in lines:
            frame = json.loads(each)
            self.answers[frame["request_id"]] += 1
            self.kinds["ok" if frame["ok"] else frame["error"]["kind"]] += 1


@contextmanager
def crowd(server: Server, size: int) -> Iterator[Crowd]:
    """Connect so many clients."""
    with ExitStack() as stack, select.epoll() as poll:
        sockets = [stack.enter_context(connected(server.socket)) for _ in range(size)]
        for sock in sockets:
            poll.register(sock.fileno(), select.EPOLLIN)
        yield Crowd(sockets, poll)


def waits(server: Server, number: int) -> list[float]:
    """Return how long each of some requests, one after the other, took on a connection of their own."""
    taken = []
    with server.connect() as witness:
        for each in range(number):
            began = time.perf_counter()
            witness.send("talk-async", f"witness-{each}", text="seen")
            assert text_of(witness.frame()) == "seen"
            taken.append(time.perf_counter() - began)
    return taken


def assert_the_loop_was_free(server: Server) -> None:
    lag_s = server.status().loop_lag_p99_s
    assert lag_s is not None
    assert lag_s < LAG_S


# --- many -------------------------------------------------------------------------------------------------------------


@pytest.mark.promise(34)
def test_a_thousand_clients_that_come_at_once_are_each_answered_once(serve: Serve) -> None:
    server = serve(devices="cpu:2")
    server.ask("echo")
    before = len(descriptors(server.pid))
    with crowd(server, CROWD) as many:
        for number, sock in enumerate(many.sockets):
            sock.sendall(b"".join(line("echo", f"{number}-{each}") for each in range(5)))
        many.take(5 * CROWD)
        assert set(many.answers.values()) == {1}
        assert many.kinds == {"ok": 5 * CROWD}
    until(lambda: len(descriptors(server.pid)) <= before, what="no descriptor more than before")
    assert_the_loop_was_free(server)


@pytest.mark.promise(34, 12)
def test_ten_thousand_jobs_wait_while_others_are_served_and_each_is_answered_once(serve: Serve) -> None:
    server = serve(variables={"GEN_WORKER_MAX_QUEUED": str(QUEUED)})
    server.ask("talk-async")
    with server.connect() as gate, crowd(server, 100) as many:
        gate.send("gated", "gate", gate="go")
        server.until_running("gate")
        before = private_bytes(server.pid)
        for number, sock in enumerate(many.sockets):
            sock.sendall(b"".join(line("echo", f"{number}-{each}") for each in range(QUEUED // 100 - 1)))
        until(lambda: len(server.status().jobs) == QUEUED - 99, what="the queue")
        assert private_bytes(server.pid) - before < 50 * MIB
        assert statistics.median(waits(server, 100)) < 0.05
        cancel_quickly(server, [f"{number}-50" for number in range(20)])
        for each in range(120 + 3):  # the last three are too many
            many.sockets[0].sendall(line("echo", f"late-{each}"))
        many.take(20 + 3)
        assert many.kinds == {"canceled": 20, "busy": 3}
        refused_quickly(server, 20)
        server.open("go")
        assert gate.frame()["ok"]
        many.take(QUEUED + 20 + 3)
    assert set(many.answers.values()) == {1}
    assert many.kinds == {"ok": QUEUED, "canceled": 20, "busy": 3}
    assert server.status().jobs == []
    assert_the_loop_was_free(server)


def cancel_quickly(server: Server, request_ids: list[str]) -> None:
    taken = []
    with server.connect() as connection:
        for request_id in request_ids:
            began = time.perf_counter()
            connection.cancel(request_id)
            assert connection.frame() == {"ok": True, "canceled": True, "request_id": request_id}
            taken.append(time.perf_counter() - began)
    assert statistics.median(taken) < 0.05


def refused_quickly(server: Server, number: int) -> None:
    taken = []
    with server.connect() as connection:
        for each in range(number):
            began = time.perf_counter()
            connection.send("echo", f"refused-{each}", text="x")
            error = connection.frame()["error"]
            taken.append(time.perf_counter() - began)
            assert (error["kind"], error["retryable"]) == ("busy", True)
            assert error["detail"]["retry_after_s"] > 0
    assert statistics.median(taken) < 0.01


def test_clients_that_leave_by_the_thousand_take_their_ten_thousand_jobs_along(serve: Serve) -> None:
    server = serve(devices="cpu:1")
    with server.connect() as gate:
        gate.send("gated", "gate", gate="go")
        server.until_running("gate")
        with crowd(server, CROWD) as many:
            for number, sock in enumerate(many.sockets):
                sock.sendall(b"".join(line("echo", f"{number}-{each}") for each in range(9)))
            until(lambda: len(server.status().jobs) == 9 * CROWD + 1, what="the queue")
        until(lambda: len(server.status().jobs) == 1, what="an empty queue")
        server.open("go")
        assert gate.frame()["ok"]
    assert_the_loop_was_free(server)


# --- rude -------------------------------------------------------------------------------------------------------------


@pytest.mark.promise(12)
def test_clients_that_never_read_or_never_finish_a_line_delay_nobody_else(serve: Serve) -> None:
    server = serve()
    server.ask("talk-async")
    before = private_bytes(server.pid)
    with server.connect() as unread, server.connect() as flood, server.connect() as slow, crowd(server, 100) as many:
        unread.send("count", "unread", times=1_000_000, text="x" * 1000, stream=True)
        flood.sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            flood.write(line("talk-async", "", text="x" * 100) * 100_000)
        request = line("talk-async", "slow", text="slow")
        for sent, sock in enumerate(many.sockets):
            sock.sendall(request[: sent % len(request)])  # and no more
        waited = []
        for at in range(len(request)):  # a byte between two turns of somebody else
            slow.write(request[at : at + 1])
            waited += waits(server, 3)
        assert text_of(slow.frame()) == "slow"
        assert statistics.median(waited) < 0.05
        assert private_bytes(server.pid) - before < 50 * MIB
    until(lambda: server.status().jobs == [], what="the end of what nobody waits for")
    assert_the_loop_was_free(server)
