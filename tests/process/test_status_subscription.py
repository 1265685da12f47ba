"""The status document by subscription: it comes at its interval, and whoever does not take it costs nobody anything."""

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gen_worker.client import Client
from gen_worker.wire import control
from tests.served import Serve, Server, descriptors, resident_bytes, until
from tests.witness import Witness

pytestmark = [pytest.mark.process, pytest.mark.quiet]

EVERY_MS = 100
CROWD = 50
WAITING = 200
LAG_S = 0.05
LOOKS_S = 2.5  # in which each child is looked at twice at least
_decode = msgspec.msgpack.Decoder(control.ServerFrame).decode


class Watcher:
    """A client that is spoken by hand, and reads when it is told to."""

    def __init__(self, server: Server, *, jobs: int = 0) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(20)
        self.sock.connect(str(server.control))
        self.say(control.Open(control.CONTROL_PROTOCOL, "watcher"))
        assert isinstance(self.hear(), control.Opened)
        self.watch(EVERY_MS, jobs)

    def watch(self, every_ms: int, jobs: int = 0) -> None:
        """Subscribe anew."""
        self.say(control.Watch(every_ms, jobs))

    def say(self, frame: control.ClientFrame) -> None:
        """Send a frame."""
        self.sock.send(msgspec.msgpack.encode(frame))

    def hear(self) -> control.ServerFrame:
        """Return the next frame."""
        packet, self.fds, _, _ = socket.recv_fds(self.sock, 1 << 17, 4)
        frame: control.ServerFrame = _decode(packet)
        return frame

    def document(self) -> Any:
        """Return the next status document."""
        seen = self.hear()
        assert isinstance(seen, control.Seen)
        if isinstance(seen.document, bytes):
            return json.loads(seen.document)
        [fd] = self.fds
        with open(fd, "rb") as file:
            return json.loads(file.read(seen.document.length))

    @property
    def has_news(self) -> bool:
        """Whether something lies there to be read."""
        return bool(select.select([self.sock], [], [], 0)[0])

    def __enter__(self) -> "Watcher":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


@contextmanager
def waiting(server: Server, number: int) -> Iterator[None]:
    """So many jobs wait behind one that runs on the only device."""
    with server.connect() as connection:
        connection.send("gated", "gate", gate="go")
        server.until_running("gate")
        for first in range(0, number, 500):
            names = range(first, min(first + 500, number))
            connection.write(b"".join(b'{"function":"gated","request_id":"%d"}\n' % each for each in names))
        watched = server.client.watch(0.1, jobs=0)
        until(lambda: json.loads(next(watched))["jobs_left_out"] == number, what="the queue")
        watched.close()
        try:
            yield
        finally:
            server.open("go")


@pytest.mark.promise(12)
def test_documents_come_at_their_interval_and_a_second_subscription_replaces_the_first(serve: Serve) -> None:
    server = serve()
    with waiting(server, 10), Watcher(server) as watcher:
        watcher.watch(250)
        stamps = [watcher.document()["ts"] for _ in range(5)][2:]
        assert all(later - earlier > 0.1 for earlier, later in pairwise(stamps))
        assert stamps[-1] - stamps[0] < 1.5
        watcher.watch(EVERY_MS, jobs=4)
        until(lambda: len(watcher.document()["jobs"]) == 5, what="the second subscription")
        following = [watcher.document() for _ in range(6)]
        assert {len(each["jobs"]) for each in following} == {5}
        assert {each["jobs_left_out"] for each in following} == {6}
        assert following[-1]["ts"] - following[0]["ts"] > 0.15
        watcher.watch(EVERY_MS, jobs=1 << 63)
        until(lambda: len(watcher.document()["jobs"]) == 11, what="all that wait")
        watcher.watch(0)
        watcher.say(control.Read(0))
        until(lambda: isinstance(watcher.hear(), control.Lines), what="the end of the subscription")
        assert not select.select([watcher.sock], [], [], 0.3)[0]


@pytest.mark.promise(7)
def test_whoever_watches_sees_at_once_that_a_child_hangs_however_seldom_documents_come(serve: Serve) -> None:
    server = serve(devices="cpu:2")
    with server.connect() as connection, Client(str(server.control)) as gone:
        documents, left = server.client.watch(3600.0, jobs=0), gone.watch(3600.0, jobs=0)
        assert all(json.loads(next(each))["jobs"] == [] for each in (documents, left))
        gone.close()
        connection.send("hold-the-interpreter", "hung")
        server.until_running("hung")
        hung = [device for device in json.loads(next(documents))["gpus"] if device["state"] == "hung"]
        assert [(device["hang"], device["job"]) for device in hung] == [("gil_held", "hung")]
        documents.close()
        with Watcher(server) as watcher:
            watcher.watch(3_600_000)
            heard = 0
            while select.select([watcher.sock], [], [], LOOKS_S)[0]:
                watcher.document()
                heard += 1
                assert heard < 8, "that it hangs on is no news"
        server.client.kill("hung", now=True)


