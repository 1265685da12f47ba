"""Whatever an orchestrator describes, wants and runs, and whatever dies meanwhile: promises that hold in any order."""

import random
from collections.abc import Callable

import pytest

from gen_worker.models.errors import ModelErrorKind
from gen_worker.wire.messages import LoadFailed, LoadFailure
from gen_worker.wire.scheduler import HelloAck, ModelEvent, ModelOpKind, ModelState, Snapshot
from gen_worker_supervisor.core.actions import Run
from gen_worker_supervisor.core.happenings import FetcherLost
from gen_worker_supervisor.core.phases import JobState, Phase
from gen_worker_supervisor.core.phases import ModelState as Coming
from gen_worker_supervisor.core.state import Function, Job
from tests.pure.host import Host
from tests.pure.linked import Worker, bound, described, gpu, hub

DIGESTS = [letter * 64 for letter in "abc"]
REFS = ["acme/m", "acme/vae", "acme/other"]
FAILURES: tuple[ModelErrorKind, ...] = ("url_expired", "digest_mismatch", "insufficient_disk", "not_configured")


class Chaos:
    """One worker, and one step after another that a number decides."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        functions = [bound("f", hub("acme/m")), bound("g", hub("acme/m"), hub("acme/vae"))]
        self.the = Worker(*functions, devices=[gpu("cuda:0"), gpu("cuda:1")], eager=self.chance.random() < 0.5)
        self.host: Host = self.the.host
        self.jobs: list[tuple[Job, Function]] = []
        self.operations = 0
        self.stamp = 0

    def step(self) -> None:
        """Let one thing happen, and look at what must hold."""
        ways: list[Callable[[], object]] = [
            *(self.run, self.run, self.operate, self.fetch, self.fetch, self.load, self.load),
            *(self.begin, self.finish, self.finish, self.die, self.lose, self.redial, self.wait),
        ]
        begun = len(self.host.actions)
        self.chance.choice(ways)()
        for action in self.host.actions[begun:]:
            if isinstance(action, Run):
                assert action.job.instance in action.child.loaded | {action.child.loading}
        self.the.link.tick()
        self.the.link.changed()

    # --- what may happen ---

    def snapshot(self) -> dict[str, Snapshot]:
        self.stamp += 1
        ref = self.chance.choice(REFS)
        return {ref: described(self.chance.choice(DIGESTS), stamp=str(self.stamp))}

    def run(self) -> None:
        name = self.chance.choice("fg")
        snapshots = self.snapshot() if self.chance.random() < 0.6 else {}
        models = [("m0", self.chance.choice(REFS))] if self.chance.random() < 0.3 else []
        function = self.the.function(name, snapshots, models)
        assert isinstance(function, Function)
        if self.chance.random() < 0.3:
            function = self.the.fleet.on_device(function, self.chance.choice(self.the.fleet.devices))
        job = self.host.submit(function=function)
        self.jobs.append((job, function))

    def operate(self) -> None:
        kind = self.chance.choice([ModelOpKind.DOWNLOAD, ModelOpKind.LOAD, ModelOpKind.UNLOAD])
        ref = self.chance.choice(REFS)
        snapshot = described(self.chance.choice(DIGESTS)) if self.chance.random() < 0.5 else None
        self.the.operates(kind, ref, snapshot)
        self.operations += 1

    def fetch(self) -> None:
        under_way = {model.number for model in self.the.fleet.catalog.models.values() if not model.settled}
        orders = [order for order in self.host.ordered() if order.number in under_way]
        if not orders:
            return
        order = self.chance.choice(orders)
        luck = self.chance.random()
        if luck < 0.2:
            self.host.fetch_fails(order, kind=self.chance.choice(FAILURES), retryable=True)
        elif order.probe and luck < 0.7:
            self.host.absent(order)
        else:
            self.host.fetched(order)

    def load(self) -> None:
        loading = [device.child for device in self.the.fleet.devices if device.child and device.child.loading]
        if not loading:
            return
        child = self.chance.choice(loading)
        assert child.loading is not None
        if self.chance.random() < 0.2:
            kinds: list[LoadFailure] = ["setup", "model", "out_of_memory"]
            self.host.reports(child, LoadFailed(child.loading, "no", [], self.chance.choice(kinds)))
        else:
            self.the.loads(child)

    def begin(self) -> None:
        for job, _ in self.jobs:
            if job.state is JobState.LEASED and job.child is not None:
                self.host.starts(job)
                return

    def finish(self) -> None:
        for job, function in self.jobs:
            if job.state is JobState.STARTED and job.child is not None:
                assert job.function is function, "it runs as what it came for"
                self.host.done(job)
                return

    def die(self) -> None:
        child = self.host.child(self.chance.randrange(2))
        if self.chance.random() < 0.3 and child.phase in (Phase.READY, Phase.BUSY, Phase.LOADING):
            self.host.dies(child)
        for device in self.the.fleet.devices:
            if device.child is not None and device.child.phase is Phase.FORKING:
                self.host.boot(device)

    def lose(self) -> None:
        if self.chance.random() < 0.2:
            self.host.happens(FetcherLost())

    def redial(self) -> None:
        if self.chance.random() < 0.3:
            self.the.link.residency()
            self.the.link.acknowledged(HelloAck(keep=(self.chance.choice(REFS),)))

    def wait(self) -> None:
        self.host.passes(self.chance.choice([0.5, 5.0, 40.0]))

    # --- the end ---

    def settle(self) -> None:
        """Let everything go well until nothing is left to do."""
        for _ in range(300):
            for device in self.the.fleet.devices:
                if device.child is not None and device.child.phase is Phase.FORKING:
                    self.host.boot(device)
            models = [model for model in self.the.fleet.catalog.models.values() if not model.settled]
            numbers = {model.number for model in models}
            for order in [order for order in self.host.ordered() if order.number in numbers]:
                self.host.fetched(order)
            for device in self.the.fleet.devices:
                if device.child is not None and device.child.loading is not None:
                    self.the.loads(device.child)
            for job, _ in self.jobs:
                if job.state is JobState.LEASED and job.child is not None:
                    self.host.starts(job)
                if job.state is JobState.STARTED and job.child is not None:
                    self.host.done(job)
            self.host.passes(2.0)
            self.the.link.changed()
            if all(job.ended for job, _ in self.jobs) and not self.the.link.busy:
                return
        waiting = [(job.number, job.state, job.instance) for job, _ in self.jobs if not job.ended]
        raise AssertionError(f"it never settles: {waiting}, {self.the.link.busy}")


@pytest.mark.parametrize("seed", range(100))
def test_every_job_is_answered_once_by_the_models_it_came_for_and_nothing_is_left(seed: int) -> None:
    chaos = Chaos(seed)
    for _ in range(60):
        chaos.step()
    chaos.settle()
    the, fleet = chaos.the, chaos.the.fleet
    assert all(len(chaos.host.answers[job.number]) == 1 for job, _ in chaos.jobs)
    assert fleet.superseded == []
    assert fleet.loads == {}
    assert not fleet.jobs
    meant = {function.surveyed.instance for function in fleet.variants()}
    for device in fleet.devices:
        assert device.child is not None
        assert device.child.loaded - {""} <= meant
    known = {model.wanted for model in fleet.catalog.models.values() if model.state is not Coming.COLD}
    assert known <= {slot.wanted for function in fleet.variants() for slot in function.surveyed.slots}
    events = [each for each in the.said if isinstance(each, ModelEvent) and each.state is not ModelState.DOWNLOADING]
    assert len(events) >= chaos.operations, "at least one event for each operation"
