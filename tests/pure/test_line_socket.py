"""A client's socket: its lines do not depend on how its bytes were cut, and what it may hold is bounded."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gen_worker_supervisor.sockets.line_socket import Budget, Limits, LineSocket, Pool
from gen_worker_supervisor.sockets.poller import Poller


class Recorder(LineSocket):
    """Keeps what it is told."""

    def __init__(self, sock: socket.socket, poller: Poller, pool: Pool) -> None:
        self.lines: list[bytes] = []
        self.bad: list[str] = []
        self.gone = asyncio.Event()
        self.open = 0
        super().__init__(sock, poller, pool)

    def on_line(self, line: bytes) -> None:
        """Keep a line."""
        self.lines.append(line.rstrip(b"\n"))

    def on_bad_line(self, reason: str) -> None:
        """Keep what was wrong."""
        self.bad.append(reason)

    def on_gone(self) -> None:
        """Note the end."""
        self.gone.set()

    @property
    def unanswered(self) -> int:
        """As many as the test says."""
        return self.open


class Windowed(Recorder):
    """Reads no further while two requests are open; every line is one."""

    window = 2

    def on_line(self, line: bytes) -> None:
        """Keep a line and open a request."""
        super().on_line(line)
        self.open += 1


class Stranger(Recorder):
    """Has not shown a token."""

    trusted = False


Body = Callable[[Recorder, socket.socket, Pool], Awaitable[None]]


def with_client(body: Body, kind: type[Recorder] = Recorder, limits: Limits | None = None) -> Recorder:
    """Run a test's body with a connection and its client; return the connection."""

    async def run() -> Recorder:
        poller = Poller(asyncio.get_running_loop())
        pool = Pool(limits or Limits(), lambda problem: None)
        ours, client = socket.socketpair()
        ours.setblocking(False)
        client.setblocking(False)
        connection = kind(ours, poller, pool)
        try:
            async with asyncio.timeout(20):
                await body(connection, client, pool)
        finally:
            client.close()
            connection.hang_up()
            poller.close()
        assert pool.connections == set()
        return connection

    return asyncio.run(run())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=12), max_size=12), st.lists(st.integers(1, 20), max_size=30))
def test_the_same_lines_come_out_however_the_bytes_were_cut(lines: list[bytes], cuts: list[int]) -> None:
    data = b"".join(line.replace(b"\n", b"") + b"\n" for line in lines)

    async def body(connection: Recorder, client: socket.socket, pool: Pool) -> None:
        rest = data
        for cut in cuts:
            await asyncio.get_running_loop().sock_sendall(client, rest[:cut])
            rest = rest[cut:]
            await asyncio.sleep(0)
        await asyncio.get_running_loop().sock_sendall(client, rest)
        client.shutdown(socket.SHUT_WR)
        await connection.gone.wait()

    assert with_client(body).lines == [line.replace(b"\n", b"") for line in lines]


def test_with_a_window_no_more_is_read_than_there_is_room_for_and_then_all_of_it() -> None:
    async def body(connection: Recorder, client: socket.socket, pool: Pool) -> None:
        await asyncio.get_running_loop().sock_sendall(client, b"1\n2\n3\n4\n5\n")
        client.shutdown(socket.SHUT_WR)
        for read in (2, 3, 4, 5):
            while len(connection.lines) < read:  # noqa: ASYNC110 - turns of the loop are what it waits for
                await asyncio.sleep(0)
            for _ in range(20):
                await asyncio.sleep(0)
            assert len(connection.lines) == read
            connection.open -= 1
            connection.go_on()
        connection.open = 0
        connection.go_on()
        connection.close_if_done()
        await connection.gone.wait()

    assert with_client(body, Windowed).lines == [b"1", b"2", b"3", b"4", b"5"]


@pytest.mark.parametrize("part", [b"", b'{"function":'])
def test_a_client_that_says_no_whole_line_in_time_is_closed(part: bytes) -> None:
    async def body(connection: Recorder, client: socket.socket, pool: Pool) -> None:
        await asyncio.get_running_loop().sock_sendall(client, part)
        await connection.gone.wait()

    assert with_client(body, limits=Limits(first_line_s=0.05)).lines == []


def test_a_client_that_has_said_one_line_may_be_silent_after_it() -> None:
    async def body(connection: Recorder, client: socket.socket, pool: Pool) -> None:
        await asyncio.get_running_loop().sock_sendall(client, b"1\n")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(connection.gone.wait(), 0.3)

    assert with_client(body, limits=Limits(first_line_s=0.1)).lines == [b"1"]


def test_a_client_that_takes_nothing_for_too_long_is_cut_off_and_what_waited_is_let_go() -> None:
    written: list[str] = []

    async def body(connection: Recorder, client: socket.socket, pool: Pool) -> None:
        connection.write([b"x" * 5_000_000], lambda: written.append("let go"))
        assert written == []
        await connection.gone.wait()

    with_client(body, limits=Limits(stalled_s=0.05))
    assert written == ["let go"]


def test_a_client_with_nothing_to_take_may_be_as_slow_as_it_likes() -> None:
    async def body(connection: Recorder, client: socket.socket, pool: Pool) -> None:
        connection.write([b"x" * 5_000_000], None)
        left = 5_000_000
        while left:
            left -= len(await asyncio.get_running_loop().sock_recv(client, 1 << 20))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(connection.gone.wait(), 0.2)

    with_client(body, limits=Limits(stalled_s=0.05, first_line_s=60))


def test_who_is_turned_away_can_read_why_though_it_still_sends() -> None:
    async def body(connection: Recorder, client: socket.socket, pool: Pool) -> None:
        loop = asyncio.get_running_loop()
        connection.turn_away(b"no\n")
        await loop.sock_sendall(client, b"x" * 1_000_000 + b"\n")
        said = await loop.sock_recv(client, 100)
        await connection.gone.wait()
        assert said == b"no\n"
        assert await loop.sock_recv(client, 100) == b""

    assert with_client(body).lines == []


def test_strangers_that_end_no_line_take_no_memory_from_those_who_have_shown_the_token() -> None:
    strangers: list[Stranger] = []

    async def body(connection: Recorder, client: socket.socket, pool: Pool) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, b"x" * 90)
        with ExitStack() as stack:
            for size in (50, 60):
                ours, theirs = map(stack.enter_context, socket.socketpair())
                ours.setblocking(False)
                strangers.append(Stranger(ours, connection._poller, pool))
                theirs.sendall(b"y" * size)
            await strangers[1].gone.wait()
            strangers[0].hang_up()
        await loop.sock_sendall(client, b"\n")
        client.shutdown(socket.SHUT_WR)
        await connection.gone.wait()

    assert with_client(body, limits=Limits(line_bytes=100, partial_bytes=100, stranger_bytes=100)).lines == [b"x" * 90]
    assert [len(stranger.bad) for stranger in strangers] == [0, 1]


def test_the_one_that_holds_most_gives_way() -> None:
    budget = Budget(100)
    small, big = object.__new__(Recorder), object.__new__(Recorder)
    assert budget.hold(small, 40) is None
    assert budget.hold(big, 60) is None
    assert budget.hold(small, 41) is big
    assert budget.hold(big, 0) is None
    assert budget.hold(small, 100) is None
    assert budget.hold(small, 101) is small
