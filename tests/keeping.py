"""Host memory under test, with a real keeper and no supervisor around it."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gen_worker_supervisor.memory.host_memory import HostMemory, free_bytes_now
from gen_worker_supervisor.memory.keeping import Keeper
from gen_worker_supervisor.processes.reaper import Reaper
from tests.served import until


class Kept:
    """A host's memory and who keeps it, which the test's loop looks after."""

    def __init__(self, folder: Path, budget_bytes: int, free_bytes: Callable[[], int]) -> None:
        self._loop = asyncio.new_event_loop()
        self._reaper = Reaper(self._loop)
        self.keeper = Keeper(self._reaper, lambda cause: self.memory.void())
        self.memory = HostMemory(folder, budget_bytes, self.keeper, free_bytes)

    def until(self, condition: Callable[[], bool], *, what: str) -> None:
        """Run the loop until a condition holds."""

        def turned() -> bool:
            self._loop.call_soon(self._loop.stop)
            self._loop.run_forever()
            return condition()

        until(turned, what=what)

    def close(self) -> None:
        """Let go of everything."""
        self.memory.close()
        self._reaper.close()
        self._loop.close()


@contextmanager
def host_memory(folder: Path, budget_bytes: int, free_bytes: Callable[[], int] = free_bytes_now) -> Iterator[Kept]:
    """Hold models until the body ends."""
    kept = Kept(folder, budget_bytes, free_bytes)
    try:
        yield kept
    finally:
        kept.close()
