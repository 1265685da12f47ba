"""Calls that are made in turns leave the loop to others in between."""

import asyncio
import time
from itertools import pairwise

from gen_worker_supervisor.loop.turns import TURN_S, Turns

CALLS = 30


def test_others_have_their_turn_between_many_calls_that_are_due_together() -> None:
    made: list[int] = []
    seen: list[int] = []

    def slow(number: int) -> None:
        time.sleep(TURN_S / 2)
        made.append(number)

    async def main() -> None:
        turns = Turns(asyncio.get_running_loop())
        calls = [lambda number=each: slow(number) for each in range(CALLS)]
        for call in (*calls, *calls):
            turns.soon(call)
        turns.forgo(calls[CALLS - 1])
        assert made == []
        while len(made) < CALLS - 1:
            await asyncio.sleep(0)
            seen.append(len(made))
        await asyncio.sleep(0)

    asyncio.run(main())
    assert made == list(range(CALLS - 1))
    assert max(later - earlier for earlier, later in pairwise(seen)) <= 2
