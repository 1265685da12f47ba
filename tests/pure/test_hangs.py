"""How hangs are named, what is learnt of a function's silences, and what is ended because nothing moves."""

import signal
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gen_worker.wire.hangs import HANGS
from gen_worker.wire.messages import Event, Hello, Loading, Started
from gen_worker_supervisor.core.actions import Action, Note
from gen_worker_supervisor.core.evidence import Evidence, Hang
from gen_worker_supervisor.core.happenings import Reported, Spawned, Watched
from gen_worker_supervisor.core.naming import stall_limit_s
from gen_worker_supervisor.core.phases import Phase
from gen_worker_supervisor.core.state import Child, Device
from gen_worker_supervisor.status.report import _hang as hang_told
from gen_worker_supervisor.status.report import _state as state_of
from tests.pure.host import Host, finishes, function, held_by, signals

BOTH = (signal.SIGUSR2, signal.SIGTERM)


@dataclass
class Seen:
    """A host whose one child is looked at every second."""

    host: Host
    state: str = "S"
    wchan: str = "futex_do_wait"
    job_cpu: float = 0.0  # a second
    cpu: float = 0.0
    io: int = 0
    beats: bool = True
    turns: bool = True  # its asyncio loop
    steps: bool = False
    measured: bool = True
    gpu_busy: bool | None = None
    every_s: float = 1.0

    def __post_init__(self) -> None:
        self._beat_at = self._loop_at = self.host.now
        self._sums = Evidence(0.0)
        self._mark = 0

    def passes(self, seconds: float) -> list[Action]:
        """Let time pass with looks; return what the core wanted done."""
        wanted: list[Action] = []
        end = self.host.now + seconds
        while self.host.now < end:
            wanted += self.host.passes(self.every_s)
            wanted += self.look()
        return wanted

    def look(self) -> list[Action]:
        """Look once."""
        sums, span = self._sums, self.every_s
        self._mark += self.steps
        self._beat_at = self.host.now if self.beats else self._beat_at
        self._loop_at = self.host.now if self.turns else self._loop_at
        self._sums = msgspec.structs.replace(
            sums,
            job_cpu_s=sums.job_cpu_s + self.job_cpu * span,
            cpu_s=sums.cpu_s + (self.cpu + self.job_cpu) * span,
            io_bytes=sums.io_bytes + int(self.io * span),
        )
        look = msgspec.structs.replace(
            self._sums if self.measured else Evidence(0.0, measured=False),
            at=self.host.now,
            state=self.state if self.measured else "",
            wchan=self.wchan if self.measured else "",
            beat_at=self._beat_at,
            loop_at=self._loop_at,
            page_mark=self._mark,
            gpu_busy=self.gpu_busy,
        )
        return self.host.happens(Watched([(self.child, look)]))

    @property
    def child(self) -> Child:
        return self.host.child()


def running(**seen: object) -> Seen:
    """A child at a job that has just begun."""
    host = Host()
    host.started()
    return Seen(host, **seen)  # type: ignore[arg-type]


def notes(actions: list[Action]) -> list[str]:
    return [action.message for action in actions if isinstance(action, Note)]


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.promise(7)
@pytest.mark.parametrize(
    ("signs", "hang"),
    [
        ({"wchan": "futex_do_wait"}, Hang.PYTHON_STUCK),
        ({"wchan": "anon_pipe_read"}, Hang.NATIVE_WAIT),
        ({"wchan": "hrtimer_nanosleep"}, Hang.NATIVE_WAIT),
        ({"wchan": ""}, Hang.NATIVE_WAIT),
        ({"state": "R", "wchan": "", "job_cpu": 0.9}, Hang.SPIN_NO_PROGRESS),
        ({"cpu": 0.9}, Hang.SPIN_NO_PROGRESS),
        ({"gpu_busy": True}, Hang.SPIN_NO_PROGRESS),
        ({"io": 100_000}, Hang.LOADING_SLOW),
        ({"measured": False}, Hang.UNMEASURABLE),
    ],
)
def test_a_job_that_does_not_get_on_for_30_s_is_named_by_what_it_is_at(signs: dict[str, object], hang: Hang) -> None:
    seen = running(**signs)
    seen.passes(29)
    assert seen.child.hang is None
    seen.passes(2)
    assert seen.child.hang is hang


