"""The pure core against children and clients that do anything at any moment, in any order."""

from collections import deque

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gen_worker.wire.messages import (
    Cancel,
    Done,
    Drain,
    ErrorDetail,
    Event,
    Failed,
    Hello,
    ImportFailed,
    Interrupt,
    Item,
    Load,
    Loaded,
    LoadFailed,
    Order,
    Ready,
    Recall,
    Region,
    Report,
    Returned,
    Started,
    Warned,
)
from gen_worker_supervisor.ladder import Reason
from gen_worker_supervisor.phases import JobState, Phase
from gen_worker_supervisor.state import (
    Action,
    Began,
    Child,
    Death,
    Deliver,
    Died,
    Discard,
    DrainAsked,
    EndAsked,
    Happening,
    Job,
    Misbehaved,
    Reported,
    Run,
    Send,
    Signal,
    Spawn,
    Spawned,
    lane_of,
)
from tests.pure.host import CREDITS, Host, function

FUNCTIONS = ("plain", "loop", "classy", "stream")
CUDA = ErrorDetail(cause="cuda_error")
LEAVING = (Phase.DYING, Phase.SETTLING, Phase.BACKOFF)


class ModelChild:
    """A child process that obeys when it is told to, in the order its frames came."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.inbox: deque[Order | Job] = deque()
        self.unstarted: deque[Job] = deque()
        self.running: list[Job] = []
        self.loads: deque[str] = deque()
        self.signals: list[int] = []
        self.booted = 0
        self.leaves = False

    def obey(self) -> list[Report]:
        """Take one frame; return what the child says to it."""
        order = self.inbox.popleft()
        match order:
            case Job():
                self.unstarted.append(order)
            case Cancel(number) | Recall(number):
                for job in self.unstarted:
                    if job.number == number:
                        self.unstarted.remove(job)
                        return [Returned(number)]
            case Interrupt(number):
                for job in self.running:
                    if job.number == number:
                        self.running.remove(job)
                        return [Failed(number, "canceled", "canceled", False, 1.0)]
            case Load(instance):
                self.loads.append(instance)
            case Drain():
                self.leaves = True
        return []

    def start(self) -> list[Happening]:
        """Start a job, if one waits and its lane is free."""
        for job in self.unstarted:
            lane = lane_of(job.function)
            if lane == "loop" or not any(lane_of(other.function) == lane for other in self.running):
                self.unstarted.remove(job)
                self.running.append(job)
                if lane == "loop":
                    return [Reported(self.child, Started(job.number))]
                return [Began(self.child, job.number, 0.0)]
        return []


class Fleets(RuleBasedStateMachine):
    """Everything that can happen to a supervisor."""

    @initialize(devices=st.integers(1, 3), max_queued=st.sampled_from([4, 1000]))
    def begins(self, devices: int, max_queued: int) -> None:
        functions = (
            function("plain"),
            function("loop", shape="async", lane="loop"),
            function("classy", instance="C"),
            function("stream", shape="generator"),
        )
        self.models: dict[int, ModelChild] = {}
        self.jobs: list[Job] = []
        self.host = Host(*functions, devices=devices, max_queued=max_queued, up=False)
        self.perform(self.host.actions)

    # --- the world the core acts on ---

    def perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Spawn(child=child):
                    on_device = [m for m in self.models.values() if m.child.device is child.device]
                    assert not on_device, "a second child on a device"
                    self.models[child.generation] = ModelChild(child)
                case Run(child=child, job=job):
                    self.model_of(child).inbox.append(job)
                case Send(child=child, message=message):
                    self.model_of(child).inbox.append(message)
                case Signal(child=child, number=number):
                    self.model_of(child).signals.append(number)
                case Deliver(child=child) | Discard(child=child):
                    self.model_of(child)

    def model_of(self, child: Child) -> ModelChild:
        assert child.generation in self.models, "an action for a process that is gone"
        return self.models[child.generation]

    def happens(self, *happenings: Happening) -> None:
        self.perform(self.host.happens(*happenings))

    def says(self, model: ModelChild, *messages: Report) -> None:
        self.happens(*(Reported(model.child, message) for message in messages))

    def chosen(self, index: int) -> ModelChild:
        models = list(self.models.values())
        return models[index % len(models)]

    # --- clients ---

    @rule(name=st.sampled_from(FUNCTIONS), body=st.sampled_from([b"a", b"b"]), timeout=st.sampled_from([None, 3.0]))
    def submits(self, name: str, body: bytes, timeout: float | None) -> None:
        before = len(self.host.actions)
        self.jobs.append(self.host.submit(name, body, stream=name == "stream", timeout_s=timeout))
        self.perform(self.host.actions[before:])

    @precondition(lambda self: self.jobs)
    @rule(index=st.integers(0, 50), reason=st.sampled_from(list(Reason)), at_once=st.booleans())
    def asks_for_an_end(self, index: int, reason: Reason, at_once: bool) -> None:
        self.happens(EndAsked(self.jobs[index % len(self.jobs)], reason, at_once and reason is Reason.KILL))

    @rule(seconds=st.sampled_from([0.001, 0.5, 5.0, 35.0]))
    def time_passes(self, seconds: float) -> None:
        self.perform(self.host.passes(seconds))

    @precondition(lambda self: len(self.jobs) > 8)
    @rule()
    def is_drained(self) -> None:
        self.happens(DrainAsked())

    # --- children that behave ---

    @precondition(lambda self: self.models)
    @rule(index=st.integers(0, 5))
    def boots(self, index: int) -> None:
        self.boot(self.chosen(index))

    def boot(self, model: ModelChild) -> None:
        steps: list[Happening] = [
            Spawned(model.child, 100),
            Reported(model.child, Hello(100)),
            Reported(model.child, Ready(list(FUNCTIONS), CREDITS, 7)),
        ]
        self.happens(*steps[model.booted : model.booted + 1])
        model.booted += 1

    @precondition(lambda self: self.models)
    @rule(index=st.integers(0, 5), frames=st.integers(1, 4))
    def obeys(self, index: int, frames: int) -> None:
        self.obey(self.chosen(index), frames)

    def obey(self, model: ModelChild, frames: int) -> None:
        while model.booted > 2 and model.inbox and frames and not model.leaves:
            self.says(model, *model.obey())
            frames -= 1
        if model.leaves and not model.loads and not model.running:
            self.die(model, Death("exit code 0", exit_code=0))

    @precondition(lambda self: self.models)
    @rule(index=st.integers(0, 5))
    def starts_a_job(self, index: int) -> None:
        self.happens(*self.chosen(index).start())

    @precondition(lambda self: self.models)
    @rule(index=st.integers(0, 5), how=st.sampled_from(["done", "long", "failed", "cuda", "item", "region"]))
    def runs(self, index: int, how: str) -> None:
        model = self.chosen(index)
        if model.running:
            self.end_job(model, model.running[0], how)

    def end_job(self, model: ModelChild, job: Job, how: str) -> None:
        if how == "item":
            self.says(model, Item(job.number, b"1"))
            return
        model.running.remove(job)
        if how == "failed":
            self.says(model, Failed(job.number, "user_exception", "no", False, 0.1))
        elif how == "cuda":
            self.says(model, Failed(job.number, "user_exception", "no", False, 0.1, detail=CUDA))
        else:
            self.says(
                model, Done(job.number, Region(1, 5) if how == "region" else b"1", 3.0 if how == "long" else 0.001)
            )

    @precondition(lambda self: self.models)
    @rule(index=st.integers(0, 5), good=st.booleans())
    def loads(self, index: int, good: bool) -> None:
        model = self.chosen(index)
        if model.loads:
            instance = model.loads.popleft()
            self.says(model, Loaded(instance, 0.2) if good else LoadFailed(instance, "no", []))

    # --- children that do not ---

    @precondition(lambda self: self.models)
    @rule(index=st.integers(0, 5))
    def dies(self, index: int) -> None:
        self.die(self.chosen(index), Death("SIGKILL", signal="SIGKILL"))

    def die(self, model: ModelChild, death: Death) -> None:
        del self.models[model.child.generation]
        self.happens(Died(model.child, death))

    @precondition(lambda self: self.models)
    @rule(index=st.integers(0, 5))
    def heeds_a_signal(self, index: int) -> None:
        model = self.chosen(index)
        if 9 in model.signals or 15 in model.signals:
            self.die(model, Death("SIGTERM", signal="SIGTERM"))

    @precondition(lambda self: self.models)
    @rule(index=st.integers(0, 5), kind=st.integers(0, 11), number=st.integers(0, 12))
    def sends_what_it_may_not(self, index: int, kind: int, number: int) -> None:
        frames: list[Report] = [
            Hello(1),
            Ready([], {"device": 1, "loop": 1}, 1),
            ImportFailed("no", []),
            Loaded("C", 1.0),
            Loaded("", 1.0),
            LoadFailed("C", "no", []),
            Started(number),
            Item(number, Region(1, 1)),
            Done(number, Region(1, 1), 0.0),
            Failed(number, "busy", "no", True, 0.0),
            Returned(number),
            Event(number, "log", b"{}"),
        ]
        model = self.chosen(index)
        self.says(model, frames[kind], Warned("beware"))
        model.running = [job for job in model.running if job.number in model.child.leased]

    @precondition(lambda self: self.models)
    @rule(index=st.integers(0, 5))
    def breaks_the_protocol(self, index: int) -> None:
        self.happens(Misbehaved(self.chosen(index).child, "rubbish"))

    # --- what always holds ---

    @invariant()
    def a_job_has_at_most_one_answer(self) -> None:
        assert all(len(answers) == 1 for answers in self.host.answers.values())

    @invariant()
    def a_job_is_in_one_place(self) -> None:
        fleet = self.host.fleet
        waiting = 0
        for job in self.jobs:
            answered = job.number in self.host.answers
            assert answered == job.ended == (job.number not in fleet.jobs)
            holders = [d.child for d in fleet.devices if d.child is not None and d.child.leased.get(job.number) is job]
            assert job.waiting == (job.state is JobState.QUEUED)
            if job.state is JobState.QUEUED:
                assert not holders
                assert job.child is None
                assert job in job.function.queue
            elif not job.ended:
                assert holders == [job.child]
            waiting += job.waiting
        assert fleet.queued == waiting == sum(known.waiting for known in fleet.functions.values())
        assert set(fleet.waiting) == {name for name, known in fleet.functions.items() if known.waiting}

    @invariant()
    def a_childs_counts_are_those_of_its_leases(self) -> None:
        for device in self.host.fleet.devices:
            child = device.child
            if child is None or child.phase in LEAVING:
                continue
            for lane in ("device", "loop"):
                assert child.used[lane] == sum(lane_of(job.function) == lane for job in child.leased.values())

    # --- the end ---

    def teardown(self) -> None:
        """Let everything go on without further trouble: each job gets its answer."""
        if not hasattr(self, "host"):
            return
        for _ in range(200):
            if all(job.ended for job in self.jobs):
                break
            for model in list(self.models.values()):
                self.carry_on(model)
            self.perform(self.host.passes(1.0))
        self.a_job_is_in_one_place()
        assert all(len(self.host.answers.get(job.number, [])) == 1 for job in self.jobs)
        self.drain_to_the_end()

    def carry_on(self, model: ModelChild) -> None:
        if 9 in model.signals or 15 in model.signals:
            self.die(model, Death("SIGKILL", signal="SIGKILL"))
            return
        self.boot(model)
        while model.loads:
            self.says(model, Loaded(model.loads.popleft(), 0.2))
        while model.running:
            self.end_job(model, model.running[0], "done")
        self.happens(*model.start())
        self.obey(model, 100)

    def drain_to_the_end(self) -> None:
        self.happens(DrainAsked())
        for _ in range(60):
            if self.host.fleet.finished:
                return
            for model in list(self.models.values()):
                self.carry_on(model)
            self.perform(self.host.passes(1.0))
        raise AssertionError("it was asked to end and does not")


TestFleets = Fleets.TestCase
TestFleets.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
