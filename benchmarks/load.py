"""The client of the benchmarks: the same bytes to every server, as little work of its own as possible."""

import contextlib
import os
import select
import socket
import time
from collections.abc import Iterator

CHUNK = 256 * 1024
ANSWER_WITHIN_S = 60.0  # a server that says nothing for this long has failed the benchmark


@contextlib.contextmanager
def connection(path: str) -> Iterator[socket.socket]:
    """A connected Unix stream socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(path)  # without a time-out: with one, a full backlog is an error
        client.settimeout(ANSWER_WITHIN_S)
        yield client


def ask(client: socket.socket, request: bytes) -> bytes:
    """Send one line, return the line that answers it."""
    client.sendall(request)
    answer = client.recv(CHUNK)
    if answer.endswith(b"\n"):
        return answer
    pieces = [answer]
    while not pieces[-1].endswith(b"\n"):
        pieces.append(client.recv(CHUNK))
        if not pieces[-1]:
            raise ConnectionError(f"the server hung up in the middle of an answer: {b''.join(pieces)[:200]!r}")
    return b"".join(pieces)


def checked(client: socket.socket, request: bytes) -> bytes:
    """The answer that every repetition of `request` must give; raise if it is not a good one."""
    answer = ask(client, request)
    if not answer.startswith(b'{"ok":true,'):
        raise ValueError(f"the server refused the request: {answer[:500]!r}")
    return answer


def latencies(path: str, request: bytes, *, rounds: int) -> list[int]:
    """Nanoseconds of each round trip of one blocking client, without a cold start."""
    taken = []
    with connection(path) as client:
        expected = checked(client, request)
        client.setblocking(True)  # a time-out would add a `poll` to every `recv`
        for _ in range(max(rounds // 10, 5)):
            ask(client, request)
        for _ in range(rounds):
            begin = time.perf_counter_ns()
            answer = ask(client, request)
            taken.append(time.perf_counter_ns() - begin)
            if answer != expected:
                raise ValueError(f"the server changed its mind: {answer[:500]!r}")
    return taken


def throughput(path: str, request: bytes, *, clients: int, seconds: float) -> float:
    """Answers per second with `clients` connections that each keep one request on its way, served by one thread."""
    with contextlib.ExitStack() as open_sockets, select.epoll() as poll:
        peers: dict[int, socket.socket] = {}
        for _ in range(clients):
            peer = open_sockets.enter_context(connection(path))
            expected = checked(peer, request)
            peer.setblocking(False)
            peers[peer.fileno()] = peer
            poll.register(peer.fileno(), select.EPOLLIN)
        for peer in peers.values():
            peer.send(request)
        return _keep_busy(poll, peers, request, expected, seconds)


def _keep_busy(
    poll: select.epoll, peers: dict[int, socket.socket], request: bytes, expected: bytes, seconds: float
) -> float:
    done = 0
    begin = time.perf_counter()
    end = begin + seconds
    rest: dict[int, bytes] = {}
    read, write = os.read, os.write
    while (now := time.perf_counter()) < end:
        ready = poll.poll(ANSWER_WITHIN_S)
        if not ready:
            raise TimeoutError(f"no answer on any of {len(peers)} connections for {ANSWER_WITHIN_S:.0f} s")
        for fd, _ in ready:
            answer = read(fd, CHUNK)
            if answer != expected:
                answer = rest.pop(fd, b"") + answer
                if len(answer) < len(expected) and expected.startswith(answer) and answer:
                    rest[fd] = answer
                    continue
                if answer != expected:
                    raise ValueError(f"the server changed its mind: {answer[:500]!r}")
            write(fd, request)
            done += 1
    return done / (now - begin)