@pytest.mark.promise(7)
@pytest.mark.parametrize(
    ("signs", "hang"),
    [
        ({"beats": False}, Hang.GIL_HELD),
        ({"beats": False, "state": "R", "job_cpu": 1.0}, Hang.GIL_HELD),
        ({"state": "T", "beats": False}, Hang.STOPPED),
        ({"state": "D", "beats": False}, Hang.KERNEL_D),
    ],
)
def test_what_stops_the_whole_child_is_named_3_s_after_its_last_beat(signs: dict[str, object], hang: Hang) -> None:
    seen = running(**signs, every_s=0.25)
    seen.passes(3)
    assert seen.child.hang is hang


def test_reading_from_a_disk_is_no_hang_in_the_kernel() -> None:
    seen = running(state="D", io=1 << 20)
    seen.passes(20)
    assert seen.child.hang is None


def test_a_child_that_does_nothing_hangs_only_when_it_cannot_do_anything() -> None:
    seen = Seen(Host())
    seen.passes(200)
    assert seen.child.hang is None
    seen.beats = False
    seen.passes(4)
    assert seen.child.hang is Hang.GIL_HELD


def test_jobs_that_wait_on_the_loop_do_not_hang_by_waiting() -> None:
    host = Host(function(shape="async", lane="loop"))
    job = host.started()
    seen = Seen(host)
    seen.passes(500)
    assert seen.child.hang is None
    assert host.unanswered(job)


@pytest.mark.promise(7)
def test_a_job_that_keeps_the_loop_from_turning_hangs_and_is_ended_when_nothing_moves() -> None:
    host = Host(function(shape="async", lane="loop"))
    job = host.started()
    seen = Seen(host, turns=False)
    seen.passes(31)
    assert seen.child.hang is Hang.PYTHON_STUCK
    assert signals(seen.passes(97))[:2] == [signal.SIGUSR2, signal.SIGTERM]
    host.dies(seen.child)
    assert host.answer(job).detail is not None


def test_of_several_jobs_on_a_loop_that_does_not_turn_none_is_ended_as_the_guilty_one() -> None:
    host = Host(function(shape="async", lane="loop"))
    jobs = [host.started(), host.started()]
    seen = Seen(host, turns=False)
    told = notes(seen.passes(500))
    assert "one of 2 requests on the asyncio loop" in told[0]
    assert all(map(host.unanswered, jobs))


def test_every_way_to_hang_is_told_in_words() -> None:
    assert set(HANGS) == set(Hang)


def test_a_hang_is_told_when_it_begins_and_when_it_passes_by_itself() -> None:
    seen = running()
    told = notes(seen.passes(40))
    assert len(told) == 1
    assert "request r1 of `f`: python_stuck, nothing new for 30 s: its code waits for a lock" in told[0]
    seen.steps = True
    told = notes(seen.passes(10))
    assert [text for text in told if "goes on: it was python_stuck for" in text] == told
    assert len(told) == 1


def test_a_hang_that_changes_its_kind_is_told_once() -> None:
    seen = running()
    told = notes(seen.passes(35))
    seen.job_cpu = 1.0
    told += notes(seen.passes(5))
    assert seen.child.hang is Hang.SPIN_NO_PROGRESS
    assert len(told) == 1


def test_the_status_of_a_hung_child_names_the_hang_of_the_job_that_holds_it_and_of_no_other() -> None:
    host = Host(function("f"), function("g", shape="async", lane="loop"))
    job, beside = host.started("f"), host.started("g")
    seen = Seen(host)
    assert state_of(host.fleet.devices[0]) == "busy"
    seen.passes(31)
    assert state_of(host.fleet.devices[0]) == "hung"
    assert (hang_told(host.fleet, job), hang_told(host.fleet, beside)) == ("python_stuck", None)
    seen.beats = False
    seen.passes(4)
    assert (hang_told(host.fleet, job), hang_told(host.fleet, beside)) == ("gil_held", "gil_held")


def test_what_is_only_slow_is_not_shown_as_hung() -> None:
    seen = running(io=1 << 20)
    seen.passes(40)
    assert seen.child.hang is Hang.LOADING_SLOW
    assert state_of(seen.host.fleet.devices[0]) == "busy"


