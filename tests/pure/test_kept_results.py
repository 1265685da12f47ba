"""Results on the control socket wait for their `ack`, but not for ever and not without limit."""

import asyncio
from typing import Any, cast

from gen_worker.wire import control as wire
from gen_worker_supervisor.clients.control import KEPT_BYTES, KEPT_RESULTS, ControlServer, Ticket

NOBODY: Any = None


def desk(*, kept_s: float = 600.0) -> ControlServer:
    """Return a control server that listens nowhere."""
    hello = wire.Opened(wire.CONTROL_PROTOCOL, "boot", 1, "0")
    return ControlServer(cast(Any, NOBODY), asyncio.get_running_loop(), cast(Any, NOBODY), hello, kept_s=kept_s)


def answered(server: ControlServer, name: str, body: bytes = b"1") -> None:
    """Have a job end whose client is gone."""
    ticket = Ticket(name, 1, server, None, False, False, body=body)
    server.open_ticket(ticket)
    server.keep(ticket)


def test_a_result_nobody_comes_back_for_is_dropped_when_its_time_is_over() -> None:
    async def story() -> None:
        server = desk(kept_s=0.01)
        answered(server, "a")
        answered(server, "b")
        assert server.ticket(("a", 1)) is not None
        async with asyncio.timeout(10):
            while server.dropped < 2:  # noqa: ASYNC110 - it sets no event
                await asyncio.sleep(0)
        assert server.ticket(("a", 1)) is None
        assert server.ticket(("b", 1)) is None
        server.close()

    asyncio.run(story())


def test_the_oldest_results_go_when_there_are_too_many() -> None:
    async def story() -> None:
        server = desk()
        for number in range(KEPT_RESULTS + 3):
            answered(server, str(number))
        assert server.dropped == 3
        assert server.ticket(("2", 1)) is None
        assert server.ticket(("3", 1)) is not None
        server.close()

    asyncio.run(story())


def test_the_oldest_results_go_when_they_are_too_big_but_never_the_newest() -> None:
    async def story() -> None:
        server = desk()
        big = bytes(KEPT_BYTES // 2 + 1)
        answered(server, "a", big)
        answered(server, "b", big)
        assert server.ticket(("a", 1)) is None
        answered(server, "c", bytes(KEPT_BYTES + 1))
        assert server.ticket(("b", 1)) is None
        assert server.ticket(("c", 1)) is not None
        server.close()

    asyncio.run(story())


def test_an_acknowledged_result_is_forgotten_at_once_and_counts_as_no_loss() -> None:
    async def story() -> None:
        server = desk()
        answered(server, "a")
        server.acknowledge(("a", 1))
        assert server.ticket(("a", 1)) is None
        assert server.dropped == 0
        server.close()

    asyncio.run(story())
