"""The pure core against children and clients that do anything at any moment, in any order."""

from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gen_worker.models.wanted import Slot, Wanted, overridden_instance
from gen_worker.wire.control import Model as ModelFrame
from gen_worker.wire.control import Modeled
from gen_worker.wire.fetching import Abort, Fetch, Fetched, FetchFailed
from gen_worker.wire.messages import (
    Body,
    Cancel,
    Done,
    Drain,
    ErrorDetail,
    Event,
    Failed,
    Hello,
    ImportFailed,
    InputAsset,
    InputFile,
    Interrupt,
    Item,
    Load,
    Loaded,
    LoadFailed,
    NeedsInputs,
    Order,
    Pin,
    Ready,
    Recall,
    Region,
    Report,
    Resident,
    Returned,
    Started,
    Unload,
    Unloaded,
    Wants,
    Warned,
)
from gen_worker_supervisor.clients.model_verbs import ModelVerbs
from gen_worker_supervisor.core.actions import (
    Action,
    Answer,
    Deliver,
    Discard,
    OrderFetch,
    OrderInputs,
    Run,
    Send,
    Signal,
    Spawn,
)
from gen_worker_supervisor.core.bodies import InlinePayload
from gen_worker_supervisor.core.evidence import Evidence, MemoryReading
from gen_worker_supervisor.core.happenings import (
    Began,
    DeviceDrainAsked,
    Died,
    DrainAsked,
    EndAsked,
    FetcherLost,
    FetcherReported,
    Happening,
    InputsCame,
    InputsRefused,
    MemoryRead,
    Misbehaved,
    Reported,
    RestartAsked,
    Spawned,
    Ticked,
    Unsent,
    Watched,
)
from gen_worker_supervisor.core.ladder import Reason
from gen_worker_supervisor.core.phases import JobState, Phase
from gen_worker_supervisor.core.state import (
    LEASED_AHEAD,
    Child,
    Death,
    Device,
    Function,
    Job,
    Recycling,
    drained_away,
)
from gen_worker_supervisor.core.tenants import Held
from tests.pure.host import CREDITS, KILLED, Caller, Host, function, snapshot

FUNCTIONS = ("plain", "loop", "classy", "stream", "one", "other", "together")
BATCH = 3
CUDA = ErrorDetail(cause="cuda_error")
LEAVING = (Phase.DYING, Phase.SETTLING, Phase.BACKOFF)
ASSETS, FILES = [InputAsset("https://a/b")], [InputFile("/in/input-0.bin", 1, "application/octet-stream")]
NAMING = InlinePayload(b"b").digest()
UNBORN = Death("not started: no memory", unborn=True)
CLIENTS = 6
GIB = 1 << 30
LONG_S = 700.0  # longer than any timer of ours


