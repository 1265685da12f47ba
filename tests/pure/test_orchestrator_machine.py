"""The control plane's core against workers, callers, disks and crashes that do anything at any moment."""

from collections import deque
from random import Random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gen_worker.orchestrator.decide import apply, gather, restore
from gen_worker.orchestrator.placement import placements
from gen_worker.orchestrator.state import (
    Acknowledge,
    Action,
    CancelAsked,
    Close,
    DrainAsked,
    Happening,
    Job,
    Joined,
    Left,
    Limits,
    Phase,
    Plane,
    Prefetch,
    Record,
    Recorded,
    Run,
    Said,
    Save,
    Saved,
    Send,
    Submitted,
    Tell,
    Ticked,
)
from gen_worker.orchestrator.views import JobRequest, Status
from gen_worker.wire.scheduler import (
    CancelJob,
    FnUnavailable,
    Hello,
    InFlightJob,
    JobAccepted,
    JobMetrics,
    JobProgress,
    JobResult,
    JobStatus,
    StateDelta,
    WorkerFrame,
    WorkerPhase,
)

FUNCTIONS = ("one", "two")
WORKERS = ("a", "b", "c")
READY = StateDelta(phase=WorkerPhase.READY, available_functions=FUNCTIONS)


class Row:
    """What the disk has of a job."""

    def __init__(self, request: JobRequest) -> None:
        self.request = request
        self.attempt = 1
        self.failures = 0
        self.worker_id = ""
        self.canceled = False
        self.status: Status | None = None


class Peer:
    """A worker: what it holds, what it has said that is not heard yet, and whether its link is up."""

    def __init__(self, worker_id: str) -> None:
        self.worker_id = worker_id
        self.session: int | None = None
        self.held: dict[str, int] = {}
        self.unheard: deque[WorkerFrame] = deque()  # lost with the link, except for results
        self.refuses: set[str] = set()


