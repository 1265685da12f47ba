"""Who reads the log is answered when there is something, not too often, and costs nobody else their turn."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from gen_worker.log_files import Line
from gen_worker.wire import control as wire
from gen_worker_supervisor.clients.tailing import TICK_S, Tail
from gen_worker_supervisor.core.bodies import OutputBody
from gen_worker_supervisor.logs.ring import Ring


@dataclass(eq=False)
class Reader:
    """Somebody who asks, and the answers that came."""

    answers: list[tuple[float, wire.Lines]] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)

    def send_body(self, body: OutputBody, frame_of: Callable[[wire.Value], wire.ServerFrame]) -> None:
        assert isinstance(body, bytes)
        frame = frame_of(body)
        assert isinstance(frame, wire.Lines)
        self.answers.append((asyncio.get_running_loop().time(), frame))
        self.came.set()

    async def answer(self) -> wire.Lines:
        await asyncio.wait_for(self.came.wait(), 5.0)
        self.came.clear()
        return self.answers[-1][1]

    async def seqs(self) -> list[int]:
        lines = (await self.answer()).lines
        assert isinstance(lines, bytes)
        return [json.loads(line)["seq"] for line in lines.splitlines()]


class Desk:
    """A ring and who answers for it."""

    def __init__(self) -> None:
        self.ring = Ring()
        self.tail = Tail(self.ring, asyncio.get_running_loop())

    def add(self, count: int = 1, source: str = "cpu:0") -> None:
        for _ in range(count):
            self.ring.add(Line(1.0, "info", source, "x", None, source))
        self.tail.on_lines()


def test_who_asks_for_what_is_there_is_answered_at_once() -> None:
    async def asks() -> list[int]:
        desk, reader = Desk(), Reader()
        desk.add(3)
        desk.tail.read(wire.Read(after=1), reader)
        return await reader.seqs()

    assert asyncio.run(asks()) == [2, 3]


def test_who_waits_is_answered_with_the_next_line_whichever_thread_told_it() -> None:
    async def waits() -> list[int]:
        desk, reader = Desk(), Reader()
        desk.tail.read(wire.Read(after=0, wait_ms=60_000), reader)
        await asyncio.sleep(0)
        await asyncio.to_thread(desk.add)
        return await reader.seqs()

    assert asyncio.run(waits()) == [1]


def test_who_waits_in_vain_is_answered_with_nothing() -> None:
    async def waits() -> wire.Lines:
        desk, reader = Desk(), Reader()
        desk.add(2)
        desk.tail.read(wire.Read(after=2, wait_ms=20), reader)
        return await reader.answer()

    assert asyncio.run(waits()) == wire.Lines(b"", 2, 0)


def test_lines_for_somebody_else_end_no_wait() -> None:
    async def waits() -> tuple[list[int], int]:
        desk, reader = Desk(), Reader()
        desk.tail.read(wire.Read(after=0, wait_ms=60_000, device="cuda:1"), reader)
        await asyncio.sleep(0)
        desk.add(10)
        await asyncio.sleep(2 * TICK_S)
        before = len(reader.answers)
        desk.add(source="cuda:1")
        return await reader.seqs(), before

    assert asyncio.run(waits()) == ([11], 0)


def test_who_follows_is_answered_ten_times_a_second_at_most_whatever_is_told() -> None:
    async def follows() -> list[float]:
        desk, reader = Desk(), Reader()
        after, began = 0, asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() - began < 5 * TICK_S:
            desk.add()
            desk.tail.read(wire.Read(after=after, wait_ms=60_000), reader)
            after = (await reader.answer()).last
        return [at for at, _ in reader.answers]

    times = asyncio.run(follows())
    assert len(times) <= 7
    assert all(later - sooner >= 0.9 * TICK_S for sooner, later in pairwise(times))


def test_hundreds_who_wait_are_answered_and_the_loop_has_its_turns_meanwhile() -> None:
    async def wait() -> tuple[list[int], float]:
        desk, readers = Desk(), [Reader() for _ in range(300)]
        desk.add(8000, source="cpu:1")
        for reader in readers:
            desk.tail.read(wire.Read(after=0, wait_ms=60_000, device="cpu:0"), reader)
        loop, longest = asyncio.get_running_loop(), 0.0
        desk.add(2)
        while not all(reader.answers for reader in readers):
            began = loop.time()
            await asyncio.sleep(0)
            longest = max(longest, loop.time() - began)
        return [len(reader.answers) for reader in readers], longest

    answers, longest = asyncio.run(wait())
    assert set(answers) == {1}
    assert longest < 0.1


def test_the_latest_question_of_somebody_replaces_the_one_before_and_who_has_gone_gets_nothing() -> None:
    async def ask() -> tuple[int, int]:
        desk, one, gone = Desk(), Reader(), Reader()
        desk.add()
        for reader in (one, gone):
            desk.tail.read(wire.Read(after=1, wait_ms=60_000), reader)
        desk.tail.read(wire.Read(after=0), one)
        desk.tail.forget(gone)
        await one.answer()
        desk.add()
        await asyncio.sleep(2 * TICK_S)
        return len(one.answers), len(gone.answers)

    assert asyncio.run(ask()) == (1, 0)