class ModelChild:
    """A child process that obeys when it is told to, in the order its frames came."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.inbox: deque[Order | Job] = deque()
        self.unstarted: deque[Job] = deque()
        self.running: list[Job] = []
        self.loads: deque[str] = deque()
        self.holds: set[str] = set()  # instances
        self.pinned: set[str] = set()  # instances that go for no other
        self.signals: list[int] = []
        self.booted = 0
        self.leaves = False
        self.frozen = False
        self.written: dict[int, int] = {}  # regions that were named in a frame and not yet passed on: whose job's

    def boots(self) -> bool:
        """Whether it is not ready yet."""
        return self.booted < 3

    def is_up(self) -> bool:
        """Whether it was ready once."""
        return not self.boots() and not self.frozen

    def has_work(self) -> bool:
        """Whether it has anything to do."""
        return not self.frozen and (self.boots() or bool(self.inbox or self.unstarted or self.running or self.loads))

    def at_work(self) -> bool:
        """Whether a handler runs in it."""
        return bool(self.running) and not self.frozen

    def has_left(self) -> bool:
        """Whether it has ended as it was told to."""
        return self.leaves and not self.loads and not self.running

    def must_die(self) -> bool:
        """Whether it was sent a signal that ends it."""
        return not self.frozen and (9 in self.signals or 15 in self.signals)

    def body(self, number: int, *, region: bool = False) -> Body:
        """Return a body of which one can tell whose it is."""
        if not region:
            return str(number).encode()
        self.written[len(self.written) + 1] = number
        return Region(len(self.written), 5)

    def step(self, what: str) -> list[Report]:
        """Do the next thing, so far as there is occasion for it; return what the child says."""
        said = self.obey() if self.inbox and not self.leaves else []
        if what == "obey":
            return said
        if what in ("load", "load fails"):
            if self.loads:
                said += self.load(self.loads.popleft(), well=what == "load")
            return said
        said += self.start()
        if what != "start" and self.running:
            said += self.go_on(self.running[0], what)
        return said

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
            case Unload(instance):
                self.holds.discard(instance)
                return [Unloaded(instance)]
            case Pin(instances):
                self.pinned = set(instances)
            case Drain():
                self.leaves = True
        return []

    def load(self, instance: str, *, well: bool) -> list[Report]:
        """Set an instance up, for which others with models have to go."""
        if not well:
            return [LoadFailed(instance, "no", [], "model" if with_models(instance) else "setup")]
        gone = [each for each in sorted(self.holds) if with_models(each) and with_models(instance)]
        if self.pinned.intersection(gone):
            return [LoadFailed(instance, "no room", [], "hardware", "insufficient_vram")]
        self.holds = (self.holds - set(gone)) | {instance}
        said: list[Report] = [Unloaded(each, "no room") for each in gone]
        held = [Resident("slot0", "m", "VRAM", 10)] if with_models(instance) else []
        return [*said, Loaded(instance, 0.2, held)]

    def start(self) -> list[Report]:
        """Start a job, if one waits and its lane is free; only for one of the loop a frame says so."""
        for job in self.unstarted:
            if job.instance and job.instance not in self.holds:
                self.unstarted.remove(job)
                return [Returned(job.number)]
            lane = job.function.lane
            if lane == "loop" or not any(other.function.lane == lane for other in self.running):
                if job.function.name == "together":
                    return self.start_batch()
                self.unstarted.remove(job)
                self.running.append(job)
                return [Started(job.number)] if lane == "loop" else []
        return []

    def start_batch(self) -> list[Report]:
        """Start as many jobs as one call takes, which frames say of each."""
        batch = [job for job in self.unstarted if job.function.name == "together"][:BATCH]
        for job in batch:
            self.unstarted.remove(job)
            self.running.append(job)
        return [Started(job.number) for job in batch]

    def go_on(self, job: Job, how: str) -> list[Report]:
        """Go on with a job: it ends, or yields if it can."""
        number = job.number
        if names_files(job) and job.inputs is None:
            self.running.remove(job)
            return [NeedsInputs(number, ASSETS)]
        if how in ("item", "big item"):
            streams = job.function.name == "stream"
            return [Item(number, self.body(number, region=how == "big item"))] if streams else []
        if how == "wants" and (job.function.name != "one" or job.instance != "M1"):
            return []
        self.running.remove(job)
        if how == "wants":
            named = [Slot("slot0", Wanted("hf", "named/m"), ("*",))]
            return [Wants(number, overridden_instance("M1", job.function.surveyed.slots, named), named)]
        if how in ("failed", "cuda"):
            detail = CUDA if how == "cuda" else None
            return [Failed(number, "user_exception", "no", False, 0.1, detail=detail)]
        return [Done(number, self.body(number, region=how == "big"), 3.0 if how == "long" else 0.001)]


def names_files(job: Job) -> bool:
    """Whether a job's payload names files by URLs."""
    return job.payload.digest() == NAMING


def with_models(instance: str) -> bool:
    """Whether an instance holds models."""
    return instance.startswith("M")


STEPS = st.sampled_from(
    [
        *["obey", "start", "load", "item"] * 3,
        "load fails",
        "done",
        "big",
        "long",
        "failed",
        "cuda",
        "big item",
        "wants",
    ]
)


class Wish(NamedTuple):
    """What a client asks for."""

    function: str
    body: bytes
    request_id: str | None
    stream: bool
    timeout_s: float | None
    tenant: str
    priority: int