class Machine(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 3))
    def begin(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 100.0
        self.sessions = 0
        self.requests = 0
        self.disk: dict[str, Row] = {}
        self.peers = {worker_id: Peer(worker_id) for worker_id in WORKERS}
        self.told: dict[str, Status] = {}
        self.ran: dict[tuple[str, int], str] = {}  # who was ever given an attempt
        self.latest: dict[str, int] = {}
        self.start()
        for peer in self.peers.values():
            self.connect(peer)

    def start(self) -> None:
        self.plane = Plane(Limits(), random=Random(1))
        self.writes: deque[tuple[str, int, int, str, bool, Status | None, Happening | None]] = deque()

    # --- the control plane's shell ------------------------------------------------------------------------------------

    def happens(self, happening: Happening) -> None:
        for action in apply(self.plane, happening, self.now):
            self.perform(action)

    def perform(self, action: Action) -> None:
        match action:
            case Save(job, confirm):
                self.write(job, None, Saved(job.request_id, job.attempt) if confirm else None)
            case Record(job, ending):
                self.write(job, ending.status, Recorded(job.request_id))
            case Run(session, job):
                self.given(session, job)
            case Send(session, frame):
                self.sent(session, frame)
            case Close(session):
                for peer in self.peers.values():
                    assert peer.session != session, "nobody here connects twice"
            case Tell(job, "result"):
                assert job.request_id not in self.told, "an end was told twice"
                assert job.ending is not None
                assert self.disk[job.request_id].status == job.ending.status
                self.told[job.request_id] = job.ending.status
            case Tell() | Acknowledge() | Prefetch():
                pass

    def write(self, job: Job, status: Status | None, then: Happening | None) -> None:
        worker_id = job.worker.worker_id if job.worker else ""
        self.writes.append((job.request_id, job.attempt, job.failures, worker_id, job.canceled, status, then))

    def given(self, session: int, job: Job) -> None:
        row = self.disk[job.request_id]
        assert row.status is None, "a job that has ended on disk ran again"
        assert row.attempt >= job.attempt, "an attempt was given out that is not on disk"
        peer = next(peer for peer in self.peers.values() if peer.session == session)
        assert self.ran.setdefault((job.request_id, job.attempt), peer.worker_id) == peer.worker_id
        assert job.attempt >= self.latest.get(job.request_id, 1), "an attempt went down"
        self.latest[job.request_id] = job.attempt
        if job.request.function in peer.refuses:
            peer.unheard.append(result(job.request_id, job.attempt, JobStatus.RETRYABLE))
        elif self.random.random() < 0.9:  # else it is lost on the way
            peer.held[job.request_id] = job.attempt
            peer.unheard.append(JobAccepted(request_id=job.request_id, attempt=job.attempt))

    def sent(self, session: int, frame: object) -> None:
        if not isinstance(frame, CancelJob):
            return
        for peer in self.peers.values():
            if peer.session == session and peer.held.get(frame.request_id) == frame.attempt:
                del peer.held[frame.request_id]
                peer.unheard.append(result(frame.request_id, frame.attempt, JobStatus.CANCELED))

    # --- what may happen ----------------------------------------------------------------------------------------------

    @rule(function=st.sampled_from(FUNCTIONS), priority=st.integers(0, 1), count=st.integers(1, 5))
    def jobs_come(self, function: str, priority: int, count: int) -> None:
        for _ in range(count):
            self.requests += 1
            request_id, tenant = f"r{self.requests}", self.random.choice("xy")
            request = JobRequest(function=function, request_id=request_id, tenant=tenant, priority=priority)
            self.disk[request_id] = Row(request)
            self.happens(Submitted(Job(request, self.now)))

    @precondition(lambda self: self.requests)
    @rule(number=st.integers(1, 30))
    def a_job_is_canceled(self, number: int) -> None:
        self.happens(CancelAsked(f"r{min(number, self.requests)}"))

    @precondition(lambda self: any(peer.session is None for peer in self.peers.values()))
    @rule(name=st.sampled_from(WORKERS), remembers=st.booleans())
    def a_worker_connects(self, name: str, remembers: bool) -> None:
        peer = self.peers[name]
        if peer.session is not None:
            return
        if not remembers:  # it was killed, and another one has its name
            peer.held.clear()
            peer.unheard.clear()
        self.connect(peer)

    def connect(self, peer: Peer) -> None:
        self.sessions += 1
        peer.session = self.sessions
        unshipped = [frame for frame in peer.unheard if isinstance(frame, JobResult)]
        peer.unheard = deque(unshipped)
        peer.refuses.clear()
        held = {**peer.held, **{frame.request_id: frame.attempt for frame in unshipped}}
        in_flight = tuple(InFlightJob(request_id=request_id, attempt=attempt) for request_id, attempt in held.items())
        hello = Hello(worker_id=peer.worker_id, state=READY, in_flight=in_flight)
        self.happens(Joined(peer.session, hello, self.now))

    @rule(name=st.sampled_from(WORKERS))
    def a_link_is_cut(self, name: str) -> None:
        peer = self.peers[name]
        if peer.session is not None:
            session, peer.session = peer.session, None
            self.happens(Left(session))

    @rule(name=st.sampled_from(WORKERS), count=st.integers(1, 10))
    def a_worker_is_heard(self, name: str, count: int = 1) -> None:
        peer = self.peers[name]
        for _ in range(min(count, len(peer.unheard)) if peer.session is not None else 0):
            assert peer.session is not None
            self.happens(Said(peer.session, peer.unheard.popleft(), self.now))

    @precondition(lambda self: any(peer.held for peer in self.peers.values()))
    @rule(name=st.sampled_from(WORKERS), status=st.sampled_from(list(JobStatus)), draining=st.booleans())
    def a_job_ends(self, name: str, status: JobStatus, draining: bool) -> None:
        peer = self.peers[name]
        if peer.held:
            request_id = self.random.choice(sorted(peer.held))
            message = "worker draining" if draining else ""
            peer.unheard.append(result(request_id, peer.held.pop(request_id), status, message))

    @precondition(lambda self: any(peer.held for peer in self.peers.values()))
    @rule(name=st.sampled_from(WORKERS))
    def a_job_goes_on(self, name: str) -> None:
        peer = self.peers[name]
        if peer.held:
            request_id = self.random.choice(sorted(peer.held))
            chunk = JobProgress(request_id=request_id, attempt=peer.held[request_id], seq=1, body=b"", content_type="")
            peer.unheard.append(chunk)

    @rule(name=st.sampled_from(WORKERS), number=st.integers(1, 30), attempt=st.integers(0, 5))
    def a_worker_tells_what_is_not_so(self, name: str, number: int, attempt: int) -> None:
        peer = self.peers[name]
        if peer.session is not None and peer.held.get(f"r{number}") != attempt:
            job = self.plane.jobs.get(f"r{number}")
            if job is not None and job.attempt == attempt and job.worker and job.worker.worker_id == name:
                return
            was_live = job is not None and job.live
            self.happens(Said(peer.session, result(f"r{number}", attempt, JobStatus.OK), self.now))
            assert not was_live or (job is not None and job.live), "a worker ended what it does not have"

    @rule(name=st.sampled_from(WORKERS), function=st.sampled_from(FUNCTIONS))
    def a_function_is_gated(self, name: str, function: str) -> None:
        peer = self.peers[name]
        if peer.session is not None:
            peer.refuses.add(function)
            peer.unheard.append(FnUnavailable(function_name=function, reason="setup_failed"))
            offered = tuple(each for each in FUNCTIONS if each not in peer.refuses)
            peer.unheard.append(StateDelta(phase=WorkerPhase.READY, available_functions=offered))

    @rule(name=st.sampled_from(WORKERS))
    def a_worker_is_drained(self, name: str) -> None:
        if self.peers[name].session is not None:
            self.happens(DrainAsked(name, 0))

    @rule(seconds=st.sampled_from([0.1, 1.0, 6.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.happens(Ticked())

    @precondition(lambda self: self.writes)
    @rule(count=st.integers(1, 20))
    def the_disk_writes(self, count: int) -> None:
        for _ in range(min(count, len(self.writes))):
            request_id, attempt, failures, worker_id, canceled, status, then = self.writes.popleft()
            row = self.disk[request_id]
            assert row.status is None, "a job was written after its end"
            assert attempt >= row.attempt
            assert canceled >= row.canceled, "a cancel was forgotten"
            row.attempt, row.failures, row.worker_id = attempt, failures, worker_id
            row.canceled, row.status = canceled, status
            if then is not None:
                self.happens(then)

    @precondition(lambda self: self.plane.jobs)
    @rule(back=st.sets(st.sampled_from(WORKERS)))
    def the_control_plane_crashes(self, back: set[str]) -> None:
        for peer in self.peers.values():
            peer.session = None
        self.start()
        gather(self.plane, self.now)
        for row in self.disk.values():
            if row.status is None:
                if not row.worker_id:
                    row.attempt += 1
                job = Job(row.request, 0.0, attempt=row.attempt, durable=row.attempt, failures=row.failures)
                restore(self.plane, job, row.worker_id, self.now)
        for request_id, row in self.disk.items():
            if row.status is None and row.canceled:
                self.happens(CancelAsked(request_id))
                assert not self.plane.jobs[request_id].live
        for name in sorted(back):
            self.connect(self.peers[name])

    # --- what always holds --------------------------------------------------------------------------------------------

    @invariant()
    def every_job_is_in_one_place(self) -> None:
        queues = [queue for kind in self.plane.queues.values() for queue in kind.values()]
        queued = [job for queue in queues for job in queue.jobs]
        given = [job for worker in self.plane.workers.values() for job in worker.jobs.values()]
        assert len({job.request_id for job in queued + given}) == len(queued) + len(given)
        assert all(job.phase is Phase.QUEUED for job in queued)
        assert all(job.phase in (Phase.ASSIGNED, Phase.RUNNING) for job in given)
        assert all(self.plane.queues.values()), "the queues of a function were kept that has none"
        assert all(queue.jobs for queue in queues), "an empty queue was kept"
        assert self.plane.tenants.keys() >= {queue.key.tenant for queue in queues}
        elsewhere = len(self.plane.jobs) - len(queued) - len(given)
        assert elsewhere == sum(job.phase in (Phase.WAITING, Phase.ENDED) for job in self.plane.jobs.values())
        assert self.plane.held_bytes == sum(len(job.request.payload) for job in self.plane.jobs.values())

    @invariant()
    def no_job_waits_that_could_go(self) -> None:
        assert next(placements(self.plane), None) is None

    @invariant()
    def every_accepted_job_is_known_or_has_ended(self) -> None:
        for request_id, row in self.disk.items():
            assert row.status is not None or request_id in self.plane.jobs

    def teardown(self) -> None:
        if not hasattr(self, "plane"):
            return
        for _ in range(400):
            if not self.plane.jobs:
                break
            self.all_goes_well()
        assert not self.plane.jobs, "a job never ends"
        assert all(row.status is not None for row in self.disk.values())

    def all_goes_well(self) -> None:
        for peer in self.peers.values():
            if peer.session is None or self.plane.workers[peer.worker_id].draining:
                self.a_link_is_cut(peer.worker_id)
                self.connect(peer)
            while peer.held:
                request_id, attempt = peer.held.popitem()
                peer.unheard.append(result(request_id, attempt, JobStatus.OK))
            while peer.unheard:
                self.a_worker_is_heard(peer.worker_id)
        if self.writes:
            self.the_disk_writes(len(self.writes))
        self.time_passes(6.0)


def result(request_id: str, attempt: int, status: JobStatus, message: str = "") -> JobResult:
    return JobResult(
        request_id=request_id, attempt=attempt, status=status, safe_message=message, metrics=JobMetrics(runtime_ms=5)
    )


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=80, stateful_step_count=100, deadline=None, suppress_health_check=list(HealthCheck)
)
