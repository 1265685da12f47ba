"""The threads that read GPUs, with a driver that hangs when it is told to: who is silent, and who is read on."""

import asyncio
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from gen_worker_supervisor.core.happenings import DeviceFault, GpusRead
from gen_worker_supervisor.core.state import Device
from gen_worker_supervisor.devices.gpu_watch import GpuWatch
from gen_worker_supervisor.logs.log import Log
from gen_worker_supervisor.loop.rounds import Rounds

pytestmark = pytest.mark.process

GIB = 1 << 30
SILENT_S = 0.4
WITHIN_S = 30.0


class NvmlError(Exception):
    """As that of `pynvml`."""

    def __init__(self, value: int) -> None:
        super().__init__(f"error {value}")
        self.value = value


class Driver(ModuleType):
    """The driver's library, which answers of a GPU once its gate is open."""

    NVMLError = NvmlError
    NVML_ERROR_GPU_IS_LOST, NVML_ERROR_RESET_REQUIRED, NVML_TEMPERATURE_GPU = 15, 16, 0

    def __init__(self, count: int) -> None:
        super().__init__("pynvml")
        self.used = dict.fromkeys(range(count), GIB)
        self.gates = {index: threading.Event() for index in range(count)}
        self.lost: set[int] = set()
        self.asking: list[int] = []
        for gate in self.gates.values():
            gate.set()

    def nvmlInit(self) -> None: ...

    def nvmlEventSetCreate(self) -> None:
        raise NvmlError(3)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        return int(uuid)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        self.asking.append(handle)
        self.gates[handle].wait()
        self.asking.remove(handle)
        if handle in self.lost:
            raise NvmlError(self.NVML_ERROR_GPU_IS_LOST)
        return SimpleNamespace(total=8 * GIB, used=self.used[handle])

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return SimpleNamespace(gpu=50)

    def nvmlDeviceGetTemperature(self, handle: int, kind: int) -> int:
        return 60

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return 70_000


class Watched:
    """What a watch over GPUs of such a driver tells."""

    def __init__(self, driver: Driver, log: Log) -> None:
        self.loop = asyncio.get_running_loop()
        gpus = [Device(f"cuda:{n}", "cuda", n, uuid=str(n), vram_total=8 * GIB, vram_used=GIB) for n in driver.used]
        rounds = Rounds("devices", "a look at the GPUs", self.loop, log)
        self.faults: list[DeviceFault] = []
        self.used: dict[str, int | None] = {}
        self._news = asyncio.Event()
        self.watch = GpuWatch(self.loop, gpus, self._on, lambda *_: None, lambda: True, rounds, SILENT_S)
        self.watch.start()

    def _on(self, told: GpusRead | DeviceFault) -> None:
        self._news.set()
        if isinstance(told, DeviceFault):
            self.faults.append(told)
            return
        self.used.update({reading.device: reading.used for reading in told.readings})
        self.used.update(dict.fromkeys(told.silent))

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for what is told of sooner or later."""
        async with asyncio.timeout(WITHIN_S):
            while not holds():
                self._news.clear()
                await self._news.wait()

    def silent(self, name: str) -> int:
        """How often it was said that its driver does not answer."""
        return sum(fault.device == name and "has not answered for 0.4 s" in fault.reason for fault in self.faults)


@pytest.fixture
def watching(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[int, Callable[..., Any]], None]:
    """Run something with a driver of so many GPUs and a watch over them; no thread is left."""

    def run(count: int, story: Callable[[Driver, Watched], Any]) -> None:
        driver = Driver(count)
        monkeypatch.setitem(sys.modules, "pynvml", driver)
        before = set(threading.enumerate())

        async def told() -> None:
            with (tmp_path / "log").open("wb") as stderr:
                log = Log(fd=stderr.fileno())
                watched = Watched(driver, log)
                try:
                    await story(driver, watched)
                finally:
                    watched.watch.close()
                    for gate in driver.gates.values():
                        gate.set()
                    for thread in set(threading.enumerate()) - before:
                        if thread.name.startswith("gen-worker-gpu"):
                            thread.join(WITHIN_S)
                    log.close(WITHIN_S)

        asyncio.run(told())
        assert not any(thread.name.startswith("gen-worker-gpu") for thread in set(threading.enumerate()) - before)

    return run


async def falls_silent(driver: Driver, watched: Watched, index: int) -> None:
    before = watched.silent(f"cuda:{index}")
    driver.gates[index].clear()
    await watched.until(lambda: watched.silent(f"cuda:{index}") == before + 1)


def test_nothing_is_free_of_a_gpu_that_is_silent_and_each_silence_is_told_of_once(
    watching: Callable[[int, Callable[..., Any]], None],
) -> None:
    async def story(driver: Driver, watched: Watched) -> None:
        for silences in (1, 2):
            await falls_silent(driver, watched, 0)
            assert watched.used["cuda:0"] is None
            driver.used[1] = 2 * silences * GIB
            await watched.until(lambda: watched.used["cuda:1"] == driver.used[1])
            assert watched.watch.free_total() == 8 * GIB - driver.used[1]
            assert watched.silent("cuda:0") == silences
            driver.gates[0].set()
            await watched.until(lambda: watched.used["cuda:0"] == GIB)
            assert watched.watch.free_total() == 15 * GIB - driver.used[1]
        assert watched.silent("cuda:1") == 0

    watching(2, story)


def test_as_many_threads_read_as_gpus_have_been_silent_and_each_gpu_is_read_by_one(
    watching: Callable[[int, Callable[..., Any]], None],
) -> None:
    async def story(driver: Driver, watched: Watched) -> None:
        for index in (1, 2, 0):
            await falls_silent(driver, watched, index)
        readers = [thread for thread in threading.enumerate() if thread.name == "gen-worker-gpus"]
        assert len(readers) == 4
        for gate in driver.gates.values():
            gate.set()
        await watched.until(lambda: all(watched.used[f"cuda:{index}"] == GIB for index in range(4)))
        for gate in driver.gates.values():
            gate.clear()
        await watched.until(lambda: len(driver.asking) == 4)
        assert sorted(driver.asking) == [0, 1, 2, 3]
        assert [thread for thread in threading.enumerate() if thread.name == "gen-worker-gpus"] == readers

    watching(4, story)


def test_of_a_lost_gpu_that_is_told_and_what_was_read_before_counts_no_more(
    watching: Callable[[int, Callable[..., Any]], None],
) -> None:
    async def story(driver: Driver, watched: Watched) -> None:
        await watched.until(lambda: watched.used.get("cuda:0") == GIB)
        driver.lost.add(0)
        await watched.until(lambda: watched.used["cuda:0"] is None)
        assert [(fault.device, fault.fatal) for fault in watched.faults] == [("cuda:0", True)]
        assert watched.watch.free_total() == 7 * GIB

    watching(2, story)