WISHES = st.builds(
    Wish,
    st.sampled_from([*FUNCTIONS, "stream"]),
    st.sampled_from([b"a", b"b", b"cc", b"ddd"]),
    st.sampled_from([None, None, "x", "y"]),
    st.booleans(),
    st.sampled_from([None, None, None, 3.0, 600.0]),
    st.sampled_from(["", "", "", "ada", "bob"]),
    st.sampled_from([0, 0, 0, 5, -5]),
)


class Fleets(RuleBasedStateMachine):
    """Everything that can happen to a supervisor."""

    @initialize(
        devices=st.integers(1, 3),
        max_queued=st.sampled_from([1000, 1000, 1000, 12]),
        max_queued_bytes=st.sampled_from([1000, 1000, 1000, 12]),
        eager=st.booleans(),
        up=st.sampled_from([True, True, False]),
        jobs=st.sampled_from([0, 0, 1, 3]),
        stall_s=st.sampled_from([120.0, 4.0]),
        room=st.sampled_from([True, True, False]),
    )
    def begins(
        self,
        devices: int,
        max_queued: int,
        max_queued_bytes: int,
        eager: bool,
        up: bool,
        jobs: int,
        stall_s: float,
        room: bool,
    ) -> None:
        functions = (
            function("plain"),
            function("loop", shape="async", lane="loop"),
            function("classy", instance="C"),
            function("stream", shape="generator"),
            function("together", batch=BATCH),
            function("one", instance="M1", models=["one/m"], overrides=("*",)),
            function("other", instance="M2", models=["other/m", "one/m"]),
        )
        self.orders: list[Fetch] = []  # that the fetcher has not ended
        self.models: dict[int, ModelChild] = {}
        self.files: list[Job] = []  # that files were ordered for
        self.waiting: list[Callable[[], bool]] = []  # for what operators asked of models
        self.asked = 0
        self.told: list[Modeled] = []
        self.jobs: list[Job] = []
        self.clients = [Caller(f"link-{number}") for number in range(CLIENTS)]
        self.impatient: Caller | None = None  # goes with the next answer it gets
        self.memory = True
        self.drained = False
        self.emitted: set[int] = set()
        self.runs: Counter[int] = Counter()
        limits = {"max_queued": max_queued, "max_queued_bytes": max_queued_bytes}
        made = [self.needing(each) for each in functions]
        self.host = Host(*made, devices=self.devices(devices), **limits, eager=eager, up=False)
        self.host.fleet.booting = False
        self.fleet = self.host.fleet
        self.verbs = ModelVerbs(self, lambda: self.host.now)
        self.host.fleet.recycling = Recycling(jobs=jobs)
        self.host.fleet.stall_timeout_s = stall_s
        self.host.fleet.memory_reserve = GIB
        if room:  # for the next child beside the one before
            self.host.fleet.memory = MemoryReading(self.host.now, GIB, 64 * GIB, "host", {})
        self.perform(self.host.actions)
        for model in list(self.models.values()) * 3 * up:
            self.boot(model)

    def needing(self, made: Function) -> Function:
        """Return the function with what it needs of its device."""
        return made

    def devices(self, count: int) -> int | list[Device]:
        """Return the devices, or how many CPU slots there are."""
        return count

    # --- the world the core acts on ---

    def perform(self, actions: list[Action]) -> None:
        """Do what the core wants done; what comes of it at once is told afterwards, as the supervisor does."""
        later: list[Happening] = []
        for action in actions:
            match action:
                case Spawn(child=child):
                    later += self.spawn(child)
                case Run(child=child, job=job):
                    later += self.run(child, job)
                case Send(child=child, message=message):
                    self.send(child, message)
                case Signal(child=child, number=number):
                    self.model_of(child).signals.append(number)
                case Deliver(child=child, job=job, body=body):
                    self.pass_on(child, job, body)
                    self.emitted.add(job.number)
                case Discard(child=child, region=region):
                    del self.model_of(child).written[region.index]
                case Answer():
                    later += self.answer(action)
                case OrderFetch(order=order):
                    later += self.order(order)
                case OrderInputs(job=job, assets=assets):
                    assert assets == ASSETS
                    assert job not in self.files, "the files of one job come twice"
                    self.files.append(job)
        if later:
            self.happens(*later)

    def send(self, child: Child, message: Order) -> None:
        if isinstance(message, Unload):
            used = {job.instance for job in child.leased.values()}
            assert message.instance not in used, "models go from under a job"
        self.model_of(child).inbox.append(message)

    def order(self, order: Fetch | Abort) -> list[Happening]:
        if isinstance(order, Fetch):
            assert not any(order.wanted == other.wanted for other in self.orders), "one model comes twice"
            self.orders.append(order)
            return []
        self.orders = [other for other in self.orders if other.number != order.number]
        return [FetcherReported(FetchFailed(order.number, "canceled", "canceled", "", True))]

    def spawn(self, child: Child) -> list[Happening]:
        assert not self.drained, "a new child in a fleet that ends"
        there = [m.child for m in self.models.values() if m.child.device is child.device]
        known = self.host.fleet.children()
        there = [other for other in there if other in known or not other.killed]  # else it is left to the kernel
        if child is child.device.coming:
            there = [other for other in there if other is not child.device.child]
        assert there == [other for other in child.device.leaving if other in there], "a second child on a device"
        if not self.memory:
            self.memory = True
            return [Died(child, UNBORN)]
        self.models[child.generation] = ModelChild(child)
        return []

    def run(self, child: Child, job: Job) -> list[Happening]:
        assert not self.drained, "a job for a fleet that ends"
        assert not child.device.drained, "a job for a drained device"
        assert job.instance not in child.going, "a job on what is to go"
        assert not job.ended, "a job that was answered runs"
        assert job.deaths < 2, "a third child is put at risk"
        assert job.ending is None, "a job that somebody wanted ended runs again"
        assert job.number not in self.emitted or not job.stream, "a stream of which items left begins anew"
        neighbours = [other for other in child.leased.values() if other is not job and not other.ended]
        assert not any(other.alone for other in neighbours), "a suspect has company"
        assert not (job.alone and neighbours), "a suspect goes where others are"
        model = self.model_of(child)
        if not self.memory:
            self.memory = True
            return [Unsent(child, job, "no memory")]
        self.runs[job.number] += 1
        model.inbox.append(job)
        return []

    def answer(self, action: Answer) -> list[Happening]:
        job, child, body = action.job, action.child, action.outcome.body
        if child is not None:
            self.pass_on(child, job, body)
        if job.client is not self.impatient:
            return []
        self.impatient = None
        return self.leave(job.client)

    def pass_on(self, child: Child, job: Job, body: Body) -> None:
        """A body goes to the client of its job, and to nobody else."""
        model = self.model_of(child)
        owner = model.written.pop(body.index) if isinstance(body, Region) else int(body)
        assert owner == job.number, "the output of one job for another"

    def model_of(self, child: Child) -> ModelChild:
        assert child.generation in self.models, "an action for a process that is gone"
        return self.models[child.generation]

    def happens(self, *happenings: Happening) -> None:
        self.perform(self.host.happens(*happenings))

    def handle(self, *happenings: Happening) -> None:
        self.happens(*happenings)

    def look(self, over: Callable[[], bool]) -> None:
        if not over():
            self.waiting.append(over)

    def passes(self, seconds: float) -> None:
        """Let time pass; what the core wants done is done when it wants it."""
        end = self.host.now + seconds
        while (due := self.host.fleet.next_due()) is not None and due <= end:
            self.host.now = max(self.host.now, due)
            self.happens(Ticked())
        self.host.now = end

    def says(self, model: ModelChild, *messages: Report) -> None:
        self.happens(*(Reported(model.child, message) for message in messages))
        assert not model.written, "a region that nobody reads is not given back"

    def those(self, able: Callable[[ModelChild], object]) -> list[ModelChild]:
        return [model for model in self.models.values() if able(model)]

    def chosen(self, index: int, able: Callable[[ModelChild], object] = bool) -> ModelChild:
        models = self.those(able)
        return models[index % len(models)]

    # --- clients ---

    @rule(wishes=st.lists(WISHES, min_size=1, max_size=6), client=st.integers(0, CLIENTS - 1), starts=st.booleans())
    def submits(self, wishes: list[Wish], client: int, starts: bool) -> None:
        for wish in wishes:
            self.submit(wish, self.clients[client])
        for model in self.those(ModelChild.has_work) if starts else ():
            for what in ("load", "start", "start", "item"):
                self.step(model, what)

    def submit(self, wish: Wish, client: Caller) -> None:
        fleet = self.host.fleet
        if wish.request_id is not None and (client.link, wish.request_id, 1) in fleet.by_identity:
            return  # its link refuses a second one, or attaches it to the first
        before = len(self.host.actions)
        over = fleet.queued and fleet.queued_bytes + len(wish.body) > fleet.max_queued_bytes
        full = fleet.queued >= fleet.max_queued or over
        job = self.host.submit(
            wish.function,
            wish.body,
            request_id=wish.request_id,
            stream=wish.stream,
            timeout_s=wish.timeout_s,
            client=client,
            tenant=wish.tenant,
            priority=wish.priority,
        )
        self.jobs.append(job)
        if self.drained:
            assert self.host.answer(job).kind == "draining"
        elif full:
            assert self.host.answer(job).kind in ("busy", "unavailable", "model_resolution", "quarantined")
        self.perform(self.host.actions[before:])

    @precondition(lambda self: self.host.fleet.jobs)
    @rule(index=st.integers(0, 50), reason=st.sampled_from(list(Reason)), at_once=st.booleans())
    def asks_for_an_end(self, index: int, reason: Reason, at_once: bool) -> None:
        live = list(self.host.fleet.jobs.values())
        self.happens(EndAsked(live[index % len(live)], reason, at_once and reason is Reason.KILL))

    @precondition(lambda self: self.jobs)
    @rule(index=st.integers(0, 50), reason=st.sampled_from(list(Reason)))
    def asks_for_an_end_too_late(self, index: int, reason: Reason) -> None:
        self.happens(EndAsked(self.jobs[index % len(self.jobs)], reason))

    def leave(self, client: Caller) -> list[Happening]:
        return [EndAsked(job, Reason.DISCONNECT) for job in self.jobs if job.client is client and not job.ended]

    @rule(client=st.integers(0, CLIENTS - 1), later=st.booleans())
    def hangs_up(self, client: int, later: bool) -> None:
        if later:
            self.impatient = self.clients[client]
        else:
            for happening in self.leave(self.clients[client]):
                self.happens(happening)

    @rule(seconds=st.sampled_from([0.001, 0.5, 5.0, 35.0]))
    def time_passes(self, seconds: float) -> None:
        self.passes(seconds)

    @rule()
    def memory_is_short_once(self) -> None:
        self.memory = False

    @rule(index=st.integers(0, 2), at_once=st.booleans())
    def is_restarted(self, index: int, at_once: bool) -> None:
        devices = self.host.fleet.devices
        self.happens(RestartAsked(devices[index % len(devices)], at_once))

    @rule(index=st.integers(0, 2), undo=st.booleans())
    def a_device_is_drained(self, index: int, undo: bool) -> None:
        devices = self.host.fleet.devices
        self.happens(DeviceDrainAsked(devices[index % len(devices)], undo))

    @rule(
        operation=st.sampled_from(["load", "load", "unload", "unload", "pin", "unpin"]),
        ref=st.sampled_from(["one/m", "other/m"]),
        device=st.sampled_from(["", "cpu:0", "cpu:1"]),
    )
    def a_model_is_handled(self, operation: str, ref: str, device: str) -> None:
        self.asked += 1
        self.verbs.perform(ModelFrame(operation, ref, device), self.told.append)  # type: ignore[arg-type]

    @invariant()
    def who_handles_a_model_has_at_most_one_answer(self) -> None:
        self.waiting = [over for over in self.waiting if not over()]
        assert len(self.told) + len(self.waiting) == self.asked

    @rule(index=st.integers(0, 5), left=st.sampled_from([0, GIB // 2, 64 * GIB]), times=st.integers(1, 6))
    def memory_is_looked_at(self, index: int, left: int, times: int) -> None:
        """Where little is left, one child has taken it, or none has."""
        generations = list(self.models)
        taken = {each: GIB * (place == index) for place, each in enumerate(generations)}
        for _ in range(times):
            self.happens(MemoryRead(MemoryReading(self.host.now, 64 * GIB - left, 64 * GIB, "host", taken)))

    @rule(seconds=st.integers(1, 9), state=st.sampled_from("SSRDT"), beats=st.booleans(), measured=st.booleans())
    def children_are_looked_at(self, seconds: int, state: str, beats: bool, measured: bool) -> None:
        """Nothing of them moves."""
        for _ in range(seconds):
            self.passes(1.0)
            now = self.host.now
            look = Evidence(now, measured, state, beat_at=now if beats else 0.0)
            self.happens(Watched([(model.child, look) for model in self.models.values()]))

    @precondition(lambda self: len(self.jobs) > 30)
    @rule()
    def is_drained(self) -> None:
        self.drain()

    def drain(self) -> None:
        self.drained = True
        self.happens(DrainAsked())

    # --- the fetcher ---

    @precondition(lambda self: self.orders)
    @rule(index=st.integers(0, 5), how=st.sampled_from(["fetched", "fetched", "absent", "gated", "late"]))
    def ends_a_fetch(self, index: int, how: str) -> None:
        order = self.orders[index % len(self.orders)]
        if how == "absent" and not order.probe:
            how = "fetched"
        if how != "late":
            self.orders.remove(order)
        self.happens(FetcherReported(self.ending(order, how)))
        if how == "late":  # a second word about it changes nothing
            self.orders.remove(order)
            self.happens(FetcherReported(self.ending(order, "gated")))

    def ending(self, order: Fetch, how: str) -> Fetched | FetchFailed:
        if how in ("fetched", "late"):
            return Fetched(order.number, snapshot(order.wanted), 0)
        return FetchFailed(order.number, "absent" if how == "absent" else "gated", "no", "", False)

    @precondition(lambda self: self.files)
    @rule(index=st.integers(0, 5), how=st.sampled_from(["come", "come", "invalid", "unreachable", "late"]))
    def ends_a_wait_for_files(self, index: int, how: str) -> None:
        """Also of a job that has ended, and a second time."""
        job = self.files[index % len(self.files)]
        came, refused = InputsCame(job, FILES), InputsRefused(job, "no", how == "unreachable", how == "invalid")
        told: dict[str, list[Happening]] = {"come": [came], "late": [came, refused, came]}
        self.happens(*told.get(how, [refused]))

    @rule()
    def loses_the_fetcher(self) -> None:
        self.orders.clear()
        self.happens(FetcherLost())

    # --- children that behave ---

    @precondition(lambda self: self.those(ModelChild.has_work))
    @rule(index=st.integers(0, 5), steps=st.lists(STEPS, min_size=1, max_size=24))
    def goes_on(self, index: int, steps: list[str]) -> None:
        model = self.chosen(index, ModelChild.has_work)
        for each in steps:
            self.step(model, each)

    @precondition(lambda self: self.those(ModelChild.is_up))
    @rule(index=st.integers(0, 5), steps=st.lists(STEPS, min_size=2, max_size=12), dies=st.booleans())
    def does_much_at_once(self, index: int, steps: list[str], dies: bool) -> None:
        """All its frames are read in one turn; with `dies`, after its death."""
        model = self.chosen(index, ModelChild.is_up)
        self.says(model, *(message for each in steps for message in model.step(each)))
        if dies:
            self.look_at_page(model)
            self.die(model, KILLED)

    def step(self, model: ModelChild, what: str) -> None:
        if model.frozen or model.child.generation not in self.models:
            return  # it may have ended meanwhile
        if model.boots():
            self.boot(model)
        else:
            self.says(model, *model.step(what))
            self.look_at_page(model)
            if model.has_left():
                self.die(model, Death("exit code 0", exit_code=0))

    def boot(self, model: ModelChild) -> None:
        steps: list[Happening] = [
            Spawned(model.child, 100),
            Reported(model.child, Hello(100)),
            Reported(model.child, Ready(list(FUNCTIONS), CREDITS, 7)),
        ]
        self.happens(*steps[model.booted : model.booted + 1])
        model.booted += 1

    def look_at_page(self, model: ModelChild) -> None:
        """Learn which job is at work, as from a child's status page: only now and then, and before it dies."""
        self.happens(
            *(
                Began(model.child, job.number, 0.0)
                for job in model.running
                if job.function.lane == "device" and job.function.name != "together"
            )
        )

    # --- children that do not ---

    @precondition(lambda self: self.models)
    @rule(index=st.integers(0, 5))
    def dies(self, index: int) -> None:
        self.die(self.chosen(index), KILLED)

    @precondition(lambda self: self.those(ModelChild.at_work))
    @rule(index=st.integers(0, 5))
    def dies_at_work(self, index: int) -> None:
        model = self.chosen(index, ModelChild.at_work)
        self.look_at_page(model)
        self.die(model, KILLED)

    def die(self, model: ModelChild, death: Death) -> None:
        del self.models[model.child.generation]
        self.happens(Died(model.child, death))

    @precondition(lambda self: self.models)
    @rule(index=st.integers(0, 5))
    def freezes(self, index: int) -> None:
        """It does nothing more, and the kernel cannot end it."""
        self.chosen(index).frozen = True

    @precondition(lambda self: self.those(ModelChild.must_die))
    @rule(index=st.integers(0, 5))
    def heeds_a_signal(self, index: int) -> None:
        self.die(self.chosen(index, ModelChild.must_die), Death("SIGTERM", signal="SIGTERM"))

    @precondition(lambda self: self.models and self.jobs)
    @rule(index=st.integers(0, 5), kind=st.integers(0, 18), job=st.integers(0, 50), far=st.booleans())
    def sends_what_it_may_not(self, index: int, kind: int, job: int, far: bool) -> None:
        """Frames out of turn, a second time, or for jobs that it never had, that are others' or that have ended."""
        model = self.chosen(index)
        number = 10**6 if far else self.jobs[job % len(self.jobs)].number
        frames: list[Report] = [
            Hello(1),
            Ready([], {"device": 1, "loop": 1}, 1),
            Ready([], {"device": -1, "loop": 10**9}, 1),
            ImportFailed("no", []),
            Loaded("C", 1.0),
            Loaded("", 1.0),
            LoadFailed("C", "no", []),
            Started(number),
            Item(number, b"%d" % number),
            Failed(number, "busy", "no", True, 0.0),
            Returned(number),
            Event(number, "log", b"{}"),
            Unloaded("M1"),
            Wants(number, "M1?x", []),
            NeedsInputs(number, []),
            NeedsInputs(number, ASSETS * 33),
        ]
        if kind < len(frames):
            self.says(model, frames[kind], Warned("beware"))
        elif kind == 16:
            self.happens(Misbehaved(model.child, "rubbish"))
        elif kind == 17:
            self.says(model, Item(number, model.body(number, region=True)))
        else:
            self.says(model, Done(number, model.body(number, region=True), float("nan")))
        if kind == 12:
            model.holds.discard("M1")
        model.running = [job for job in model.running if job.number in model.child.leased]
        model.unstarted = deque(job for job in model.unstarted if job.number in model.child.leased)

    # --- what always holds ---

    @invariant()
    def a_job_has_at_most_one_answer(self) -> None:
        assert all(len(answers) == 1 for answers in self.host.answers.values())
        assert self.host.fleet.done + self.host.fleet.failed == len(self.host.answers)

    @invariant()
    def a_job_is_in_one_place(self) -> None:
        fleet = self.host.fleet
        waiting = 0
        for job in self.jobs:
            answered = job.number in self.host.answers
            assert answered == job.ended == (job.number not in fleet.jobs)
            holders = [child for child in fleet.children() if child.leased.get(job.number) is job]
            assert job.waiting + job.fetching == (job.state is JobState.QUEUED)
            if job.state is JobState.QUEUED:
                assert not holders
                assert job.child is None
                assert (job in job.function.queue) == job.waiting
            elif not job.ended:
                assert holders == [job.child]
            waiting += job.waiting
        fetching = sum(job.fetching for job in self.jobs)
        everyone = Held(fleet.queued, fleet.queued_bytes)
        for tenant in ("", "ada", "bob"):
            its = [job.payload.length for job in self.jobs if job.tenant == tenant and (job.waiting or job.fetching)]
            assert fleet.tenants.of(tenant, everyone) == (len(its), sum(its))
        assert fleet.queued_bytes == sum(job.payload.length for job in self.jobs if job.waiting or job.fetching)
        assert fleet.queued == waiting + fetching
        assert waiting == sum(known.waiting for known in fleet.variants())
        assert set(fleet.waiting) == {known.key for known in fleet.variants() if known.waiting}
        assert fleet.by_identity == {job.identity: job for job in fleet.jobs.values() if job.named}

    @invariant()
    def a_childs_counts_are_those_of_its_leases(self) -> None:
        for child in self.host.fleet.children():
            if child.phase in LEAVING:
                continue
            for lane in ("device", "loop"):
                assert child.used[lane] == sum(job.function.lane == lane for job in child.leased.values())
                assert child.used[lane] <= child.credits.get(lane, 0) + (LEASED_AHEAD if lane == "device" else 0)

    @invariant()
    def one_child_uses_a_device_at_a_time(self) -> None:
        for device in self.host.fleet.devices:
            there = [child for child in (device.child, device.coming, *device.leaving) if child is not None]
            assert sum(child.used["device"] > 0 for child in there) <= 1

    @invariant()
    def nobody_waits_for_drained_devices_alone(self) -> None:
        fleet = self.host.fleet
        for job in self.jobs:
            assert job.ended or job.state is not JobState.QUEUED or not drained_away(fleet, job.function)

    @invariant()
    def nobody_waits_for_one_that_has_ended(self) -> None:
        assert not (self.host.fleet.finished and self.host.fleet.jobs)

    # --- the end ---

    def teardown(self) -> None:
        """Let everything go on without further trouble: each job gets its answer, and nothing is kept of it."""
        if not hasattr(self, "host"):
            return
        self.memory, self.impatient = True, None
        if self.those(lambda model: model.frozen):  # what is in there ends only when someone says so
            for job in list(self.host.fleet.jobs.values()):
                self.happens(EndAsked(job, Reason.KILL))
        for _ in range(200):
            if all(job.ended for job in self.jobs):
                break
            self.carry_all_on()
        self.a_job_is_in_one_place()
        assert all(len(self.host.answers.get(job.number, [])) == 1 for job in self.jobs)
        for device in self.host.fleet.devices:
            self.happens(DeviceDrainAsked(device, undo=True))
        self.come_to_rest()
        self.drain_to_the_end()

    def come_to_rest(self) -> None:
        """When all is done no count is left, and after a while no timer, and so no job."""
        for _ in range(3):
            self.carry_all_on()
        for _ in range(14):  # in steps: children that come in the place of others boot and load
            self.passes(LONG_S / 14)
            self.carry_all_on()
        fleet = self.host.fleet
        assert (fleet.queued, fleet.queued_bytes, fleet.jobs, fleet.by_identity, fleet.waiting) == (0, 0, {}, {}, {})
        assert not any(known.queue for known in fleet.variants())
        for child in fleet.children():
            assert not child.leased
            assert child.reserved is None
            assert set(child.used.values()) == {0} or child.phase in LEAVING
        self.passes(LONG_S)
        assert fleet.finished or not fleet.timers, fleet.timers
        self.who_handles_a_model_has_at_most_one_answer()
        assert not self.waiting or self.those(lambda model: model.frozen), "who asked for a model waits for ever"

    def carry_all_on(self) -> None:
        for model in list(self.models.values()):
            self.carry_on(model)
        for order in list(self.orders):
            self.orders.remove(order)
            self.happens(FetcherReported(self.ending(order, "fetched")))
        for job in self.files:
            self.happens(InputsCame(job, FILES))
        self.passes(2.0)

    def carry_on(self, model: ModelChild) -> None:
        if model.must_die():
            self.die(model, KILLED)
            return
        for what in ("load", "done", "start", *["obey"] * len(model.inbox)):
            self.step(model, what)

    def drain_to_the_end(self) -> None:
        self.drain()
        for _ in range(60):
            if self.host.fleet.finished:
                self.who_handles_a_model_has_at_most_one_answer()
                assert not self.waiting, "who asked for a model has no answer at the end"
                return
            self.carry_all_on()
        raise AssertionError("it was asked to end and does not")


TestFleets = Fleets.TestCase
TestFleets.settings = settings(
    max_examples=300, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
