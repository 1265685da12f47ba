"""What a child took of its supervisor is given back at its death."""

import asyncio
import gc
import weakref

import pytest

from gen_worker_supervisor.core.state import Child, Death, Device
from gen_worker_supervisor.processes.process import ChildProcess
from gen_worker_supervisor.processes.reaper import Reaper
from gen_worker_supervisor.sockets.poller import Poller

pytestmark = pytest.mark.process


class Mourner:
    """A listener that only hears of the death."""

    def __init__(self) -> None:
        self.deaths: list[Death] = []

    def on_frames(self, process: ChildProcess, frames: object) -> None:
        raise AssertionError("it has no process")

    def on_misbehaviour(self, process: ChildProcess, what: str) -> None:
        raise AssertionError("it has no process")

    def on_line(self, process: ChildProcess, job: int, line: str) -> None:
        raise AssertionError("it has no process")

    def on_birth(self, process: ChildProcess) -> None:
        raise AssertionError("it has no process")

    def on_death(self, process: ChildProcess, death: Death) -> None:
        self.deaths.append(death)


@pytest.mark.promise(50)
def test_a_dead_child_is_freed_at_once_and_waits_for_no_collector() -> None:
    async def story() -> bool:
        loop = asyncio.get_running_loop()
        poller, reaper, mourner = Poller(loop), Reaper(loop), Mourner()
        process = ChildProcess(Child(Device("cpu:0", "cpu"), 1, 0.0), loop, poller, mourner, reaper)
        gone = weakref.ref(process)
        process.stillborn("no memory")
        del process
        reaper.close()
        poller.close()
        assert len(mourner.deaths) == 1
        return gone() is None

    gc.collect()
    gc.disable()
    try:
        assert asyncio.run(story())
    finally:
        gc.enable()
