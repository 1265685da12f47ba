"""How often models are loaded when more of them are asked for than the devices hold: a trial of the pure core."""

import heapq
import itertools
import random
from collections.abc import Callable
from typing import NamedTuple

import pytest

from gen_worker.wire.fetching import Fetch
from gen_worker.wire.messages import Load, Loaded, Resident, Unloaded
from gen_worker_supervisor.core.actions import OrderFetch, Run, Send
from gen_worker_supervisor.core.state import Child, Job
from tests.pure.host import Host, function

LOAD_S, RUN_S = 0.4, 0.1
JOBS, CLIENTS = 200, 6


class Setting(NamedTuple):
    """So many devices, each with room for so many of so many models."""

    devices: int
    room: int
    models: int


class Trial:
    """Clients that each ask for one of the models at random as soon as they have their answer."""

    def __init__(self, setting: Setting, seed: int) -> None:
        names = [f"f{number}" for number in range(setting.models)]
        functions = [function(name, instance=name, models=[f"{name}/m"]) for name in names]
        self.host = Host(*functions, devices=setting.devices)
        self.loads = 0
        self._room = setting.room
        self._names = names
        self._random = random.Random(seed)
        self._held: dict[str, list[str]] = {device.name: [] for device in self.host.fleet.devices}
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._performed = 0
        self._order = itertools.count()
        self._asked = 0
        self._done = 0

    def run(self) -> None:
        """Have every job answered."""
        for _ in range(CLIENTS):
            self._ask()
        while self._done < JOBS:
            self._perform()
            core, own = self.host.fleet.next_due(), self._due[0][0] if self._due else float("inf")
            if core is not None and core < own:
                self.host.passes(max(0.0, core - self.host.now))
                continue
            at, _, then = heapq.heappop(self._due)
            self.host.passes(max(0.0, at - self.host.now))
            then()

    def _perform(self) -> None:
        while self._performed < len(self.host.actions):
            action = self.host.actions[self._performed]
            self._performed += 1
            match action:
                case OrderFetch(order=Fetch() as order):
                    self.host.fetched(order)
                case Send(child=child, message=Load(instance=instance)):
                    self.loads += 1
                    self._later(LOAD_S, lambda child=child, instance=instance: self._loaded(child, instance))  # type: ignore[misc]
                case Run(child=child, job=job):
                    held = self._held[child.device.name]
                    held.append(held.pop(held.index(job.instance)))
                    self.host.starts(job)
                    self._later(RUN_S, lambda job=job: self._ended(job))  # type: ignore[misc]

    def _later(self, seconds: float, then: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.host.now + seconds, next(self._order), then))

    def _loaded(self, child: Child, instance: str) -> None:
        held = self._held[child.device.name]
        gone = [held.pop(0) for _ in range(len(held) - self._room + 1)]
        held.append(instance)
        said = [Unloaded(each, "no room") for each in gone]
        self.host.reports(child, *said, Loaded(instance, LOAD_S, [Resident("slot0", instance, "VRAM", 1)]))

    def _ended(self, job: Job) -> None:
        self.host.done(job, run_s=RUN_S)
        self._done += 1
        self._ask()

    def _ask(self) -> None:
        if self._asked < JOBS:
            self._asked += 1
            self.host.submit(self._random.choice(self._names))


def loads_on_any_idle_device(setting: Setting, seed: int) -> int:
    """Return how many loads there are when each job goes to any device that idles."""
    chance = random.Random(seed)
    held: list[list[int]] = [[] for _ in range(setting.devices)]
    loads = 0
    for _ in range(JOBS):
        device, model = chance.choice(held), chance.randrange(setting.models)
        if model in device:
            device.remove(model)
        else:
            loads += 1
            del device[: len(device) - setting.room + 1]
        device.append(model)
    return loads


@pytest.mark.parametrize("setting", [Setting(4, 2, 8), Setting(1, 1, 2)])
def test_placement_by_cost_loads_a_quarter_as_often_as_any_idle_device(setting: Setting) -> None:
    ours = naive = 0
    for seed in range(3):
        trial = Trial(setting, seed)
        trial.run()
        ours += trial.loads
        naive += loads_on_any_idle_device(setting, seed)
    assert ours <= 0.3 * naive


def test_every_job_is_answered_when_more_models_are_asked_for_than_there_is_room() -> None:
    trial = Trial(Setting(2, 1, 5), 0)
    trial.run()
    assert trial.host.fleet.done == JOBS