# --- what is learnt ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("get_on", ["event", "item", "page"])
def test_progress_of_any_kind_puts_off_the_naming(get_on: str) -> None:
    host = Host()
    job = host.started(stream=get_on == "item")
    seen = Seen(host)
    for _ in range(5):
        seen.passes(20)
        if get_on == "event":
            host.reports(held_by(job), Event(job.number, "log", b"{}"))
        elif get_on == "item":
            host.item(job)
            job.unread = 0
        else:
            seen.steps = True
            seen.passes(1)
            seen.steps = False
    assert seen.child.hang is None
    seen.passes(90)
    assert seen.child.hang is Hang.PYTHON_STUCK


def test_a_function_that_recovers_from_long_silences_is_given_three_times_the_longest() -> None:
    host = Host()
    seen = Seen(host, job_cpu=0.5)
    job = host.started()
    seen.passes(50)
    host.done(job, run_s=50)
    assert stall_limit_s(host.fleet, host.fleet.functions["f"]) == pytest.approx(150, abs=1)
    host.started()
    seen.passes(149)
    assert seen.child.hang is None
    seen.passes(3)
    assert seen.child.hang is Hang.SPIN_NO_PROGRESS


def test_a_silence_that_nobody_recovered_from_teaches_nothing() -> None:
    host = Host()
    seen = Seen(host, job_cpu=0.5)
    job = host.started()
    seen.passes(100)
    host.ends(job, at_once=True)
    host.dies(seen.child)
    assert stall_limit_s(host.fleet, host.fleet.functions["f"]) == 30


def test_a_short_stall_timeout_shortens_the_naming_too() -> None:
    host = Host()
    host.fleet.stall_timeout_s = 8.0
    assert stall_limit_s(host.fleet, host.fleet.functions["f"]) == 2.0
    host.fleet.stall_timeout_s = 0.0
    assert stall_limit_s(host.fleet, host.fleet.functions["f"]) == 30.0


# --- what is ended ----------------------------------------------------------------------------------------------------


@pytest.mark.promise(7)
def test_a_job_whose_child_does_not_move_for_120_s_is_ended_by_the_ladder_and_may_be_asked_again() -> None:
    seen = running()
    (job,) = seen.child.leased.values()
    assert signals(seen.passes(119)) == []
    assert signals(seen.passes(9)) == [signal.SIGUSR2, signal.SIGTERM, signal.SIGKILL]
    assert seen.child.doom == "hang"
    seen.host.dies(seen.child)
    outcome = seen.host.answer(job)
    assert (outcome.kind, outcome.state, outcome.retryable) == ("retryable", "retryable", True)
    assert outcome.detail is not None
    assert (outcome.detail.cause, outcome.detail.hang, outcome.detail.rung) == ("hang", "python_stuck", 5)


@pytest.mark.promise(7)
@pytest.mark.parametrize(
    "signs",
    [
        {"state": "R", "job_cpu": 0.9},
        {"job_cpu": 0.00001},
        {"cpu": 0.01},
        {"io": 2000},
        {"gpu_busy": True},
        {"measured": False},
        {"steps": True},
        {"beats": False, "state": "R", "job_cpu": 1.0},
    ],
    ids=str,
)
def test_nothing_is_ended_while_anything_of_it_moves_or_cannot_be_measured(signs: dict[str, object]) -> None:
    seen = running(**signs)
    (job,) = seen.child.leased.values()
    assert signals(seen.passes(1000)) == []
    assert seen.host.unanswered(job)


def test_a_gpu_of_which_nobody_knows_whether_it_computes_is_waited_for() -> None:
    host = Host(function(gpu=True), devices=[Device("cuda:0", "cuda", 0)])
    host.started()
    seen = Seen(host)
    assert signals(seen.passes(300)) == []
    seen.gpu_busy = False
    assert signals(seen.passes(130))[:1] == [signal.SIGUSR2]


