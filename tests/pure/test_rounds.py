"""What nobody expected ends one round of a thread that does the same again and again, and is said once."""

import asyncio
import os

from gen_worker_supervisor.logs.log import Log
from gen_worker_supervisor.loop.rounds import Rounds


def rounds_of(*errors: Exception) -> tuple[int, list[str]]:
    """Return how many rounds ended that raise these, and what was said."""

    async def go() -> tuple[int, list[str]]:
        rounds = Rounds("memory", "a look at the memory", asyncio.get_running_loop(), log)
        ended = 0
        for error in errors:
            with rounds.one():
                fail(error)
            ended += 1
        await asyncio.sleep(0)
        return ended, [event.message for event in log.events]

    nowhere = os.open(os.devnull, os.O_WRONLY)
    log = Log(fd=nowhere)
    try:
        return asyncio.run(go())
    finally:
        log.close()
        os.close(nowhere)


def fail(error: Exception) -> None:
    raise error


def test_what_is_raised_in_a_round_ends_no_other_and_is_said_once_for_each_kind() -> None:
    ended, said = rounds_of(ValueError("odd"), ValueError("odd"), OSError(24, "too many"), ValueError("odd"))
    assert ended == 4
    assert said == [
        "a look at the memory failed, which is a fault of gen-worker: ValueError: odd",
        "a look at the memory failed, which is a fault of gen-worker: OSError: [Errno 24] too many",
    ]


def test_a_fault_that_is_another_each_time_floods_nobody() -> None:
    ended, said = rounds_of(*(ValueError(str(number)) for number in range(1000)))
    assert ended == 1000
    assert len(said) == 8