@pytest.mark.promise(12)
def test_watchers_that_stop_reading_miss_documents_cost_nothing_and_see_the_present_when_they_come_back(
    serve: Serve,
) -> None:
    server = serve()
    before = len(descriptors(server.pid))
    with waiting(server, WAITING), ExitStack() as stack:
        watchers = [stack.enter_context(Watcher(server, jobs=WAITING)) for _ in range(20)]
        until(lambda: all(watcher.has_news for watcher in watchers), what="the first documents")
        memory = resident_bytes(server.pid)
        watched = server.client.watch(0.2, jobs=WAITING)
        arrivals = [time.monotonic() for _ in islice(watched, 11)]
        watched.close()
        assert max(later - earlier for earlier, later in pairwise(arrivals)) < 0.2 + 3 * LAG_S
        assert resident_bytes(server.pid) - memory < 4 << 20
        came_back = time.time()
        for watcher in watchers[:3]:
            documents = 1
            while watcher.document()["ts"] < came_back:
                documents += 1
            assert documents <= 4, "those that it missed were kept for it"
    server.client.close()
    until(lambda: len(descriptors(server.pid)) <= before, what="no descriptor more than before")


_CROWD = """
import select, socket, sys, time
import msgspec
from gen_worker.wire import control
path, number, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
encode = msgspec.msgpack.encode
socks = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2 * number)]
read = encode(control.Read(-20))
for at, sock in enumerate(socks):
    sock.connect(path)
    sock.send(encode(control.Open(control.CONTROL_PROTOCOL, "crowd")))
    sock.recv(1 << 17)
    sock.send(encode(control.Watch(100, 50)) if at < number else read)
poll = select.epoll()
by_fd = {sock.fileno(): (sock, at) for at, sock in enumerate(socks)}
for fd in by_fd:
    poll.register(fd, select.EPOLLIN)
print("connected", flush=True)
due, frames, ends = [], [0, 0], time.monotonic() + seconds
while time.monotonic() < ends:
    for fd, _ in poll.poll(0.02):
        sock, at = by_fd[fd]
        assert sock.recv(1 << 17), "closed"
        frames[at >= number] += 1
        if at >= number:
            due.append((time.monotonic() + 0.1, sock))
    while due and due[0][0] < time.monotonic():
        due.pop(0)[1].send(read)
print(*frames, flush=True)
"""


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.promise(12)
def test_fifty_watchers_and_fifty_readers_ten_times_a_second_hold_up_no_job(serve: Serve) -> None:
    server = serve(devices="cpu:2")
    with Witness(server) as alone:
        alone.until_served(300)
    seconds = 2.5
    command = [sys.executable, "-c", _CROWD, str(server.control), str(CROWD), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as crowd:
        assert crowd.stdout is not None
        assert crowd.stdout.readline() == "connected\n"
        spent, began = cpu_s(server.pid), time.monotonic()
        with Witness(server) as among:
            watched, read = map(int, crowd.stdout.readline().split())
        share = (cpu_s(server.pid) - spent) / (time.monotonic() - began)
    status = server.status()
    print(f"supervisor: {share:.0%} with {len(among.took_s)} jobs, {watched} documents, {read} answers")
    print(f"p99: {alone.p99_s() * 1000:.1f} ms alone, {among.p99_s() * 1000:.1f} ms among them")
    assert alone.wrong == among.wrong == []
    assert watched > CROWD * seconds * 10 / 3
    assert read > CROWD * seconds * 10 / 3
    assert status.loop_lag_p99_s is not None
    assert status.loop_lag_p99_s < max(LAG_S, 3 * alone.p99_s())
    assert among.p99_s() < max(LAG_S, 3 * alone.p99_s())


@pytest.mark.promise(12, 34)
def test_ten_thousand_waiting_jobs_make_a_watchers_document_no_longer(serve: Serve) -> None:
    server = serve(variables={"GEN_WORKER_MAX_QUEUED": "10000"})
    with waiting(server, 9_999):
        watched = server.client.watch(0.1, jobs=WAITING)
        documents = list(islice(watched, 10))
        watched.close()
        assert max(len(each) for each in documents) < 100_000
        shown = [json.loads(each) for each in documents]
        assert {(len(each["jobs"]), each["jobs_left_out"]) for each in shown} == {(WAITING + 1, 9_999 - WAITING)}
        with Client(server.control) as another:
            began = time.monotonic()
            assert json.loads(next(another.watch(1.0, jobs=0)))["jobs_left_out"] == 9_999
            assert time.monotonic() - began < 0.5
    assert shown[-1]["loop_lag_p99_s"] < LAG_S