@pytest.mark.parametrize("waits", ["for its reader", "for its file"])
def test_a_job_that_is_held_up_by_somebody_else_does_not_hang(waits: str) -> None:
    host = Host()
    job = host.started(stream=True)
    seen = Seen(host)
    if waits == "for its reader":
        host.item(job)
    else:
        job.saving += 1
    assert signals(seen.passes(300)) == []
    assert seen.child.hang is None
    job.unread, job.saving, job.moved_at = 0, 0, host.now
    assert signals(seen.passes(119)) == []
    assert signals(seen.passes(8))[:1] == [signal.SIGUSR2]


def test_what_a_resting_child_does_beside_its_job_is_no_life() -> None:
    seen = running(cpu=0.002, io=200)
    assert signals(seen.passes(140))[:2] == [signal.SIGUSR2, signal.SIGTERM]


def test_a_stall_timeout_of_0_ends_nothing() -> None:
    seen = running()
    seen.host.fleet.stall_timeout_s = 0.0
    assert signals(seen.passes(1000)) == []


def test_time_in_which_nobody_looked_does_not_count() -> None:
    seen = running()
    seen.passes(60)
    seen.host.passes(600)  # the whole host was stopped, and the children with it
    seen.look()
    assert signals(seen.passes(110)) == []
    assert signals(seen.passes(20))[:1] == [signal.SIGUSR2]


def test_a_payload_whose_jobs_hang_twice_is_quarantined_and_a_success_clears_it() -> None:
    host = Host()
    for _ in range(2):
        seen = Seen(host)
        job = host.started(body=b"{1}")
        seen.passes(130)
        host.dies(seen.child)
        host.passes(3)
        host.boot()
        assert host.answer(job).kind == "retryable"
    third = host.submit(body=b"{1}")
    assert host.answer(third).kind == "quarantined"
    assert "it hung (python_stuck)" in host.answer(third).message
    assert host.unanswered(host.submit(body=b"{2}"))


def test_a_job_that_ends_well_when_it_is_asked_to_end_for_its_silence_is_not_charged() -> None:
    seen = running()
    (job,) = seen.child.leased.values()
    seen.passes(121)
    assert job.ending is not None
    seen.host.done(job)
    assert seen.host.answer(job).kind is None
    assert not seen.host.fleet.blame.suspects("f", seen.host.now)


def test_a_set_up_in_which_nothing_moves_is_ended_and_counts_as_a_failed_load() -> None:
    host = Host(function(instance="m:C"))
    job = host.submit()
    for tries in (1, 2, 3):
        seen = Seen(host)
        assert host.child().loading == "m:C"
        assert signals(seen.passes(119)) == []
        assert signals(seen.passes(4)) == [signal.SIGUSR2, signal.SIGTERM, signal.SIGKILL]
        assert seen.child.doom == "hang"
        host.dies(seen.child)
        assert host.fleet.instance("m:C").failures == tries
        host.boot()
    assert host.answer(job).kind == "unavailable"
    assert job.deaths == 0


def test_a_set_up_that_hangs_while_the_supervisor_goes_is_no_failure_of_it() -> None:
    host = Host(function(instance="m:C"), eager=True)
    seen = Seen(host)
    seen.passes(121)
    assert seen.child.doom == "hang"
    host.drains()
    host.dies(seen.child)
    assert finishes(host.actions) == [0]


def test_a_set_up_that_reads_its_model_is_held_however_slow_it_is() -> None:
    host = Host(function(instance="m:C"))
    host.submit()
    seen = Seen(host, io=50_000)
    seen.passes(40)
    assert seen.child.hang is Hang.LOADING_SLOW
    assert signals(seen.passes(1000)) == []


def test_bytes_that_are_loaded_put_off_the_naming() -> None:
    host = Host(function(instance="m:C"))
    host.submit()
    seen = Seen(host)
    for mebibytes in range(10):
        seen.passes(20)
        host.reports(seen.child, Loading("m:C", mebibytes << 20, 10 << 20))
    assert seen.child.hang is None


def test_a_loaded_class_that_took_its_time_is_given_three_times_that() -> None:
    host = Host(function(instance="m:C"))
    host.submit()
    host.loaded(host.child(), 50.0)
    assert host.fleet.instance("m:C").load_s == 50.0
    child = host.child()
    host.dies(child)
    host.boot()
    host.submit()
    seen = Seen(host, cpu=0.5)
    seen.passes(100)
    assert seen.child.loading == "m:C"
    assert seen.child.hang is None


