"""A host without processes: what happens goes into the pure core, the clock stands until it is told to move.

Tests tell stories with it. It performs nothing; it keeps what the core wanted to have done.
"""

from collections.abc import Sequence
from typing import TypeVar

from gen_worker.models.errors import ModelErrorKind
from gen_worker.models.snapshot import Snapshot, SnapshotEntry
from gen_worker.models.wanted import Slot, Wanted
from gen_worker.wire.fetching import Fetch, Fetched, FetchFailed
from gen_worker.wire.messages import (
    Body,
    Done,
    ErrorDetail,
    ErrorKind,
    Event,
    Failed,
    Hello,
    Item,
    Lane,
    Loaded,
    LoadFailed,
    LoadFailure,
    Ready,
    Report,
    Returned,
    Shape,
    Started,
)
from gen_worker.wire.survey import SurveyedFunction
from gen_worker_supervisor.core.actions import Action, Answer, Finish, OrderFetch, Run, Send, Signal, Spawn
from gen_worker_supervisor.core.bodies import InlinePayload, OutputBody
from gen_worker_supervisor.core.decide import changes_nothing, decide
from gen_worker_supervisor.core.fleet import apply, start
from gen_worker_supervisor.core.happenings import (
    Died,
    DrainAsked,
    EndAsked,
    FetcherReported,
    Happening,
    Reported,
    Spawned,
    Submitted,
    Ticked,
)
from gen_worker_supervisor.core.ladder import Reason
from gen_worker_supervisor.core.phases import Phase
from gen_worker_supervisor.core.state import Child, Death, Device, Fleet, Function, Job, Outcome

Message = TypeVar("Message")
CREDITS: dict[Lane, int] = {"device": 1, "loop": 64}
KILLED = Death("SIGKILL", signal="SIGKILL")


class Caller:
    """A client that only has a link; what it is given is seen among the actions."""

    def __init__(self, link: str = "serve") -> None:
        self.link = link

    def answer(self, job: Job, outcome: Outcome, body: OutputBody) -> None:
        """Nothing performs actions here."""

    def item(self, job: Job, body: OutputBody, content_type: str) -> None:
        """Nothing performs actions here."""

    def event(self, job: Job, event: Event) -> None:
        """Nothing performs actions here."""

    def rerun(self, job: Job) -> None:
        """Nothing performs actions here."""


def function(
    name: str = "f",
    *,
    instance: str = "",
    shape: Shape = "sync",
    lane: Lane = "device",
    gpu: bool = False,
    vram_gb: float | None = None,
    models: Sequence[str] = (),
    overrides: tuple[str, ...] = (),
    batch: int = 0,
) -> Function:
    """Return a function as discovery describes it."""
    slots = [Slot(f"slot{number}", Wanted("hf", ref), overrides) for number, ref in enumerate(models)]
    return Function(SurveyedFunction(name, name, instance, instance, shape, lane, gpu, vram_gb, slots, batch=batch))


def snapshot(wanted: Wanted) -> Snapshot:
    """Return a model as it lies on disk."""
    return Snapshot(wanted, f"key-{wanted.ref}", "c0", f"/cache/{wanted.ref}", (SnapshotEntry("a", 10),))


