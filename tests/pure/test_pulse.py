"""The supervisor knows how late its loop is."""

import asyncio
import time

import pytest

from gen_worker_supervisor.loop.pulse import INTERVAL_S, Pulse


@pytest.mark.promise(33)
def test_what_holds_the_loop_shows_as_its_lag() -> None:
    async def story() -> None:
        pulse = Pulse(asyncio.get_running_loop())
        assert pulse.p99_s() is None
        assert pulse.max_s() is None
        held_s = 3 * INTERVAL_S
        time.sleep(held_s)  # noqa: ASYNC251 - it is what is measured
        async with asyncio.timeout(10):
            while (worst := pulse.max_s()) is None:  # noqa: ASYNC110 - it sets no event
                await asyncio.sleep(0)
        assert worst >= held_s - INTERVAL_S - 0.001
        pulse.close()

    asyncio.run(story())