@pytest.mark.parametrize("greeted", [False, True])
def test_an_import_in_which_nothing_moves_is_ended_and_the_third_gives_the_device_up(greeted: bool) -> None:
    host = Host(up=False)
    for _ in range(3):
        child = host.child()
        host.happens(Spawned(child, 100))
        if greeted:
            host.reports(child, Hello(100))
        seen = Seen(host, beats=False)
        assert signals(seen.passes(119)) == []
        assert signals(seen.passes(5)) == [signal.SIGUSR2, signal.SIGTERM, signal.SIGKILL]
        host.dies(child)
    assert host.fleet.devices[0].given_up is not None
    assert "hang" in host.fleet.devices[0].given_up


def test_a_job_that_begins_while_its_child_was_quiet_has_the_whole_time() -> None:
    host = Host()
    seen = Seen(host)
    seen.passes(300)
    job = host.started()
    assert signals(seen.passes(100)) == []
    assert host.unanswered(job)


def test_a_child_on_its_way_out_is_left_to_the_ladder() -> None:
    seen = running()
    (job,) = seen.child.leased.values()
    seen.host.ends(job, at_once=True)
    assert seen.child.phase is Phase.SUSPECT
    told = notes(seen.passes(60))
    assert seen.child.hang is None
    assert [text for text in told if "hang" in text] == []


def test_a_look_at_a_child_that_has_not_begun_its_job_changes_nothing_of_it() -> None:
    host = Host()
    job = host.submit()
    seen = Seen(host, steps=True)
    seen.passes(3)
    assert job.started is None
    host.happens(Reported(seen.child, Started(job.number)))
    assert job.moved_at == job.started == host.now


SIGNS = st.fixed_dictionaries(
    {
        "state": st.sampled_from("RSDT"),
        "wchan": st.sampled_from(["", "futex_do_wait", "anon_pipe_read"]),
        "job_cpu": st.sampled_from([0.0, 1e-6, 1.0]),
        "cpu": st.sampled_from([0.0, 0.002, 1.0]),
        "io": st.sampled_from([0, 200, 1 << 20]),
        "beats": st.booleans(),
        "turns": st.booleans(),
        "steps": st.booleans(),
        "measured": st.booleans(),
        "gpu_busy": st.sampled_from([None, False, True]),
        "every_s": st.sampled_from([0.25, 1.0, 20.0]),
    }
)
DEEDS = st.sampled_from(["nothing", "submit", "start", "item", "done", "fail", "kill", "die"])


@settings(max_examples=50)
@given(st.lists(st.tuples(SIGNS, DEEDS, st.integers(1, 12)), max_size=8))
def test_whatever_is_seen_each_job_has_one_answer_and_only_a_ladder_ends_a_child(
    story: list[tuple[dict[str, object], str, int]],
) -> None:
    host = Host()
    host.fleet.stall_timeout_s = 20.0
    seen = Seen(host)
    for signs, deed, looks in story:
        for name, value in signs.items():
            setattr(seen, name, value)
        if seen.child.phase is Phase.FORKING:
            host.boot()
        _do(host, seen, deed)
        wanted = seen.passes(looks * seen.every_s)
        assert (
            signals(wanted) == []
            or seen.child.doom
            or seen.child.ending
            or any(job.ending for job in seen.child.leased.values())
        )
        assert seen.child.hang is None or seen.child.hang in HANGS
    assert all(len(answers) == 1 for answers in host.answers.values())


def _do(host: Host, seen: Seen, deed: str) -> None:
    child = seen.child
    begun = [job for job in child.leased.values() if job.started is not None and not job.ended]
    match deed:
        case "submit":
            host.submit(body=str(host.now).encode())
        case "start":
            host.starts(*[job for job in child.leased.values() if job.started is None and not job.ended])
        case "item" if begun:
            host.item(begun[0])
        case "done" if begun:
            host.done(begun[0])
        case "fail" if begun:
            host.fails(begun[0])
        case "kill" if begun:
            host.ends(begun[0])
        case "die" if child.phase is not Phase.BACKOFF:
            host.dies(child)