class Host:
    """A fleet, its clock, and everything it wanted done so far."""

    def __init__(
        self,
        *functions: Function,
        devices: int | list[Device] = 1,
        max_queued: int = 10_000,
        max_queued_bytes: int = 1 << 30,
        max_queued_per_function: int = 0,
        eager: bool = False,
        up: bool = True,
    ) -> None:
        made = [Device(f"cpu:{index}", "cpu") for index in range(devices)] if isinstance(devices, int) else devices
        table = {known.name: known for known in functions or (function(),)}
        self.fleet = Fleet(table, made, max_queued=max_queued, max_queued_bytes=max_queued_bytes, eager=eager)
        self.fleet.max_queued_per_function = max_queued_per_function
        self.now = 1000.0
        self.actions: list[Action] = []
        self.answers: dict[int, list[Outcome]] = {}
        self.took(start(self.fleet, self.now))
        if up:
            for device in made:
                self.boot(device)

    # --- the loop ---

    def happens(self, *happenings: Happening) -> list[Action]:
        """Pass happenings to the core as the supervisor does; return what it wants done."""
        wanted: list[Action] = []
        for happening in happenings:
            wanted += apply(self.fleet, happening, self.now)
        idle = len(happenings) == 1 and changes_nothing(self.fleet, happenings[0])
        decided = decide(self.fleet, self.now)
        assert not (idle and decided), f"the supervisor would not have looked, and there was this to do: {decided}"
        return self.took(wanted + decided)

    def took(self, actions: list[Action]) -> list[Action]:
        """Keep the actions."""
        self.actions += actions
        for action in actions:
            if isinstance(action, Answer):
                self.answers.setdefault(action.job.number, []).append(action.outcome)
        return actions

    def passes(self, seconds: float) -> list[Action]:
        """Let time pass, with a tick whenever the core asked for one."""
        end = self.now + seconds
        wanted: list[Action] = []
        while (due := self.fleet.next_due()) is not None and due <= end:
            self.now = max(self.now, due)
            wanted += self.happens(Ticked())
        self.now = end
        return wanted

    # --- children ---

    def child(self, index: int = 0) -> Child:
        """Return the child that a device has now."""
        child = self.fleet.devices[index].child
        assert child is not None
        return child

    def boot(self, device: Device | None = None) -> Child:
        """Have a device's new child say that it is ready."""
        child = (device or self.fleet.devices[0]).child
        assert child is not None
        assert child.phase is Phase.FORKING
        pid = 100 + child.generation
        self.happens(Spawned(child, pid), Reported(child, Hello(pid)))
        self.happens(Reported(child, Ready(list(self.fleet.functions), CREDITS, 7)))
        return child

    def reports(self, child: Child, *messages: Report) -> list[Action]:
        """Have a child send frames."""
        return self.happens(*(Reported(child, message) for message in messages))

    def dies(self, child: Child, death: Death = KILLED) -> list[Action]:
        """Have a child's process end."""
        return self.happens(Died(child, death))

    def loaded(self, child: Child, seconds: float = 0.5) -> list[Action]:
        """Have a child finish the load it was sent."""
        assert child.loading is not None
        return self.reports(child, Loaded(child.loading, seconds))

    def load_fails(self, child: Child, kind: LoadFailure = "setup") -> list[Action]:
        """Have a child's `setup()` raise, or another reason why it cannot load."""
        assert child.loading is not None
        return self.reports(child, LoadFailed(child.loading, "ValueError: no", ["line 1"], kind))

    # --- models ---

    def ordered(self, *, probe: bool | None = None) -> list[Fetch]:
        """Return what was ordered from the fetcher so far; with `probe`, looks or downloads only."""
        orders = [action.order for action in self.actions if isinstance(action, OrderFetch)]
        return [each for each in orders if isinstance(each, Fetch) and (probe is None or each.probe is probe)]

    def absent(self, *orders: Fetch) -> list[Action]:
        """Have the fetcher find that models are not on this host."""
        return self.fetch_fails(*orders, kind="absent")

    def fetched(self, *orders: Fetch) -> list[Action]:
        """Have the fetcher bring models."""
        return self.happens(*(FetcherReported(Fetched(order.number, snapshot(order.wanted), 0)) for order in orders))

    def fetch_fails(self, *orders: Fetch, kind: ModelErrorKind = "gated", retryable: bool = False) -> list[Action]:
        """Have the fetcher not bring models."""
        return self.happens(
            *(
                FetcherReported(FetchFailed(order.number, kind, f"no {order.wanted.ref}", "ask", retryable))
                for order in orders
            )
        )

    # --- jobs ---

    def submit(
        self,
        name: str = "f",
        body: bytes = b"{}",
        *,
        request_id: str | None = None,
        stream: bool = False,
        timeout_s: float | None = None,
        client: Caller | None = None,
        reruns: bool = True,
        function: Function | None = None,
        tenant: str = "",
        priority: int = 0,
    ) -> Job:
        """Have a client ask for a job."""
        self.fleet.number += 1
        number = self.fleet.number
        deadline = None if timeout_s is None else self.now + timeout_s
        job = Job(
            number=number,
            client=client or Caller(),
            request_id=request_id or f"r{number}",
            attempt=1,
            named=request_id is not None,
            function=function or self.fleet.functions[name],
            payload=InlinePayload(body),
            encoding="json",
            stream=stream,
            events=False,
            submitted=self.now,
            deadline=deadline,
            reruns=reruns,
            tenant=tenant,
            priority=priority,
        )
        self.happens(Submitted(job))
        return job

    def starts(self, *jobs: Job) -> None:
        """Have the children call the handlers of jobs they were sent."""
        for job in jobs:
            self.reports(held_by(job), Started(job.number))

    def started(self, name: str = "f", body: bytes = b"{}", *, stream: bool = False) -> Job:
        """Have a client ask for a job that starts at once."""
        job = self.submit(name, body, stream=stream)
        self.starts(job)
        return job

    def done(self, job: Job, body: Body = b"1", run_s: float = 0.1) -> list[Action]:
        """Have the job end well."""
        return self.reports(held_by(job), Done(job.number, body, run_s))

    def fails(self, job: Job, kind: ErrorKind = "user_exception", *, cause: str | None = None) -> list[Action]:
        """Have the handler raise."""
        detail = None if cause is None else ErrorDetail(cause=cause)
        return self.reports(held_by(job), Failed(job.number, kind, "no", False, 0.1, detail=detail))

    def item(self, job: Job, body: Body = b"1") -> list[Action]:
        """Have the handler yield."""
        return self.reports(held_by(job), Item(job.number, body))

    def returns(self, job: Job) -> list[Action]:
        """Have the child give the job back."""
        return self.reports(held_by(job), Returned(job.number))

    def ends(self, job: Job, reason: Reason = Reason.CANCEL, *, at_once: bool = False) -> list[Action]:
        """Have somebody want the job ended."""
        return self.happens(EndAsked(job, reason, at_once))

    def drains(self, within_s: float | None = 0.0) -> list[Action]:
        """Have somebody want the supervisor ended."""
        return self.happens(DrainAsked(within_s))

    def answer(self, job: Job) -> Outcome:
        """Return the job's answer, of which there must be one."""
        (outcome,) = self.answers[job.number]
        return outcome

    def unanswered(self, job: Job) -> bool:
        """Whether nobody was told of the job's end."""
        return job.number not in self.answers


def held_by(job: Job) -> Child:
    """Return the child that has the job."""
    assert job.child is not None
    return job.child


def runs(actions: Sequence[Action]) -> list[Job]:
    """Return the jobs that were sent to children."""
    return [action.job for action in actions if isinstance(action, Run)]


def sent(actions: Sequence[Action], kind: type[Message]) -> list[Message]:
    """Return the frames of one kind that were sent."""
    return [action.message for action in actions if isinstance(action, Send) and isinstance(action.message, kind)]


def signals(actions: Sequence[Action]) -> list[int]:
    """Return the signals that were sent."""
    return [action.number for action in actions if isinstance(action, Signal)]


def spawned(actions: Sequence[Action]) -> list[Child]:
    """Return the children that were made."""
    return [action.child for action in actions if isinstance(action, Spawn)]


def finishes(actions: Sequence[Action]) -> list[int]:
    """Return the statuses with which the supervisor was ended."""
    return [action.status for action in actions if isinstance(action, Finish)]
