"""A real child that is sent anything by whoever holds its socket: it ends or answers, and never hangs."""

import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import msgspec
import pytest

from gen_worker.wire.channel import Channel, ProtocolError
from gen_worker.wire.messages import (
    Boot,
    Cancel,
    Drain,
    Failed,
    Grant,
    Hello,
    Interrupt,
    Load,
    More,
    Ready,
    Recall,
    Region,
    Release,
    Report,
    Saved,
    Submit,
)
from gen_worker.wire.page import create_page
from gen_worker.wire.regions import OwnRegion
from tests.served import ENDPOINTS

pytestmark = pytest.mark.process
GENERATION = 5
PATIENCE_S = 20.0


class Child(NamedTuple):
    """A child process and the supervisor's end of its socket."""

    process: "subprocess.Popen[bytes]"
    channel: Channel[Report]
    sock: socket.socket

    def next(self) -> Report | None:
        """Return the child's next frame, None when it has ended."""
        received = self.channel.receive()
        return None if received is None else received[0]

    def raw(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send bytes as they are."""
        socket.send_fds(self.sock, [packet], list(descriptors))


@contextmanager
def child(*, ready: bool = True) -> Iterator[Child]:
    """Start a child as the supervisor does; it is killed at the end if it has not ended."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(PATIENCE_S)
    crash, page = os.memfd_create("crash"), create_page()
    options = {"socket": theirs.fileno(), "crash": crash, "page": page, "generation": GENERATION}
    command = [sys.executable, "-m", "gen_worker_child.main", "--supervisor", str(os.getpid())]
    command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
    fds = [theirs.fileno(), crash, page]
    with subprocess.Popen(command, pass_fds=fds, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL) as process, ours:
        theirs.close()
        os.close(crash)
        os.close(page)
        made = Child(process, Channel(ours, generation=GENERATION, receives=Report), ours)
        try:
            assert isinstance(made.next(), Hello)
            if ready:
                made.channel.send(Boot("liar", [str(ENDPOINTS)], "cpu", {}))
                assert isinstance(made.next(), Ready)
            yield made
        finally:
            process.kill()


def frame(message: object, number: int) -> bytes:
    """Return a packet as a supervisor would make it."""
    return msgspec.msgpack.encode((GENERATION, number, message))


RUBBISH = [
    b"x",
    b"\x91" * 60_000,
    b"x" * 70_000,
    b"\xdd\xff\xff\xff\xff",
    frame(Cancel(1), 99),
    frame(Submit(1, "no such function", "r", b"{}", "json"), 1),
    frame(Submit(1, "echo", "r", Region(1, 10), "json"), 1),
    frame(Grant(1, 1 << 20), 1),
    frame(Boot("liar", [], "cpu", {}), 1),
    frame(["submit"], 1),
]


@pytest.mark.parametrize("packet", RUBBISH, ids=range(len(RUBBISH)))
def test_a_child_that_is_sent_rubbish_ends(packet: bytes) -> None:
    with child() as made:
        made.raw(packet)
        assert ended(made) not in (None, 0)


@pytest.mark.parametrize("packet", [b"x", frame(Drain(), 0), frame(Boot("no_such_module", [], "cpu", {}), 0)])
def test_a_child_that_is_not_booted_as_it_should_be_ends(packet: bytes) -> None:
    with child(ready=False) as made:
        made.raw(packet)
        assert ended(made) not in (None, 0)


def ended(made: Child) -> int | None:
    """Read on until the child's end; return its exit status."""
    try:
        while made.next() is not None:
            continue
    except ProtocolError:
        return None
    return made.process.wait(PATIENCE_S)


def memfd(size: int, seals: int) -> int:
    """Return a memfd of this size with these seals."""
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


SEALED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


MEMORY = [(4096, 0, 10), (4096, SEALED, 5000), (4096, SEALED, -1), (0, SEALED, 0)]


@pytest.mark.promise(31)
@pytest.mark.parametrize(("size", "seals", "length"), MEMORY)
def test_a_child_does_not_map_memory_that_could_kill_it(size: int, seals: int, length: int) -> None:
    fd = memfd(size, seals)
    with child() as made:
        made.raw(frame(Submit(1, "echo", "r", Region(1, length), "json"), 1), [fd])
        os.close(fd)
        assert ended(made) not in (None, 0)


def test_orders_about_nothing_are_ignored() -> None:
    with child() as made:
        orders = [Cancel(9), Interrupt(9), Recall(9), More(9, 2**40), Release(9), Saved(9, 9)]
        for order in orders:
            made.channel.send(order)
        made.channel.send(Submit(1, "echo", "r", b'{"text":"well"}', "json"))
        assert b"well" in made_body(made)
        made.channel.send(Drain())
        assert ended(made) == 0


def made_body(made: Child) -> bytes:
    """Return the body of the next result."""
    body = getattr(made.next(), "body", b"")
    assert isinstance(body, bytes)
    return body


BOMBS = [
    b"",
    b"{",
    b"[" * 40_000,
    b'{"text":1}',
    b'{"text":"\xff"}',
    b"\xc1",
    b"\xdd\xff\xff\xff\xff",
    b"\x91" * 40_000,
    b"\x81\xa4text\xc6\xff\xff\xff\xff",
]


@pytest.mark.promise(36)
def test_payload_bombs_are_the_callers_mistake_and_cost_no_child() -> None:
    with child() as made:
        number = 0
        for bomb in BOMBS:
            for encoding in ("json", "msgpack"):
                number += 1
                made.channel.send(Submit(number, "echo", "r", bomb, encoding))
                answer = made.next()
                assert isinstance(answer, Failed), bomb[:20]
                assert answer.kind == "usage"
        made.channel.send(Submit(99, "echo", "r", b'{"text":"well"}', "json"))
        assert b"well" in made_body(made)


def test_a_payload_that_changes_while_it_is_read_hurts_nobody() -> None:
    with child() as made, OwnRegion.create(1 << 20, shared_with_readers_only=True) as region:
        body = b'{"text":"' + b"a" * 900_000 + b'"}'
        for number in range(1, 20):
            region.view[: len(body)] = body
            made.channel.send(Submit(number, "whole", "r", Region(number, len(body)), "json"), [region.fd])
            region.view[100:200] = b'"' * 100
            kinds: set[str] = set()
            while not kinds & {"Done", "Failed"}:
                kinds.add(type(made.next()).__name__)
        made.channel.send(Load("no such instance"))
        made.channel.send(Drain())
        assert ended(made) is not None
