"""Very many deaths: neither the disk is filled nor the loop is held."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gen_worker.postmortem import folder_in, names, read
from gen_worker_supervisor.core.actions import Bury
from gen_worker_supervisor.core.state import Child, Death, Device, Fleet
from gen_worker_supervisor.history.postmortems import WAITING, Graveyard
from gen_worker_supervisor.logs.log import Log
from tests.served import until

pytestmark = pytest.mark.process

LIMIT = 256 << 10
DEATHS = 3000


@pytest.fixture
def log() -> Iterator[Log]:
    """A log that nobody reads."""
    made = Log(fd=-1)
    yield made
    made.close()


def death_of(number: int) -> Bury:
    child = Child(Device("cuda:0", "cuda"), number, 0.0, pid=number)
    child.postmortem = f"20261122-13{number // 60 % 60:02d}{number % 60:02d}-cuda0-{number:04x}"
    lines: list[tuple[str | None, str]] = [("r1", "x" * 200)] * 20
    return Bury(child, Death("SIGSEGV", signal="SIGSEGV"), [], lines)


@pytest.mark.promise(44)
def test_a_flood_of_deaths_neither_fills_the_disk_nor_holds_the_loop(tmp_path: Path, log: Log) -> None:
    fleet = Fleet({}, [])

    async def flood() -> tuple[Graveyard, float]:
        graveyard = Graveyard(fleet, asyncio.get_running_loop(), log, tmp_path, LIMIT, "1.0.0")
        longest = 0.0
        for number in range(DEATHS):
            began = time.perf_counter()
            graveyard.bury(death_of(number), float(number))
            longest = max(longest, time.perf_counter() - began)
            await asyncio.sleep(0)
        return graveyard, longest

    graveyard, longest = asyncio.run(flood())
    until(lambda: graveyard.written + graveyard.dropped == DEATHS, what="the last of them")
    graveyard.close()
    folder = folder_in(tmp_path)
    assert longest < 0.05
    assert graveyard.written >= WAITING
    assert 0 < sum(file.stat().st_size for file in folder.iterdir()) <= LIMIT
    assert all(read(folder, name).cause == "SIGSEGV" for name in names(folder))
    assert fleet.epoch is None, "no death is given a name any more"
